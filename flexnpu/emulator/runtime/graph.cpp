#include "flexnpu/emulator/runtime/graph.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <optional>

namespace flexnpu::emulator {

namespace {

const char* type_name(TaskKind kind, const CopyWork& copy) {
    switch (kind) {
        case TaskKind::Kernel: return "KERNEL";
        case TaskKind::Copy: return copy.source != nullptr ? "MEMCPY_ASYNC" : "MEMSET_ASYNC";
        case TaskKind::EventRecord: return "EVENT_RECORD";
        case TaskKind::EventWait: return "EVENT_WAIT";
        case TaskKind::EventReset: return "EVENT_RESET";
        case TaskKind::HostFunction: return "HOST_FUNC";
        case TaskKind::Callback: return "CALLBACK";
        case TaskKind::ValueWrite: return "MEM_WRITE_VALUE";
        case TaskKind::ValueWait: return "MEM_WAIT_VALUE";
        default: return "TASK";
    }
}

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* text, ...) {
    char line[512];
    va_list args;
    va_start(args, text);
    std::vsnprintf(line, sizeof(line), text, args);
    va_end(args);
    return line;
}

std::string task_name(const GraphNode& node, const HeldKernel* kernel) {
    const Task& task = node.task;
    switch (task.kind) {
        case TaskKind::Kernel: return kernel->kernel.name;
        case TaskKind::EventRecord:
        case TaskKind::EventWait:
        case TaskKind::EventReset: return format("%s_%u", type_name(task.kind, task.copy), task.event->id);
        case TaskKind::ValueWrite:
        case TaskKind::ValueWait: return format("%s_%p", type_name(task.kind, task.copy), task.argument);
        default: return type_name(task.kind, task.copy);
    }
}

std::string list(const std::vector<uint32_t>& numbers) {
    std::string text;
    for (uint32_t number : numbers) {
        text += (text.empty() ? "" : ", ") + std::to_string(number);
    }
    return text;
}

// What an operator asks of the chip, or a copy moves.
std::string parameters(const GraphNode& node, const HeldKernel* kernel) {
    if (kernel != nullptr) {
        const KernelCost& cost = kernel->kernel.cost;
        return format(", \"Cube Ops\": %.17g, \"Vector Ops\": %.17g, \"Bytes\": %.17g", cost.cube_flops,
                      cost.vector_flops, cost.bytes);
    }
    if (node.task.kind == TaskKind::Copy) {
        return format(", \"Bytes\": %" PRIu64, node.task.copy.bytes());
    }
    return {};
}

}  // namespace

void Graph::seal() {
    // One thread runs a replay: were two branches to meet other ranks in the order of their times, each rank
    // might wait in another meeting. In the order of the capture all do the same.
    std::optional<uint32_t> meeting;
    for (uint32_t i = 0; i < nodes.size(); ++i) {
        if (nodes[i].held == nullptr || nodes[i].held->kernel.meet == nullptr) {
            continue;
        }
        auto& after = nodes[i].after;
        if (meeting && std::find(after.begin(), after.end(), *meeting) == after.end()) {
            after.push_back(*meeting);
        }
        meeting = i;
    }
    next.assign(nodes.size(), {});
    for (uint32_t i = 0; i < nodes.size(); ++i) {
        for (uint32_t before : nodes[i].after) {
            next[before].push_back(i);
        }
    }
    sealed_ = true;
}

std::shared_ptr<HeldKernel> Graph::kernel(uint32_t node) const {
    std::lock_guard lock(mutex_);
    return nodes[node].held;
}

void Graph::exchange(uint32_t node, std::shared_ptr<HeldKernel> kernel) {
    std::lock_guard lock(mutex_);
    nodes[node].held.swap(kernel);
}

std::string Graph::name() const {
    std::lock_guard lock(mutex_);
    return name_;
}

void Graph::set_name(std::string name) {
    std::lock_guard lock(mutex_);
    name_ = std::move(name);
}

bool Graph::is_turn(uint64_t ticket) const {
    std::lock_guard lock(mutex_);
    return finished_ + 1 >= ticket;
}

void Graph::finish(uint64_t ticket, uint64_t device_ns) {
    {
        std::lock_guard lock(mutex_);
        finished_more_.insert(ticket);
        while (!finished_more_.empty() && *finished_more_.begin() == finished_ + 1) {
            finished_more_.erase(finished_more_.begin());
            ++finished_;
        }
        device_ns_ = std::max(device_ns_, device_ns);
    }
    waiters.wake_all();
}

uint64_t Graph::device_ns() const {
    std::lock_guard lock(mutex_);
    return device_ns_;
}

void Graph::abort() {
    abort_until_.store(tickets_.load());
    waiters.wake_all();
}

void TaskUpdate::apply() const {
    for (size_t i = 0; i < kernels.size(); ++i) {
        graph->exchange(group->nodes[i], kernels[i]);
    }
}

std::string describe(const Graph& graph) {
    std::string text = format("graph %u, device %d, %zu tasks", graph.id, graph.device, graph.nodes.size());
    if (std::string name = graph.name(); !name.empty()) {
        text += ", " + name;
    }
    text += "\n";
    for (uint32_t i = 0; i < graph.nodes.size(); ++i) {
        const GraphNode& node = graph.nodes[i];
        auto kernel = graph.kernel(i);
        text += format("  task %u, stream %d, %s, %s", i, node.stream,
                       type_name(node.task.kind, node.task.copy), task_name(node, kernel.get()).c_str());
        if (node.group != 0) {
            text += format(", group %u", node.group);
        }
        text += node.after.empty() ? "\n" : ", after " + list(node.after) + "\n";
    }
    return text;
}

// Times only place the tasks: one microsecond each, a task after those that it depends on.
std::string describe_json(const Graph& graph, bool verbose) {
    std::vector<uint32_t> depth(graph.nodes.size(), 0);
    std::string text = "[";
    for (uint32_t i = 0; i < graph.nodes.size(); ++i) {
        const GraphNode& node = graph.nodes[i];
        for (uint32_t before : node.after) {
            depth[i] = std::max(depth[i], depth[before] + 1);
        }
        auto kernel = graph.kernel(i);
        text += format(
            "%s\n{\"name\": \"%s\", \"ph\": \"X\", \"pid\": \"model%u\", \"tid\": \"stream%d\", \"ts\": %u, "
            "\"dur\": 1, ",
            i == 0 ? "" : ",", task_name(node, kernel.get()).c_str(), graph.id, node.stream, depth[i]);
        text += format(
            "\"args\": {\"Model Id\": %u, \"Stream Id\": %d, \"Task Id\": %u, \"Task Type\": \"%s\", \"Task "
            "Group\": %u, ",
            graph.id, node.stream, i, type_name(node.task.kind, node.task.copy), node.group);
        text += "\"Depends On\": [" + list(node.after) + "]";
        if (verbose) {
            text += parameters(node, kernel.get());
        }
        text += "}}";
    }
    return text + "\n]\n";
}

// Never destroyed: streams may still wait when the process ends.
WakeList& value_waiters() {
    static auto* waiters = new WakeList;
    return *waiters;
}

}  // namespace flexnpu::emulator

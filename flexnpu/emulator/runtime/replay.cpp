// Running a graph. The stream's worker takes the tasks one at a time, always the one that the device could
// begin first, so branches overlap in the device's time (each on its engine) although one thread computes
// them, and a branch that waits for a word of memory or an external event does not hold up the others.
#include "flexnpu/emulator/runtime/replay.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "flexnpu/emulator/runtime/errors.hpp"
#include "flexnpu/emulator/runtime/graph.hpp"

namespace flexnpu::emulator {

void abandon(Replay& replay, uint64_t device_ns) {
    for (size_t i = 0; i < replay.records.size(); ++i) {
        replay.graph->recorded[i]->complete(replay.records[i], device_ns);
    }
    replay.graph->finish(replay.ticket, 0);
}

class Stream::ReplayRun {
public:
    ReplayRun(Stream& stream, Task& task) : stream_(stream), task_(task), graph_(*task.replay->graph) {
        graph_.waiters.add(&stream_);
    }

    ~ReplayRun() {
        graph_.waiters.remove(&stream_);
        if (watches_values_) {
            value_waiters().remove(&stream_);
        }
        for (Event* event : watched_) {
            event->remove_waiter(&stream_);
        }
    }

    void run() {
        stream_.wait_until(task_.number, std::nullopt,
                           [&] { return graph_.is_turn(task_.replay->ticket) || stopped(); });
        if (stopped()) {
            cut_short_ = true;
        } else {
            uint64_t start = std::max({stream_.device_ns_, task_.submit_ns, graph_.device_ns()});
            end_ = start + stream_.model_.profile.replay_ns();
            run_nodes(end_);
            stream_.device_ns_ = end_;
            stream_.follow_clock(task_.number);
        }
        finish();
    }

private:
    using Entry = std::pair<uint64_t, uint32_t>;  // device time at which a node may begin, and the node

    bool stopped() const { return stream_.skipping(task_) || graph_.aborted(task_.replay->ticket); }

    void run_nodes(uint64_t start) {
        const size_t count = graph_.nodes.size();
        ready_.assign(count, start);
        missing_.resize(count);
        for (uint32_t i = 0; i < count; ++i) {
            missing_[i] = uint32_t(graph_.nodes[i].after.size());
            if (missing_[i] == 0) {
                runnable_.emplace(start, i);
            }
        }
        for (size_t done = 0; done < count;) {
            if (stopped()) {
                cut_short_ = true;
                return;
            }
            unblock();
            if (runnable_.empty()) {
                wait_for_blocked();
                continue;
            }
            auto [ready, index] = runnable_.top();
            runnable_.pop();
            if (!may_begin(graph_.nodes[index])) {
                watch(graph_.nodes[index]);
                blocked_.push_back(index);
                continue;
            }
            const Task& task = graph_.nodes[index].task;
            stream_.device_ns_ = ready;
            if (task.kind == TaskKind::EventWait) {
                stream_.device_ns_ = std::max(ready, task.event->timestamp(kExternalRecord).value_or(0));
            }
            stream_.follow_clock(task_.number);
            if (stopped()) {
                cut_short_ = true;
                return;
            }
            run_node(index);
            ++done;
            uint64_t end = stream_.device_ns_;
            end_ = std::max(end_, end);
            for (uint32_t after : graph_.next[index]) {
                ready_[after] = std::max(ready_[after], end);
                if (--missing_[after] == 0) {
                    runnable_.emplace(ready_[after], after);
                }
            }
        }
    }

    bool may_begin(const GraphNode& node) const {
        switch (node.task.kind) {
            case TaskKind::EventWait: return node.task.event->is_complete(kExternalRecord);
            case TaskKind::ValueWait: return stream_.value_there(node.task);
            default: return true;
        }
    }

    // From now on the stream is woken when the node may have become able to begin.
    void watch(const GraphNode& node) {
        if (node.task.kind == TaskKind::EventWait) {
            Event* event = node.task.event.get();
            if (std::find(watched_.begin(), watched_.end(), event) == watched_.end()) {
                event->add_waiter(&stream_);
                watched_.push_back(event);
            }
        } else if (!watches_values_) {
            value_waiters().add(&stream_);
            watches_values_ = true;
        }
    }

    void unblock() {
        std::erase_if(blocked_, [&](uint32_t index) {
            const GraphNode& node = graph_.nodes[index];
            if (!may_begin(node)) {
                return false;
            }
            // A word has no time of its own: it was written by now at the latest.
            uint64_t at = node.task.kind == TaskKind::ValueWait ? now_ns() : 0;
            runnable_.emplace(std::max(ready_[index], at), index);
            pause_ = kShortestPause;
            return true;
        });
    }

    void wait_for_blocked() {
        std::optional<uint64_t> deadline;
        // Kernels and programs may write a word without telling.
        if (std::any_of(blocked_.begin(), blocked_.end(),
                        [&](uint32_t i) { return graph_.nodes[i].task.kind == TaskKind::ValueWait; })) {
            deadline = now_ns() + pause_;
            pause_ = std::min(pause_ * 2, kLongestPause);
        }
        stream_.wait_until(task_.number, deadline, [&] {
            return stopped() || std::any_of(blocked_.begin(), blocked_.end(),
                                            [&](uint32_t i) { return may_begin(graph_.nodes[i]); });
        });
    }

    // Begins at stream_.device_ns_ and leaves its end there.
    void run_node(uint32_t index) {
        GraphNode& node = graph_.nodes[index];
        Task& task = node.task;
        switch (task.kind) {
            case TaskKind::Kernel: {
                auto held = graph_.kernel(index);  // kept while it runs, whatever an update does meanwhile
                stream_.execute(held->kernel, stream_.device_ns_, stream_.model_.profile.graph_static_share,
                                task_.number);
                break;
            }
            case TaskKind::Copy: stream_.copy(task.copy, task.engine, stream_.device_ns_); break;
            case TaskKind::EventRecord:
                task.event->complete(task_.replay->records[node.record], stream_.device_ns_);
                done_records_.push_back(node.record);
                break;
            case TaskKind::EventReset: task.event->reset(kExternalRecord); break;
            case TaskKind::HostFunction:
                task.function(task.argument);
                stream_.device_ns_ = std::max(stream_.device_ns_, now_ns());
                break;
            case TaskKind::Callback: {
                Task call = task;
                call.number = task_.number;
                stream_.run_callback(call, node.reports);
                break;
            }
            case TaskKind::ValueWrite: stream_.write_value(task); break;
            default: break;  // waits are over when they get here
        }
    }

    void finish() {
        Replay& replay = *task_.replay;
        if (cut_short_ && graph_.aborted(replay.ticket)) {
            stream_.set_error(acl::RT_STREAM_ABORT,
                              "the replay of graph " + std::to_string(graph_.id) + " was aborted");
        }
        if (done_records_.size() < replay.records.size()) {
            uint64_t now = std::max(stream_.device_ns_, task_.submit_ns);
            for (uint32_t i = 0; i < replay.records.size(); ++i) {
                if (std::find(done_records_.begin(), done_records_.end(), i) == done_records_.end()) {
                    graph_.recorded[i]->complete(replay.records[i], now);
                }
            }
        }
        graph_.finish(replay.ticket, end_);
    }

    static constexpr uint64_t kShortestPause = 20'000;
    static constexpr uint64_t kLongestPause = 1'000'000;

    Stream& stream_;
    Task& task_;
    Graph& graph_;
    uint64_t end_ = 0;  // device time of the last end
    std::vector<uint64_t> ready_;
    std::vector<uint32_t> missing_;  // of each node, how many that it comes after have not ended
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> runnable_;
    std::vector<uint32_t> blocked_;
    std::vector<Event*> watched_;
    std::vector<uint32_t> done_records_;
    bool watches_values_ = false;
    bool cut_short_ = false;
    uint64_t pause_ = kShortestPause;
};

void Stream::run_replay(Task& task) { ReplayRun(*this, task).run(); }

}  // namespace flexnpu::emulator

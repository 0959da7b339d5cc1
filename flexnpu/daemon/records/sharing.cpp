#include "flexnpu/daemon/records/sharing.hpp"

#include <charconv>
#include <cstring>

namespace flexnpu::daemon {

namespace {

std::string hex16(uint64_t v) {
    char text[24];
    snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(v));
    return text;
}

constexpr size_t kMaxIpcEvents = 1 << 14;
constexpr size_t kMaxIpcEventsPerSession = 1 << 11;

Failure refusal(const char* function, Exports::Answer answer, int32_t process) {
    switch (answer) {
        case Exports::Answer::own:
            return {acl::RT_PARAM_INVALID, std::string(function) + ": the memory is this process's own"};
        case Exports::Answer::not_allowed:
            return {acl::RT_PARAM_INVALID, std::string(function) + ": the exporter has not allowed process " +
                                               std::to_string(process)};
        default:
            return {acl::RT_PARAM_INVALID,
                    std::string(function) + ": no such key, or its owner has freed the memory or has ended"};
    }
}

}  // namespace

void SharingRecords::share(Session& s, Payload p, const Reply& reply) {
    wire::Share w;
    if (p.size() != sizeof(w) || (std::memcpy(&w, p.data(), sizeof(w)), w.count > wire::Share::kProcesses)) {
        return malformed(s, reply, "call for shared memory");
    }
    const std::string key(w.key, strnlen(w.key, sizeof(w.key)));
    const std::vector<int32_t> processes(w.processes, w.processes + w.count);
    const bool any = (w.flags & acl::EXPORT_ANY_PID) != 0;
    auto answer_key = [reply](const std::string& made, const char* function) {
        if (made.empty())
            return reply.fail(
                {acl::RT_INTERNAL, std::string(function) + ": this process has exported too much already"});
        uint64_t words[Exports::kKeyBytes / 8] = {};
        std::memcpy(words, made.data(), made.size());
        reply.send(0, "", words, std::size(words));
    };
    switch (w.call) {
        case wire::Share::export_memory: {
            const auto range = s.memory.find(w.address);
            if (!range || range->kind != MemoryMap::Kind::own || w.bytes == 0 ||
                w.bytes > range->bytes - (w.address - range->address)) {
                return refuse(
                    s, reply, acl::RT_PARAM_INVALID,
                    "aclrtIpcMemGetExportKey: the memory was not allocated by this process with aclrtMalloc");
            }
            return answer_key(
                exports_.add(
                    {Exports::Kind::memory, s.id, range->held->allocation(), w.address, w.bytes, any, {}}),
                "aclrtIpcMemGetExportKey");
        }
        case wire::Share::allow_memory:
            if (exports_.allow(s.id, Exports::Kind::memory, key, processes)) return reply.ok();
            return refuse(s, reply, acl::RT_PARAM_INVALID,
                          "aclrtIpcMemSetImportPid: the key is not of an export of this process");
        case wire::Share::import_memory: {
            if (auto at = s.imports.find(key); at != s.imports.end()) {
                at->second.times++;
                return reply.ok(at->second.address, at->second.bytes);
            }
            Exports::Export e;
            std::shared_ptr<Allocation> allocation;
            if (auto answer = exports_.look_up(s.id, s.pid, Exports::Kind::memory, key, &e, &allocation);
                answer != Exports::Answer::granted) {
                Failure f = refusal("aclrtIpcMemImportByKey", answer, s.pid);
                return refuse(s, reply, f.code, f.message);
            }
            if (s.memory.overlaps(e.address, e.bytes)) {
                return refuse(
                    s, reply, acl::RT_PARAM_INVALID,
                    "aclrtIpcMemImportByKey: this process has imported the memory by another key already");
            }
            // What it inherited from owners that are gone counts: else a quota could be got round by dying.
            if (s.account->quota() && s.account->used() > s.account->quota()) {
                failures_.count_quota();
                return refuse(s, reply, acl::RT_MEMORY_ALLOCATION,
                              over_quota("aclrtIpcMemImportByKey", *s.account, e.bytes));
            }
            s.memory.add({e.address, e.bytes, MemoryMap::Kind::imported,
                          std::make_shared<Held>(std::move(allocation), s.account, false)});
            s.imports[key] = {e.address, e.bytes, 1};
            return reply.ok(e.address, e.bytes);
        }
        case wire::Share::close_memory: {
            auto at = s.imports.find(key);
            if (at == s.imports.end()) {
                if (exports_.remove(s.id, key)) return reply.ok(0);
                return refuse(s, reply, acl::RT_PARAM_INVALID,
                              "aclrtIpcMemClose: the key is of no export or import of this process");
            }
            if (--at->second.times > 0) return reply.ok(0);
            auto range = s.memory.take(at->second.address, MemoryMap::Kind::imported);
            s.imports.erase(at);
            if (!range) return reply.ok(0);
            releases_.when_unused(s, reply, std::move(*range),
                                  [&s, reply](bool over, MemoryMap::Range range) {
                                      const uint64_t address = range.address;
                                      if (!over) {
                                          std::lock_guard lock(s.leaving_mutex);
                                          s.leaving.push_back(std::move(range));
                                          return reply.ok(address);
                                      }
                                      range.held.reset();
                                      reply.ok(address);
                                  });
            return;
        }
        case wire::Share::export_physical:
            return worker_of(*reply.ring).post([this, &s, w, any, reply] {
                std::lock_guard lock(s.virtual_memory.mutex);
                Held* held = s.virtual_memory.physical.find(w.handle);
                if (!held)
                    return reply.fail(
                        {acl::RT_INVALID_HANDLE,
                         "aclrtMemExportToShareableHandle: not physical memory of this process"});
                const std::string made = exports_.add(
                    {Exports::Kind::physical, s.id, held->allocation(), 0, held->bytes(), any, {}});
                if (made.empty())
                    return reply.fail(
                        {acl::RT_INTERNAL,
                         "aclrtMemExportToShareableHandle: this process has exported too much already"});
                uint64_t number = 0;
                std::from_chars(made.data(), made.data() + made.size(), number, 16);
                reply.ok(number);
            });
        case wire::Share::allow_physical:
            if (exports_.allow(s.id, Exports::Kind::physical, hex16(w.handle), processes)) return reply.ok();
            return refuse(s, reply, acl::RT_PARAM_INVALID,
                          "aclrtMemSetPidToShareableHandle: the handle is not of an export of this process");
        case wire::Share::export_event:
        case wire::Share::open_event: return share_event(s, w, key, reply);
        case wire::Share::import_physical: {
            Exports::Export e;
            std::shared_ptr<Allocation> allocation;
            if (auto answer =
                    exports_.look_up(s.id, s.pid, Exports::Kind::physical, hex16(w.handle), &e, &allocation);
                answer != Exports::Answer::granted) {
                Failure f = refusal("aclrtMemImportFromShareableHandle", answer, s.pid);
                return refuse(s, reply, f.code, f.message);
            }
            if (s.account->quota() && s.account->used() > s.account->quota()) {
                failures_.count_quota();
                return refuse(s, reply, acl::RT_MEMORY_ALLOCATION,
                              over_quota("aclrtMemImportFromShareableHandle", *s.account, e.bytes));
            }
            return worker_of(*reply.ring).post([&s, allocation, reply] {
                auto held = std::make_shared<Held>(allocation, s.account, false);
                std::lock_guard lock(s.virtual_memory.mutex);
                const uint64_t handle = s.virtual_memory.physical.add(std::move(held));
                if (handle)
                    reply.ok(handle);
                else
                    reply.fail({acl::RT_INTERNAL, "aclrtMemImportFromShareableHandle: too many handles"});
            });
        }
    }
    malformed(s, reply, "call for shared memory");
}

// An opened event is the exporter's own object under a handle of the opener: a record by either is seen by
// both.
void SharingRecords::share_event(Session& s, const wire::Share& w, const std::string& key,
                                 const Reply& reply) {
    if (w.call == wire::Share::export_event) {
        const std::shared_ptr<Event> event = s.events.share(w.handle);
        if (!event || !event->ipc) {
            return refuse(s, reply, event ? acl::RT_PARAM_INVALID : acl::RT_INVALID_HANDLE,
                          "aclrtIpcGetEventHandle: not an event that was created with the IPC flag");
        }
        std::string& made = event->ipc_key;
        if (made.empty()) {
            if (ipc_events_.size() >= kMaxIpcEvents)
                std::erase_if(ipc_events_, [](const auto& e) { return e.second.expired(); });
            if (s.ipc_events.size() >= kMaxIpcEventsPerSession || ipc_events_.size() >= kMaxIpcEvents)
                return refuse(s, reply, acl::RT_INTERNAL,
                              "aclrtIpcGetEventHandle: " + std::to_string(kMaxIpcEventsPerSession) +
                                  " events of a program, and " + std::to_string(kMaxIpcEvents) +
                                  " of all, can be shared with others");
            made = Exports::random_key();
            ipc_events_[made] = event;
            s.ipc_events.insert(w.handle);
        }
        uint64_t words[Exports::kKeyBytes / 8] = {};
        std::memcpy(words, made.data(), made.size());
        return reply.send(0, "", words, std::size(words));
    }
    auto at = ipc_events_.find(key);
    std::shared_ptr<Event> event = at == ipc_events_.end() ? nullptr : at->second.lock();
    if (!event)
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      "aclrtIpcOpenEventHandle: no such event, or its owner has destroyed it or has ended");
    if (!s.events.add_at(w.handle, std::move(event)))
        return refuse(s, reply, acl::RT_INVALID_HANDLE, "aclrtIpcOpenEventHandle: the handle is not free");
    s.ipc_events.insert(w.handle);
    reply.ok();
}

}  // namespace flexnpu::daemon

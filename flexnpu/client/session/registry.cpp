// The process's sessions, one a device: opened by the first call that names the device, ended by the reset of
// the device, forgotten by a child of fork().
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <condition_variable>

#include "acl.gen.h"
#include "flexnpu/api/guest.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/client/session/threads.hpp"

namespace flexnpu::client {

namespace {

std::atomic<Session*> sessions[wire::kMaxDevices];
std::mutex sessions_mutex;
// Host memory outlives the device that it was allocated for.
Ranges<HostRegion>& orphans = *new Ranges<HostRegion>;
// Sessions that no thread uses any more. The last few stay mapped: a thread may still be inside a call on the
// old session when another call of it takes the new one.
constexpr size_t kKeptMapped = 2;
std::mutex ended_mutex;
// See hold_over_fork().
std::vector<std::mutex*>& quick_mutexes() {
    static auto* all = new std::vector<std::mutex*>;
    return *all;
}
std::vector<Session*>& ended = *new std::vector<Session*>;

// The value of ASCEND_RT_VISIBLE_DEVICES when the first session was opened, as CANN reads it; nullptr before.
struct Visible {
    std::string value;
    bool set;
};
std::atomic<const Visible*> visible_then{nullptr};

Visible visible_now() {
    if (const Visible* then = visible_then.load(std::memory_order_acquire)) return *then;
    const char* value = getenv("ASCEND_RT_VISIBLE_DEVICES");
    return {value ? value : "", value != nullptr};
}

// From the first session on the program's numbers of devices stay what they are.
void fix_visible() {
    if (visible_then.load(std::memory_order_acquire)) return;
    auto* now = new Visible(visible_now());
    const Visible* none = nullptr;
    if (!visible_then.compare_exchange_strong(none, now)) delete now;
}

// Of the devices that it was given, those that a program wants to see.
std::vector<std::string> seen_of(std::vector<std::string> paths) {
    const Visible visible = visible_now();
    if (!visible.set || paths.empty()) return paths;
    std::vector<std::string> seen;
    for (const int32_t i : guest::visible_devices(visible.value.c_str(), int32_t(paths.size())))
        seen.push_back(std::move(paths[size_t(i)]));
    if (seen.empty()) {
        fail(acl::RT_INVALID_DEVICE,
             "ASCEND_RT_VISIBLE_DEVICES is '%s': the program sees none of its %zu devices, 0 to %zu",
             visible.value.c_str(), paths.size(), paths.size() - 1);
    }
    return seen;
}

// Read anew for every session: a program may set them before its first call, and a child before its own.
std::vector<std::string> socket_paths() {
    std::vector<std::string> paths;
    const char* several = getenv("FLEXNPU_SOCKETS");
    if (several && *several) {
        std::string path;
        for (const char* p = several;; p++) {
            if (*p && *p != ',') {
                path += *p;
                continue;
            }
            paths.push_back(std::exchange(path, {}));
            if (!*p) break;
        }
    } else if (const char* one = getenv("FLEXNPU_SOCKET"); one && *one) {
        paths.emplace_back(one);
    }
    if (paths.empty()) {
        fail(acl::RT_INTERNAL,
             "FlexNPU: FLEXNPU_SOCKET is not set; start the program with `flexnpu run -- COMMAND`");
    } else if (paths.size() > wire::kMaxDevices) {
        fail(acl::RT_INTERNAL, "FlexNPU: FLEXNPU_SOCKETS names %zu sockets; a program can use %d devices",
             paths.size(), wire::kMaxDevices);
        paths.clear();
    }
    return seen_of(std::move(paths));
}

int32_t no_device(const char* what) {
    return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device; call aclrtSetDevice first", what);
}

}  // namespace

int Session::count() { return int(socket_paths().size()); }

Session* Session::opened(int device) {
    return device >= 0 && device < wire::kMaxDevices ? sessions[device].load(std::memory_order_acquire)
                                                     : nullptr;
}

// The first thread that names a device opens its session, without a lock; others wait for what comes of it.
struct Opening {
    Session* session;  // until it is over
    bool over = false, opened = false;
    int32_t error = 0;
    std::string message;
};

namespace {

std::shared_ptr<Opening> openings[wire::kMaxDevices];  // under sessions_mutex
std::condition_variable* opening_over = new std::condition_variable;

}  // namespace

Session* Session::of(int device) {
    if (Session* s = opened(device)) return s;
    const NoCancel whole;
    const std::vector<std::string> paths = socket_paths();
    if (paths.empty()) return nullptr;
    if (device < 0 || size_t(device) >= paths.size()) {
        fail(acl::RT_INVALID_DEVICE, "device %d does not exist: FlexNPU serves %zu here", device,
             paths.size());
        return nullptr;
    }
    std::unique_lock lock(sessions_mutex);
    if (Session* s = opened(device)) return s;
    if (const std::shared_ptr<Opening> theirs = openings[device]) {
        opening_over->wait(lock, [&] { return theirs->over; });
        if (!theirs->opened) fail_text(theirs->error, theirs->message.c_str());
        return theirs->opened ? opened(device) : nullptr;
    }
    const auto mine = openings[device] = std::make_shared<Opening>();
    Session* s = mine->session = new Session(device);
    lock.unlock();
    const bool ok = s->connect(paths[size_t(device)]);
    lock.lock();
    openings[device] = nullptr;
    mine->over = true;
    mine->opened = ok;
    if (ok) {
        fix_visible();
        sessions[device].store(s, std::memory_order_release);
    } else {
        mine->error = last_error();
        mine->message = last_message();
        s->abandon();
        delete s;
    }
    opening_over->notify_all();
    return ok ? s : nullptr;
}

Session* Session::get() {
    if (Channel* c = this_channel) return &c->session();
    const int device = current();
    if (device < 0) {
        no_device("FlexNPU");
        return nullptr;
    }
    return of(device);
}

Session* Session::any() {
    if (const int device = current(); device >= 0) return of(device);
    for (auto& slot : sessions) {
        if (Session* s = slot.load(std::memory_order_acquire)) return s;
    }
    return of(0);
}

bool Session::free_orphan(uint64_t address) {
    HostRegion region;
    if (!orphans.remove(address, &region)) return false;
    if (region.file >= 0) ::close(region.file);
    return munmap(reinterpret_cast<void*>(region.address), region.bytes) == 0;
}

void Session::close(int device) {
    std::lock_guard lock(sessions_mutex);
    Session* s = sessions[device].exchange(nullptr);
    if (!s) return;
    s->connection_.close();  // who waits for an answer gives up
    // Never deleted: other threads may be in the midst of a call. What it takes most of is given back now,
    // the mappings when they have left.
    madvise(s->staging_, wire::kBlocks * wire::kBlockBytes, MADV_REMOVE);
    for (const HostRegion& r : s->host.take_all()) orphans.add(r);
    wire::futex_wake(s->page_->host_given);  // HostCalls::receive
    this_channel = nullptr;
    if (this_thread && this_thread->channel(s)) {
        this_thread->channels[device] = nullptr;
        s->leave();
    }
    s->leave();
}

void Session::leave() {
    {
        std::lock_guard lock(channel_mutex_);
        if (--uses_ > 0) return;
    }
    ::close(std::exchange(doorbell_, -1));
    Session* oldest = nullptr;
    {
        std::lock_guard lock(ended_mutex);
        ended.push_back(this);
        if (ended.size() > kKeptMapped) {
            oldest = ended.front();
            ended.erase(ended.begin());
        }
    }
    if (oldest) oldest->unmap();
}

// A child of fork() must not speak on its parent's rings: it forgets the sessions, and connects anew when it
// calls ACL. Installed when the library is loaded, so that no fork can fall into the middle of it.
void Session::watch_forks() {
    files_mutex();  // made before anybody can fork
    pthread_key_create(&thread_key, &Thread::end);
    pthread_atfork(&Session::before_fork, &Session::after_fork_in_parent, &Session::after_fork_in_child);
}

void hold_over_fork(std::mutex& mutex) { quick_mutexes().push_back(&mutex); }

void Session::tell_last_steps() {
    for (auto& slot : sessions) {
        if (Session* s = slot.load(std::memory_order_acquire)) s->steps.leave();
    }
}

void Session::before_fork() {
    sessions_mutex.lock();
    ended_mutex.lock();
    files_mutex().lock();
    for (std::mutex* m : quick_mutexes()) m->lock();
    std::vector<Ranges<HostRegion>*> memory{&orphans};
    for (auto& slot : sessions) {
        if (Session* s = slot.load()) memory.push_back(&s->host);
    }
    keep_host_memory(memory);
}

void Session::after_fork_in_parent() {
    release_host_memory();
    for (std::mutex* m : quick_mutexes()) m->unlock();
    files_mutex().unlock();
    ended_mutex.unlock();
    sessions_mutex.unlock();
}

void Session::after_fork_in_child() {
    take_host_memory();
    orphans.take_all();
    ended.clear();  // they are not mapped here
    for (auto& opening : openings) {
        if (opening) opening->session->abandon();
        opening.reset();
    }
    visible_then = nullptr;
    opening_over = new std::condition_variable;  // who waited for the old one is not here
    for (std::mutex* m : quick_mutexes()) m->unlock();
    files_mutex().unlock();
    ended_mutex.unlock();
    sessions_mutex.unlock();
    this_channel = nullptr;
    if (this_thread) *this_thread = Thread{};
    for (auto& slot : sessions) {
        if (Session* s = slot.exchange(nullptr))
            s->abandon();  // not deleted: its locks may be held by threads that are gone
    }
    Steps::forget(&flexnpu_step_waiting);
    forget_contexts();
}

}  // namespace flexnpu::client

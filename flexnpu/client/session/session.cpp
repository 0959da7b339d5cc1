#include "flexnpu/client/session/session.hpp"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <condition_variable>

#include "acl.gen.h"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/meta.hpp"
#include "fn_ids.gen.h"

namespace flexnpu::client {

namespace {

std::atomic<Session*> sessions[wire::kMaxDevices];
std::mutex sessions_mutex;
// Host memory outlives the device that it was allocated for.
Ranges<HostRegion>& orphans = *new Ranges<HostRegion>;
// Sessions that nobody uses any more. The last few stay mapped: a call may have been amid another when its
// thread went over to a new session.
constexpr size_t kKeptMapped = 2;
std::mutex ended_mutex;
// See hold_over_fork().
std::vector<std::mutex*>& quick_mutexes() {
    static auto* all = new std::vector<std::mutex*>;
    return *all;
}
std::vector<Session*>& ended = *new std::vector<Session*>;

}  // namespace

// The calling thread's device, and its rings by device.
struct Thread {
    int device = -1;
    Channel* channels[wire::kMaxDevices] = {};

    static Thread& get();
    static void end(void* thread);
    // Its ring of a session that is still the device's.
    Channel* channel(const Session* s) const {
        Channel* c = channels[s->device()];
        return c && &c->session() == s ? c : nullptr;
    }
};

namespace {

// All that the hot path reads: the ring of the thread's device.
__attribute__((tls_model("initial-exec"))) thread_local Channel* this_channel = nullptr;
__attribute__((tls_model("initial-exec"))) thread_local Thread* this_thread = nullptr;
// Not a thread_local with a destructor: others' destructors may still call us, and a key's runs after all of
// those, and again if need be.
pthread_key_t thread_key;

}  // namespace

Thread& Thread::get() {
    if (!this_thread) {
        this_thread = new Thread;
        pthread_setspecific(thread_key, this_thread);
    }
    return *this_thread;
}

// A thread has ended: its rings serve the next new threads.
void Thread::end(void* thread) {
    auto* t = static_cast<Thread*>(thread);
    for (int d = 0; d < wire::kMaxDevices; d++) {
        Channel* c = t->channels[d];
        if (!c) continue;
        Session& s = c->session();
        // A thread that was killed amid a question leaves its answer to come: nobody else may read that.
        if (&s == Session::opened(d) && !c->asking()) s.give_channel(c);
        s.leave();
    }
    delete t;
    this_thread = nullptr;
    this_channel = nullptr;
}

// ---- session ----

namespace {

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
    return paths;
}

// Whether `file` has at least `bytes` bytes and keeps them: a mapping beyond a file's end would kill who
// touches it. Else errno says so.
bool holds(const File& file, size_t bytes) {
    struct stat status{};
    const int seals = fcntl(file.get(), F_GET_SEALS);
    if (fstat(file.get(), &status) == 0 && uint64_t(status.st_size) >= bytes && seals >= 0 &&
        (seals & F_SEAL_SHRINK))
        return true;
    errno = EBADMSG;
    return false;
}

void* map_shared(const File& file, size_t bytes) {
    if (!holds(file, bytes)) return MAP_FAILED;
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
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

int Session::current() { return this_thread ? this_thread->device : -1; }

void Session::use(int device) {
    Thread& t = Thread::get();
    t.device = device;
    Session* s = opened(device);
    this_channel = s ? t.channel(s) : nullptr;
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

bool Session::join() {
    std::lock_guard lock(channel_mutex_);
    if (uses_ == 0) return false;
    uses_++;
    return true;
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

void Session::unmap() {
    for (Channel* c : all_) delete c;
    all_.clear();
    idle_.clear();
    munmap(page_, wire::kSessionBytes);
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

void Session::abandon() {
    connection_.abandon();
    if (const int bell = std::exchange(doorbell_, -1); bell >= 0) ::close(bell);
    // Mappings are left out of the child by MADV_DONTFORK.
}

bool Session::connect(const std::string& path) {
    wire::Request request{};
    request.ask = wire::Ask::hello;
    request.table_hash = api::kTableHash;
    if (const char* quota = getenv("FLEXNPU_QUOTA"); quota && *quota) {
        char* end = nullptr;
        request.bytes = strtoull(quota, &end, 10);
        if (*end || request.bytes == 0) {
            fail(acl::RT_INTERNAL,
                 "FlexNPU: FLEXNPU_QUOTA is '%s': it must be a number of bytes; use flexnpu run --quota",
                 quota);
            return false;
        }
    }
    request.region = uint32_t(device_);
    Received got;
    if (!connection_.open(path, request, &got)) return false;
    doorbell_ = got.files[1].release();
    void* area = map_shared(got.files[0], wire::kSessionBytes);
    got.drop();
    if (area == MAP_FAILED) {
        fail(acl::RT_INTERNAL, "FlexNPU: cannot map the session's memory: %s", strerror(errno));
        return false;
    }
    madvise(area, wire::kSessionBytes, MADV_DONTFORK);
    page_ = static_cast<wire::SessionPage*>(area);
    staging_ = static_cast<uint8_t*>(area) + wire::kSessionPageBytes;
    steps.publish_to(&page_->launches, page_->gated_ns, wire::kGatedLanes);
    std::memcpy(soc_, got.answer.soc, sizeof(soc_) - 1);
    return true;
}

void Session::ring_bell(wire::Doze from) {
    auto& doze = page_->doze;
    if (doze.load(std::memory_order_seq_cst) <= from) return;
    if (doze.exchange(wire::kAwake, std::memory_order_acq_rel) == wire::kAwake)
        return;  // another thread was first
    const uint64_t one = 1;
    // Not write(): that is a point of cancellation, and asynchronous calls are none.
    syscall(SYS_write, doorbell_, &one, sizeof(one));
}

Channel* Session::channel() {
    if (Channel* c = this_channel; __builtin_expect(c != nullptr, 1)) return c;
    Session* s = get();
    return s ? s->mine() : nullptr;
}

Channel* Session::any_channel() {
    Session* s = any();
    return s ? s->mine() : nullptr;
}

Channel* Session::mine() {
    if (Channel* c = this_channel; c && &c->session() == this) return c;
    Thread& t = Thread::get();
    Channel* c = t.channel(this);
    if (!c) {
        c = take_channel();
        if (!c) return nullptr;
        Channel* before = std::exchange(t.channels[device_], c);
        if (before) before->session().leave();
    }
    if (t.device == device_) this_channel = c;
    return c;
}

Channel* Session::take_channel() {
    {
        std::lock_guard lock(channel_mutex_);
        if (uses_ > 0 && !idle_.empty()) {
            Channel* c = idle_.back();
            idle_.pop_back();
            uses_++;
            return c;
        }
    }
    wire::Request request{};
    request.ask = wire::Ask::new_ring;
    Received got;
    if (!connection_.ask(request, 1, &got)) return nullptr;
    wire::RingMap map;
    const bool ok = holds(got.files[0], wire::kRingFileBytes) && map.open(got.files[0].get());
    const int error = errno;
    got.drop();
    if (!ok) {
        connection_.give_back(got.answer);
        fail(acl::RT_INTERNAL, "FlexNPU: cannot map a ring: %s", strerror(error));
        return nullptr;
    }
    madvise(map.base(), wire::kRingHeaderBytes + 2 * wire::kRingBytes, MADV_DONTFORK);
    auto* c = new Channel(*this, std::move(map));
    std::unique_lock lock(channel_mutex_);
    if (uses_ == 0) {
        lock.unlock();
        delete c;
        gone();
        return nullptr;
    }
    uses_++;
    all_.push_back(c);
    return c;
}

void Session::give_channel(Channel* channel) {
    std::lock_guard lock(channel_mutex_);
    idle_.push_back(channel);
}

bool Session::map_host(size_t bytes, HostRegion* out) {
    const NoCancel whole;
    wire::Request request{};
    request.ask = wire::Ask::host_memory;
    request.bytes = bytes;
    Received got;
    if (!connection_.ask(request, 1, &got)) return false;
    void* area = map_shared(got.files[0], bytes);
    if (area == MAP_FAILED) {
        const int error = errno;
        got.drop();
        connection_.give_back(got.answer);
        fail(acl::RT_MEMORY_ALLOCATION, "FlexNPU: cannot map %zu bytes of host memory: %s", bytes,
             strerror(error));
        return false;
    }
    *out = {reinterpret_cast<uint64_t>(area), bytes, got.answer.number,
            bytes < kMappedInChild ? -1 : got.files[0].release()};
    host.add(*out);
    return true;
}

bool Session::unmap_host(const HostRegion& region) {
    const NoCancel whole;
    wire::Request request{};
    request.ask = wire::Ask::free_host_memory;
    request.region = region.region;
    Received got;
    const bool ok = connection_.ask(request, 0, &got);
    got.drop();
    if (region.file >= 0) ::close(region.file);
    munmap(reinterpret_cast<void*>(region.address), region.bytes);
    return ok;
}

}  // namespace flexnpu::client

#include "flexnpu/client/session.hpp"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>

#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/fork.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/meta.hpp"
#include "fn_ids.gen.h"

namespace flexnpu::client {

using wire::Kind;

namespace {

std::atomic<Session*> sessions[wire::kMaxDevices];
std::mutex sessions_mutex;
// Host memory outlives the device that it was allocated for.
Ranges<HostRegion>& orphans = *new Ranges<HostRegion>;
// Sessions that nobody uses any more. The last few stay mapped: a call may have been amid another when its
// thread went over to a new session.
constexpr size_t kKeptMapped = 2;
std::mutex ended_mutex;
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
        if (&s == Session::opened(d)) s.give_channel(c);
        s.leave();
    }
    delete t;
    this_thread = nullptr;
    this_channel = nullptr;
}

// ---- channel ----

int32_t Channel::gone() { return session_.gone(); }

uint8_t* Channel::open(size_t payload) {
    const size_t size = sizeof(wire::Record) + payload;
    uint8_t* p = producer_.reserve(size);
    if (__builtin_expect(p == nullptr, 0)) {
        session_.page().ring_full.fetch_add(1, std::memory_order_relaxed);
        const uint64_t start = wire::now_ns();
        uint64_t looked = start;
        while (!(p = producer_.reserve(size))) {
            session_.ring_bell(wire::kAwake);
            const uint64_t now = wire::now_ns();
            if (now - looked > kSliceNs) {
                if (!session_.alive()) return nullptr;
                looked = now;
            }
            // A full ring holds milliseconds of work: no need to be quick.
            const timespec pause{0, 20'000};
            nanosleep(&pause, nullptr);
        }
    }
    return p + sizeof(wire::Record);
}

void Channel::publish(size_t payload, Kind kind, uint32_t request) {
    const uint64_t sequence = session_.page().sequence.fetch_add(1, std::memory_order_relaxed);
    producer_.publish(sizeof(wire::Record) + payload, kind, request, sequence);
}

void Channel::close(size_t payload, Kind kind, bool soon) {
    publish(payload, kind, 0);
    session_.ring_bell(soon ? wire::kAwake : wire::kNapping);
}

int32_t Channel::call(Kind kind, const void* head, size_t head_bytes, const void* more, size_t more_bytes,
                      const void* rest, size_t rest_bytes) {
    const int32_t e = begin(kind, head, head_bytes, more, more_bytes, rest, rest_bytes);
    return e ? e : finish();
}

int32_t Channel::begin(Kind kind, const void* head, size_t head_bytes, const void* more, size_t more_bytes,
                       const void* rest, size_t rest_bytes) {
    const size_t payload = wire::round8(head_bytes + more_bytes + rest_bytes);
    if (sizeof(wire::Record) + payload > wire::kMaxRecord) {
        return fail(
            acl::INVALID_PARAM,
            "FlexNPU: a call with %zu bytes of arguments is larger than the %zu that fit in a message",
            payload, wire::kMaxRecord);
    }
    uint8_t* p = open(payload);
    if (!p) return gone();
    std::memcpy(p, head, head_bytes);
    if (more_bytes) std::memcpy(p + head_bytes, more, more_bytes);
    if (rest_bytes) std::memcpy(p + head_bytes + more_bytes, rest, rest_bytes);
    if (++request_ == 0) ++request_;
    habit_ = size_t(kind);
    if (kind == Kind::copy && static_cast<const wire::Copy*>(head)->bytes <= wire::kInlineBytes)
        habit_ = kSmallCopy;
    if (kind == Kind::sync_stream || kind == Kind::sync_device || kind == Kind::sync_event) {
        const uint64_t graph = session_.replayed.load(std::memory_order_relaxed);
        if (graph) {
            habit_ = kReplays + wire::handle_index(graph) % kReplayed;
            session_.replayed.store(0, std::memory_order_relaxed);
        }
    }
    publish(payload, kind, request_);
    session_.ring_bell(wire::kAwake);
    return 0;
}

int32_t Channel::finish() {
    const uint32_t request = request_;
    wire::RingHeader& slot = producer_.header();
    const uint64_t start = wire::now_ns();
    wire::Patience& patience = patience_[habit_];
    const wire::Patience::Plan plan = patience.plan(start);
    auto answered = [&] { return slot.reply.load(std::memory_order_acquire) == request; };
    // Sleeps until the answer or `until`. False: the daemon is gone.
    auto sleep = [&](uint64_t until) {
        slot.waiting.store(1, std::memory_order_seq_cst);
        for (uint64_t now = wire::now_ns(); now < until; now = wire::now_ns()) {
            const uint32_t seen = slot.reply.load(std::memory_order_seq_cst);
            if (seen == request) break;
            wire::futex_wait(slot.reply, seen, std::min(until - now, kSliceNs));
            // The daemon may have answered and died since.
            if (!answered() && wire::now_ns() < until && !session_.alive() && !answered()) {
                slot.waiting.store(0, std::memory_order_relaxed);
                return false;
            }
        }
        slot.waiting.store(0, std::memory_order_relaxed);
        return true;
    };
    if (plan.spin_from > start && !answered() && !sleep(plan.spin_from)) return gone();
    for (unsigned i = 0; !answered(); ++i) {
        wire::cpu_relax();
        if (i % 16 == 15 && wire::now_ns() > plan.spin_until) {
            if (!sleep(UINT64_MAX)) return gone();
            break;
        }
    }
    patience.learn(wire::now_ns() - start);
    if (slot.status != 0) {
        slot.message[wire::kMessageBytes - 1] = '\0';
        return fail_text(slot.status, slot.message);
    }
    return 0;
}

// ---- handles ----

void LiveHandles::add(uint64_t handle) {
    const uint32_t i = wire::handle_index(handle);
    auto& slot = chunks_[i / kChunk];
    if (!slot.load(std::memory_order_acquire)) {
        std::lock_guard lock(mutex_);
        if (!slot.load(std::memory_order_relaxed))
            slot.store(new std::atomic<uint64_t>[kChunk] {}, std::memory_order_release);
    }
    slot.load(std::memory_order_acquire)[i % kChunk].store(handle, std::memory_order_relaxed);
}

bool LiveHandles::remove(uint64_t handle) {
    if (!has(handle)) return false;
    const uint32_t i = wire::handle_index(handle);
    return chunks_[i / kChunk].load(std::memory_order_acquire)[i % kChunk].compare_exchange_strong(handle, 0);
}

uint64_t EventNumbers::take() {
    std::lock_guard lock(mutex_);
    if (!free_.empty()) {
        const uint64_t old = free_.back();
        free_.pop_back();
        return wire::make_handle(wire::HandleKind::event, wire::handle_index(old), uint32_t(old >> 20) + 1) |
               tag_;
    }
    return next_ < wire::kMaxObjects ? wire::make_handle(wire::HandleKind::event, next_++, 1) | tag_ : 0;
}

void EventNumbers::give_back(uint64_t handle) {
    std::lock_guard lock(mutex_);
    free_.push_back(handle);
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

int32_t no_device(const char* what) {
    return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device; call aclrtSetDevice first", what);
}

}  // namespace

int Session::count() { return int(socket_paths().size()); }

Session* Session::opened(int device) {
    return device >= 0 && device < wire::kMaxDevices ? sessions[device].load(std::memory_order_acquire)
                                                     : nullptr;
}

Session* Session::of(int device) {
    if (Session* s = opened(device)) return s;
    std::lock_guard lock(sessions_mutex);
    if (Session* s = opened(device)) return s;
    const std::vector<std::string> paths = socket_paths();
    if (paths.empty()) return nullptr;
    if (device < 0 || size_t(device) >= paths.size()) {
        fail(acl::RT_INVALID_DEVICE, "device %d does not exist: FlexNPU serves %zu here", device,
             paths.size());
        return nullptr;
    }
    auto* s = new Session(device);
    if (!s->connect(paths[size_t(device)])) {
        s->abandon();
        delete s;
        return nullptr;
    }
    sessions[device].store(s, std::memory_order_release);
    return s;
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
    s->dead_.store(true);
    shutdown(s->socket_, SHUT_RDWR);  // who waits for an answer gives up
    {
        std::lock_guard socket_lock(s->socket_mutex_);
        ::close(std::exchange(s->socket_, -1));
    }
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
    pthread_key_create(&thread_key, &Thread::end);
    pthread_atfork(&Session::before_fork, &Session::after_fork_in_parent, &Session::after_fork_in_child);
}

void Session::tell_last_steps() {
    for (auto& slot : sessions) {
        if (Session* s = slot.load(std::memory_order_acquire)) s->steps.leave();
    }
}

void Session::before_fork() {
    sessions_mutex.lock();
    ended_mutex.lock();
    std::vector<Ranges<HostRegion>*> memory{&orphans};
    for (auto& slot : sessions) {
        if (Session* s = slot.load()) memory.push_back(&s->host);
    }
    keep_host_memory(memory);
}

void Session::after_fork_in_parent() {
    release_host_memory();
    ended_mutex.unlock();
    sessions_mutex.unlock();
}

void Session::after_fork_in_child() {
    take_host_memory();
    orphans.take_all();
    ended.clear();  // they are not mapped here
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
    if (socket_ >= 0) ::close(socket_);
    if (doorbell_ >= 0) ::close(doorbell_);
    socket_ = doorbell_ = -1;
    // Mappings are left out of the child by MADV_DONTFORK.
}

bool Session::connect(const std::string& path) {
    path_ = path;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path_.size() >= sizeof(address.sun_path)) {
        fail(acl::RT_INTERNAL, "FlexNPU: the socket path %s is longer than %zu characters", path_.c_str(),
             sizeof(address.sun_path) - 1);
        return false;
    }
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    socket_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (socket_ < 0 || ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
        fail(acl::RT_INTERNAL, "FlexNPU: no daemon answers at %s (%s); start one with `flexnpud`",
             path_.c_str(), strerror(errno));
        return false;
    }
    const timeval timeout{10, 0};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));

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
    wire::Answer answer;
    int fds[2] = {-1, -1};
    if (!ask(request, &answer, fds, 2)) return false;
    doorbell_ = fds[1];
    void* area = mmap(nullptr, wire::kSessionBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    ::close(fds[0]);
    if (area == MAP_FAILED) {
        fail(acl::RT_INTERNAL, "FlexNPU: cannot map the session's memory: %s", strerror(errno));
        return false;
    }
    madvise(area, wire::kSessionBytes, MADV_DONTFORK);
    page_ = static_cast<wire::SessionPage*>(area);
    staging_ = static_cast<uint8_t*>(area) + wire::kSessionPageBytes;
    steps.publish_to(&page_->launches, page_->gated_ns, wire::kGatedLanes);
    std::memcpy(soc_, answer.soc, sizeof(soc_) - 1);
    return true;
}

// One request and its answer. Takes `want_fds` file descriptors, or fails.
bool Session::ask(const wire::Request& request, wire::Answer* answer, int* fds, size_t want_fds) {
    std::lock_guard lock(socket_mutex_);
    wire::Request message = request;
    message.magic = wire::kMagic;
    message.version = wire::kVersion;
    iovec io{answer, sizeof(*answer)};
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
    msghdr header{};
    header.msg_iov = &io;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    if (socket_ < 0) {
        gone();
        return false;
    }
    ssize_t n;
    do {
        n = send(socket_, &message, sizeof(message), MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    // A daemon that turns us away says why before it has heard us, and hangs up: then sending fails, or
    // receiving does once.
    for (int tries = 0; n == sizeof(message) || (tries == 0 && (errno == EPIPE || errno == ECONNRESET));
         tries++) {
        n = recvmsg(socket_, &header, MSG_CMSG_CLOEXEC);
        if (n >= 0 || tries == 16 || (errno != EINTR && errno != ECONNRESET)) break;
        n = sizeof(message);
    }
    if (n != sizeof(*answer)) {
        dead_.store(true);
        fail(acl::RT_INTERNAL, "FlexNPU: the daemon at %s does not answer; see its log", path_.c_str());
        return false;
    }
    size_t got = 0;
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (got < want_fds)
                fds[got++] = fd;
            else
                ::close(fd);
        }
    }
    answer->message[sizeof(answer->message) - 1] = '\0';
    int32_t status = answer->magic == wire::kMagic ? answer->status : int32_t(acl::RT_INTERNAL);
    const char* text = answer->magic == wire::kMagic
                           ? answer->message
                           : "FlexNPU: what answers is not a daemon of this version";
    if (status == 0 && got != want_fds) {
        status = acl::RT_INTERNAL;
        text = "FlexNPU: the daemon's answer lacks its file descriptors (too many open files?)";
    }
    if (status != 0) {
        for (size_t i = 0; i < got; i++) ::close(fds[i]);
        fail_text(status, text);
        return false;
    }
    return true;
}

bool Session::alive() {
    if (dead_.load(std::memory_order_relaxed)) return false;
    pollfd p{socket_, 0, 0};
    if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL))) {
        dead_.store(true);
        return false;
    }
    return true;
}

void Session::ring_bell(wire::Doze from) {
    auto& doze = page_->doze;
    if (doze.load(std::memory_order_seq_cst) <= from) return;
    if (doze.exchange(wire::kAwake, std::memory_order_acq_rel) == wire::kAwake)
        return;  // another thread was first
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(doorbell_, &one, sizeof(one));
}

int32_t Session::gone() {
    // One that was stopped has said so, unasked; one that was killed has not.
    wire::Answer last{};
    if (socket_mutex_.try_lock()) {
        const ssize_t n = socket_ < 0 ? 0 : recv(socket_, &last, sizeof(last), MSG_DONTWAIT);
        socket_mutex_.unlock();
        if (n == sizeof(last) && last.magic == wire::kMagic && last.status != 0) {
            stopped_.store(true);
        }
    }
    if (stopped_.load())
        return fail(acl::RT_INTERNAL,
                    "FlexNPU: the daemon at %s was stopped; start it, then this program again",
                    path_.c_str());
    return fail(acl::RT_INTERNAL, "FlexNPU: the daemon at %s is gone; restart it, then this program",
                path_.c_str());
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
    if (!alive()) {
        gone();
        return nullptr;
    }
    wire::Request request{};
    request.ask = wire::Ask::new_ring;
    wire::Answer answer;
    int fd = -1;
    if (!ask(request, &answer, &fd, 1)) return nullptr;
    wire::RingMap map;
    const bool ok = map.open(fd);
    ::close(fd);
    if (!ok) {
        fail(acl::RT_INTERNAL, "FlexNPU: cannot map a ring: %s", strerror(errno));
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

void Session::add_late(uint64_t number, uint64_t stream,
                       std::vector<std::shared_ptr<api::LateDims>> outputs) {
    std::lock_guard lock(late_mutex_);
    late_.push_back({number, stream, std::move(outputs)});
    any_late_.store(true, std::memory_order_relaxed);
}

void Session::settle(Channel& channel, uint64_t stream, bool all) {
    if (!any_late_.load(std::memory_order_relaxed)) return;
    std::vector<Late> mine;
    {
        std::lock_guard lock(late_mutex_);
        std::erase_if(late_, [&](Late& l) {
            const bool take = all || l.stream == stream;
            if (take) mine.push_back(std::move(l));
            return take;
        });
        any_late_.store(!late_.empty(), std::memory_order_relaxed);
    }
    for (const Late& l : mine) {
        // An output that its owner has destroyed meanwhile needs no shape.
        if (std::none_of(l.outputs.begin(), l.outputs.end(), [](const auto& o) { return o.use_count() > 1; }))
            continue;
        if (channel.call(Kind::late_dims, wire::LateDims{l.number}) != 0) continue;
        const uint64_t* word = channel.words();
        for (const auto& o : l.outputs) {
            const uint64_t n = *word++;
            if (n > wire::kMaxDims || word + n > channel.words() + wire::kReplyWords) break;
            o->dims.assign(reinterpret_cast<const int64_t*>(word), n);
            o->known.store(true, std::memory_order_release);
            word += n;
        }
    }
}

bool Session::take_block(Block* out, bool later) {
    const uint64_t start = wire::now_ns();
    uint64_t looked = start;
    for (;;) {
        {
            std::lock_guard lock(block_mutex_);
            for (uint32_t b = 0; b < wire::kBlocks; b++) {
                if (block_use_[b] == Use::later &&
                    page_->block_done[b].load(std::memory_order_acquire) == block_ticket_[b]) {
                    block_use_[b] = Use::idle;
                }
                if (block_use_[b] != Use::idle) continue;
                block_use_[b] = later ? Use::later : Use::held;
                if (++block_ticket_[b] == 0) ++block_ticket_[b];
                const uint64_t offset = uint64_t(b) * wire::kBlockBytes;
                *out = {b, block_ticket_[b], staging_ + offset, offset};
                return true;
            }
        }
        const uint64_t now = wire::now_ns();
        if (now - looked > kSliceNs) {
            if (!alive()) {
                gone();
                return false;
            }
            looked = now;
        }
        const timespec pause{0, 50'000};
        page_->block_waiters.fetch_add(1);
        nanosleep(&pause, nullptr);
        page_->block_waiters.fetch_sub(1);
    }
}

bool Session::wait_block(const Block& block) {
    auto& word = page_->block_done[block.index];
    // Tickets of a block grow: a later one says that it has come back since, and was lent anew.
    auto back = [&](uint32_t ticket) { return int32_t(ticket - block.ticket) >= 0; };
    const uint64_t spin_until = wire::now_ns() + kBlockSpinNs;
    while (!back(word.load(std::memory_order_acquire))) {
        wire::cpu_relax();
        if (wire::now_ns() < spin_until) continue;
        page_->block_waiters.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t seen = word.load(std::memory_order_seq_cst);
        if (!back(seen)) wire::futex_wait(word, seen, kSliceNs);
        page_->block_waiters.fetch_sub(1, std::memory_order_relaxed);
        if (!back(word.load(std::memory_order_acquire)) && !alive()) {
            gone();
            return false;
        }
    }
    return true;
}

void Session::give_block(const Block& block) {
    std::lock_guard lock(block_mutex_);
    block_use_[block.index] = Use::idle;
}

bool Session::map_host(size_t bytes, HostRegion* out) {
    wire::Request request{};
    request.ask = wire::Ask::host_memory;
    request.bytes = bytes;
    wire::Answer answer;
    int fd = -1;
    if (!ask(request, &answer, &fd, 1)) return false;
    void* area = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const int error = errno;
    if (area == MAP_FAILED || bytes < kMappedInChild) ::close(std::exchange(fd, -1));
    if (area == MAP_FAILED) {
        fail(acl::RT_MEMORY_ALLOCATION, "FlexNPU: cannot map %zu bytes of host memory: %s", bytes,
             strerror(error));
        return false;
    }
    *out = {reinterpret_cast<uint64_t>(area), bytes, answer.number, fd};
    host.add(*out);
    return true;
}

bool Session::unmap_host(const HostRegion& region) {
    wire::Request request{};
    request.ask = wire::Ask::free_host_memory;
    request.region = region.region;
    wire::Answer answer;
    const bool ok = alive() && ask(request, &answer, nullptr, 0);
    if (region.file >= 0) ::close(region.file);
    munmap(reinterpret_cast<void*>(region.address), region.bytes);
    return ok;
}

}  // namespace flexnpu::client

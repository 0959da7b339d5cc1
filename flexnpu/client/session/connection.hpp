// The socket between the client and a daemon: questions one after another, each with a number that its answer
// repeats.
//
// A wait for an answer ends with the answer or with the daemon, however long the daemon takes: one that is
// slow, stopped or starved is waited for, as a hung device would be. Only the wait for a new session is
// bounded (FLEXNPU_CONNECT_TIMEOUT).
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::client {

// A file descriptor and its end.
class File {
public:
    File() = default;
    explicit File(int fd) : fd_(fd) {}
    File(File&& other) noexcept : fd_(other.release()) {}
    File& operator=(File&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~File() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const { return fd_; }
    int release() { return std::exchange(fd_, -1); }

private:
    int fd_ = -1;
};

// While it lives, the calling thread cannot be cancelled: a cancelled thread would leave a question without
// anybody who reads its answer.
class NoCancel {
public:
    NoCancel() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
    ~NoCancel() { pthread_setcancelstate(before_, nullptr); }
    NoCancel(const NoCancel&) = delete;
    NoCancel& operator=(const NoCancel&) = delete;

private:
    int before_ = 0;
};

// Sleeps about `ns`, or until a signal; not a point of cancellation.
void nap(uint64_t ns);

// How long to nap, ns, for something that has not come for `waited` ns: the longer, the less often it is
// looked for.
constexpr uint64_t nap_after(uint64_t waited) {
    return waited < 32'000'000 ? 20'000 + waited / 16 : 2'000'000;
}

// Held from a descriptor's arrival until it is closed or stands where a child of fork() closes it; fork()
// takes it too.
std::mutex& files_mutex();

// An answer and the descriptors that it brought.
struct Received {
    static constexpr size_t kFiles = 2;
    std::unique_lock<std::mutex> no_fork;  // of files_mutex()
    wire::Answer answer{};
    size_t count = 0;
    File files[kFiles];
    // Closes what is left of the descriptors; then forks may go on.
    void drop() {
        for (File& f : files) f = File();
        count = 0;
        if (no_fork) no_fork.unlock();
    }
};

class Connection {
public:
    Connection() = default;
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // Connects to the data socket at `path` and asks for a session: `hello`, which is answered with two
    // descriptors. False with the error recorded.
    bool open(const std::string& path, const wire::Request& hello, Received* out);
    // Asks, and waits for the answer, which must bring `files` descriptors. False with the error recorded.
    bool ask(const wire::Request& request, size_t files, Received* out);
    // For an answer that cannot be used: the daemon releases what it brought. Not under files_mutex().
    void give_back(const wire::Answer& answer);

    // Looks at the socket. Once dead, a connection stays dead.
    bool alive();
    int32_t gone();  // records the error and returns it
    const std::string& path() const { return path_; }

    // Any thread. Who waits for an answer gives up.
    void close();
    // In a child of fork(): the parent's connection goes on.
    void abandon();

private:
    // When the wait for a session is over, and whether its length has been told.
    struct Bound {
        uint64_t began_ns, until_ns;
        bool told = false;
    };
    bool connect_to(Bound* bound);
    enum class Wait { ready, gone, late };
    Wait wait(short events, Bound* bound);
    void tell(Bound* bound) const;
    bool exchange(wire::Request request, size_t files, Received* out, Bound* bound);
    bool receive(Received* out);
    void release(const wire::Answer& answer);
    uint32_t next_question();
    // Of a connection that has ended: notes whether the daemon was stopped, which it says unasked.
    void read_last_words();
    bool lost();  // records why there is no answer, and returns false
    bool overdue(const Bound& bound) const;

    std::string path_;
    std::atomic<int> socket_{-1};
    std::atomic<bool> dead_{false}, stopped_{false};
    bool open_ = false;  // hello has been answered
    std::mutex mutex_;   // one question at a time
    uint32_t questions_ = 0;
};

}  // namespace flexnpu::client

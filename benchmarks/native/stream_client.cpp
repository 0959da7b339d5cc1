// A client of streamed HTTP requests that keeps its own clock, for benchmarks/wire_latency.
//
//   stream_client PORT CONNECTIONS REQUESTS FIRST_ID MARKER fifo|other    (the body comes on standard input)
//
// One thread and one epoll serve all connections; the clock is read just before a request's send and just
// after each recv, before anything is looked at. With `fifo` the thread asks for a real-time priority, so
// that on a busy machine it runs when its data are there: what it measures is then when they were there, not
// when a core became free. Each connection sends its next request as soon as the last response has ended.
// MARKER is what a chunk with content has in it.
//
// Prints "scheduling fifo|other", then a line a request, times in ns of CLOCK_MONOTONIC:
//   id  sent  first  last  end  contents  kernel_first  kernel_last
// kernel_*: the receive time that the kernel stamped on the data (SO_TIMESTAMPNS), free of this thread's
// wake-up; 0 if none.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "numbers.hpp"

using flexnpu::bench::number;

namespace {

int64_t clock_ns(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}
int64_t now() { return clock_ns(CLOCK_MONOTONIC); }

[[noreturn]] void die(const char* what) {
    perror(what);
    exit(1);
}

struct Row {
    long id;
    int64_t sent = 0, first = 0, last = 0, end = 0, kernel_first = 0, kernel_last = 0;
    int contents = 0;
};

struct Connection {
    int fd = -1;
    Row row{};
    std::string tail;  // of what was read, as long as a marker may straddle two reads
};

class Client {
public:
    Client(int port, std::string body, std::string marker, long first_id, long requests)
        : port_(port),
          body_(std::move(body)),
          marker_(std::move(marker)),
          next_(first_id),
          stop_(first_id + requests) {
        epoll_ = epoll_create1(EPOLL_CLOEXEC);
        if (epoll_ < 0) die("epoll_create1");
    }

    void run(int connections) {
        std::vector<Connection> all(size_t(connections), Connection{});
        for (Connection& c : all) connect(c);
        shift_ = clock_ns(CLOCK_REALTIME) - now();
        for (Connection& c : all) send(c);
        epoll_event ready[64];
        while (open_ > 0) {
            const int n = epoll_wait(epoll_, ready, 64, 30'000);
            if (n == 0) {
                fprintf(stderr, "stream_client: the server has been silent for 30 s\n");
                exit(1);
            }
            if (n < 0 && errno != EINTR) die("epoll_wait");
            for (int i = 0; i < n; i++) receive(*static_cast<Connection*>(ready[i].data.ptr));
        }
    }

    std::vector<Row> rows;

private:
    void connect(Connection& c) {
        c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(uint16_t(port_));
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int on = 1;
        if (c.fd < 0 || ::connect(c.fd, reinterpret_cast<sockaddr*>(&to), sizeof to)) die("connect");
        setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(c.fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = &c;
        if (epoll_ctl(epoll_, EPOLL_CTL_ADD, c.fd, &event)) die("epoll_ctl");
        open_++;
    }

    void send(Connection& c) {
        if (next_ >= stop_) {
            close(c.fd);
            open_--;
            return;
        }
        c.row = Row{next_++};
        c.tail.clear();
        // The id stands in the path, where the tracer shows it too.
        const std::string request = "POST /" + std::to_string(c.row.id) +
                                    "/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: " +
                                    "application/json\r\nContent-Length: " + std::to_string(body_.size()) +
                                    "\r\n\r\n" + body_;
        c.row.sent = now();
        if (::send(c.fd, request.data(), request.size(), MSG_NOSIGNAL) != ssize_t(request.size()))
            die("send");
    }

    void receive(Connection& c) {
        char data[65536];
        alignas(cmsghdr) char control[256];
        iovec part{data, sizeof data};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        const ssize_t n = recvmsg(c.fd, &message, MSG_DONTWAIT);
        const int64_t t = now();
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n <= 0) {
            fprintf(stderr, "stream_client: the server closed a connection amid a response\n");
            exit(1);
        }
        int64_t kernel = 0;
        for (cmsghdr* m = CMSG_FIRSTHDR(&message); m; m = CMSG_NXTHDR(&message, m))
            if (m->cmsg_level == SOL_SOCKET && m->cmsg_type == SCM_TIMESTAMPNS) {
                timespec stamp;
                memcpy(&stamp, CMSG_DATA(m), sizeof stamp);
                kernel = int64_t(stamp.tv_sec) * 1'000'000'000 + stamp.tv_nsec - shift_;
            }
        const size_t old = c.tail.size();
        c.tail.append(data, size_t(n));
        for (size_t at = c.tail.find(marker_); at != std::string::npos; at = c.tail.find(marker_, at + 1)) {
            if (at + marker_.size() <= old) continue;
            if (!c.row.contents++) c.row.first = t, c.row.kernel_first = kernel;
            c.row.last = t, c.row.kernel_last = kernel;
        }
        const bool ended = c.tail.ends_with("\r\n0\r\n\r\n") || c.tail == "0\r\n\r\n";
        const size_t keep = marker_.size() + 8;
        if (c.tail.size() > keep) c.tail.erase(0, c.tail.size() - keep);
        if (!ended) return;
        c.row.end = t;
        rows.push_back(c.row);
        send(c);
    }

    int port_, epoll_, open_ = 0;
    std::string body_, marker_;
    long next_, stop_;
    int64_t shift_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: stream_client PORT CONNECTIONS REQUESTS FIRST_ID MARKER fifo|other < body\n");
        return 2;
    }
    std::string body;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, stdin)) > 0;) body.append(part, n);
    sched_param priority{};
    priority.sched_priority = 1;
    const bool fifo = !strcmp(argv[6], "fifo") && sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    mlockall(MCL_CURRENT | MCL_FUTURE);
    const uint64_t requests = number(argv[3]);
    Client client(int(number(argv[1])), body, argv[5], long(number(argv[4])), long(requests));
    client.rows.reserve(requests);
    client.run(int(number(argv[2])));
    printf("scheduling %s\n", fifo ? "fifo" : "other");
    for (const Row& r : client.rows)
        printf("%ld %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %d %" PRId64 " %" PRId64 "\n", r.id,
               r.sent, r.first, r.last, r.end, r.contents, r.kernel_first, r.kernel_last);
}

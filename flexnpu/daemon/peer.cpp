#include "flexnpu/daemon/peer.hpp"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

namespace flexnpu::daemon {

namespace {

// Newer than the headers of Debian 12.
constexpr int kPeerPidfd = 77;                // SO_PEERPIDFD, Linux 6.5
constexpr long kPidFileSystem = 0x50494446L;  // PID_FS_MAGIC, Linux 6.9: a number for each process since boot

uint64_t number_since_boot(int pidfd) {
    struct statfs system{};
    struct stat file{};
    if (fstatfs(pidfd, &system) != 0 || system.f_type != kPidFileSystem || fstat(pidfd, &file) != 0) return 0;
    return file.st_ino;
}

}  // namespace

PeerProcess peer_process(int socket, const ucred& peer, uint32_t otherwise) {
    PeerProcess process;
    int fd = -1;
    socklen_t length = sizeof(fd);
    if (getsockopt(socket, SOL_SOCKET, kPeerPidfd, &fd, &length) != 0 && peer.pid > 0)
        fd = int(syscall(SYS_pidfd_open, peer.pid, 0));
    process.pidfd = Fd(fd);
    if (peer.pid > 0) {
        process.number = peer.pid;
        return process;
    }
    const uint64_t given = fd >= 0 ? number_since_boot(fd) : 0;
    process.number = PeerProcess::kFirst | int32_t((given ? given : otherwise) % PeerProcess::kFirst);
    return process;
}

}  // namespace flexnpu::daemon

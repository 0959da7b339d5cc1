// The process at the other end of the data socket.
#pragma once

#include <sys/socket.h>

#include <cstdint>

#include "flexnpu/daemon/fd.hpp"

namespace flexnpu::daemon {

struct PeerProcess {
    // Its end makes this readable. -1 on a kernel before 6.5, of a process that this namespace does not show.
    Fd pidfd;
    // What the daemon and its clients call it: its number in the daemon's PID namespace. A process that this
    // namespace does not show (a container beside the daemon's) has none, and gets one from kFirst on, which
    // no process has. All daemons of a machine give it the same one on Linux 6.9 and newer.
    static constexpr int32_t kFirst = 1 << 30;
    int32_t number = 0;
};

// `otherwise`: tells such processes apart where the kernel does not.
PeerProcess peer_process(int socket, const ucred& peer, uint32_t otherwise);

}  // namespace flexnpu::daemon

// The data plane of one device: the vendor's libraries, the dispatcher, the data socket.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "flexnpu/daemon/acceptor.hpp"

namespace flexnpu::daemon {

class Plane {
public:
    // Root, the user who makes the plane and those whom `access` names may connect.
    Plane(std::string vendor_dir, int32_t device, std::string socket_path, Access access, Limits limits = {});
    ~Plane();

    // What may take more privileges than the rest: loads the libraries and binds the socket. Throws
    // std::runtime_error.
    void prepare();
    // Prepares, if nobody has, and opens the device. Throws std::runtime_error.
    void start();
    // Closes every session and the device.
    void stop();

    std::vector<SessionInfo> sessions();
    std::vector<LaneInfo> lanes();
    std::map<std::string, uint64_t> counters();
    void set_gate(const gate::Settings& settings);
    bool set_lane(uint32_t lane, gate::Phase phase, double target_us);
    const std::string& soc() const { return soc_; }

private:
    std::string vendor_dir_;
    int32_t device_;
    std::string socket_path_;
    Access access_;
    Limits limits_;
    std::string soc_;
    Fd listener_;
    std::unique_ptr<Vendor> vendor_;
    std::unique_ptr<Dispatcher> dispatcher_;
    std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace flexnpu::daemon

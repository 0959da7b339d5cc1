// The data plane of one device: the vendor's libraries, the dispatcher, the data socket.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "flexnpu/daemon/acceptor.hpp"

namespace flexnpu::daemon {

class Plane {
public:
    Plane(std::string vendor_dir, int32_t device, std::string socket_path, std::vector<uint32_t> allowed_uids, uint64_t quota = 0)
        : vendor_dir_(std::move(vendor_dir)), device_(device), socket_path_(std::move(socket_path)), allowed_(std::move(allowed_uids)), quota_(quota) {}
    ~Plane() { stop(); }

    // Loads the libraries, opens the device, binds the socket. Throws std::runtime_error.
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
    std::vector<uint32_t> allowed_;
    uint64_t quota_;  // of device memory, a session; 0: none
    std::string soc_;
    std::unique_ptr<Vendor> vendor_;
    std::unique_ptr<Dispatcher> dispatcher_;
    std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace flexnpu::daemon

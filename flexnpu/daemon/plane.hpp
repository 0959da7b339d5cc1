// The data plane of one device: the vendor's libraries, the dispatcher, the data socket.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexnpu/daemon/acceptor.hpp"

namespace flexnpu::daemon {

class Dispatcher;

// The dispatching thread did not do what it was asked to within Limits::call_ms, and will not do it later.
struct PlaneTimeout : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Other threads' view of a plane. All methods but the constructor and destructor: any thread, one at a time
// with start() and stop().
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

    // As they are now. Throw PlaneTimeout.
    std::vector<SessionInfo> sessions();
    std::vector<LaneInfo> lanes();
    std::map<std::string, uint64_t> counters();
    // As they were at `taken_ns`: now, if the dispatching thread answers within the time.
    Snapshot snapshot(std::chrono::milliseconds within);
    // Sets the gate, the phases of the lanes named and, if given, the step target of all decode lanes and
    // then those of lanes, at once. The lanes named that do not exist: if there are any, nothing is changed.
    // Throws PlaneTimeout.
    std::vector<uint32_t> set_gate(const gate::Settings& settings,
                                   const std::map<uint32_t, gate::Phase>& phases = {},
                                   std::optional<double> decode_target_us = {},
                                   const std::map<uint32_t, double>& targets_us = {});
    // False: there is no such lane. Throws PlaneTimeout.
    bool set_lane(uint32_t lane, gate::Phase phase, double target_us);
    const std::string& soc() const { return soc_; }

private:
    // The result of a call to the dispatching thread. Throws PlaneTimeout, or std::runtime_error.
    template <class F, class... A>
    auto run(const char* what, F f, A... args);
    std::chrono::milliseconds call_time() const { return std::chrono::milliseconds(limits_.call_ms); }
    std::shared_ptr<const Snapshot> fresh(const char* what);
    void add_others(std::map<std::string, uint64_t>* counters);

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

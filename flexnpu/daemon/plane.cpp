#include "flexnpu/daemon/plane.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <stdexcept>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

Plane::Plane(std::string vendor_dir, int32_t device, std::string socket_path, Access access, Limits limits)
    : vendor_dir_(std::move(vendor_dir)),
      device_(device),
      socket_path_(std::move(socket_path)),
      access_(std::move(access)),
      limits_(limits) {
    access_.users.push_back(geteuid());
}

Plane::~Plane() {
    stop();
    // Nobody is there to accept any more.
    if (listener_.get() >= 0) unlink(socket_path_.c_str());
}

void Plane::prepare() {
    if (!vendor_) vendor_ = std::make_unique<Vendor>(vendor_dir_);
    if (listener_.get() < 0) listener_ = Acceptor::listen_at(socket_path_);
}

void Plane::start() {
    if (dispatcher_) throw std::runtime_error("the plane has been started already");
    prepare();
    if (int32_t e = vendor_->aclInit(nullptr)) throw std::runtime_error(vendor_->message("aclInit", e));
    if (int32_t e = vendor_->aclrtSetDevice(device_)) {
        throw std::runtime_error("cannot open device " + std::to_string(device_) + ": " +
                                 vendor_->message("aclrtSetDevice", e));
    }
    const char* soc = vendor_->aclrtGetSocName();
    soc_ = soc ? soc : "";
    auto dispatcher = std::make_unique<Dispatcher>(*vendor_, device_, limits_);
    dispatcher->start();
    // A session takes four descriptors; the usual soft limit would be reached before ours.
    rlimit files{};
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    auto acceptor = std::make_unique<Acceptor>(dispatcher->inbox(), dispatcher->sessions(), *vendor_, device_,
                                               socket_path_, soc_, access_, limits_);
    acceptor->start(std::move(listener_));
    dispatcher_ = std::move(dispatcher);
    acceptor_ = std::move(acceptor);
}

void Plane::stop() {
    if (!dispatcher_) return;
    acceptor_->stop();
    dispatcher_->stop();
    acceptor_.reset();
    dispatcher_.reset();
    vendor_->aclFinalize();
    vendor_.reset();
}

namespace {

PlaneTimeout too_late(const char* what, uint64_t ms) {
    return PlaneTimeout("the device's dispatching thread has been busy for " + std::to_string(ms) +
                        " ms: " + what);
}

std::vector<uint32_t> apply(Dispatcher& d, const gate::Settings& settings,
                            const std::map<uint32_t, gate::Phase>& phases,
                            const std::optional<double>& decode_target_us,
                            const std::map<uint32_t, double>& targets_us) {
    std::vector<uint32_t> unknown;
    for (const auto& [lane, phase] : phases) {
        if (!d.lanes().find(lane)) unknown.push_back(lane);
    }
    for (const auto& [lane, us] : targets_us) {
        if (!d.lanes().find(lane) && !phases.contains(lane)) unknown.push_back(lane);
    }
    if (!unknown.empty()) return unknown;
    for (const auto& [lane, phase] : phases) d.lanes().set_phase(lane, phase);
    if (decode_target_us) d.lanes().set_decode_targets(*decode_target_us);
    for (const auto& [lane, us] : targets_us) d.lanes().set_target(lane, us);
    d.gate().set_settings(wire::now_ns(), settings);
    return {};
}

}  // namespace

template <class F, class... A>
auto Plane::run(const char* what, F f, A... args) {
    auto outcome = dispatcher_->inbox().call(call_time(), *dispatcher_, f, std::move(args)...);
    if (!outcome) {
        if (outcome.error() == CallError::timed_out) throw too_late(what, limits_.call_ms);
        throw std::runtime_error(std::string("the data plane ") +
                                 (outcome.error() == CallError::stopped ? "has stopped: " : "failed: ") +
                                 what);
    }
    return std::move(outcome.value());
}

std::shared_ptr<const Snapshot> Plane::fresh(const char* what) {
    if (!dispatcher_) return std::make_shared<Snapshot>();
    const uint64_t asked = wire::now_ns();
    auto found = dispatcher_->snapshot(call_time());
    if (found->taken_ns < asked) throw too_late(what, limits_.call_ms);
    return found;
}

std::vector<SessionInfo> Plane::sessions() { return fresh("its sessions are not known")->sessions; }

std::vector<LaneInfo> Plane::lanes() { return fresh("its lanes are not known")->lanes; }

std::map<std::string, uint64_t> Plane::counters() {
    auto out = fresh("its counters are not known")->counters;
    add_others(&out);
    return out;
}

Snapshot Plane::snapshot(std::chrono::milliseconds within) {
    if (!dispatcher_) return Snapshot{{}, {}, {}, wire::now_ns()};
    Snapshot out = *dispatcher_->snapshot(within);
    add_others(&out.counters);
    return out;
}

// What other threads count, and the vendor.
void Plane::add_others(std::map<std::string, uint64_t>* counters) {
    if (!acceptor_) return;
    acceptor_->counters(counters);
    // Where the vendor's library tells how long the device has been busy (the emulated one does).
    using Busy = int32_t (*)(int32_t, uint64_t*);
    const auto busy = reinterpret_cast<Busy>(vendor_->symbol("flexnpu_emu_device_busy_ns"));
    uint64_t ns = 0;
    if (busy && busy(device_, &ns) == 0) (*counters)["device_busy_us"] = ns / 1000;
}

std::vector<uint32_t> Plane::set_gate(const gate::Settings& settings,
                                      const std::map<uint32_t, gate::Phase>& phases,
                                      std::optional<double> decode_target_us,
                                      const std::map<uint32_t, double>& targets_us) {
    if (!dispatcher_) return {};
    return run("the gate is as it was", &apply, settings, phases, decode_target_us, targets_us);
}

bool Plane::set_lane(uint32_t lane, gate::Phase phase, double target_us) {
    if (!dispatcher_) return false;
    return run(
        "the lane is as it was",
        [](Dispatcher& d, uint32_t id, gate::Phase p, double us) { return d.lanes().set_phase(id, p, us); },
        lane, phase, target_us);
}

}  // namespace flexnpu::daemon

#include "flexnpu/daemon/plane.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <stdexcept>

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
    auto dispatcher = std::make_unique<Dispatcher>(*vendor_, device_, limits_.allow_kernels != 0);
    dispatcher->start();
    // A session takes four descriptors; the usual soft limit would be reached before ours.
    rlimit files{};
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    auto acceptor =
        std::make_unique<Acceptor>(*dispatcher, *vendor_, device_, socket_path_, soc_, access_, limits_);
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

std::vector<SessionInfo> Plane::sessions() {
    auto out = std::make_shared<std::vector<SessionInfo>>();
    if (dispatcher_) dispatcher_->run([d = dispatcher_.get(), out] { *out = d->session_infos(); });
    return *out;
}

std::vector<LaneInfo> Plane::lanes() {
    auto out = std::make_shared<std::vector<LaneInfo>>();
    if (dispatcher_) dispatcher_->run([d = dispatcher_.get(), out] { *out = d->lane_infos(); });
    return *out;
}

std::map<std::string, uint64_t> Plane::counters() {
    auto out = std::make_shared<std::map<std::string, uint64_t>>();
    if (!dispatcher_) return *out;
    dispatcher_->run([d = dispatcher_.get(), out] { *out = d->counters(); });
    acceptor_->counters(out.get());
    // Where the vendor's library tells how long the device has been busy (the emulated one does).
    using Busy = int32_t (*)(int32_t, uint64_t*);
    static const auto busy = reinterpret_cast<Busy>(vendor_->symbol("flexnpu_emu_device_busy_ns"));
    uint64_t ns = 0;
    if (busy && busy(device_, &ns) == 0) (*out)["device_busy_us"] = ns / 1000;
    return *out;
}

void Plane::set_gate(const gate::Settings& settings) {
    if (dispatcher_)
        dispatcher_->run(
            [d = dispatcher_.get(), settings] { d->gate().set_settings(wire::now_ns(), settings); });
}

bool Plane::set_lane(uint32_t lane, gate::Phase phase, double target_us) {
    auto known = std::make_shared<bool>(false);
    if (dispatcher_) {
        dispatcher_->run([d = dispatcher_.get(), lane, phase, target_us, known] {
            *known = d->gate().set_phase(lane, phase, target_us);
        });
    }
    return *known;
}

}  // namespace flexnpu::daemon

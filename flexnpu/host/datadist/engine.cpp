#include "engine.hpp"

#include <system_error>

namespace flexnpu::host::datadist {

namespace {

constexpr int32_t kConnectMilliseconds = 3000;
constexpr size_t kMostRequests = 4096;

Deadline in(int32_t milliseconds) {
    return std::chrono::steady_clock::now() + std::chrono::milliseconds(std::max(milliseconds, 0));
}

// Of a copy to `to`.
aclrtMemcpyKind direction(bool to_host, bool from_host) {
    if (to_host) return acl::DEVICE_TO_HOST;
    return from_host ? acl::HOST_TO_DEVICE : acl::DEVICE_TO_DEVICE;
}

}  // namespace

Engine::~Engine() {
    server_.reset();
    if (context_) aclrtSetCurrentContext(context_);
    for (auto& [number, one] : requests_) drop(one);
    peers_.clear();
    for (aclrtStream one : idle_) aclrtDestroyStream(one);
}

Failure Engine::start(const std::string& name, const std::map<std::string, std::string>& options) {
    const auto address = parse(name);
    if (!address)
        return {adxl::kInvalid,
                "the name " + name.substr(0, 200) + " is not \"ip\", \"ip:port\" or \"[ipv6]:port\""};
    if (auto one = options.find("EnableUseFabricMem"); one != options.end() && one->second == "1")
        return {adxl::kUnsupported, "memory that hosts share (EnableUseFabricMem) is not served"};
    if (auto one = options.find("AutoConnect"); one != options.end()) {
        if (one->second != "0" && one->second != "1")
            return {adxl::kInvalid, "AutoConnect is \"" + one->second.substr(0, 40) + "\", not 0 or 1"};
        connects_itself_ = one->second == "1";
    }
    if (int32_t e = aclrtGetCurrentContext(&context_))
        return {adxl::kFailed, "aclrtSetDevice comes first: " + acl_error("aclrtGetCurrentContext", e)};
    name_ = name;
    if (address->port == 0) return {};
    std::string wrong;
    Fd listener = listen_at(*address, &wrong);
    if (!listener) return {adxl::kFailed, "cannot listen at " + name + ": " + wrong};
    try {
        server_ = std::make_unique<Server>(name, std::move(listener), registry_);
    } catch (const std::system_error& error) {
        return {adxl::kExhausted, error.what()};
    }
    return {};
}

Failure Engine::take_device() {
    aclrtContext now = nullptr;
    if (aclrtGetCurrentContext(&now) == 0 && now) return {};
    if (int32_t e = aclrtSetCurrentContext(context_))
        return {adxl::kFailed, acl_error("aclrtSetCurrentContext", e)};
    return {};
}

Failure Engine::connect(const std::string& engine, int32_t milliseconds) {
    {
        const std::lock_guard lock(mutex_);
        if (auto at = peers_.find(engine); at != peers_.end()) {
            if (at->second->is_open())
                return {adxl::kAlreadyConnected, "engine " + engine + " is connected already"};
            peers_.erase(at);
        }
    }
    auto peer = std::make_shared<Peer>(engine);
    if (Failure failure = peer->connect(in(milliseconds))) return failure;
    const std::lock_guard lock(mutex_);
    peers_[engine] = std::move(peer);
    return {};
}

Failure Engine::disconnect(const std::string& engine) {
    if (Failure failure = take_device()) return failure;
    std::shared_ptr<Peer> last;
    const std::lock_guard lock(mutex_);
    auto at = peers_.find(engine);
    if (at == peers_.end())
        return {adxl::kNotConnected, "engine " + engine.substr(0, 200) + " is not connected"};
    last = std::move(at->second);
    peers_.erase(at);
    return {};
}

// The engine as it was connected, or connected now where that is wanted.
Failure Engine::connected(const std::string& engine, Deadline deadline, std::shared_ptr<Peer>* peer) {
    {
        const std::lock_guard lock(mutex_);
        if (auto at = peers_.find(engine); at != peers_.end()) {
            *peer = at->second;
            return {};
        }
    }
    if (!connects_itself_)
        return {adxl::kNotConnected,
                "engine " + engine.substr(0, 200) + " is not connected, and AutoConnect is 0"};
    auto made = std::make_shared<Peer>(engine);
    if (Failure failure = made->connect(std::min(deadline, in(kConnectMilliseconds)))) return failure;
    const std::lock_guard lock(mutex_);
    *peer = peers_.try_emplace(engine, std::move(made)).first->second;
    return {};
}

Failure Engine::plan(const std::vector<adxl::TransferOpDesc>& parts, Transfer* transfer) {
    for (const adxl::TransferOpDesc& part : parts) {
        bool on_host = false;
        if (part.bytes == 0 || part.bytes > UINT64_MAX - part.local ||
            !registry_.holds(part.local, part.bytes, &on_host)) {
            return {adxl::kInvalid, std::to_string(part.bytes) + " bytes at " + hex(part.local) +
                                        " are not memory that this engine has registered"};
        }
        if (Failure failure = transfer->peer->add(part, on_host, &transfer->plan)) return failure;
    }
    return {};
}

Failure Engine::launch(const std::string& engine, adxl::TransferOp operation,
                       const std::vector<adxl::TransferOpDesc>& parts, Deadline deadline,
                       Transfer* transfer) {
    if (operation != adxl::kRead && operation != adxl::kWrite)
        return {adxl::kInvalid, "operation " + std::to_string(int(operation))};
    if (Failure failure = take_device()) return failure;
    if (Failure failure = connected(engine, deadline, &transfer->peer)) return failure;
    bool lost = false;
    Failure failure = transfer->peer->begin(deadline, &lost);
    if (failure && connects_itself_ && lost) {
        // It may have been started again since.
        disconnect(engine);
        if (connected(engine, deadline, &transfer->peer)) return failure;
        failure = transfer->peer->begin(deadline, &lost);
    }
    if (failure) return failure;
    failure = plan(parts, transfer);
    if (!failure) failure = take_stream(&transfer->stream);
    for (const Copy& one : transfer->plan.copies) {
        if (failure) break;
        const bool read = operation == adxl::kRead;
        void* to = reinterpret_cast<void*>(read ? one.local : one.remote);
        const void* from = reinterpret_cast<const void*>(read ? one.remote : one.local);
        const auto kind = direction(read ? one.local_on_host : one.remote_on_host,
                                    read ? one.remote_on_host : one.local_on_host);
        if (int32_t e = aclrtMemcpyAsync(to, one.bytes, from, one.bytes, kind, transfer->stream))
            failure = {adxl::kFailed, acl_error("aclrtMemcpyAsync", e)};
    }
    if (failure) drop(*transfer);
    return failure;
}

Failure Engine::finish(Transfer& transfer) {
    transfer.peer->end();
    give_stream(transfer.stream);
    transfer.stream = nullptr;
    if (!transfer.peer->is_open())
        return {adxl::kFailed, "engine " + transfer.peer->engine() + " has ended during the transfer"};
    return {};
}

// Stops what still copies: its memory may be used for something else from now on.
void Engine::drop(Transfer& transfer) {
    if (transfer.stream) {
        aclrtStreamAbort(transfer.stream);
        aclrtDestroyStream(transfer.stream);
        transfer.stream = nullptr;
    }
    transfer.peer->end();
}

Failure Engine::transfer(const std::string& engine, adxl::TransferOp operation,
                         const std::vector<adxl::TransferOpDesc>& parts, int32_t milliseconds) {
    const Deadline deadline = in(milliseconds);
    Transfer transfer;
    if (Failure failure = launch(engine, operation, parts, deadline, &transfer)) return failure;
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const int32_t e =
        aclrtSynchronizeStreamWithTimeout(transfer.stream, int32_t(std::max<int64_t>(left.count(), 1)));
    if (e) {
        const bool late = std::chrono::steady_clock::now() >= deadline;
        const std::string why = acl_error("aclrtSynchronizeStreamWithTimeout", e);
        drop(transfer);
        return {late ? adxl::kTimeout : adxl::kFailed, why};
    }
    return finish(transfer);
}

Failure Engine::start_transfer(const std::string& engine, adxl::TransferOp operation,
                               const std::vector<adxl::TransferOpDesc>& parts, void** request) {
    {
        const std::lock_guard lock(mutex_);
        if (requests_.size() >= kMostRequests)
            return {adxl::kExhausted, std::to_string(kMostRequests) + " transfers run: ask for their status"};
    }
    Transfer transfer;
    if (Failure failure = launch(engine, operation, parts, in(kConnectMilliseconds), &transfer))
        return failure;
    const std::lock_guard lock(mutex_);
    *request = reinterpret_cast<void*>(next_request_);
    requests_[next_request_++] = std::move(transfer);
    return {};
}

Failure Engine::status(void* request, adxl::TransferStatus* status) {
    *status = adxl::TransferStatus::failed;
    if (Failure failure = take_device()) return failure;
    Transfer transfer;
    {
        const std::lock_guard lock(mutex_);
        auto at = requests_.find(reinterpret_cast<uint64_t>(request));
        if (at == requests_.end())
            return {adxl::kInvalid, "no such request, or its end has been told already"};
        aclrtStreamStatus state = 0;
        const int32_t e = aclrtStreamQuery(at->second.stream, &state);
        if (e == 0 && state == acl::STREAM_NOT_READY) {
            *status = adxl::TransferStatus::waiting;
            return {};
        }
        transfer = std::move(at->second);
        requests_.erase(at);
        if (e) {
            const std::string why = acl_error("aclrtStreamQuery", e);
            drop(transfer);
            return {adxl::kFailed, why};
        }
    }
    // A query tells of the end, a synchronise of errors.
    if (int32_t e = aclrtSynchronizeStream(transfer.stream)) {
        const std::string why = acl_error("aclrtSynchronizeStream", e);
        drop(transfer);
        return {adxl::kFailed, why};
    }
    if (Failure failure = finish(transfer)) return failure;
    *status = adxl::TransferStatus::completed;
    return {};
}

Failure Engine::take_stream(aclrtStream* stream) {
    {
        const std::lock_guard lock(mutex_);
        if (!idle_.empty()) {
            *stream = idle_.back();
            idle_.pop_back();
            return {};
        }
    }
    if (int32_t e = aclrtCreateStream(stream)) return {adxl::kExhausted, acl_error("aclrtCreateStream", e)};
    return {};
}

void Engine::give_stream(aclrtStream stream) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(stream);
}

}  // namespace flexnpu::host::datadist

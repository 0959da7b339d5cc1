// An engine: its registered memory, the socket where others ask for it, and its transfers with others.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "peer.hpp"
#include "registry.hpp"
#include "server.hpp"

namespace flexnpu::host::datadist {

class Engine {
public:
    ~Engine();
    Failure start(const std::string& name, const std::map<std::string, std::string>& options);

    Registry& registry() { return registry_; }
    Failure connect(const std::string& engine, int32_t milliseconds);
    Failure disconnect(const std::string& engine);
    Failure transfer(const std::string& engine, adxl::TransferOp operation,
                     const std::vector<adxl::TransferOpDesc>& parts, int32_t milliseconds);
    Failure start_transfer(const std::string& engine, adxl::TransferOp operation,
                           const std::vector<adxl::TransferOpDesc>& parts, void** request);
    Failure status(void* request, adxl::TransferStatus* status);

private:
    // A transfer whose copies are in a stream.
    struct Transfer {
        std::shared_ptr<Peer> peer;
        Plan plan;
        aclrtStream stream = nullptr;
    };
    // Gives the calling thread the device of this engine if it has none.
    Failure take_device();
    Failure connected(const std::string& engine, Deadline deadline, std::shared_ptr<Peer>* peer);
    Failure launch(const std::string& engine, adxl::TransferOp operation,
                   const std::vector<adxl::TransferOpDesc>& parts, Deadline deadline, Transfer* transfer);
    Failure plan(const std::vector<adxl::TransferOpDesc>& parts, Transfer* transfer);
    // After the copies: what the other has still to say.
    Failure finish(Transfer& transfer);
    Failure take_stream(aclrtStream* stream);
    void give_stream(aclrtStream stream);
    void drop(Transfer& transfer);

    std::string name_;
    bool connects_itself_ = true;
    aclrtContext context_ = nullptr;
    Registry registry_;
    std::mutex mutex_;  // of all below
    std::map<std::string, std::shared_ptr<Peer>> peers_;
    std::vector<aclrtStream> idle_;
    std::map<uint64_t, Transfer> requests_;
    uint64_t next_request_ = 1;
    std::unique_ptr<Server> server_;  // ends first
};

}  // namespace flexnpu::host::datadist

// Another engine, as one that transfers sees it: its table, and its memory as it is mapped here.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "abi.hpp"
#include "socket.hpp"

namespace flexnpu::host::datadist {

// What went wrong, for the caller and for people.
struct Failure {
    adxl::Status status = adxl::kSuccess;
    std::string text;
    explicit operator bool() const { return status != adxl::kSuccess; }
};

// A piece of another process's memory in this one's addresses, until this ends.
class Imported {
public:
    static std::shared_ptr<Imported> make(const Piece& piece, Failure* failure);
    ~Imported();
    Imported(const Imported&) = delete;
    Imported& operator=(const Imported&) = delete;

    uint64_t address() const { return address_; }

private:
    Imported() = default;
    std::string key_;
    aclrtDrvMemHandle handle_ = nullptr;
    bool reserved_ = false, mapped_ = false;
    uint64_t address_ = 0;
};

struct Copy {
    uint64_t local, remote;  // both addresses of this process
    uint64_t bytes;
    bool local_on_host, remote_on_host;
};

// What one transfer copies, and what must stay mapped for it.
struct Plan {
    std::vector<Copy> copies;
    std::vector<std::shared_ptr<Imported>> held;
};

class Peer {
public:
    explicit Peer(std::string engine) : engine_(std::move(engine)) {}

    const std::string& engine() const { return engine_; }
    Failure connect(Deadline deadline);
    // Whether the other's process is still connected.
    bool is_open();

    // Between these the other keeps what it has registered. *lost: the connection is, and nothing has begun.
    Failure begin(Deadline deadline, bool* lost);
    void end();
    // Adds a transfer's part to the plan; `on_host`: the local memory is the host's. Between begin and end.
    Failure add(const adxl::TransferOpDesc& part, bool on_host, Plan* plan);

private:
    using PieceId = std::tuple<uint64_t, uint64_t, uint64_t, std::string>;
    static PieceId id(const Piece& piece) { return {piece.address, piece.bytes, piece.number, piece.key}; }
    Failure take(Kind kind, const std::string& payload);
    Failure reach(uint64_t address, uint64_t* here, uint64_t* bytes, Plan* plan);

    const std::string engine_;
    std::mutex mutex_;  // of all below
    Fd fd_;
    Table table_;
    bool own_process_ = false;
    std::map<uint64_t, Piece> pieces_;  // by address
    std::map<PieceId, std::shared_ptr<Imported>> imported_;
};

}  // namespace flexnpu::host::datadist

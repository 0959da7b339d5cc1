#include "peer.hpp"

#include <algorithm>
#include <cstring>

#include "registry.hpp"

namespace flexnpu::host::datadist {

std::shared_ptr<Imported> Imported::make(const Piece& piece, Failure* failure) {
    std::shared_ptr<Imported> one(new Imported);
    auto refused = [failure](const char* function, int32_t e) {
        *failure = {adxl::kFailed, acl_error(function, e)};
        return nullptr;
    };
    void* p = nullptr;
    if (piece.number == 0) {
        if (int32_t e = aclrtIpcMemImportByKey(&p, piece.key, 0)) return refused("aclrtIpcMemImportByKey", e);
        one->key_ = piece.key;
        one->address_ = reinterpret_cast<uint64_t>(p);
        return one;
    }
    int32_t device = 0;
    if (int32_t e = aclrtGetDevice(&device)) return refused("aclrtGetDevice", e);
    if (int32_t e = aclrtMemImportFromShareableHandle(piece.number, device, &one->handle_))
        return refused("aclrtMemImportFromShareableHandle", e);
    if (int32_t e = aclrtReserveMemAddress(&p, piece.bytes, 0, nullptr, 1))
        return refused("aclrtReserveMemAddress", e);
    one->reserved_ = true;
    one->address_ = reinterpret_cast<uint64_t>(p);
    if (int32_t e = aclrtMapMem(p, piece.bytes, 0, one->handle_, 0)) return refused("aclrtMapMem", e);
    one->mapped_ = true;
    return one;
}

Imported::~Imported() {
    if (!key_.empty()) aclrtIpcMemClose(key_.c_str());
    if (mapped_) aclrtUnmapMem(pointer(address_));
    if (reserved_) aclrtReleaseMemAddress(pointer(address_));
    if (handle_) aclrtFreePhysical(handle_);
}

// A table, or that the known one still holds.
Failure Peer::take(Kind kind, const std::string& payload) {
    const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(payload.data()), payload.size());
    if (kind == Kind::refused) return {adxl::kFailed, "engine " + engine_ + " refuses: " + read_text(bytes)};
    if (kind == Kind::go) return {};
    auto table = kind == Kind::table ? read_table(bytes) : std::nullopt;
    if (!table) return {adxl::kFailed, "engine " + engine_ + " answers what cannot be read"};
    const Identity own = identity("");
    if (std::string_view(table->who.host) != own.host)
        return {adxl::kUnsupported, "engine " + engine_ + " is on another host"};
    table_ = std::move(*table);
    own_process_ = std::string_view(table_.who.process) == own.process;
    pieces_.clear();
    std::map<PieceId, std::shared_ptr<Imported>> still;
    for (const Piece& piece : table_.pieces) {
        pieces_[piece.address] = piece;
        if (auto known = imported_.find(id(piece)); known != imported_.end()) still.insert(*known);
    }
    imported_ = std::move(still);
    return {};
}

Failure Peer::connect(Deadline deadline) {
    const auto address = parse(engine_);
    if (!address || address->port == 0)
        return {adxl::kInvalid, "no engine has the name " + engine_.substr(0, 200)};
    const std::lock_guard lock(mutex_);
    Fd fd;
    std::string wrong, payload;
    Kind kind{};
    const std::string hello = encode(identity(engine_));
    Outcome outcome = connect_to(*address, deadline, &fd, &wrong);
    if (outcome == Outcome::ended) return {adxl::kFailed, "no engine at " + engine_ + ": " + wrong};
    if (outcome == Outcome::done) outcome = send_all(fd.get(), hello, deadline);
    if (outcome == Outcome::done)
        outcome = receive(fd.get(), kMostToClient, deadline, &kind, &payload, &wrong);
    if (outcome == Outcome::timeout)
        return {adxl::kTimeout, "engine " + engine_ + " does not answer in time"};
    if (outcome == Outcome::ended) {
        return {adxl::kFailed, wrong.empty() ? "engine " + engine_ + " has closed the connection"
                                             : "at " + engine_ + " is no engine of this kind: " + wrong};
    }
    if (kind == Kind::go) return {adxl::kFailed, "engine " + engine_ + " answers what cannot be read"};
    if (Failure failure = take(kind, payload)) return failure;
    fd_ = std::move(fd);
    return {};
}

bool Peer::is_open() {
    const std::lock_guard lock(mutex_);
    return fd_ && datadist::is_open(fd_.get());
}

Failure Peer::begin(Deadline deadline, bool* lost) {
    const std::lock_guard lock(mutex_);
    std::string payload, wrong;
    Kind kind{};
    Outcome outcome = fd_ ? send_all(fd_.get(), encode(table_.generation), deadline) : Outcome::ended;
    if (outcome == Outcome::done)
        outcome = receive(fd_.get(), kMostToClient, deadline, &kind, &payload, &wrong);
    if (outcome == Outcome::done) {
        Failure failure = take(kind, payload);
        if (failure) fd_ = Fd();
        return failure;
    }
    // What comes late would be taken for the next answer.
    fd_ = Fd();
    if (outcome == Outcome::timeout)
        return {adxl::kTimeout, "engine " + engine_ + " does not answer in time"};
    *lost = true;
    return {adxl::kFailed, "engine " + engine_ + " has ended" + (wrong.empty() ? "" : ": " + wrong)};
}

void Peer::end() {
    const std::lock_guard lock(mutex_);
    // A message of a few bytes: where there is no room for it, the connection is of no use.
    if (fd_ && send_all(fd_.get(), encode(Kind::end), std::chrono::steady_clock::now()) != Outcome::done)
        fd_ = Fd();
}

// Where the other's `address` is in this process, and how many bytes follow there.
Failure Peer::reach(uint64_t address, uint64_t* here, uint64_t* bytes, Plan* plan) {
    auto at = pieces_.upper_bound(address);
    if (at == pieces_.begin() || address - (--at)->first >= at->second.bytes)
        return {adxl::kFailed, "engine " + engine_ + " does not say what lies behind " + hex(address)};
    const Piece& piece = at->second;
    *bytes = piece.bytes - (address - piece.address);
    if (own_process_) {
        *here = address;
        return {};
    }
    std::shared_ptr<Imported>& known = imported_[id(piece)];
    if (!known) {
        Failure failure;
        known = Imported::make(piece, &failure);
        if (failure) {
            return {failure.status, "memory of engine " + engine_ + " at " + hex(piece.address) +
                                        " cannot be imported: " + failure.text};
        }
    }
    *here = known->address() + (address - piece.address);
    if (plan->held.empty() || plan->held.back() != known) plan->held.push_back(known);
    return {};
}

Failure Peer::add(const adxl::TransferOpDesc& part, bool on_host, Plan* plan) {
    const std::lock_guard lock(mutex_);
    const auto range = std::find_if(table_.ranges.begin(), table_.ranges.end(), [&](const Range& one) {
        return part.remote >= one.address && part.bytes <= one.bytes &&
               part.remote - one.address <= one.bytes - part.bytes;
    });
    if (range == table_.ranges.end()) {
        return {adxl::kInvalid, std::to_string(part.bytes) + " bytes at " + hex(part.remote) +
                                    " are not memory that engine " + engine_ + " has registered"};
    }
    if (range->on_host && !own_process_) {
        return {adxl::kUnsupported, hex(part.remote) + " is memory of engine " + engine_ +
                                        "'s host side, which other processes cannot reach"};
    }
    if (range->on_host && on_host)
        return {adxl::kUnsupported,
                "both " + hex(part.local) + " and " + hex(part.remote) + " are the host's"};
    for (uint64_t done = 0; done < part.bytes;) {
        uint64_t here = part.remote + done, bytes = part.bytes - done;
        if (!range->on_host) {
            uint64_t room = 0;
            if (Failure failure = reach(part.remote + done, &here, &room, plan)) return failure;
            bytes = std::min(bytes, room);
        }
        plan->copies.push_back({part.local + done, here, bytes, on_host, range->on_host != 0});
        done += bytes;
    }
    return {};
}

}  // namespace flexnpu::host::datadist

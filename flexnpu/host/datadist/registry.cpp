#include "registry.hpp"

#include <chrono>
#include <cstring>

namespace flexnpu::host::datadist {

namespace {

constexpr size_t kKeyRoom = 65;  // what AscendCL writes a key of
constexpr auto kLongestTransfer = std::chrono::seconds(30);

}  // namespace

std::string hex(uint64_t value) {
    char text[24];
    snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

std::string acl_error(const char* function, int32_t code) {
    const char* text = aclGetRecentErrMsg();
    return std::string(function) + " failed with " + std::to_string(code) + (text && *text ? ": " : "") +
           (text ? text : "");
}

std::shared_ptr<Exported> Exported::allocation(uint64_t address, uint64_t bytes, std::string* wrong) {
    std::shared_ptr<Exported> one(new Exported);
    const int32_t e =
        aclrtIpcMemGetExportKey(pointer(address), bytes, one->piece_.key, kKeyRoom, acl::EXPORT_ANY_PID);
    if (e) {
        one->piece_ = {};
        *wrong = acl_error("aclrtIpcMemGetExportKey", e);
        return nullptr;
    }
    one->piece_.address = address;
    one->piece_.bytes = bytes;
    return one;
}

std::shared_ptr<Exported> Exported::physical(uint64_t address, std::string* wrong) {
    std::shared_ptr<Exported> one(new Exported);
    void* base = nullptr;
    size_t bytes = 0;
    if (int32_t e = aclrtMemGetAddressRange(pointer(address), &base, &bytes)) {
        *wrong = acl_error("aclrtMemGetAddressRange", e);
        return nullptr;
    }
    if (int32_t e = aclrtMemRetainAllocationHandle(base, &one->handle_)) {
        *wrong = acl_error("aclrtMemRetainAllocationHandle", e);
        return nullptr;
    }
    if (int32_t e = aclrtMemExportToShareableHandle(one->handle_, acl::HANDLE_NONE, acl::EXPORT_ANY_PID,
                                                    &one->piece_.number)) {
        *wrong = acl_error("aclrtMemExportToShareableHandle", e);
        return nullptr;
    }
    one->piece_.address = reinterpret_cast<uint64_t>(base);
    one->piece_.bytes = bytes;
    return one;
}

Exported::~Exported() {
    if (piece_.key[0]) aclrtIpcMemClose(piece_.key);
    if (handle_) aclrtFreePhysical(handle_);
}

bool Registry::export_all(Entry* entry, std::string* wrong) {
    const Range& range = entry->range;
    if (range.on_host) return true;
    void* base = nullptr;
    size_t size = 0;
    if (int32_t e = aclrtMemGetAddressRange(pointer(range.address), &base, &size)) {
        *wrong = acl_error("aclrtMemGetAddressRange", e);
        return false;
    }
    aclrtDrvMemHandle handle = nullptr;
    if (aclrtMemRetainAllocationHandle(base, &handle)) {
        // Not virtual memory: an allocation, which has a key of its own.
        entry->pieces.push_back(Exported::allocation(range.address, range.bytes, wrong));
        return entry->pieces.back() != nullptr;
    }
    aclrtFreePhysical(handle);
    for (uint64_t at = range.address; at - range.address < range.bytes;) {
        auto known = physical_.upper_bound(at);
        std::shared_ptr<Exported> piece =
            known == physical_.begin() ? nullptr : std::prev(known)->second.lock();
        if (!piece || at - piece->piece().address >= piece->piece().bytes) {
            piece = Exported::physical(at, wrong);
            if (!piece) return false;
            physical_[piece->piece().address] = piece;
        }
        at = piece->piece().address + piece->piece().bytes;
        entry->pieces.push_back(std::move(piece));
    }
    return true;
}

void* Registry::add(uint64_t address, uint64_t bytes, bool on_host, std::string* wrong) {
    if (address == 0 || bytes == 0 || bytes > UINT64_MAX - address) {
        *wrong = std::to_string(bytes) + " bytes at " + hex(address);
        return nullptr;
    }
    const std::lock_guard lock(mutex_);
    if (entries_.size() >= kMostRanges) {
        *wrong = std::to_string(kMostRanges) + " registrations are the most";
        return nullptr;
    }
    Entry entry{{address, bytes, on_host}, {}};
    if (!export_all(&entry, wrong)) return nullptr;
    size_t pieces = entry.pieces.size();
    for (const auto& [handle, one] : entries_) pieces += one.pieces.size();
    if (pieces > kMostPieces) {
        *wrong = "it lies in too many pieces of physical memory: use larger ones";
        return nullptr;
    }
    const uint64_t handle = next_++;
    entries_[handle] = std::move(entry);
    generation_++;
    return pointer(handle);
}

Registry::Removed Registry::remove(void* handle) {
    std::unique_lock lock(mutex_);
    auto at = entries_.find(reinterpret_cast<uint64_t>(handle));
    if (at == entries_.end() || at->second.leaving) return Removed::unknown;
    // From here on nobody is told of it, so no transfer that begins touches it.
    at->second.leaving = true;
    generation_++;
    if (!ended_.wait_for(lock, kLongestTransfer, [this] { return running_ == 0; })) {
        at->second.leaving = false;
        generation_++;
        return Removed::busy;
    }
    Entry last = std::move(at->second);
    entries_.erase(at);
    std::erase_if(physical_, [](const auto& one) { return one.second.expired(); });
    return Removed::done;
}

bool Registry::holds(uint64_t address, uint64_t bytes, bool* on_host) const {
    const std::lock_guard lock(mutex_);
    for (const auto& [handle, one] : entries_) {
        if (address >= one.range.address && bytes <= one.range.bytes &&
            address - one.range.address <= one.range.bytes - bytes && !one.leaving) {
            *on_host = one.range.on_host != 0;
            return true;
        }
    }
    return false;
}

Table Registry::table(const std::string& engine) const {
    const std::lock_guard lock(mutex_);
    Table table{generation_, identity(engine), {}, {}};
    std::map<const Exported*, bool> listed;
    for (const auto& [handle, one] : entries_) {
        if (one.leaving) continue;
        table.ranges.push_back(one.range);
        for (const auto& piece : one.pieces) {
            if (listed.emplace(piece.get(), true).second) table.pieces.push_back(piece->piece());
        }
    }
    return table;
}

uint64_t Registry::generation() const {
    const std::lock_guard lock(mutex_);
    return generation_;
}

void Registry::begin_transfer() {
    const std::lock_guard lock(mutex_);
    running_++;
}

void Registry::end_transfers(uint32_t n) {
    const std::lock_guard lock(mutex_);
    running_ -= n;
    ended_.notify_all();
}

}  // namespace flexnpu::host::datadist

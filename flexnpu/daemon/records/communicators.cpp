#include "flexnpu/daemon/records/communicators.hpp"

#include <algorithm>
#include <cstring>

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/daemon/communicators.hpp"

namespace flexnpu::daemon {

namespace {

// A configuration as words, for its alignment. The vendor reads as much as it says that it has; false: that
// is not what has come.
bool take_config(const uint8_t* from, size_t bytes, std::vector<uint64_t>* out) {
    out->assign(bytes / 8 + 1, 0);
    std::memcpy(out->data(), from, bytes);
    return bytes == 0 || (bytes >= 32 && out->front() == bytes);
}

}  // namespace

std::string told(const Vendor& v, const char* function, int32_t result) {
    const char* text = v.aclGetRecentErrMsg();
    if (text && *text) return text;
    return std::string(function) + " failed with HcclResult " + std::to_string(result);
}

Communicators::~Communicators() {
    table.each([this](const std::shared_ptr<Communicator>& c) { leaving.push_back(c); });
    for (const auto& c : leaving) {
        c->worker.reset();
        if (c->handle && c->vendor.HcclCommDestroy) c->vendor.HcclCommDestroy(c->handle);
    }
}

void Communicators::abandon() {
    std::lock_guard lock(mutex);
    table.each([](const std::shared_ptr<Communicator>& c) { c->dropped = true; });
    for (const auto& c : leaving) c->dropped = true;
}

void CommunicatorRecords::call(Session& s, Payload p, const Reply& reply) {
    using Call = wire::Communicator;
    Call c;
    Payload rest;
    const auto bad = [&] { malformed(s, reply, "question about a communicator"); };
    if (!take(p, &c, &rest) || c.call >= Call::count_) return bad();
    if (!vendor_.HcclGetRootInfo || !vendor_.HcclCommInitRootInfo || !vendor_.HcclCommDestroy) {
        return refuse(s, reply, acl::API_NOT_SUPPORTED, "Hccl*: the device's libraries have no libhccl");
    }
    if (!s.communicators) {
        s.communicators = std::make_shared<Communicators>();
        s.communicators->table.set_tag(wire::device_tag(s.device));
    }
    Ring* const ring = reply.ring.get();
    Session* const session = &s;  // the ring keeps the worker, and the worker ends before its session
    // An HcclResult is told from an ACL error by its size.
    auto failed = [this, reply](const char* function, int32_t e) {
        reply.fail({e, told(vendor_, function, e)});
    };
    auto place = std::make_shared<Holding>();
    auto made = [session, reply, place, this](HcclComm handle, uint32_t ranks, uint32_t rank) {
        auto comm = std::make_shared<Communicator>(vendor_, handle, ranks, rank);
        comm->place = std::move(*place);
        std::lock_guard lock(session->communicators->mutex);
        reply.ok(session->communicators->table.add(std::move(comm)));
    };
    // Taken before the vendor is asked.
    auto crowded = [&](const char* function) {
        Failure failure;
        if (s.holder->take(HeldKind::communicators, function, place.get(), &failure)) return false;
        refuse(s, reply, failure.code, failure.message);
        return true;
    };
    switch (c.call) {
        case Call::root_info:
            return worker_of(*ring).post([this, ring, reply, failed] {
                HcclRootInfo root;
                if (int32_t e = vendor_.HcclGetRootInfo(&root)) return failed("HcclGetRootInfo", e);
                ring->rest.assign(root.internal, root.internal + sizeof(root.internal));
                reply.send(0, "", reinterpret_cast<const uint64_t*>(ring->rest.data()), wire::kReplyWords);
            });
        case Call::answer_rest:
            return worker_of(*ring).post([ring, reply, from = c.id] {
                uint64_t words[wire::kReplyWords] = {};
                const size_t all = ring->rest.size();
                const size_t n = from < all ? std::min(all - size_t(from), sizeof(words)) : 0;
                if (n) std::memcpy(words, ring->rest.data() + from, n);
                reply.send(0, "", words, (n + 7) / 8);
            });
        case Call::initialise: {
            if (c.ranks == 0 || c.ranks > kMostRanks || c.rank >= c.ranks ||
                c.config > hccl::kLargestConfig ||
                rest.size() != wire::round8(sizeof(wire::Communicator) + sizeof(HcclRootInfo) + c.config) -
                                   sizeof(wire::Communicator)) {
                return bad();
            }
            auto root = std::make_shared<HcclRootInfo>();
            std::memcpy(root.get(), rest.data(), sizeof(*root));
            std::vector<uint64_t> config;
            if (!take_config(rest.data() + sizeof(*root), c.config, &config)) return bad();
            if (crowded("HcclCommInitRootInfo")) return;
            return worker_of(*ring).post([this, c, root, config = std::move(config), failed, made] {
                HcclComm comm = nullptr;
                int32_t e;
                if (c.config && !vendor_.HcclCommInitRootInfoConfig) {
                    e = hccl::E_NOT_SUPPORT;
                } else {
                    e = c.config ? vendor_.HcclCommInitRootInfoConfig(
                                       c.ranks, root.get(), c.rank,
                                       reinterpret_cast<const HcclCommConfig*>(config.data()), &comm)
                                 : vendor_.HcclCommInitRootInfo(c.ranks, root.get(), c.rank, &comm);
                }
                if (e) return failed("HcclCommInitRootInfo", e);
                made(comm, c.ranks, c.rank);
            });
        }
        case Call::capability:
            return reply.ok(vendor_.HcclGetCommConfigCapability ? vendor_.HcclGetCommConfigCapability() : 0);
        default: break;
    }
    auto comm = s.communicators->find(c.communicator);
    if (!comm)
        return refuse(s, reply, hccl::E_PARA, "Hccl*: " + hex(c.communicator) + " is not a communicator");
    switch (c.call) {
        case Call::split: {
            if (c.ranks == 0 || c.ranks > comm->ranks || c.rank >= c.ranks ||
                c.config > hccl::kLargestConfig ||
                rest.size() != wire::round8(sizeof(wire::Communicator) + size_t(c.ranks) * 4 + c.config) -
                                   sizeof(wire::Communicator)) {
                return bad();
            }
            if (!vendor_.HcclCreateSubCommConfig)
                return refuse(s, reply, hccl::E_NOT_SUPPORT,
                              "HcclCreateSubCommConfig: the device's libraries lack it");
            std::vector<uint32_t> members(c.ranks);
            std::memcpy(members.data(), rest.data(), members.size() * 4);
            std::vector<uint64_t> config;
            if (!take_config(rest.data() + members.size() * 4, c.config, &config)) return bad();
            if (std::any_of(members.begin(), members.end(), [&](uint32_t r) { return r >= comm->ranks; }))
                return bad();
            if (crowded("HcclCreateSubCommConfig")) return;
            return worker_of(*ring).post([this, c, comm, members = std::move(members),
                                          config = std::move(config), failed, made]() mutable {
                const std::shared_lock lock(comm->asked);
                if (!comm->handle) return failed("HcclCreateSubCommConfig", hccl::E_PARA);
                HcclComm parent = comm->handle, made_handle = nullptr;
                const int32_t e = vendor_.HcclCreateSubCommConfig(
                    &parent, c.ranks, members.data(), c.id, c.rank,
                    c.config ? reinterpret_cast<HcclCommConfig*>(config.data()) : nullptr, &made_handle);
                if (e) return failed("HcclCreateSubCommConfig", e);
                made(made_handle, c.ranks, c.rank);
            });
        }
        case Call::destroy:
            // What the program called before is with the vendor first; nothing that comes now finds it.
            {
                std::lock_guard lock(s.communicators->mutex);
                s.communicators->leaving.push_back(s.communicators->table.remove(c.communicator));
            }
            return after(Lanes::all_of(s), false, [this, all = s.communicators, comm, ring, reply, failed] {
                worker_of(*ring).post([this, all, comm, reply, failed] {
                    comm->worker.reset();
                    int32_t e;
                    {
                        const std::unique_lock lock(comm->asked);
                        e = vendor_.HcclCommDestroy(std::exchange(comm->handle, nullptr));
                    }
                    {
                        std::lock_guard lock(all->mutex);
                        std::erase(all->leaving, comm);
                    }
                    if (e) return failed("HcclCommDestroy", e);
                    reply.ok();
                });
            });
        case Call::name:
            return worker_of(*ring).post([this, comm, reply, failed] {
                uint64_t words[hccl::kNameBytes / 8] = {};
                const std::shared_lock lock(comm->asked);
                if (!comm->handle) return failed("HcclGetCommName", hccl::E_PARA);
                if (!vendor_.HcclGetCommName) return failed("HcclGetCommName", hccl::E_NOT_SUPPORT);
                if (int32_t e = vendor_.HcclGetCommName(comm->handle, reinterpret_cast<char*>(words)))
                    return failed("HcclGetCommName", e);
                reply.send(0, "", words, std::size(words));
            });
        case Call::async_error:
            return worker_of(*ring).post([this, comm, reply, failed] {
                int32_t error = 0;
                const std::shared_lock lock(comm->asked);
                if (!comm->handle) return failed("HcclGetCommAsyncError", hccl::E_PARA);
                if (!vendor_.HcclGetCommAsyncError)
                    return failed("HcclGetCommAsyncError", hccl::E_NOT_SUPPORT);
                if (int32_t e = vendor_.HcclGetCommAsyncError(comm->handle, &error))
                    return failed("HcclGetCommAsyncError", e);
                reply.ok(uint64_t(uint32_t(error)));
            });
        case Call::resume:
            return worker_of(*ring).post([this, comm, reply, failed] {
                const std::shared_lock lock(comm->asked);
                if (!comm->handle) return failed("HcclCommResume", hccl::E_PARA);
                const int32_t e = vendor_.HcclCommResume ? vendor_.HcclCommResume(comm->handle)
                                                         : int32_t(hccl::E_NOT_SUPPORT);
                if (e) return failed("HcclCommResume", e);
                reply.ok();
            });
        default: return bad();
    }
}

}  // namespace flexnpu::daemon

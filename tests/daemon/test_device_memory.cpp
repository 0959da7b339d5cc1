// Who pays for device memory, over a vendor that counts what it gave.
#include <doctest/doctest.h>

#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/memory_map.hpp"
#include "flexnpu/daemon/vendor.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::daemon;

namespace {

test::Mock& mock() {
    static test::Mock m;
    return m;
}
Vendor& vendor() {
    static Vendor v(FLEXNPU_MOCK_VENDOR);
    return v;
}
std::shared_ptr<Held> take(const std::shared_ptr<Account>& who, uint64_t bytes, int32_t want = 0) {
    std::shared_ptr<Held> held;
    std::string message;
    CHECK(allocate_memory(vendor(), who, {"aclrtMalloc", bytes}, &held, &message) == want);
    CHECK(message.empty() == (want == 0));
    return held;
}

}  // namespace

TEST_CASE("a quota is kept to the byte, and what the vendor refuses is not charged") {
    auto account = std::make_shared<Account>(1000);
    auto a = take(account, 600);
    CHECK(take(account, 401, acl::RT_MEMORY_ALLOCATION) == nullptr);
    auto b = take(account, 400);
    CHECK(account->left() == 0);
    a.reset();
    CHECK(account->used() == 400);
    CHECK(take(account, UINT64_MAX, acl::RT_MEMORY_ALLOCATION) == nullptr);
    auto without = std::make_shared<Account>();
    CHECK(take(without, uint64_t(1) << 40, acl::RT_OUT_OF_MEMORY) == nullptr);
    CHECK(without->used() == 0);
    CHECK(without->left() == UINT64_MAX);
    b.reset();
    CHECK(mock().mock_held().memory == 0);
}

TEST_CASE("shared memory is charged once: to its owner, then to one of those who still hold it") {
    auto owner = std::make_shared<Account>(1000), one = std::make_shared<Account>(100),
         two = std::make_shared<Account>(100);
    auto held = take(owner, 500);
    auto by_one = std::make_shared<Held>(held->allocation(), one, false),
         by_two = std::make_shared<Held>(held->allocation(), two, false);
    CHECK(owner->used() == 500);
    CHECK(one->used() + two->used() == 0);
    held.reset();
    CHECK(owner->used() == 0);
    CHECK(one->used() == 500);
    CHECK(one->left() == 0);
    CHECK(two->used() == 0);
    by_one.reset();
    CHECK(one->used() == 0);
    CHECK(two->used() == 500);
    CHECK(mock().mock_held().memory == 1);
    by_two.reset();
    CHECK(two->used() == 0);
    CHECK(mock().mock_held().memory == 0);
}

TEST_CASE("a range is held within one allocation, or over mapped neighbours") {
    MemoryMap map;
    map.add({1000, 100});
    map.add({1100, 100});
    CHECK(map.holds(1000, 100));
    CHECK_FALSE(map.holds(1050, 100));  // two allocations side by side are not one
    CHECK_FALSE(map.holds(999, 1));
    CHECK_FALSE(map.holds(1100, 101));
    map.add({2000, 100, MemoryMap::Kind::mapped});
    map.add({2100, 100, MemoryMap::Kind::mapped});
    map.add({2300, 100, MemoryMap::Kind::mapped});
    map.add({2400, 100});
    CHECK(map.holds(2050, 150));
    CHECK_FALSE(map.holds(2050, 151));
    CHECK_FALSE(map.holds(2150, 200));  // a gap
    CHECK_FALSE(map.holds(2350, 100));  // into an allocation
    CHECK_FALSE(map.holds(2150, UINT64_MAX - 2000));
    CHECK(map.overlaps(2299, 2));
    CHECK_FALSE(map.overlaps(2200, 100));
    CHECK_FALSE(map.take(2000, MemoryMap::Kind::own));
    CHECK(map.take(2000, MemoryMap::Kind::mapped));
    CHECK_FALSE(map.holds(2050, 1));
}

TEST_CASE("a key serves those whom its owner allows, until the owner ends it") {
    Exports exports;
    auto account = std::make_shared<Account>();
    auto held = take(account, 64);
    Exports::Export out;
    std::shared_ptr<Allocation> allocation;
    auto look = [&](uint32_t session, int32_t process, const std::string& key,
                    Exports::Kind kind = Exports::Kind::memory) {
        return exports.look_up(session, process, kind, key, &out, &allocation);
    };
    using Answer = Exports::Answer;
    const std::string key =
        exports.add({Exports::Kind::memory, 1, held->allocation(), held->address(), 64, false, {}});
    const std::string other = exports.add({Exports::Kind::physical, 1, held->allocation(), 0, 64, true, {}});
    CHECK(key.size() == 64);
    CHECK(other.size() == 16);
    CHECK(look(2, 20, key) == Answer::not_allowed);
    CHECK_FALSE(exports.allow(2, Exports::Kind::memory, key, {20}));
    CHECK(exports.allow(1, Exports::Kind::memory, key, {20}));
    CHECK(look(2, 20, key) == Answer::granted);
    CHECK(out.address == held->address());
    CHECK(look(3, 30, key) == Answer::not_allowed);
    CHECK(look(1, 10, key) == Answer::own);
    CHECK(look(2, 20, key, Exports::Kind::physical) == Answer::unknown);
    CHECK(look(3, 30, other, Exports::Kind::physical) == Answer::granted);
    CHECK_FALSE(exports.remove(2, key));
    allocation.reset();
    exports.forget(1, held->allocation().get());
    CHECK(look(2, 20, key) == Answer::unknown);
    CHECK(look(3, 30, other, Exports::Kind::physical) == Answer::unknown);
    for (size_t i = 0; i < Exports::kMaxPerSession; i++)
        REQUIRE_FALSE(exports.add({Exports::Kind::memory, 1, held->allocation(), 0, 1, true, {}}).empty());
    CHECK(exports.add({Exports::Kind::memory, 1, held->allocation(), 0, 1, true, {}}).empty());
    CHECK_FALSE(exports.add({Exports::Kind::memory, 2, held->allocation(), 0, 1, true, {}}).empty());
}

// Records many events behind slow work; other streams wait for them, other threads query and synchronise
// them.
//
//   events COUNT RECORDERS WAITERS ASKERS
//
// Prints the streams' handles as a JSON object, waits for a line, runs, and prints its counts.
//
// Each recorder has a counter in device memory, which an operator or a copy makes one more before each
// record: event n of a recorder is complete only when the counter has reached n. A waiter's stream waits for
// the event and then copies the counter; an asker queries the event, and once told that it is complete reads
// the counter; some it synchronises with. A counter below n is an event seen before its record. Every event
// is waited for once and queried by one asker at least once. Events are recorded anew, kEvents later.
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cinttypes>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "harness.hpp"
#include "numbers.hpp"

#define OK(name, ...) flexnpu::bench::check(ACL(name)(__VA_ARGS__), #name)

namespace acl = flexnpu::acl;
using flexnpu::bench::number;

namespace {

constexpr uint64_t kEvents = 256;  // of one recorder
constexpr uint64_t kAhead = 32;    // events that a recorder may be ahead of who waits and asks
constexpr uint64_t kBatch = 1024;  // of a waiter's copies, between its synchronises
constexpr size_t kSlow = 1 << 20;  // bytes of the slow memsets

struct Recorder {
    aclrtStream stream = nullptr;
    int32_t* counter = nullptr;  // device
    void* slow = nullptr;        // device
    aclTensor* cell = nullptr;
    aclTensor* large = nullptr;
    std::vector<aclrtEvent> events;
    std::atomic<uint64_t> recorded{0};
    std::vector<std::unique_ptr<std::atomic<uint64_t>>> taken;  // by each waiter and asker
};

struct Totals {
    std::atomic<uint64_t> waits{0}, early_waits{0}, queries{0}, complete{0}, early_queries{0}, syncs{0},
        early_syncs{0};
} totals;

aclScalar* one;

aclrtStream make_stream() {
    aclrtStream s = nullptr;
    OK(aclrtCreateStream, &s);
    return s;
}

void* allocate(size_t bytes) {
    void* p = nullptr;
    OK(aclrtMalloc, &p, bytes, 0);
    OK(aclrtMemset, p, bytes, 0, bytes);
    return p;
}

void add_one(aclTensor* t, aclrtStream s) {
    uint64_t workspace = 0;
    aclOpExecutor* executor = nullptr;
    OK(aclnnInplaceAddsGetWorkspaceSize, t, one, one, &workspace, &executor);
    OK(aclnnInplaceAdds, nullptr, 0, executor, s);
}

void pause() { std::this_thread::sleep_for(std::chrono::microseconds(100)); }

int32_t read(const int32_t* device) {
    int32_t value = -1;
    OK(aclrtMemcpy, &value, 4, device, 4, acl::DEVICE_TO_HOST);
    return value;
}

void record(Recorder& r, uint64_t count) {
    OK(aclrtSetDevice, 0);
    for (uint64_t n = 1; n <= count; n++) {
        for (auto& t : r.taken) {
            while (t->load(std::memory_order_acquire) + kAhead < n) pause();
        }
        if (n % 64 == 0) {
            for (int i = 0; i < 8; i++)
                OK(aclrtMemsetAsync, r.slow, kSlow, int32_t(n & 0xff), kSlow, r.stream);
        } else if (n % 16 == 0) {
            add_one(r.large, r.stream);
        }
        if (n % 4 == 3) {
            const auto value = int32_t(n);
            OK(aclrtMemcpyAsync, r.counter, 4, &value, 4, acl::HOST_TO_DEVICE, r.stream);
        } else {
            add_one(r.cell, r.stream);
        }
        OK(aclrtRecordEvent, r.events[n % kEvents], r.stream);
        r.recorded.store(n, std::memory_order_release);
    }
}

// One of `of`: takes every so-manieth event of every recorder.
template <class F>
void follow(std::vector<std::unique_ptr<Recorder>>& recorders, uint64_t count, size_t me, size_t of,
            size_t slot, F each) {
    std::vector<uint64_t> next(recorders.size(), 1);
    for (size_t left = recorders.size(); left > 0;) {
        bool any = false;
        for (size_t i = 0; i < recorders.size(); i++) {
            Recorder& r = *recorders[i];
            const uint64_t recorded = r.recorded.load(std::memory_order_acquire);
            for (uint64_t& n = next[i]; n <= recorded; n++) {
                if ((n + i) % of == me) each(r, n);
                r.taken[slot]->store(n, std::memory_order_release);
                any = true;
                if (n == count) left--;
            }
        }
        if (!any) pause();
    }
}

void wait(std::vector<std::unique_ptr<Recorder>>& recorders, uint64_t count, size_t me, size_t of,
          aclrtStream stream) {
    OK(aclrtSetDevice, 0);
    auto* copies = static_cast<int32_t*>(allocate(kBatch * 4));
    std::vector<uint64_t> wanted;
    auto look = [&] {
        std::vector<int32_t> seen(kBatch);
        OK(aclrtSynchronizeStream, stream);
        OK(aclrtMemcpy, seen.data(), kBatch * 4, copies, kBatch * 4, acl::DEVICE_TO_HOST);
        for (size_t i = 0; i < wanted.size(); i++)
            totals.early_waits += uint64_t(uint32_t(seen[i])) < wanted[i];
        totals.waits += wanted.size();
        wanted.clear();
    };
    follow(recorders, count, me, of, me, [&](Recorder& r, uint64_t n) {
        OK(aclrtStreamWaitEvent, stream, r.events[n % kEvents]);
        OK(aclrtMemcpyAsync, copies + wanted.size(), 4, r.counter, 4, acl::DEVICE_TO_DEVICE, stream);
        wanted.push_back(n);
        if (wanted.size() == kBatch) look();
    });
    look();
}

void ask(std::vector<std::unique_ptr<Recorder>>& recorders, uint64_t count, size_t me, size_t of,
         size_t slot) {
    OK(aclrtSetDevice, 0);
    uint64_t number = 0;
    follow(recorders, count, me, of, slot, [&](Recorder& r, uint64_t n) {
        aclrtEvent e = r.events[n % kEvents];
        int32_t status = -1;
        for (int tries = 0; tries < 3; tries++) {
            OK(aclrtQueryEventStatus, e, &status);
            totals.queries++;
            if (status == acl::EVENT_RECORDED_COMPLETE) break;
        }
        if (status == acl::EVENT_RECORDED_COMPLETE) {
            totals.complete++;
            totals.early_queries += uint64_t(uint32_t(read(r.counter))) < n;
        } else if (++number % 16 == 0) {
            OK(aclrtSynchronizeEvent, e);
            totals.syncs++;
            totals.early_syncs += uint64_t(uint32_t(read(r.counter))) < n;
        }
    });
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) {
        std::cerr << "usage: events COUNT RECORDERS WAITERS ASKERS\n";
        return 2;
    }
    const auto recorder_count = number(argv[2]), waiter_count = number(argv[3]),
               asker_count = number(argv[4]);
    const uint64_t count = (number(argv[1]) + recorder_count - 1) / recorder_count;
    OK(aclInit, nullptr);
    OK(aclrtSetDevice, 0);
    int32_t value = 1;
    one = ACL(aclCreateScalar)(&value, acl::INT32);
    const int64_t small[] = {1}, large[] = {1 << 16}, strides[] = {1};
    std::vector<std::unique_ptr<Recorder>> recorders;
    std::vector<aclrtStream> recording, waiting;
    for (size_t i = 0; i < recorder_count; i++) {
        auto r = std::make_unique<Recorder>();
        r->stream = make_stream();
        r->counter = static_cast<int32_t*>(allocate(4));
        r->slow = allocate(kSlow);
        r->cell = ACL(aclCreateTensor)(small, 1, acl::INT32, strides, 0, acl::ND, small, 1, r->counter);
        r->large = ACL(aclCreateTensor)(large, 1, acl::INT32, strides, 0, acl::ND, large, 1, r->slow);
        r->events.resize(kEvents);
        for (aclrtEvent& e : r->events) OK(aclrtCreateEventWithFlag, &e, acl::EVENT_SYNC);
        for (size_t k = 0; k < waiter_count + asker_count; k++)
            r->taken.push_back(std::make_unique<std::atomic<uint64_t>>(0));
        recording.push_back(r->stream);
        recorders.push_back(std::move(r));
    }
    for (size_t i = 0; i < waiter_count; i++) waiting.push_back(make_stream());
    aclrtStream busy = make_stream();
    aclTensor* busy_cell =
        ACL(aclCreateTensor)(small, 1, acl::INT32, strides, 0, acl::ND, small, 1, allocate(4));
    auto list = [](const std::vector<aclrtStream>& streams) {
        std::string text;
        for (aclrtStream s : streams)
            text += (text.empty() ? "" : ", ") + std::to_string(reinterpret_cast<uint64_t>(s));
        return "[" + text + "]";
    };
    std::cout << "{\"recording\": " << list(recording) << ", \"waiting\": " << list(waiting)
              << ", \"busy\": " << list({busy}) << "}" << std::endl;
    std::string line;
    std::getline(std::cin, line);

    const auto start = std::chrono::steady_clock::now();
    std::atomic<bool> over{false};
    std::vector<std::thread> threads;
    threads.reserve(recorders.size() + waiter_count + asker_count);
    for (auto& r : recorders) threads.emplace_back([&r, count] { record(*r, count); });
    for (size_t i = 0; i < waiter_count; i++)
        threads.emplace_back([&, i] { wait(recorders, count, i, waiter_count, waiting[i]); });
    for (size_t i = 0; i < asker_count; i++)
        threads.emplace_back([&, i] { ask(recorders, count, i, asker_count, waiter_count + i); });
    std::thread keep_busy([&] {
        OK(aclrtSetDevice, 0);
        while (!over) {
            add_one(busy_cell, busy);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    });
    for (auto& t : threads) t.join();
    over = true;
    keep_busy.join();
    OK(aclrtSynchronizeDevice);
    bool exact = true;
    for (auto& r : recorders) exact &= uint64_t(uint32_t(read(r->counter))) == count;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    printf("{\"events\": %" PRIu64 ", \"waits\": %" PRIu64 ", \"early_waits\": %" PRIu64
           ", \"queries\": %" PRIu64 ", \"complete\": %" PRIu64
           ", "
           "\"early_queries\": %" PRIu64
           ", "
           "\"synchronises\": %" PRIu64 ", \"early_synchronises\": %" PRIu64
           ", \"counters_exact\": %s, \"seconds\": %.3f}\n",
           count * recorder_count, totals.waits.load(), totals.early_waits.load(), totals.queries.load(),
           totals.complete.load(), totals.early_queries.load(), totals.syncs.load(),
           totals.early_syncs.load(), exact ? "true" : "false", seconds);
    fflush(stdout);
    _exit(0);
}

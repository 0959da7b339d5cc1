// Costs of AscendCL calls as their caller sees them, measured slice by slice at the word of another program,
// so that two of these, with different libraries, can take turns.
//
//   launch             reads requests from stdin, a line each, and answers each with a line of JSON
//
//   calls N            N rounds of each call; medians
//   copy BYTES N       N copies each way, pageable and pinned; medians
//   load MS            launches and synchronises for MS milliseconds; operators done
//   rate PER_S MS      the same, but PER_S operators a second, by the millisecond
#include <cinttypes>
#include <cstring>
#include <functional>
#include <iostream>
#include <sstream>

#include "harness.hpp"

namespace acl = flexnpu::acl;
using namespace flexnpu::bench;

namespace {

using Body = std::function<void()>;

// ns a call of `body`, `count` calls to a sample.
double sample(int count, const Body& body) {
    const double began = now_ns();
    for (int i = 0; i < count; i++) body();
    return (now_ns() - began) / count;
}

void calls(Operator& op, aclrtEvent event, int rounds) {
    // Fewer than a device's queue holds, so that nothing waits for the device; the synchronise behind each
    // batch is not counted.
    constexpr int kBatch = 256;
    std::vector<double> both, with_tensors, through, sync, record, query, in, out;
    uint64_t word = 0;
    for (int r = 0; r < rounds; r++) {
        const double whole = now_ns();
        for (int i = 0; i < kBatch; i++) op.launch();
        both.push_back((now_ns() - whole) / kBatch);
        op.finish();
        through.push_back((now_ns() - whole) / kBatch);
        with_tensors.push_back(sample(kBatch, [&] { op.launch_with_tensors(); }));
        op.finish();
        for (int i = 0; i < 16; i++) sync.push_back(sample(1, [&] { op.finish(); }));
        record.push_back(
            sample(64, [&] { check(ACL(aclrtRecordEvent)(event, op.stream), "aclrtRecordEvent"); }));
        op.finish();
        int32_t status;
        query.push_back(
            sample(16, [&] { check(ACL(aclrtQueryEventStatus)(event, &status), "aclrtQueryEventStatus"); }));
        in.push_back(sample(16, [&] {
            check(ACL(aclrtMemcpy)(op.memory(), 8, &word, 8, acl::HOST_TO_DEVICE), "aclrtMemcpy");
        }));
        out.push_back(sample(16, [&] {
            check(ACL(aclrtMemcpy)(&word, 8, op.memory(), 8, acl::DEVICE_TO_HOST), "aclrtMemcpy");
        }));
    }
    printf(
        "{\"cached_operator_ns\": %.1f, \"operator_with_tensors_ns\": %.1f, \"operator_to_end_ns\": %.1f, "
        "\"synchronise_us\": %.3f, "
        "\"record_event_ns\": %.1f, \"query_event_us\": %.3f, \"copy_in_8_bytes_us\": %.3f, "
        "\"copy_out_8_bytes_us\": %.3f}\n",
        median(both), median(with_tensors), median(through), median(sync) * 1e-3, median(record),
        median(query) * 1e-3, median(in) * 1e-3, median(out) * 1e-3);
}

struct Buffers {
    void* device = nullptr;
    void* pinned = nullptr;
    std::vector<char> pageable;
    void make(size_t bytes) {
        if (pageable.size() >= bytes) return;
        if (device) {
            check(ACL(aclrtFree)(device), "aclrtFree");
            check(ACL(aclrtFreeHost)(pinned), "aclrtFreeHost");
        }
        check(ACL(aclrtMalloc)(&device, bytes, 0), "aclrtMalloc");
        check(ACL(aclrtMallocHost)(&pinned, bytes), "aclrtMallocHost");
        pageable.assign(bytes, 1);
        // Pages are there before the first sample.
        memset(pinned, 1, bytes);
        check(ACL(aclrtMemset)(device, bytes, 0, bytes), "aclrtMemset");
    }
};

void copy(Operator& op, Buffers& b, size_t bytes, int count) {
    b.make(bytes);
    std::vector<double> in, out, pinned_in, pinned_out;
    for (int i = 0; i < count; i++) {
        in.push_back(sample(1, [&] {
            check(ACL(aclrtMemcpy)(b.device, bytes, b.pageable.data(), bytes, acl::HOST_TO_DEVICE),
                  "aclrtMemcpy");
        }));
        out.push_back(sample(1, [&] {
            check(ACL(aclrtMemcpy)(b.pageable.data(), bytes, b.device, bytes, acl::DEVICE_TO_HOST),
                  "aclrtMemcpy");
        }));
        pinned_in.push_back(sample(1, [&] {
            check(ACL(aclrtMemcpyAsync)(b.device, bytes, b.pinned, bytes, acl::HOST_TO_DEVICE, op.stream),
                  "aclrtMemcpyAsync");
            op.finish();
        }));
        pinned_out.push_back(sample(1, [&] {
            check(ACL(aclrtMemcpyAsync)(b.pinned, bytes, b.device, bytes, acl::DEVICE_TO_HOST, op.stream),
                  "aclrtMemcpyAsync");
            op.finish();
        }));
    }
    printf("{\"in_us\": %.2f, \"out_us\": %.2f, \"pinned_in_us\": %.2f, \"pinned_out_us\": %.2f}\n",
           median(in) * 1e-3, median(out) * 1e-3, median(pinned_in) * 1e-3, median(pinned_out) * 1e-3);
}

void load(Operator& op, int ms) {
    constexpr int kStep = 100;  // operators between two synchronises
    uint64_t done = 0;
    const double began = now_ns();
    double now = began;
    while (now - began < ms * 1e6) {
        for (int i = 0; i < kStep; i++) op.launch();
        op.finish();
        done += kStep;
        now = now_ns();
    }
    printf("{\"operators\": %" PRIu64 ", \"seconds\": %.6f}\n", done, (now - began) * 1e-9);
}

void rate(Operator& op, uint64_t per_s, int ms) {
    uint64_t done = 0;
    const double began = now_ns();
    for (int tick = 1; tick <= ms; tick++) {
        for (const uint64_t due = per_s * uint64_t(tick) / 1000; done < due; done++) op.launch();
        op.finish();
        const double wake = began + tick * 1e6;
        timespec until{time_t(wake / 1e9), long(wake - 1e9 * double(time_t(wake / 1e9)))};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
    }
    printf("{\"operators\": %" PRIu64 ", \"seconds\": %.6f}\n", done, (now_ns() - began) * 1e-9);
}

}  // namespace

int main() {
    check(ACL(aclInit)(nullptr), "aclInit");
    check(ACL(aclrtSetDevice)(0), "aclrtSetDevice");
    Operator op;
    Buffers buffers;
    aclrtEvent event;
    check(ACL(aclrtCreateEventWithFlag)(&event, acl::EVENT_SYNC), "aclrtCreateEventWithFlag");
    calls(op, event, 2);  // warm: the answer says that we are ready
    fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string what;
        size_t a = 0, b = 0;
        words >> what >> a >> b;
        if (what == "calls" && a)
            calls(op, event, int(a));
        else if (what == "copy" && a && b)
            copy(op, buffers, a, int(b));
        else if (what == "load" && a)
            load(op, int(a));
        else if (what == "rate" && a && b)
            rate(op, a, int(b));
        else {
            fprintf(stderr, "launch: cannot make sense of \"%s\"\n", line.c_str());
            return 1;
        }
        fflush(stdout);
    }
    return 0;
}

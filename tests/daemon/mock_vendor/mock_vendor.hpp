// A vendor without a device, for tests of the data plane: streams run at once, and every call is logged in
// order.
#pragma once

#include <cstdint>

extern "C" {

struct MockCall {
    char what;  // l launch, c copy, m memset, r record, w wait, s synchronise stream, a abort stream, f free,
                // v value write, V value wait, g begin and G end of a task group, u begin and U end of an
                // update, B begin and E end of a capture, x replay, d destroy graph, k launch of a kernel of
                // the program's own
    uint32_t op;  // of a launch
    void* stream;
    uint64_t a,
        b;  // launch: first two addresses; copy: destination, source; record and wait: event; free: address
    uint64_t bytes;
    void* model = nullptr;  // the graph that captured or updated this, or was replayed
};

// Copies up to `room` calls from number `from` on; how many there are in all.
uint64_t mock_calls(uint64_t from, MockCall* out, uint64_t room);
// Objects that the vendor holds now: streams, events, device memory blocks and host memory blocks, tensors
// and executors.
struct MockHeld {
    int64_t streams, events, memory, host, tensors, executors, models;
    uint64_t pinned;  // bytes of registered host memory
};
MockHeld mock_held(void);
// While stopped, this stream (as in MockCall) does not become complete, until it is aborted.
void mock_stop_stream(void* stream, int on);
// While held, streams do not become complete: queries say not ready, synchronises wait.
void mock_hold(int on);
// While closed, a question for the device's memory (aclrtGetMemInfo), which the dispatching thread asks,
// waits. Returns after it has been opened or closed.
void mock_close_memory(int on);
// How many such questions wait now.
int mock_memory_waits(void);
// The next launch of this operator fails in its second call (-1: none).
void mock_fail_launch(int64_t op);
// First calls of this operator do not return until another is named (-1: none); how many wait now.
void mock_block_first(int64_t op);
int mock_blocked_first(void);
// Whether the next updates of task groups are refused at their begin.
void mock_fail_update(int on);
// Whether calls are logged; they are at first.
void mock_log(int on);
// Whether memory can be registered; at first it can.
void mock_refuse_pins(int on);
// Operators, copies, memsets and values in a graph.
uint64_t mock_nodes(void* model);
// Replays do not end until this is called with 0, or they are aborted.
void mock_stick(int on);
}

// Lanes: what each stream of a client holds here, in its order, on its way to the gate. Owns the table of all
// sessions' lanes and the items' way through a lane: from its backlog, past records that must come first, to
// the gate. Calls the gate, the timers, the markers, the runner of first calls and the count of failures; it
// knows neither records nor what is dispatched. The dispatching thread's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "flexnpu/daemon/failures.hpp"
#include "flexnpu/daemon/first_call_runner.hpp"
#include "flexnpu/daemon/lent.hpp"
#include "flexnpu/daemon/markers.hpp"
#include "flexnpu/daemon/snapshot.hpp"
#include "flexnpu/daemon/timers.hpp"
#include "flexnpu/daemon/turn.hpp"
#include "flexnpu/gate/gate.hpp"

namespace flexnpu::daemon {

class Lanes {
public:
    struct Parts {
        Vendor& vendor;
        gate::Gate& gate;
        SnapshotBoard& board;
        Timers& timers;
        LentBuffers& lent;
        Markers& markers;
        FirstCallRunner& first_calls;
        Failures& failures;
        Turn& turn;
    };
    explicit Lanes(const Parts& parts);

    // ---- the table ----

    // A lane whose vendor's stream has yet to be made, if the session may have one more. `function`: that the
    // program called.
    static std::shared_ptr<Lane> make(Session& s, const char* function, Failure* failure);
    // Makes the vendor's stream. May take its time; any thread.
    Failure make_stream(Lane& lane, uint32_t priority, uint32_t flags) const;
    void enter(Lane& lane);
    // Forgets the lane and what it has not dispatched.
    void drop(Lane& lane);
    // The session's lane of this stream; nullptr: there is none.
    Lane* of(Session& s, uint64_t handle) { return handle ? s.streams.find(handle) : default_lane(s); }
    static std::vector<Lane*> all_of(const Session& s);
    // By number; nullptr: it has gone.
    Lane* find(uint32_t id) const {
        auto it = lanes_.find(id);
        return it == lanes_.end() ? nullptr : it->second;
    }
    // The same, for the one that the gate has decided for, which is most often that of last time.
    Lane* decided(uint32_t id) {
        if (!last_ || last_->id != id) last_ = find(id);
        return last_;
    }
    // False: the gate knows no such lane.
    bool set_phase(uint32_t id, gate::Phase phase, double target_us = 0);
    void set_decode_targets(double target_us);
    void set_target(uint32_t id, double target_us);

    // ---- the way to the gate ----

    // Operators are by far the most frequent items: theirs, with room for addresses, are used again.
    std::unique_ptr<Item> spare_item();
    void keep_item(std::unique_ptr<Item> item);
    // Appends the item to the lane.
    void push(Lane& lane, std::unique_ptr<Item> item);
    // Hands the backlog to the gate, as far as it can go.
    void flow(Lane& lane);
    // Runs `job` when everything that these lanes hold now has been dispatched.
    void after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job);
    // The call that the lane waits for, if it is still this one, has returned.
    void call_over(uint32_t id, uint64_t ticket);
    // The stream has room again.
    void not_full(Lane& lane) {
        lane.full = false;
        flow(lane);
    }
    // The first call that the lane waits for, if it is still this one, has returned.
    void first_call_over(uint32_t id, uint64_t ticket);
    // A synchronise of this lane has been answered, or is about to be; `ticket` was its last item.
    void synced(uint32_t id, uint64_t ticket);
    // The vendor's stream is empty, and so is the lane from here on: what it held, in its order.
    std::vector<std::unique_ptr<Item>> take_all(Lane& lane);

    // ---- marks of events ----

    // The event's record has been dispatched, or never will be: what waits for it goes on.
    void recorded(Mark& mark);
    // The item has been dispatched, or never will be: its marks are free.
    void release(Item& item);
    // The lane does not wait for the item's obstacle any more.
    static void detach(Lane& lane, const Item& item);

    // ---- counts ----

    void count_operator(Lane& lane, const Item& item) {
        if (item.capturing) {
            captured_++;
            return;
        }
        lane.step_open = true;
        count_launch(lane);
        launches_++;
    }
    // Of an operator that is launched by a call of its own.
    void count_call(Lane& lane) {
        count_launch(lane);
        launches_++;
    }
    // Something of the lane has been launched.
    static void count_launch(Lane& lane) {
        lane.launched++;
        lane.in_flight_since_sync++;
    }
    void counters(std::map<std::string, uint64_t>* out) const;

private:
    // A session's default stream is a stream of its own: the vendor's would tie all sessions together.
    Lane* default_lane(Session& s);
    // What must be dispatched before this item, or nullptr.
    static Mark* obstacle(const Item& item);
    void block(Lane& lane, const Item& item, Mark& on);
    // This lane is blocked. If the gate protects it, what it waits for is protected too.
    void protect(const Lane& lane);
    void unblock(Mark& mark);
    void enqueue(Lane& lane, const Item& item);
    bool first_call_ready(Lane& lane, Item& item);
    void drop_first(uint32_t id, uint64_t ticket, const Failure& failure);
    void give_up_wait(uint32_t id, uint64_t ticket);

    Vendor& vendor_;
    gate::Gate& gate_;
    SnapshotBoard& board_;
    Timers& timers_;
    LentBuffers& lent_;
    Markers& markers_;
    FirstCallRunner& first_calls_;
    Failures& failures_;
    Turn& turn_;
    std::unordered_map<uint32_t, Lane*> lanes_;
    Lane* last_ = nullptr;  // that the gate decided for
    uint32_t next_ = 1;
    std::vector<std::unique_ptr<Item>> spare_items_;  // of launches
    uint64_t launches_ = 0, captured_ = 0;
};

}  // namespace flexnpu::daemon

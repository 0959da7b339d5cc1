// The device model: which kernels run side by side on one die, and when each ends.
//
// A pure state machine. Times (us) and kernels come in as arguments, completions go out; there is no clock,
// no thread and no I/O in here, and no locking: the caller serialises the calls. The same calls give the same
// answers, bit for bit.
//
// A kernel is `blocks` equal blocks. A block holds one core until it ends; nothing is taken from it. A core
// that is free takes the next block: of the kernel with the best priority, and among those of the one that
// was ready first. So more blocks than cores run in waves. Launch::Greedy starts as soon as one core is free,
// Launch::Batch when all its blocks fit. A batch kernel that waits keeps the cores that come free from those
// behind it, or it might wait for ever (assumed: no source says what the hardware does).
//
// A kernel alone takes
//     launch + static + max(F / (n p), M / b),    b = min(n r, R)
// with F operations, M bytes, n cores of p operations a us, r = core_rate and R = hbm_rate. `launch` passes
// before it takes cores, so another stream's kernel fills it; `static` holds them. While several run, each
// moves its bytes as fast as its computing uses them up, at most: demand = n min(r, p M / F). Where the
// demands sum up to more than R, R is shared max-min fair by core. The form is that of Bullet (Lin et al.,
// arXiv 2504.19516) with max-min shares in place of measured ones.
//
// Contention::Serial is the other extreme: one kernel at a time, `launch` included, each as long as alone.
//
// A stream's core limit caps the blocks of the kernels that are submitted after it, as tiling on the host
// does that reads aclrtSetStreamResLimit. It places nothing: a limit of a half is no claim on a half.
//
// Not modelled: L2, clocks that fall under load, and kernels that wait for each other while they hold cores.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace flexnpu::device {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

enum class Contention : uint8_t { Serial, Fluid };
enum class Unit : uint8_t { Cube, Vector, Mixed };  // Mixed: a block holds a cube core and two vector cores
enum class Launch : uint8_t { Greedy = 0, Batch = 1 };  // schemMode

struct Chip {
    Contention contention = Contention::Fluid;
    uint32_t cube_cores = 24;
    uint32_t vector_cores = 48;
    double cube_rate = 0;       // operations a us that one cube core reaches
    double vector_rate = 0;     // and one vector core
    double hbm_rate = 0;        // bytes a us that all together reach
    double core_rate = kNever;  // bytes a us of one cube core at most; a vector core has half of it
};

struct Kernel {
    uint64_t ticket = 0;  // the caller's name for it
    double cube_ops = 0, vector_ops = 0, bytes = 0;
    double launch_us = 0, static_us = 0;
    uint32_t blocks = 0;  // 0: one for each core of its unit
    Unit unit = Unit::Cube;
    Launch launch = Launch::Greedy;
    bool limited = true;  // its tiling honours the stream's core limit
};

struct Completion {
    uint32_t stream = 0;
    uint64_t ticket = 0;
    double ready_us = 0;  // it had been submitted, and what stands before it in its stream had ended
    double start_us = 0;  // its first block took a core
    double end_us = 0;
};

// What runs now: blocks of a kernel that started together.
struct Running {
    uint32_t stream = 0;
    uint64_t ticket = 0;
    uint32_t cube_cores = 0, vector_cores = 0;
    double demand = 0;  // bytes a us that it could use
    double rate = 0;    // and gets
};

// Sums since the beginning.
struct Use {
    double busy_us = 0;  // some core was held
    double cube_core_us = 0, vector_core_us = 0;
    double bytes = 0, cube_ops = 0, vector_ops = 0;
    uint64_t kernels = 0;  // ended
};

class Device {
public:
    static constexpr uint32_t kMaxStreams = 1984;  // A2 and A3
    static constexpr uint32_t kPriorities = 8;     // 0 is the best
    static constexpr uint32_t kMaxBlocks = 65535;

    explicit Device(const Chip& chip);

    // The stream's number; none when there are kMaxStreams, or the priority is none.
    std::optional<uint32_t> add_stream(uint32_t priority = 0);
    // False: there is no such stream, or it has kernels that have not ended.
    bool remove_stream(uint32_t stream);
    // At most so many blocks of later kernels; 0: no limit. False: no such stream.
    bool set_limit(uint32_t stream, uint32_t cube_cores, uint32_t vector_cores);

    // The kernel reaches its stream at `at_us`, or now if that has passed; a stream keeps the order of the
    // calls. False, and nothing changes: no such stream, negative or infinite work, work that its unit cannot
    // do, cores that the chip lacks, or a batch of more blocks than cores.
    bool submit(double at_us, uint32_t stream, const Kernel& kernel);
    // The next kernel to end, if it ends by `until_us`; the model's time moves there, or to `until_us`.
    std::optional<Completion> next(double until_us);
    // When something next changes without another submission: not after the next end. kNever: nothing will.
    double next_at() const { return done_at_ < done_.size() ? now_ : next_us_; }

    const Chip& chip() const { return chip_; }
    double now_us() const { return now_; }
    std::vector<Running> running() const;
    const Use& use() const { return use_; }
    size_t queued(uint32_t stream) const;  // not ended

private:
    static constexpr size_t kUnits = 3;
    struct Job {
        Kernel kernel;
        double at_us = 0;
    };
    struct Stream {
        bool live = false;
        bool busy = false;  // the front of the queue is launching, waits or runs
        uint32_t priority = 0;
        uint32_t cube_limit = 0, vector_limit = 0;
        std::vector<Job> queue;  // from `front` on
        size_t front = 0;
        // Of the front kernel: blocks that have not started, and that have not ended.
        uint32_t unstarted = 0, unended = 0;
        uint64_t order = 0;  // priority, then who was ready first
        double ready_us = 0, start_us = 0;
        double compute_us = 0, bytes = 0;  // of a block
    };
    struct Cohort {
        uint32_t stream = 0;
        uint32_t blocks = 0;
        bool working = false;  // else its static time passes
        Unit unit = Unit::Cube;
        double since_us = 0;  // when `left` was right
        double left = 0;      // static: us; working: share of a block
        double rate = 1;      // of `left`, a us
        double end_us = 0;
        double demand = 0;  // bytes a us of all its blocks, and what they get
        double share = 0;
    };
    struct Waiting {
        uint64_t order;
        uint32_t stream;
        bool operator>(const Waiting& other) const { return order > other.order; }
    };
    struct Launching {
        double at_us;
        uint64_t serial;
        uint32_t stream;
        bool operator>(const Launching& other) const {
            return at_us != other.at_us ? at_us > other.at_us : serial > other.serial;
        }
    };

    uint32_t cores_of(Unit unit) const;
    uint32_t fit(Unit unit) const;
    static double weight_of(const Cohort& cohort);
    void open(uint32_t number);
    void ready(uint32_t number);
    bool start(uint32_t number);
    void work(Cohort& cohort);
    void set_rate(Cohort& cohort, double rate);
    void place();
    void share();
    void end(const Cohort& cohort);
    void pass(double at_us);
    void step(double at_us);
    void settle();

    Chip chip_;
    double now_ = 0;
    double next_us_ = kNever;
    uint32_t free_cube_, free_vector_;
    bool shares_stale_ = false;
    uint64_t serial_ = 0;
    std::vector<Stream> streams_;
    std::vector<uint32_t> unused_;  // numbers of streams that were removed
    std::vector<Cohort> cohorts_;
    std::array<std::vector<Waiting>, kUnits>
        waiting_;                       // heaps by order, one a unit; serial: all in the first
    std::optional<uint32_t> alone_;     // serial: whose kernel has the device
    std::vector<Launching> launching_;  // a heap by time
    std::vector<Completion> done_;      // from done_at_ on, not yet told
    size_t done_at_ = 0;
    std::vector<size_t> by_level_;  // of share()
    Use use_;
};

}  // namespace flexnpu::device

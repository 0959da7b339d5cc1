// Mutated messages for the ring, socket and metadata decoders: none may crash, hang or leak, and an honest
// client beside them goes on.
//
//   fuzz_plane [MESSAGES [SEED]]         the corpus, then so many mutated messages of rings and sockets
//   fuzz_plane --write-corpus DIRECTORY  some scripts, honest and mutated, to begin a corpus with
//   fuzz_plane --play FILE...            scripts, such as what a crash has left
//
// Run it from a build with -DFLEXNPU_SANITIZE=address,undefined for what it is worth; the unit tests run it
// briefly. With clang and -DFLEXNPU_FUZZER=ON it is a libFuzzer target over the same scripts instead.
#include <stdio.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "fuzz/generate.hpp"

using namespace flexnpu;
using namespace flexnpu::test;

extern "C" void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

namespace {

// The scripts of the last sessions, for a crash to be played again.
constexpr size_t kRemembered = 256;
std::vector<Bytes> recent;
size_t next_recent = 0;

void leave_recent() {
    std::ofstream file("fuzz_plane-crash", std::ios::binary);
    for (size_t i = 0; i < recent.size(); i++) {
        const Bytes& b = recent[(next_recent + i) % recent.size()];
        const uint32_t n = uint32_t(b.size());
        file.write(reinterpret_cast<const char*>(&n), 4);
        file.write(reinterpret_cast<const char*>(b.data()), n);
    }
    fprintf(stderr, "fuzz_plane: the last %zu scripts are in fuzz_plane-crash\n", recent.size());
}

void remember(const Bytes& b) {
    if (recent.size() < kRemembered) recent.resize(kRemembered);
    recent[next_recent++ % kRemembered] = b;
}

Bytes read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<Bytes> corpus() {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(FLEXNPU_FUZZ_CORPUS))
        paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    std::vector<Bytes> all;
    for (const auto& path : paths) all.push_back(read_file(path));
    return all;
}

uint64_t resident_kib() {
    std::ifstream file("/proc/self/statm");
    uint64_t all = 0, resident = 0;
    file >> all >> resident;
    return resident * 4;
}

void report(const Stage::Count& c, const Generator& g, std::map<std::string, uint64_t> counters,
            uint64_t seed, double seconds) {
    printf(
        "{\"mutated\": %llu, \"ring\": %llu, \"socket\": %llu, \"metadata\": %llu, \"sessions\": %llu, "
        "\"seed\": %llu, \"seconds\": %.1f, "
        "\"resident_kib\": %llu",
        static_cast<unsigned long long>(g.mutated()), static_cast<unsigned long long>(c.ring),
        static_cast<unsigned long long>(c.socket), static_cast<unsigned long long>(c.meta),
        static_cast<unsigned long long>(c.sessions), static_cast<unsigned long long>(seed), seconds,
        static_cast<unsigned long long>(resident_kib()));
    for (const char* name :
         {"refused", "malformed", "malformed_requests", "sessions_broken", "launches", "copies",
          "vendor_errors", "captured_launches", "graphs_captured", "graph_replays", "collectives"}) {
        printf(", \"%s\": %llu", name, static_cast<unsigned long long>(counters[name]));
    }
    printf("}\n");
    fflush(stdout);
}

}  // namespace

#ifdef FLEXNPU_FUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static Mock mock;
    mock.mock_log(0);
    static Stage* stage = new Stage;
    stage->play(data, size);
    stage->settle();
    if (stage->count.scripts % 1000 == 0) stage->check_victim();
    return 0;
}

#else

int main(int argc, char** argv) {
    if (argc == 3 && std::string(argv[1]) == "--write-corpus") {
        Generator g(1);
        int n = 0;
        std::vector<Bytes> all = g.honest_scripts();
        for (int i = 0; i < 24; i++) all.push_back(g.script(Target(i % kTargets), 16));
        for (const Bytes& b : all) {
            char name[32];
            snprintf(name, sizeof(name), "/script-%02d", n++);
            std::ofstream(argv[2] + std::string(name), std::ios::binary)
                .write(reinterpret_cast<const char*>(b.data()), std::streamsize(b.size()));
        }
        return 0;
    }
    Mock mock;
    mock.mock_log(0);  // it would be our own leak
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(leave_recent);
    if (argc > 2 && std::string(argv[1]) == "--play") {
        Stage stage;
        for (int i = 2; i < argc; i++) {
            const Bytes all = read_file(argv[i]);
            const bool crash = std::filesystem::path(argv[i]).filename() == "fuzz_plane-crash";
            for (size_t at = 0; at < all.size();) {
                uint32_t n = uint32_t(all.size());
                if (crash) {
                    std::memcpy(&n, all.data() + at, 4);
                    at += 4;
                }
                stage.play(all.data() + at, n);
                at += n;
            }
            stage.settle();
            stage.check_victim();
        }
        return 0;
    }
    const uint64_t messages = argc > 1 ? strtoull(argv[1], nullptr, 0) : 40'000;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 0) : 1;
    Generator g(seed);
    {
        Stage stage;
        std::vector<Bytes> known = Generator(1).honest_scripts();
        for (const Bytes& b : known) stage.play(b.data(), b.size());
        stage.settle();
        stage.check_victim();
        if (stage.running().plane.counters().at("launches") == 0)
            die("fuzz_plane: nothing was launched: an honest script does not get past the decoders");
        const std::vector<Bytes> kept = corpus();
        if (kept.empty()) die("fuzz_plane: no corpus at " FLEXNPU_FUZZ_CORPUS);
        for (const Bytes& b : kept) stage.play(b.data(), b.size());
        stage.settle();
        stage.check_victim();
        known.insert(known.end(), kept.begin(), kept.end());

        const uint64_t start = wire::now_ns();
        uint64_t next_check = 0, next_report = messages / 10;
        while (g.mutated() < messages) {
            const uint64_t dice = g.below(64);
            Bytes b;
            if (dice == 0) {
                b = known[g.below(known.size())];
                for (uint64_t n = g.below(4); n > 0; n--) g.mutate(b);
            } else {
                b = g.script(dice < 6 ? kSocket : dice < 10 ? kMeta : kRing, 32);
            }
            remember(b);
            stage.play(b.data(), b.size());
            if (g.mutated() >= next_check) {
                stage.check_victim();
                next_check = g.mutated() + 2000;
            }
            if (messages >= 1'000'000 && g.mutated() >= next_report) {
                report(stage.count, g, stage.running().plane.counters(), seed,
                       double(wire::now_ns() - start) / 1e9);
                next_report += messages / 10;
            }
        }
        stage.settle();
        stage.check_victim();
        const auto counters = stage.running().plane.counters();
        report(stage.count, g, counters, seed, double(wire::now_ns() - start) / 1e9);
        if (counters.at("refused") == 0 || counters.at("sessions_broken") == 0)
            die("nothing was refused: the fuzzer does not reach the decoders");
        if (counters.at("graph_replays") == 0 || counters.at("captured_launches") == 0)
            die("no graph was replayed: the fuzzer does not get that far");
        if (counters.at("collectives") == 0)
            die("no collective was called: the fuzzer does not get that far");
        if (counters.at("launches") < stage.count.ring / 200)
            die("little was launched: the fuzzer does not get past the decoders");
    }
    const MockHeld held = mock.mock_held();
    if (held.streams || held.events || held.memory || held.host || held.executors || held.tensors) {
        fprintf(stderr,
                "left: %lld streams, %lld events, %lld of memory, %lld of host memory, %lld executors, %lld "
                "tensors\n",
                static_cast<long long>(held.streams), static_cast<long long>(held.events),
                static_cast<long long>(held.memory), static_cast<long long>(held.host),
                static_cast<long long>(held.executors), static_cast<long long>(held.tensors));
        die("a session's objects were not freed");
    }
    return 0;
}

#endif

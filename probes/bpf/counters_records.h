// What the self-test's programs count.
#pragma once

#define PLACES 256  // probes
#define ARGUMENTS 4

struct seen {
    u64 hits;
    u64 argument[ARGUMENTS];  // sums
};

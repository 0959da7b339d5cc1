// The environment of the emulated CANN is read once, before the first call.
#include <doctest/doctest.h>

#include <unistd.h>
#include <cstdlib>
#include <string>

#include "support.hpp"

int main(int argc, char** argv) {
    setenv("FLEXNPU_EMU_PROFILE", FLEXNPU_TEST_PROFILE, 1);
    setenv("FLEXNPU_EMU_MODE", FLEXNPU_TEST_MODE, 1);
    setenv("FLEXNPU_EMU_DEVICES", "2", 1);
    setenv("FLEXNPU_EMU_MACHINE", ("unit-" + std::to_string(getpid())).c_str(), 1);
    if (aclInit(nullptr) != 0 || aclrtSetDevice(0) != 0) {
        std::fprintf(stderr, "cannot open the emulated device: %s\n", aclGetRecentErrMsg());
        return 1;
    }
    doctest::Context context(argc, argv);
    int failed = context.run();
    return aclFinalize() == 0 ? failed : 1;
}

// Preloaded into every program under `flexnpu run`, to keep it on FlexNPU's libraries.
//
// Start scripts source the vendor's set_env.sh, which puts the vendor's folder first in LD_LIBRARY_PATH. What
// starts after that line would load the vendor's libraries and reach the NPU past its daemon: no quota, no
// gate, and nobody would be told. So a process that would find others loads ours now, by path: who asks for
// one of these names later gets what is loaded. A process that has others already, since it is linked with
// them, is ended with an error.
//
// Nothing here may need a library or take time: it runs in every process, in shells too.
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace {

constexpr const char* kLibraries[] = {FLEXNPU_CLIENT_LIBRARIES};
constexpr const char* kFirst = "libascendcl.so";
constexpr int kRefused = 126;

bool join(char (&out)[PATH_MAX], const char* folder, size_t length, const char* name) {
    const int n = snprintf(out, sizeof(out), "%.*s/%s", int(length), folder, name);
    return n > 0 && size_t(n) < sizeof(out);
}

// Whether the first folder of LD_LIBRARY_PATH that has the library is another than ours.
bool others_come_first(const char* ours) {
    const char* path = getenv("LD_LIBRARY_PATH");
    while (path && *path) {
        const size_t length = strcspn(path, ":;");
        char file[PATH_MAX];
        if (length && join(file, path, length, kFirst) && access(file, R_OK) == 0)
            return length != strlen(ours) || strncmp(path, ours, length) != 0;
        path += length;
        path += *path != 0;
    }
    return true;
}

// Where the library is loaded from; false: it is not loaded.
bool loaded_from(const char* name, char (&out)[PATH_MAX]) {
    void* handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return false;
    link_map* map = nullptr;
    const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name;
    snprintf(out, sizeof(out), "%s", known ? map->l_name : "");
    dlclose(handle);
    return true;
}

void refuse(const char* found, const char* ours) {
    fprintf(
        stderr,
        "flexnpu: %s is linked with %s, which reaches the NPU past FlexNPU's daemon: no quota and no gate "
        "would hold for it. Put %s first in LD_LIBRARY_PATH, after set_env.sh, or start it without "
        "`flexnpu run`\n",
        program_invocation_name, found, ours);
    _exit(kRefused);
}

__attribute__((constructor)) void keep_to_ours() {
    Dl_info self{};
    if (dladdr(reinterpret_cast<void*>(&keep_to_ours), &self) == 0 || !self.dli_fname) return;
    const char* slash = strrchr(self.dli_fname, '/');
    if (!slash) return;
    char ours[PATH_MAX], file[PATH_MAX];
    snprintf(ours, sizeof(ours), "%.*s", int(slash - self.dli_fname), self.dli_fname);
    for (const char* name : kLibraries) {
        if (loaded_from(name, file) && strncmp(file, ours, strlen(ours)) != 0) refuse(file, ours);
    }
    if (!others_come_first(ours)) return;
    for (const char* name : kLibraries) {
        if (!join(file, ours, strlen(ours), name)) return;
        if (!dlopen(file, RTLD_LAZY | RTLD_LOCAL)) fprintf(stderr, "flexnpu: %s\n", dlerror());
    }
    // Programs look for more libraries below these.
    if (join(file, ours, strlen(ours), "toolkit/")) {
        setenv("ASCEND_HOME_PATH", file, 1);
        setenv("ASCEND_TOOLKIT_HOME", file, 1);
    }
    if (join(file, ours, strlen(ours), "toolkit/opp")) setenv("ASCEND_OPP_PATH", file, 1);
}

}  // namespace

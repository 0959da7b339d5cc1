// What the environment says of the emulated machine.
#include <dlfcn.h>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "flexnpu/api/guest.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace flexnpu::emulator {

namespace {

// Profiles lie beside the folder of this library: lib/libacl_rt.so, profiles/NAME.toml.
std::string profile_directory() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(&profile_directory), &info) == 0 || info.dli_fname == nullptr) {
        return "profiles";
    }
    std::error_code ignored;
    auto file = std::filesystem::canonical(info.dli_fname, ignored);
    return (file.parent_path().parent_path() / "profiles").string();
}

std::string variable(const char* name, const char* fallback) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : fallback;
}

[[noreturn]] void refuse_variable(const char* name, const std::string& value, const char* allowed) {
    throw std::runtime_error(std::string(name) + "=" + value + ": must be " + allowed);
}

}  // namespace

Settings read_settings() {
    Settings settings;
    settings.profile = load_profile(variable("FLEXNPU_EMU_PROFILE", "ascend910c-die"), profile_directory());
    settings.profile.slowdown = Slowdown(variable("FLEXNPU_EMU_SLOWDOWN", "1"));
    std::string mode = variable("FLEXNPU_EMU_MODE", "compute");
    if (mode != "compute" && mode != "time") {
        refuse_variable("FLEXNPU_EMU_MODE", mode, "compute or time");
    }
    settings.mode = mode == "time" ? kModeTime : kModeCompute;
    std::string missing = variable("FLEXNPU_EMU_MISSING", "error");
    if (missing != "error" && missing != "time") {
        refuse_variable("FLEXNPU_EMU_MISSING", missing, "error or time");
    }
    settings.missing = missing == "time" ? kMissingTime : kMissingError;
    std::string devices = variable("FLEXNPU_EMU_DEVICES", "1");
    char* end = nullptr;
    long count = std::strtol(devices.c_str(), &end, 10);
    if (*end != '\0' || count < 1 || count > 64) {
        refuse_variable("FLEXNPU_EMU_DEVICES", devices, "a number from 1 to 64");
    }
    settings.visible = guest::visible_devices(std::getenv("ASCEND_RT_VISIBLE_DEVICES"), int32_t(count));
    settings.devices = int32_t(settings.visible.size());
    settings.machine = variable("FLEXNPU_EMU_MACHINE", "default");
    if (settings.machine.size() > 40 ||
        settings.machine.find_first_not_of(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != std::string::npos) {
        refuse_variable("FLEXNPU_EMU_MACHINE", settings.machine,
                        "at most 40 letters, digits, '_', '.' or '-'");
    }
    if (std::string folder = variable("FLEXNPU_EMU_LOG", ""); !folder.empty()) {
        settings.log = std::make_shared<TaskLog>(folder);
    }
    return settings;
}

}  // namespace flexnpu::emulator

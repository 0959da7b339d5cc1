// What tells a live process from a dead one, and from another that was given its number.
#pragma once

#include <charconv>
#include <cstdint>
#include <fstream>
#include <string>

namespace flexnpu::emulator {

// Field 22 of /proc/PID/stat: with the pid it names a process for good. 0 when there is none.
inline uint64_t process_start_time(int32_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    if (!std::getline(file, text)) {
        return 0;
    }
    size_t at = text.rfind(')');  // the command name may hold anything, spaces and parentheses too
    if (at == std::string::npos) {
        return 0;
    }
    // After ')' come " S ppid ...": field 3 is the first.
    for (int field = 3; field <= 22 && at != std::string::npos; ++field) {
        at = text.find(' ', at + 1);
        if (field == 22 && at != std::string::npos) {
            if (text[text.rfind(')') + 2] == 'Z') {
                return 0;  // a zombie holds nothing any more
            }
            uint64_t value = 0;
            std::from_chars(text.data() + at + 1, text.data() + text.size(), value);
            return value;
        }
    }
    return 0;
}

}  // namespace flexnpu::emulator

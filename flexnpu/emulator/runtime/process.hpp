// What tells a live process from a dead one, and from another that was given its number.
#pragma once

#include <dirent.h>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace flexnpu::emulator {

// What /proc/ID/stat says of a process, or of one of its threads.
struct TaskStatus {
    bool runs = false;        // neither gone nor a zombie
    uint64_t start_time = 0;  // field 22: with the id it names a task for good; 0 when there is none
};

inline TaskStatus task_status(int32_t id) {
    std::ifstream file("/proc/" + std::to_string(id) + "/stat");
    std::string text;
    TaskStatus status;
    if (!std::getline(file, text)) {
        return status;
    }
    size_t at = text.rfind(')');  // the command name may hold anything, spaces and parentheses too
    if (at == std::string::npos || at + 2 >= text.size()) {
        return status;
    }
    status.runs = text[at + 2] != 'Z' && text[at + 2] != 'X';
    // After ')' come " S ppid ...": field 3 is the first.
    for (int field = 3; field <= 22 && at != std::string::npos; ++field) {
        at = text.find(' ', at + 1);
    }
    if (at != std::string::npos) {
        std::from_chars(text.data() + at + 1, text.data() + text.size(), status.start_time);
    }
    return status;
}

// A thread of process `pid` that runs: the first one, unless it has ended. 0 when none is left.
inline int32_t running_thread(int32_t pid) {
    const TaskStatus first = task_status(pid);
    if (first.runs || first.start_time == 0) {
        return first.runs ? pid : 0;
    }
    DIR* threads = opendir(("/proc/" + std::to_string(pid) + "/task").c_str());
    int32_t found = 0;
    while (dirent* entry = threads != nullptr && found == 0 ? readdir(threads) : nullptr) {
        const int32_t thread = std::atoi(entry->d_name);
        found = thread > 0 && task_status(thread).runs ? thread : 0;
    }
    if (threads != nullptr) {
        closedir(threads);
    }
    return found;
}

// When process `pid` started, in clock ticks since boot; 0 when no thread of it runs: it holds nothing then.
inline uint64_t process_start_time(int32_t pid) {
    const TaskStatus first = task_status(pid);
    return first.runs || running_thread(pid) != 0 ? first.start_time : 0;
}

// Where /proc shows what process `pid` has. Once the first thread has ended, /proc/PID shows nothing, and
// /proc/TID of another thread does, though no listing names it.
inline std::string process_folder(int32_t pid) {
    const int32_t thread = running_thread(pid);
    return "/proc/" + std::to_string(thread != 0 ? thread : pid);
}

}  // namespace flexnpu::emulator

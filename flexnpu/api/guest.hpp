// What a library owes the program in whose process it lives.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <vector>

namespace flexnpu::guest {

// The descriptor, or in its place one that is not 0, 1 or 2; -1 with errno: there is none left. A program may
// have closed those three. What it prints would go into ours, if ours got their numbers.
inline int above_standard(int fd) {
    if (fd < 0 || fd > STDERR_FILENO) return fd;
    const int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    const int error = errno;
    close(fd);
    errno = error;
    return moved;
}

// Which of `there` devices a program sees, in its own order, by the value of ASCEND_RT_VISIBLE_DEVICES
// ("2,0"); nullptr: the variable is not set, it sees all. Numbers from the first on that is none, is not
// there or came before do not count.
inline std::vector<int32_t> visible_devices(const char* value, int32_t there) {
    std::vector<int32_t> seen;
    if (!value) {
        seen.resize(size_t(std::max(there, 0)));
        std::iota(seen.begin(), seen.end(), 0);
        return seen;
    }
    std::string_view rest(value);
    for (bool more = true; more;) {
        const size_t comma = rest.find(',');
        std::string_view word = rest.substr(0, comma);
        more = comma != std::string_view::npos;
        if (more) rest.remove_prefix(comma + 1);
        while (!word.empty() && word.front() == ' ') word.remove_prefix(1);
        while (!word.empty() && word.back() == ' ') word.remove_suffix(1);
        int32_t number = -1;
        const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
        if (error != std::errc() || end != word.data() + word.size() || number < 0 || number >= there ||
            std::find(seen.begin(), seen.end(), number) != seen.end())
            break;
        seen.push_back(number);
    }
    return seen;
}

}  // namespace flexnpu::guest

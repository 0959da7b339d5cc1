#include "flexnpu/emulator/runtime/task_log.hpp"

#include <fcntl.h>
#include <unistd.h>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "flexnpu/api/guest.hpp"

namespace flexnpu::emulator {

namespace {
constexpr size_t kEnough = 32 * 1024;
}

TaskLog::TaskLog(const std::string& folder) : path_(folder + "/" + std::to_string(getpid()) + ".log") {
    fd_ = guest::above_standard(open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
    if (fd_ < 0) {
        throw std::runtime_error("FLEXNPU_EMU_LOG: " + path_ + ": " + std::strerror(errno));
    }
}

TaskLog::~TaskLog() { close(fd_); }

void TaskLog::write(const std::string& lines) {
    size_t done = 0;
    while (done < lines.size() && !failed_.load()) {
        ssize_t count = ::write(fd_, lines.data() + done, lines.size() - done);
        if (count > 0) {
            done += size_t(count);
        } else if (errno != EINTR) {
            if (!failed_.exchange(true)) {
                std::fprintf(stderr, "flexnpu: the device's log %s ends: %s\n", path_.c_str(),
                             std::strerror(errno));
            }
            return;
        }
    }
}

void TaskLines::add(int32_t device, int32_t stream, uint64_t begin_ns, uint64_t end_ns, const char* name) {
    if (!log_) {
        return;
    }
    char head[96];
    std::snprintf(head, sizeof(head), "%" PRIu64 " %" PRIu64 " %d %d ", begin_ns, end_ns, device, stream);
    lines_ += head;
    lines_ += name;
    lines_ += '\n';
    if (lines_.size() >= kEnough) {
        flush();
    }
}

void TaskLines::flush() {
    if (log_ && !lines_.empty()) {
        log_->write(lines_);
        lines_.clear();
    }
}

}  // namespace flexnpu::emulator

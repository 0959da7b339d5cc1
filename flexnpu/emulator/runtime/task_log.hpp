// What the device did: a line for each operator and copy, for who must know the truth about its time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace flexnpu::emulator {

// The file of this process, in a folder that the environment names. Lines of several streams are mixed.
class TaskLog {
public:
    // Throws std::runtime_error when the file cannot be made.
    explicit TaskLog(const std::string& folder);
    ~TaskLog();
    TaskLog(const TaskLog&) = delete;
    TaskLog& operator=(const TaskLog&) = delete;

    // Whole lines. What cannot be written is said once on stderr.
    void write(const std::string& lines);

private:
    const std::string path_;
    int fd_ = -1;
    std::atomic<bool> failed_{false};
};

// One stream's lines, gathered so that not every operator costs a system call. Used by one thread.
class TaskLines {
public:
    // Without a log nothing is gathered.
    explicit TaskLines(std::shared_ptr<TaskLog> log) : log_(std::move(log)) {}
    ~TaskLines() { flush(); }
    TaskLines(const TaskLines&) = delete;
    TaskLines& operator=(const TaskLines&) = delete;

    void add(int32_t device, int32_t stream, uint64_t begin_ns, uint64_t end_ns, const char* name);
    bool pending() const { return !lines_.empty(); }
    void flush();

private:
    std::shared_ptr<TaskLog> log_;
    std::string lines_;
};

}  // namespace flexnpu::emulator

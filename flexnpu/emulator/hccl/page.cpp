#include "flexnpu/emulator/hccl/page.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#include <climits>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "flexnpu/api/guest.hpp"

namespace flexnpu::emulator::hccl {

namespace {

[[noreturn]] void throw_errno(const char* what, int close_first = -1) {
    int error = errno;
    if (close_first >= 0) {
        close(close_first);
    }
    throw std::runtime_error(std::string(what) + ": " + std::strerror(error));
}

}  // namespace

const char* name_of(Op op) {
    switch (op) {
        case Op::AllReduce: return "HcclAllReduce";
        case Op::AllGather: return "HcclAllGather";
        case Op::ReduceScatter: return "HcclReduceScatter";
        case Op::Broadcast: return "HcclBroadcast";
        case Op::Reduce: return "HcclReduce";
        case Op::Scatter: return "HcclScatter";
        case Op::AllToAll: return "HcclAlltoAll";
        case Op::Barrier: return "HcclBarrier";
        case Op::SendRecv: return "HcclSend/HcclRecv";
        case Op::None: break;
    }
    return "no collective";
}

int Mapping::create() {
    int fd = guest::above_standard(memfd_create("flexnpu-hccl", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0) {
        throw_errno("cannot make a communicator's memory");
    }
    // Sparse: a communicator costs what its ranks touch. Sealed, so that no rank can take pages from under
    // the others.
    if (ftruncate(fd, off_t(kPageBytes + data_bytes(kMaxRanks))) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        throw_errno("cannot make a communicator's memory", fd);
    }
    void* p = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED) {
        throw_errno("cannot map a communicator's memory", fd);
    }
    // All of it reads as zero already: touching it would commit it.
    auto* page = static_cast<Page*>(p);
    page->magic = Page::kMagic;
    page->size = sizeof(Page);
    munmap(p, kPageBytes);
    return fd;
}

Mapping::Mapping(int fd) : fd_(fd) {
    struct stat file{};
    if (fstat(fd, &file) != 0 || uint64_t(file.st_size) != kPageBytes + data_bytes(kMaxRanks)) {
        close(fd);
        throw std::runtime_error("the communicator is of another version of the emulator");
    }
    void* p = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED) {
        throw_errno("cannot map a communicator's memory", fd);
    }
    page_ = static_cast<Page*>(p);
    if (page_->magic != Page::kMagic || page_->size != sizeof(Page)) {
        munmap(p, kPageBytes);
        close(fd);
        throw std::runtime_error("the communicator is of another version of the emulator");
    }
}

void Mapping::use(uint32_t ranks) {
    void* p = mmap(nullptr, data_bytes(ranks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_,
                   off_t(kPageBytes));
    if (p == MAP_FAILED) {
        throw_errno("cannot map a communicator's windows");
    }
    data_ = static_cast<char*>(p);
    ranks_ = ranks;
}

Mapping::~Mapping() {
    if (data_ != nullptr) {
        munmap(data_, data_bytes(ranks_));
    }
    munmap(page_, kPageBytes);
    close(fd_);
}

void wake_waiters(Page& page) {
    page.pulse.fetch_add(1);
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&page.pulse), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void wait_for_change(Page& page, uint32_t seen, uint64_t ns) {
    timespec time{time_t(ns / 1'000'000'000), long(ns % 1'000'000'000)};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&page.pulse), FUTEX_WAIT, seen, &time, nullptr, 0);
}

}  // namespace flexnpu::emulator::hccl

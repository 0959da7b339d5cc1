// What the loader tells the wire programs: see steps_options.h.
#pragma once

#include "platform.h"

#ifdef FLEXNPU_CORE
struct options {
    u64 ring_pages;  // size of the ring
    u64 pidns_dev;   // the tracer's process namespace, 0 where it is the first one
    u64 pidns_ino;
    // Offsets of task_struct's thread_pid and group_leader, of struct pid's level and numbers, and of a
    // namespace's inode; 0 where they are not needed or not known.
    u64 task_pid, task_leader, pid_level, pid_numbers, pidns_inum;
};
volatile const struct options options SEC(".rodata.options");
#define RING_PAGES options.ring_pages

struct in6_addr {
    u8 bytes[16];
};
struct sock_common {
    u16 skc_family;
    u32 skc_daddr, skc_rcv_saddr;
    u16 skc_dport, skc_num;
    struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;  // where the kernel has IPv6
} RELOCATED;
struct sock {
    struct sock_common __sk_common;
    u16 sk_protocol;
} RELOCATED;
struct unix_sock {
    struct sock* peer;
} RELOCATED;
struct tcp_sock {
    u32 snd_nxt, write_seq;
} RELOCATED;
struct counter {
    s64 counter;
};
struct inode {
    u16 i_mode;
} RELOCATED;
struct file {
    struct inode* f_inode;
    void* private_data;
    struct counter f_count;  // before Linux 6.13
    struct counter f_ref;
} RELOCATED;
struct socket {
    struct sock* sk;
} RELOCATED;
struct fdtable {
    unsigned int max_fds;
    struct file** fd;
} RELOCATED;
struct files_struct {
    struct fdtable* fdt;
} RELOCATED;
struct task_struct {
    struct files_struct* files;
} RELOCATED;
#define SOCK_FAMILY OFFSET_OF(sock, __sk_common.skc_family)
#define SOCK_PROTOCOL OFFSET_OF(sock, sk_protocol)
#define TCP_SND_NXT OFFSET_OF(tcp_sock, snd_nxt)
#define TCP_WRITE_SEQ OFFSET_OF(tcp_sock, write_seq)
#define TASK_FILES OFFSET_OF(task_struct, files)
#define FILES_FDT OFFSET_OF(files_struct, fdt)
#define FDT_MAX OFFSET_OF(fdtable, max_fds)
#define FDT_FD OFFSET_OF(fdtable, fd)
#define FILE_INODE OFFSET_OF(file, f_inode)
#define FILE_DATA OFFSET_OF(file, private_data)
#define FILE_COUNT (EXISTS(file, f_ref) ? OFFSET_OF(file, f_ref) : OFFSET_OF(file, f_count))
#define FILE_ONE (EXISTS(file, f_ref) ? 0 : 1)  // what it is with one reference
#define INODE_MODE OFFSET_OF(inode, i_mode)
#define SOCKET_SOCK OFFSET_OF(socket, sk)
#define FILES
#define ENDS
#define SOCKET_TIME
#endif

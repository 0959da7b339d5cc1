// What a descriptor of the running thread is, from the kernel's own table of files.
//
// FILES: TASK_FILES and the others of wire_options.h are offsets in this kernel's structures. Without them a
// connection is known by its process and descriptor only.

#ifdef FILES
#define S_IFMT 0170000
#define S_IFSOCK 0140000

static __always_inline u64 read_pointer(u64 at)
{
    u64 value = 0;
    if (!at || bpf_probe_read_kernel(&value, sizeof(value), (void*)at))
        return 0;
    return value;
}

// The struct file, or 0.
static __always_inline u64 file_of(u32 fd)
{
    u64 table = read_pointer(read_pointer((u64)bpf_get_current_task() + TASK_FILES) + FILES_FDT);
    u32 size = 0;
    if (!table || bpf_probe_read_kernel(&size, sizeof(size), (void*)(table + FDT_MAX)) || fd >= size)
        return 0;
    u64 entries = read_pointer(table + FDT_FD);
    return entries ? read_pointer(entries + (u64)fd * 8) : 0;
}

// The struct sock: one for all descriptors, in all processes, of a connection. 0 for what is no socket.
static __always_inline u64 socket_of(u64 file)
{
    u64 inode = file ? read_pointer(file + FILE_INODE) : 0;
    u16 mode = 0;
    if (!inode || bpf_probe_read_kernel(&mode, sizeof(mode), (void*)(inode + INODE_MODE)) ||
        (mode & S_IFMT) != S_IFSOCK)
        return 0;
    u64 socket = read_pointer(file + FILE_DATA);
    return socket ? read_pointer(socket + SOCKET_SOCK) : 0;
}

// Whether the file outlives this descriptor: another one, in this process or not, or a message that carries
// it has it too.
static __always_inline int is_shared(u32 fd)
{
    u64 file = file_of(fd);
    s64 references = 0;
    if (!file || bpf_probe_read_kernel(&references, sizeof(references), (void*)(file + FILE_COUNT)))
        return 0;
    return references > FILE_ONE;
}
#endif

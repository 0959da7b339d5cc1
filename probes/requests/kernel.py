"""What the wire programs are attached to, and what of the kernel's structures they must be told."""

from __future__ import annotations

import os
import stat
from typing import Final

from flexnpu.common.processes import folder_of
from probes.placing import declarations, loader
from probes.placing.btf import member_offsets

TOLD: Final = declarations.read(loader.FOLDER / "wire_records.h")
"""What the wire programs tell."""

CALLS: Final = (
    ("read", "enter_read", "exit_transfer"),
    ("recvfrom", "enter_recvfrom", "exit_transfer"),
    ("readv", "enter_readv", "exit_transfer"),
    ("preadv2", "enter_readv", "exit_transfer"),  # at no offset: on a socket
    ("recvmsg", "enter_recvmsg", "exit_transfer"),
    ("recvmmsg", "enter_recvmmsg", "exit_messages"),
    ("write", "enter_write", "exit_transfer"),
    ("sendto", "enter_write", "exit_transfer"),
    ("writev", "enter_writev", "exit_transfer"),
    ("pwritev2", "enter_writev", "exit_transfer"),
    ("sendmsg", "enter_sendmsg", "exit_transfer"),
    ("sendmmsg", "enter_sendmmsg", "exit_messages"),
    ("sendfile64", "enter_sendfile", "exit_transfer"),
    ("splice", "enter_splice", "exit_transfer"),
    ("io_uring_enter", "enter_uring", "exit_uring"),
    ("accept", None, "exit_accept"),
    ("accept4", None, "exit_accept"),
    ("close", "enter_close", None),
    ("close_range", "enter_close_range", None),
    ("dup2", "enter_dup2", None),
    ("dup3", "enter_dup2", None),
    ("exit", "enter_exit", None),
)
"""(system call, program at its entry, program at its exit). What a kernel does not have is left out."""


SOCKET_TIME: Final = (
    "sock/sk_data_ready",
    "sock/sock_recv_length",
    "sock/sock_send_length",
    "tcp/tcp_probe",
    "tcp/tcp_destroy_sock",
)
"""Tracepoints that date what sockets move."""


def socket_offsets() -> dict[str, int] | None:
    """Offsets that wire.c wants in the kernel's struct tcp_sock, which starts with sock and sock_common."""
    sock = member_offsets("sock", ("sk_protocol",))
    common = member_offsets("sock_common", ("skc_family",))
    tcp = member_offsets("tcp_sock", ("write_seq", "snd_nxt"))
    if sock is None or common is None or tcp is None:
        return None
    return {
        "SOCK_PROTOCOL": sock["sk_protocol"],
        "SOCK_FAMILY": common["skc_family"],
        "TCP_WRITE_SEQ": tcp["write_seq"],
        "TCP_SND_NXT": tcp["snd_nxt"],
    }


def file_offsets() -> dict[str, int] | None:
    """Offsets that wire_files.c wants, on the way from a task to the socket of a descriptor."""
    task = member_offsets("task_struct", ("files",))
    files = member_offsets("files_struct", ("fdt",))
    table = member_offsets("fdtable", ("max_fds", "fd"))
    file = member_offsets("file", ("f_inode", "private_data"))
    references = member_offsets("file", ("f_ref",)) or member_offsets("file", ("f_count",))
    inode = member_offsets("inode", ("i_mode",))
    socket = member_offsets("socket", ("sk",))
    if not (task and files and table and file and references and inode and socket):
        return None
    return {
        "TASK_FILES": task["files"],
        "FILES_FDT": files["fdt"],
        "FDT_MAX": table["max_fds"],
        "FDT_FD": table["fd"],
        "FILE_INODE": file["f_inode"],
        "FILE_DATA": file["private_data"],
        "FILE_COUNT": next(iter(references.values())),
        "FILE_ONE": 0 if "f_ref" in references else 1,
        "INODE_MODE": inode["i_mode"],
        "SOCKET_SOCK": socket["sk"],
    }


def is_socket(pid: int, fd: int) -> bool:
    """Asked where the kernel part cannot know. What is closed by now is not believed to be one."""
    try:
        return stat.S_ISSOCK(os.stat(f"{folder_of(pid)}/fd/{fd}").st_mode)
    except OSError:
        return False


def is_open(pid: int, fd: int) -> bool:
    """Whether a process has a descriptor `fd`."""
    return os.path.lexists(f"{folder_of(pid)}/fd/{fd}")

"""Memory shared between processes: one exports, others import. Prints JSON that must be the same directly and
interposed.

ipc.py exporter DEVICE   starts the importers and tells each what to do over its pipes
ipc.py importer DEVICE   reads commands, one JSON array a line, and answers each with one line of JSON
"""

import json
import os
import subprocess
import sys
import threading
from ctypes import (
    Structure,
    byref,
    c_char,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    create_string_buffer,
)
from typing import Any

from ascendcl import AclError, call, copy_in, copy_out, create_stream, malloc, start
from virtual_memory_calls import PIECE, map_memory, physical, reserve, unmap

SIZE = 1 << 20
ANY_PROCESS = 1


def export(address: int, size: int = SIZE, flags: int = 0) -> str:
    key = create_string_buffer(65)
    arguments = (c_size_t(size), key, c_size_t(65), c_uint64(flags))
    call("aclrtIpcMemGetExportKey", c_void_p(address), *arguments)
    return key.value.decode()


def allow(key: str, pid: int) -> None:
    call("aclrtIpcMemSetImportPid", c_char_p(key.encode()), byref(c_int32(pid)), c_size_t(1))


def import_key(key: str) -> int:
    address = c_void_p()
    call("aclrtIpcMemImportByKey", byref(address), c_char_p(key.encode()), c_uint64(0))
    return address.value or 0


def close(key: str) -> None:
    call("aclrtIpcMemClose", c_char_p(key.encode()))


def share(handle: c_void_p, flags: int = 0) -> int:
    number = c_uint64()
    call("aclrtMemExportToShareableHandle", handle, c_int32(0), c_uint64(flags), byref(number))
    return number.value


def allow_handle(number: int, pid: int) -> None:
    call("aclrtMemSetPidToShareableHandle", c_uint64(number), byref(c_int32(pid)), c_size_t(1))


def import_handle(number: int) -> int:
    handle = c_void_p()
    call("aclrtMemImportFromShareableHandle", c_uint64(number), c_int32(0), byref(handle))
    return handle.value or 0


def read(address: int, size: int = 5) -> str:
    return copy_out(c_void_p(address), size).decode()


def write(address: int, text: str) -> None:
    copy_in(c_void_p(address), text.encode())


def fill(address: int, value: int) -> None:
    stream = create_stream()
    call("aclrtMemsetAsync", c_void_p(address), c_size_t(SIZE), c_int32(value), c_size_t(SIZE), stream)
    call("aclrtSynchronizeStream", stream)


class Handle(Structure):
    _fields_ = (("bytes", c_char * 64),)


def create_event(flags: int = 0x40) -> c_void_p:
    event = c_void_p()
    call("aclrtCreateEventExWithFlag", byref(event), c_uint32(flags))
    return event


def event_handle(event: c_void_p) -> str:
    handle = Handle()
    call("aclrtIpcGetEventHandle", event, byref(handle))
    return bytes(handle).hex()


def wait_event(handle: str) -> bool:
    """Opens the event, and waits for it in a stream."""
    event = c_void_p()
    call("aclrtIpcOpenEventHandle", Handle.from_buffer_copy(bytes.fromhex(handle)), byref(event))
    stream = create_stream()
    call("aclrtStreamWaitEvent", stream, event)
    call("aclrtSynchronizeStream", stream)
    call("aclrtDestroyEvent", event)
    return True


def free(address: int) -> None:
    call("aclrtFree", c_void_p(address))


def map_handle(handle: int) -> int:
    address = reserve(PIECE)
    map_memory(address, c_void_p(handle))
    return address


def free_handle(handle: int) -> None:
    call("aclrtFreePhysical", c_void_p(handle))


COMMANDS = {
    one.__name__: one
    for one in (
        import_key,
        close,
        read,
        write,
        fill,
        free,
        import_handle,
        map_handle,
        free_handle,
        unmap,
        wait_event,
    )
} | {"allow": allow, "export": export}


def run(name: str, *arguments: Any) -> Any:
    """The command's result, or its error as [code]."""
    try:
        return COMMANDS[name](*arguments)
    except AclError as error:
        return [error.code]


class Importer:
    def __init__(self, device: int) -> None:
        prefix = os.environ.get("FLEXNPU_TEST_PREFIX", "").split()
        command = [*prefix, sys.executable, __file__, "importer", str(device)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = int(self.answer())

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def do(self, *command: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(120)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(120)


def importer(device: int) -> None:
    start(device)
    pid = c_int32()
    call("aclrtDeviceGetBareTgid", byref(pid))
    print(pid.value, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


def without_a_device() -> list[Any]:
    """What a thread is told that has not chosen a device."""
    told: list[Any] = []
    handle = "00" * 64
    threads = [
        threading.Thread(target=lambda one=one: told.append(run(*one)))
        for one in (
            ("import_key", "0" * 64),
            ("close", "0" * 64),
            ("import_handle", 1),
            ("wait_event", handle),
        )
    ]
    for thread in threads:
        thread.start()
        thread.join()
    return told


def exporter(device: int) -> None:
    start(device)
    one, two = Importer(device), Importer(device)
    saw: dict[str, Any] = {}
    saw["without a device"] = without_a_device()
    memory = malloc(SIZE).value or 0
    write(memory, "hello")
    key = export(memory)
    saw["key's digits"] = len(key)
    saw["not allowed"] = one.do("import_key", key)
    allow(key, one.pid)
    there = one.do("import_key", key)
    saw["other process"] = two.do("import_key", key)
    saw["forged key"] = one.do("import_key", "0" * 64)
    saw["half a key"] = one.do("import_key", key[:32])
    saw["long key"] = one.do("import_key", key + "0")
    saw["own key"] = run("import_key", key)
    saw["read"] = one.do("read", there)
    one.do("write", there, "world")
    saw["written there"] = read(memory)
    one.do("fill", there, 0x61)
    saw["filled there"] = read(memory + SIZE - 5)
    saw["past its end"] = one.do("read", there + SIZE - 4)
    saw["free what is imported"] = one.do("free", there)
    saw["allow another's"] = one.do("allow", key, two.pid)
    saw["export another's"] = one.do("export", there)
    again = one.do("import_key", key)
    saw["same address"] = again == there
    one.do("close", key)
    saw["imported once more"] = one.do("read", there)
    one.do("close", key)
    saw["after close"] = one.do("read", there)
    saw["closed twice"] = one.do("close", key)

    # The owner's free: who has it keeps it, and nobody else gets it.
    there = one.do("import_key", key)
    free(memory)
    saw["after the free"] = one.do("read", there)
    saw["import after the free"] = two.do("import_key", key)
    others = [malloc(SIZE).value or 0 for _ in range(4)]
    for other in others:
        fill(other, 0x7A)
    saw["and after allocations"] = one.do("read", there)
    for other in others:
        free(other)
    one.do("close", key)

    # A part of an allocation, for everybody.
    memory = malloc(SIZE).value or 0
    write(memory + 512, "apart")
    part = export(memory + 512, 512, ANY_PROCESS)
    there = two.do("import_key", part)
    saw["a part"] = two.do("read", there)
    saw["beyond the part"] = two.do("read", there + 510)
    saw["not all of it"] = run("export", memory, SIZE + 1)
    saw["not device memory"] = run("export", id(saw) // 4096 * 4096)

    # Physical memory.
    handle = physical(device=device)
    address = map_handle(handle.value or 0)
    write(address, "solid")
    number = share(handle)
    saw["handle not allowed"] = one.do("import_handle", number)
    allow_handle(number, one.pid)
    imported = one.do("import_handle", number)
    saw["handle not allowed to another"] = two.do("import_handle", number)
    saw["forged handle"] = one.do("import_handle", number ^ 1)
    mapped = one.do("map_handle", imported)
    saw["through the handle"] = one.do("read", mapped)
    one.do("write", mapped, "fluid")
    saw["back"] = read(address)
    unmap(address)
    free_handle(handle.value or 0)
    saw["after its free"] = one.do("read", mapped)
    saw["import after its free"] = one.do("import_handle", number)
    saw["free while mapped"] = one.do("free_handle", imported)
    one.do("unmap", mapped)
    saw["freed"] = one.do("free_handle", imported)

    # Events.
    event, stream = create_event(), create_stream()
    opened = event_handle(event)
    call("aclrtRecordEvent", event, stream)
    saw["waited there"] = one.do("wait_event", opened)
    saw["forged event"] = one.do("wait_event", "00" * 64)
    saw["an event of one process"] = run("event_handle", create_event(1))
    call("aclrtDestroyEvent", event)
    call("aclrtSynchronizeStream", stream)
    saw["after its end"] = one.do("wait_event", opened)

    # The importer's death, then the owner's.
    key = export(memory, SIZE, ANY_PROCESS)
    one.do("import_key", key)
    one.kill()
    write(memory, "alive")
    saw["after an importer's death"] = read(memory)
    theirs = two.do("export_new", "testament")
    there = import_key(theirs)
    two.kill()
    saw["after the owner's death"] = read(there, 9)
    three = Importer(device)
    saw["import after the owner's death"] = three.do("import_key", theirs)
    three.end()
    close(theirs)
    print(json.dumps(saw))


def export_new(text: str) -> str:
    memory = malloc(SIZE).value or 0
    write(memory, text)
    return export(memory, SIZE, ANY_PROCESS)


COMMANDS |= {"export_new": export_new, "event_handle": event_handle}

if __name__ == "__main__":
    (importer if sys.argv[1] == "importer" else exporter)(int(sys.argv[2]))

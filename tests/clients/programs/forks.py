"""Children of a program that uses the NPU: forked before aclInit and after it, forked and executed
from among threads at work. Prints JSON that must be the same directly and interposed."""

import json
import os
import subprocess
import sys
import threading
from typing import Any

from ascendcl import AclError, call, copy_in, copy_out, create_stream, malloc, start

LIST = """
import os
for one in os.listdir("/proc/self/fd"):
    try:
        print(os.readlink("/proc/self/fd/" + one))
    except OSError:
        pass  # that of the listing itself
"""


def own_work(text: bytes) -> bool:
    memory = malloc(4096)
    copy_in(memory, text)
    call("aclrtSynchronizeStream", create_stream())
    return copy_out(memory, len(text)) == text


def before() -> bool:
    start()
    return own_work(b"before")


def after() -> bool:
    """The child has nothing of its parent's, and may start anew."""
    try:
        malloc(4096)
        return False
    except AclError as error:
        if error.code != 107002:
            return False
    call("aclrtSetDevice", 0)
    return own_work(b"after")


def child(work: Any) -> int:
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


saw: dict[str, Any] = {"before aclInit": child(before)}
start()
memory = malloc(4096)
copy_in(memory, b"parent")
saw["after aclInit"] = child(after)
saw["the parent's memory"] = copy_out(memory, 6).decode()

ending = threading.Event()
rounds = [0] * 4
wrong: list[str] = []


def busy(number: int) -> None:
    try:
        call("aclrtSetDevice", 0)
        mine = malloc(1 << 16)
        while not ending.is_set():
            data = bytes([(number + rounds[number]) % 256]) * (1 << 16)
            copy_in(mine, data)
            if copy_out(mine, 1 << 16) != data:
                wrong.append(f"thread {number}: round {rounds[number]}")
            rounds[number] += 1
    except AclError as error:
        wrong.append(str(error))


threads = [threading.Thread(target=busy, args=(number,)) for number in range(len(rounds))]
for thread in threads:
    thread.start()
held: set[str] = set()
done = []
for _ in range(3):
    reached = list(rounds)
    # close_fds=False: what is not inherited was made so.
    listed = subprocess.run(
        [sys.executable, "-c", LIST], capture_output=True, text=True, close_fds=False, check=True, timeout=60
    )
    held |= {
        one for one in listed.stdout.split("\n") if "socket:" in one or "memfd:" in one or "eventfd" in one
    }
    done.append(child(after))
    while not wrong and any(now <= then for now, then in zip(rounds, reached, strict=True)):
        ending.wait(0.005)
ending.set()
for thread in threads:
    thread.join()
saw["exec inherits"] = sorted(held)
saw["forked amid threads"] = done
saw["wrong"] = wrong
saw["the parent's memory at the end"] = copy_out(memory, 6).decode()
print(json.dumps(saw))

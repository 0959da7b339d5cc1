"""Unloads the client library while a thread that has used it lives, and ends that thread. Prints "over"."""

import _ctypes
import ctypes
import threading

library = ctypes.CDLL("libascendcl.so")
set_up, unloaded = threading.Event(), threading.Event()
code: list[int] = []


def use() -> None:
    code.append(library.aclrtSetDevice(0))
    memory = ctypes.c_void_p()
    code.append(library.aclrtMalloc(ctypes.byref(memory), ctypes.c_size_t(64), 0))
    set_up.set()
    unloaded.wait()


thread = threading.Thread(target=use)
thread.start()
set_up.wait()
_ctypes.dlclose(library._handle)
unloaded.set()
thread.join()
print("over", code, flush=True)

"""Virtual memory calls by ctypes, for the programs beside."""

from ctypes import Structure, byref, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p

from ascendcl import call

MIB = 1 << 20
PIECE = 4 * MIB


class Properties(Structure):
    _fields_ = (
        ("handle_type", c_int32),
        ("allocation_type", c_int32),
        ("memory", c_int32),
        ("location_id", c_uint32),
        ("location_type", c_int32),
        ("reserved", c_uint64),
    )


PROPERTIES = Properties(memory=4, location_type=1)  # of device 0


def reserve(size: int) -> int:
    address = c_void_p()
    call("aclrtReserveMemAddress", byref(address), c_size_t(size), c_size_t(0), None, c_uint64(1))
    return int(address.value or 0)


def physical(size: int = PIECE, device: int = 0) -> c_void_p:
    handle = c_void_p()
    properties = Properties(memory=4, location_type=1, location_id=device)
    call("aclrtMallocPhysical", byref(handle), c_size_t(size), byref(properties), c_uint64(0))
    return handle


def map_memory(address: int, handle: c_void_p, size: int = PIECE, offset: int = 0) -> None:
    call("aclrtMapMem", c_void_p(address), c_size_t(size), c_size_t(offset), handle, c_uint64(0))


def unmap(address: int) -> None:
    call("aclrtUnmapMem", c_void_p(address))


class Location(Structure):
    _fields_ = (("id", c_uint32), ("type", c_int32))


class Access(Structure):
    _fields_ = (("access", c_int32), ("location", Location), ("reserved", c_uint8 * 12))


READ, READ_WRITE = 1, 3


def retain(address: int) -> c_void_p:
    handle = c_void_p()
    call("aclrtMemRetainAllocationHandle", c_void_p(address), byref(handle))
    return handle


def set_access(address: int, size: int, access: int, device: int = 0, kind: int = 1) -> None:
    wanted = Access(access, Location(device, kind))
    call("aclrtMemSetAccess", c_void_p(address), c_size_t(size), byref(wanted), c_size_t(1))


def access(address: int, device: int = 0, kind: int = 1) -> int:
    flags = c_uint64(99)
    call("aclrtMemGetAccess", c_void_p(address), byref(Location(device, kind)), byref(flags))
    return flags.value

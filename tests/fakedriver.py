"""NVIDIA's driver without a device: memory is the host's, ptxgrid.py runs kernels.

Stands where cuda.bindings looks for libcuda.so.1, so that numba-cuda, cuda.core and
cuda.bindings are the real ones. What is on a stream is done when somebody waits for it,
and some of what other streams have in between. Who does not wait finds memory of
before, which is NaN.
"""

import collections
import ctypes
import itertools
import random
import subprocess
import tempfile
import threading
from ctypes import c_char_p, c_int, c_uint, c_uint64, c_void_p
from pathlib import Path

import numpy as np

# cuda.bindings asks for each function by its name.
_SOURCE = """
static int (*resolve)(const char *, void **);
void set_resolve(int (*how)(const char *, void **)) { resolve = how; }
int cuGetProcAddress_v2(const char *name, void **found, int version,
                        unsigned long flags, int *status) {
    int missing = resolve(name, found);
    if (status) *status = missing ? 1 : 0;
    return missing;
}
"""

# Of cuda.h.
_INVALID_VALUE, _OUT_OF_MEMORY, _INVALID_CONTEXT, _NOT_FOUND = 1, 2, 201, 500
_TOO_MANY_BLOCKS, _UNKNOWN = 720, 999
NON_BLOCKING, _OPT_IN = 1, 8
_LEGACY, _PER_THREAD = 1, 2

_VERSION = 13000
_SHARED = 48 * 1024
_ATTRIBUTES = {  # of an H200
    1: 1024, 2: 1024, 3: 1024, 4: 64, 5: 2**31 - 1, 6: 65535, 7: 65535, 8: _SHARED,
    10: 32, 16: 132, 75: 9, 76: 0, 81: 233472, 97: 232448,
}  # fmt: skip
_KINDS = {"p": c_void_p, "i": c_int, "u": c_uint, "q": c_uint64, "s": c_char_p}

functions = {}


class DriverError(Exception):
    """What a function returns."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


def _function(kinds=""):
    """Let cuda.bindings find a method, which takes what the letters say."""

    def keep(method):
        functions[method.__name__] = kinds, method
        return method

    return keep


def _put(address, kind, value):
    if address:
        kind.from_address(address).value = value


class _Work:
    """What waits on a stream."""

    def __init__(self, blocking):
        self.blocking, self.queue = blocking, collections.deque()


class Driver:
    """Two devices, their memory, streams and kernels.

    Attributes
    ----------
    left : int
        Bytes of memory that may still be had.
    failing : dict of str to int
        Error that the next call of a function gives.
    run : callable
        ``run(image, blocks, threads, shared_bytes, arguments)`` takes what a kernel is
        started with, the last an address of addresses, and gives what runs it with
        pairs of addresses that it may reach between.
    errors : list of Exception
        What went wrong in here.
    """

    def __init__(self):
        self.left, self.failing, self.errors, self.run = 2**40, {}, [], None
        self._here = threading.local()
        self._count, self._order = itertools.count(1), random.Random(0)
        self._memory, self._kernels = {}, {}
        self._freed, self._running = [], False
        self._streams = {0: _Work(True)}
        self._lock = threading.RLock()
        self._kept = []

    # Called by name.

    def resolve(self, name, found):
        """Find a function."""
        name = name.decode()
        if name not in functions:
            _put(found, c_void_p, 0)
            return _NOT_FOUND
        kinds, method = functions[name]

        def call(*arguments):
            with self._lock:
                try:
                    if name in self.failing:
                        return self.failing.pop(name)
                    method(self, *arguments)
                except DriverError as error:
                    return error.code
                except Exception as error:  # which C would not see
                    self.errors.append(error)
                    return _UNKNOWN
                return 0

        prototype = ctypes.CFUNCTYPE(c_int, *[_KINDS[kind] for kind in kinds])
        pointer = prototype(call)
        self._kept.append(pointer)
        _put(found, c_void_p, ctypes.cast(pointer, c_void_p).value)
        return 0

    # Devices and contexts: that of device n has the handle n + 1.

    @_function("u")
    def cuInit(self, flags):
        pass

    @_function("p")
    def cuDriverGetVersion(self, version):
        _put(version, c_int, _VERSION)

    @_function("p")
    def cuDeviceGetCount(self, count):
        _put(count, c_int, 2)

    @_function("pii")
    def cuDeviceGetName(self, name, size, device):
        ctypes.memmove(name, b"none\0", 5)

    @_function("pi")
    def cuDeviceGetUuid(self, uuid, device):
        ctypes.memset(uuid, device, 16)

    @_function("pii")
    def cuDeviceGetAttribute(self, value, attribute, device):
        _put(value, c_int, _ATTRIBUTES.get(attribute, 1))

    @_function("pi")
    def cuDevicePrimaryCtxRetain(self, context, device):
        _put(context, c_void_p, device + 1)

    @property
    def _contexts(self):
        if not hasattr(self._here, "contexts"):
            self._here.contexts = []
        return self._here.contexts

    def _device(self):
        if not self._contexts:
            raise DriverError(_INVALID_CONTEXT)
        return self._contexts[-1] - 1

    @_function("p")
    def cuCtxPushCurrent(self, context):
        self._contexts.append(context)

    @_function("p")
    def cuCtxPopCurrent(self, context):
        self._device()
        _put(context, c_void_p, self._contexts.pop())

    @_function("p")
    def cuCtxSetCurrent(self, context):
        self._contexts[-1:] = [context] if context else []

    @_function("p")
    def cuCtxGetCurrent(self, context):
        _put(context, c_void_p, self._contexts[-1] if self._contexts else 0)

    @_function("p")
    def cuCtxGetDevice(self, device):
        _put(device, c_int, self._device())

    # Memory.

    @_function("pq")
    def cuMemAlloc(self, address, size):
        device = self._device()
        if size == 0:
            raise DriverError(_INVALID_VALUE)
        if size > self.left:
            raise DriverError(_OUT_OF_MEMORY)
        self.left -= size
        room = np.full(size + 256, 0xFF, np.uint8)
        place = room.ctypes.data + -room.ctypes.data % 256
        self._memory[place] = size, device, room
        _put(address, c_void_p, place)

    @_function("q")
    def cuMemFree(self, address):
        self._freed.append(address)
        if self._running:  # Python collects garbage while a kernel runs
            return
        for work in self._streams.values():
            self._wait(work)
        while self._freed:
            size, _, room = self._memory.pop(self._freed.pop())
            self.left += size
            room[:] = 0xFF

    @_function("pp")
    def cuMemGetInfo(self, free, total):
        _put(free, c_uint64, self.left)
        _put(total, c_uint64, 2 * self.left)

    def _found(self, address):
        for place, (size, device, _) in self._memory.items():
            if place <= address < place + size:
                return place, size, device
        raise DriverError(_INVALID_VALUE)

    @_function("piq")
    def cuPointerGetAttribute(self, value, attribute, address):
        _, _, device = self._found(address)
        found = {1: (c_uint64, device + 1), 3: (c_uint64, address), 9: (c_int, device)}
        _put(value, *found[attribute])

    def _copy(self, target, source, size, stream):
        def copy():
            ctypes.memmove(target, source, size)

        self._put_on(stream, copy)

    def _check(self, address, size):
        place, count, _ = self._found(address)
        if address + size > place + count:
            raise DriverError(_INVALID_VALUE)

    @_function("qpqp")
    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        self._check(target, size)
        self._copy(target, source, size, stream)

    @_function("pqqp")
    def cuMemcpyDtoHAsync(self, target, source, size, stream):
        self._check(source, size)
        self._copy(target, source, size, stream)

    @_function("qpq")
    def cuMemcpyHtoD(self, target, source, size):
        self.cuMemcpyHtoDAsync(target, source, size, 0)
        self._wait(self._streams[0])

    @_function("pqq")
    def cuMemcpyDtoH(self, target, source, size):
        self.cuMemcpyDtoHAsync(target, source, size, 0)
        self._wait(self._streams[0])

    # Streams.

    def _work(self, stream):
        stream = 0 if stream in (None, _LEGACY, _PER_THREAD) else stream
        if stream not in self._streams:
            raise DriverError(_INVALID_VALUE)
        return self._streams[stream]

    def _put_on(self, stream, do):
        self._device()
        self._work(stream).queue.append((next(self._count), do))

    def _wait(self, work):
        """Do what is on a stream, and some of what others have."""
        while work.queue:
            self._do_first(work)
            others = [other for other in self._streams.values() if other.queue]
            if others and self._order.random() < 0.5:
                self._do_first(self._order.choice(others))

    def _do_first(self, work):
        number, do = work.queue.popleft()
        null = self._streams[0]
        for other in list(self._streams.values()):
            blocking = work.blocking and other.blocking
            if blocking and other is not work and null in (work, other):
                while other.queue and other.queue[0][0] < number:
                    self._do_first(other)
        self._running = True
        try:
            do()
        finally:
            self._running = False

    @_function("pu")
    def cuStreamCreate(self, stream, flags):
        self._device()
        number = 0x1000 + 16 * next(self._count)
        self._streams[number] = _Work(flags != NON_BLOCKING)
        _put(stream, c_void_p, number)

    @_function("p")
    def cuStreamSynchronize(self, stream):
        self._wait(self._work(stream))

    # Kernels.

    @_function("ppppuppu")
    def cuLibraryLoadData(self, library, image, *options):
        number = 0x3000 + 16 * next(self._count)
        self._kernels[number] = _elf(image)
        _put(library, c_void_p, number)

    @_function("p")
    def cuLibraryUnload(self, library):
        del self._kernels[library]

    @_function("pps")
    def cuLibraryGetKernel(self, kernel, library, name):
        number = 0x4000 + 16 * next(self._count)
        self._kernels[number] = [self._kernels[library], _SHARED]
        _put(kernel, c_void_p, number)

    @_function("iipi")
    def cuKernelSetAttribute(self, attribute, value, kernel, device):
        assert attribute == _OPT_IN
        if value > _ATTRIBUTES[97]:
            raise DriverError(_INVALID_VALUE)
        self._kernels[kernel][1] = value

    @_function("pipi")
    def cuKernelGetAttribute(self, value, attribute, kernel, device):
        _put(value, c_int, {0: 1024, 4: 32}.get(attribute, 0))

    @_function("puuuuuuuppp")
    def cuLaunchKernel(self, kernel, x, y, z, bx, by, bz, shared, stream, given, extra):
        self._launch(kernel, (x, y, z), (bx, by, bz), shared, stream, given)

    @_function("puuuuuuupp")
    def cuLaunchCooperativeKernel(
        self, kernel, x, y, z, bx, by, bz, shared, stream, given
    ):
        at_once = _ATTRIBUTES[16] * max(1, _ATTRIBUTES[81] // (shared + 1024))
        if x * y * z > at_once:
            raise DriverError(_TOO_MANY_BLOCKS)
        self._launch(kernel, (x, y, z), (bx, by, bz), shared, stream, given)

    def _launch(self, kernel, blocks, threads, shared_bytes, stream, given):
        image, most = self._kernels[kernel]
        device = self._device()
        if (
            shared_bytes > most
            or 0 in blocks
            or max(blocks[1:]) > _ATTRIBUTES[6]
            or threads[0] > _ATTRIBUTES[1]
            or threads[1:] != (1, 1)
        ):
            raise DriverError(_INVALID_VALUE)
        do = self.run(image, blocks, threads[0], shared_bytes, given)

        def run():
            do(
                [
                    (place, place + size)
                    for place, (size, where, _) in self._memory.items()
                    if where == device
                ]
            )

        self._put_on(stream, run)


def _elf(address):
    """Read an image that says itself how long it is."""
    head = ctypes.string_at(address, 64)

    def number(place, size):
        return int.from_bytes(head[place : place + size], "little")

    sections = number(0x28, 8) + number(0x3A, 2) * number(0x3C, 2)
    segments = number(0x20, 8) + number(0x36, 2) * number(0x38, 2)
    return ctypes.string_at(address, max(sections, segments))


def install():
    """Put a driver where the libraries look for one."""
    driver = Driver()
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "libcuda.c"), Path(folder, "libcuda.so.1")
        source.write_text(_SOURCE)
        command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]
        subprocess.run([*command, library, source], check=True)
        loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    resolve = ctypes.CFUNCTYPE(c_int, c_char_p, c_void_p)(driver.resolve)
    driver._kept.append(resolve)
    loaded.set_resolve(resolve)
    return driver

"""A CUDA grid of the code that a device would get, on the CPU: see ptxcode.py.

As in gridemu.py all blocks are there at once, in an order that a seed shuffles, and
memory begins as NaN. Reading or writing outside of the arguments is refused, and so is
what is not aligned.
"""

import functools
import random

import numpy as np

import ptxlines
from numbagru._jit_cuda import compiled
from pretended import device
from ptxcode import Program

NUMBERS = {"u64": np.uint64, "u32": np.uint32, "u8": np.uint8}
_WARP = 32


@functools.cache
def program(kernel, signature, threads, capability):
    """Compile a kernel for a device, and that for this machine."""
    with device(capability):
        library = compiled(kernel, signature, threads)._codelibrary
    return Program(library.get_asm_str(cc=capability))


def _poisoned(size):
    """Give bytes that start where vectors may."""
    room = np.full(size + 16, 0xFF, np.uint8)
    return room[-room.ctypes.data % 16 :][:size]


def _span(array):
    """Give the address of an array's first byte, and of what follows its last."""
    return np.lib.array_utils.byte_bounds(array) if array.size > 0 else (0, 0)


def _packed(arguments, parameters):
    """Lay out arguments as a launch does."""
    assert len(arguments) == len(parameters)
    (kind, place) = parameters[-1]
    packed = _poisoned(place + NUMBERS[kind]().itemsize)
    for argument, (kind, place) in zip(arguments, parameters, strict=True):
        is_array = isinstance(argument, np.ndarray)
        assert is_array == (kind == "u64")
        value = np.array(argument.ctypes.data if is_array else argument)
        bytes_ = value.astype(NUMBERS[kind]).reshape(1).view(np.uint8)
        packed[place : place + bytes_.size] = bytes_
    return packed


class _Thread:
    def __init__(self, program, warp):
        self._run = program.run
        self._memory = np.full(program.thread_bytes, 0xFF, np.uint8)
        self.address = self._memory.ctypes.data
        self.warp, self.state = warp, None
        warp.append(self)

    def put(self, place, values, dtype):
        """Write numbers to the memory of the thread."""
        numbers = np.array(values, dtype).reshape(-1).view(np.uint8)
        self._memory[place : place + numbers.size] = numbers

    def get(self, place, count, dtype):
        """Give `count` numbers of the memory of the thread, to be read or written."""
        size = count * np.dtype(dtype).itemsize
        return self._memory[place : place + size].view(dtype)

    def go_on(self):
        self.state = self._run(self.address)
        if self.state == ptxlines.FAULTED:
            (place,) = self.get(ptxlines.FAULT, 1, np.uint64)
            raise IndexError(f"nothing that may be reached, or not aligned: {place:#x}")


class _Block:
    def __init__(self, launch, program, place, packed, spans):
        shared = _poisoned(program.shared_bytes + launch.shared_bytes)
        local = _poisoned(program.local_bytes * launch.threads)
        spans = [*spans, _span(shared), _span(local)]
        spans = [span for span in spans if span[0] < span[1]]
        # Kept for as long as the threads know their addresses.
        self._kept = shared, local, np.array([*spans, (0, 0)], np.uint64)
        self.threads, warps = [], [[] for _ in range(0, launch.threads, _WARP)]
        for i in range(launch.threads):
            thread = _Thread(program, warps[i // _WARP])
            thread.put(ptxlines.RESUME, [0, i, *place], np.int32)
            thread.put(ptxlines.GRID, (*launch.blocks, 1, 1)[:3], np.int32)
            thread.put(ptxlines.DYNAMIC, launch.shared_bytes, np.int32)
            at = [array.ctypes.data for array in (packed, *self._kept)]
            at[2] += i * program.local_bytes
            thread.put(ptxlines.PARAMETERS, at, np.uint64)
            self.threads.append(thread)

    def ready(self):
        """Give the threads that can go on."""
        left = [one for one in self.threads if one.state != ptxlines.ENDED]
        if all(one.state == ptxlines.AT_BARRIER for one in left):
            return left
        waiting = ptxlines.AT_BARRIER, ptxlines.AT_PRODUCT
        ready = [one for one in left if one.state not in waiting]
        for warp in {id(one.warp): one.warp for one in left}.values():
            if all(one.state == ptxlines.AT_PRODUCT for one in warp):
                _multiply(warp)
                ready += warp
        return ready


def _multiply(warp):
    """Add the product of what a warp's threads brought: PTX ISA, "mma.m16n8k8".

    In one rounding: how a device adds is not told.
    """
    a, b = np.empty((16, 8)), np.empty((8, 8))
    for i, thread in enumerate(warp):
        row, k = i // 4, i % 4
        numbers = thread.get(ptxlines.BROUGHT, 6, np.float32)
        a[row, k], a[row + 8, k], a[row, k + 4], a[row + 8, k + 4] = numbers[:4]
        b[k, row], b[k + 4, row] = numbers[4:]
    product = a @ b
    for i, thread in enumerate(warp):
        row, column = i // 4, i % 4 * 2
        sums = thread.get(ptxlines.BROUGHT + 24, 4, np.float32)
        sums += product[[row, row, row + 8, row + 8], [column, column + 1] * 2]


def run(launch, capability=(9, 0), seed=0):
    """Carry out a `Launch` whose arrays are the host's."""
    what = launch.kernel, launch.signature, launch.threads
    carry_out(launch, program(*what, capability), seed)


def carry_out(launch, code, seed):
    """Do the same with code that is there."""
    packed = _packed(launch.arguments, code.parameters)
    arrays = [one for one in launch.arguments if isinstance(one, np.ndarray)]
    run_threads(launch, code, packed, [_span(array) for array in arrays], seed)


def run_threads(launch, code, packed, spans, seed):
    """Do it with the bytes of the arguments, and the memory that may be reached."""
    x, y, z = (*launch.blocks, 1, 1)[:3]
    blocks = [
        _Block(launch, code, (i, j, k), packed, spans)
        for k in range(z) for j in range(y) for i in range(x)
    ]  # fmt: skip
    order = random.Random(seed)
    ready = [thread for block in blocks for thread in block.threads]
    while ready:
        order.shuffle(ready)
        for thread in ready:
            thread.go_on()
        ready = [thread for block in blocks for thread in block.ready()]
    states = {thread.state for block in blocks for thread in block.threads}
    assert states <= {ptxlines.ENDED}, "threads wait for each other"

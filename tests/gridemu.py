"""A CUDA grid in one thread of Python: kernels run as they are, a greenlet per thread.

All blocks are there at once, in an order that a seed shuffles whenever threads may go
on, and memory begins as NaN: a barrier that is missing shows in the results. Formulas
that the package compiles for the CPU run as compiled, so results have their bits.
"""

import functools
import inspect
import random
import types as python_types

import numpy as np
from greenlet import getcurrent, greenlet
from numba import njit
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.np.numpy_support import as_dtype

from numbagru import scalar
from numbagru._jit_cuda import DeviceFunction, translated
from numbagru.kernels.cuda import ptx


def _poisoned(size, kind):
    array = np.empty(size, as_dtype(kind))
    array.fill(np.nan if array.dtype.kind == "f" else 0x5A)
    return array


class Pointer:
    """The numbers from a place in memory on; what an array does not span is refused."""

    def __init__(self, array):
        signs = (-1 if stride < 0 else 1 for stride in array.strides)
        forward = array[tuple(slice(None, None, sign) for sign in signs)]
        extent = sum(
            (n - 1) * s for n, s in zip(forward.shape, forward.strides, strict=True)
        )
        size = extent // array.itemsize + 1 if array.size else 0
        self._numbers = np.lib.stride_tricks.as_strided(
            forward, (size,), (array.itemsize,)
        )
        address = np.lib.array_utils.byte_bounds(array)[0]
        self._start = (array.ctypes.data - address) // array.itemsize

    def _place(self, index):
        place = self._start + index
        if not 0 <= place < len(self._numbers):
            raise IndexError(f"{place} of {len(self._numbers)} numbers")
        return place

    def __getitem__(self, index):
        """Read a number."""
        return self._numbers[self._place(index)]

    def __setitem__(self, index, value):
        """Write a number."""
        self._numbers[self._place(index)] = value


def as_pointer(value):
    """Give an array as kernels take it, and anything else as it is."""
    return Pointer(value) if isinstance(value, np.ndarray) else value


_compiled = {}


def _callable(function):
    """Make Python able to call what only compiled code calls."""
    if function not in _compiled:
        code = getattr(function, "py_func", None) or function._defn
        arguments = code.__code__.co_varnames[: code.__code__.co_argcount]
        if isinstance(function, _Intrinsic):
            arguments = arguments[1:]  # without the typing context
        names = ", ".join(arguments)
        scope = {"f": function}
        exec(f"def call({names}):\n    return f({names})", scope)
        compiled = njit(scope["call"])

        def call(*numbers):
            # Numba makes a float of every real number.
            result, kind = compiled(*numbers), type(numbers[0])
            return tuple(map(kind, result)) if type(result) is tuple else kind(result)

        _compiled[function] = call
    return _compiled[function]


@functools.cache
def _device(function):
    """Compile a function of the device that is nothing but sums: 50 times as fast."""
    return njit(function.py_func)


_fma = _callable(scalar.fma)


def _take(count, stride):
    def take(numbers, source, start):
        for i in range(count):
            numbers[i] = source[start + i * stride]

    return take


def _chain(units, rows):
    def chain(totals, weights, states, start):
        lanes = 16 // states.itemsize
        assert start % lanes == 0
        for k in range(units):
            for r in range(rows):
                place = start + (k // lanes * rows + r) * lanes + k % lanes
                totals[r] = _fma(states[place], weights[k], totals[r])

    return chain


# What stands for the intrinsics of ptx.py, by name, made from what they are made from.
_INTRINSICS = {"take": _take, "chain": _chain}


class _Index:
    def __init__(self, *values):
        self.x, self.y, self.z = (*values, 1, 1)[:3] if values else (0, 0, 0)


class _Thread:
    def __init__(self, index, block, body):
        self.index = index
        self.block = block
        self.run = greenlet(body)
        self.barrier = None


class _Block:
    def __init__(self, index):
        self.index = index
        self.shared = {}
        self.threads = []


class Grid:
    """Blocks x threads of a launch.

    Parameters
    ----------
    blocks : tuple of int
        Up to three dimensions.
    threads : int
    seed : int, optional
        Of the order in which threads go on.
    shared_bytes : int, optional
        Of a shared array of size 0, whose size the launch gives.
    """

    def __init__(self, blocks, threads, seed=0, shared_bytes=0):
        self.shared_bytes = shared_bytes
        x, y, z = (*blocks, 1, 1)[:3]
        self.threads = threads
        self.order = random.Random(seed)
        self.blocks = [
            _Block(_Index(i, j, k))
            for k in range(z) for j in range(y) for i in range(x)
        ]  # fmt: skip
        self.cuda = python_types.SimpleNamespace(
            shared=python_types.SimpleNamespace(array=self._shared),
            local=python_types.SimpleNamespace(array=_poisoned),
            syncthreads=self._sync,
        )
        self.now = None

    def _shared(self, size, kind, alignment=None):
        """Give all threads of a block the array of their n-th request."""
        thread = self.now
        place = thread.requests = getattr(thread, "requests", 0) + 1
        shared = thread.block.shared
        if place not in shared:
            given = self.shared_bytes // as_dtype(kind).itemsize
            shared[place] = _poisoned(size or given, kind)
        return shared[place]

    def _sync(self):
        self.now.barrier = self.now.block
        self.hub.switch()

    @staticmethod
    def _arrive(counters, place):
        counters[place] += 1

    def _arrived(self, counters, place):
        """Let all others go on before looking."""
        self.hub.switch()
        return counters[place]

    def _twin(self, value):
        if value is ptx.cuda:
            return _Here(self)
        if type(value) is type(ptx.chain(1, 1)):
            name = value._defn.__name__
            if name in ("arrive", "arrived"):
                return getattr(self, f"_{name}")
            return _INTRINSICS[name](**inspect.getclosurevars(value._defn).nonlocals)
        if isinstance(value, DeviceFunction):
            plain = value.py_func.__closure__ is None
            return _device(value) if plain else translated(value.py_func, self._twin)
        if isinstance(value, Dispatcher | _Intrinsic):
            return _callable(value)
        return value

    def run(self, kernel, *arguments):
        """Run a kernel to its end."""
        body = translated(kernel, self._twin)
        self.hub = getcurrent()
        waiting = []
        for block in self.blocks:
            for i in range(self.threads):
                thread = _Thread(_Index(i), block, lambda: body(*arguments))
                block.threads.append(thread)
                waiting.append(thread)
        with np.errstate(all="ignore"):
            while waiting:
                self.order.shuffle(waiting)
                for thread in waiting:
                    self.now, thread.barrier = thread, None
                    thread.run.switch()
                waiting = []
                for block in self.blocks:
                    left = [t for t in block.threads if not t.run.dead]
                    together = all(t.barrier is block for t in left)
                    waiting += [t for t in left if together or t.barrier is None]


class _Here:
    """Stand for the module `cuda` in a thread that runs."""

    def __init__(self, grid):
        self._grid = grid
        self.shared, self.local = grid.cuda.shared, grid.cuda.local
        self.syncthreads = grid.cuda.syncthreads

    @property
    def threadIdx(self):
        return self._grid.now.index

    @property
    def blockIdx(self):
        return self._grid.now.block.index

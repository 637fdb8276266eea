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


def _nothing_but_sums(function):
    """Whether a function knows numbers only, and not in which thread it runs."""
    around = (cell.cell_contents for cell in function.__closure__ or ())
    return "cuda" not in function.__code__.co_names and all(
        isinstance(value, int) for value in around
    )


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
    def __init__(self, index, block, warp, body):
        self.index = index
        self.block = block
        self.warp = warp
        self.run = greenlet(body)
        self.barrier = None
        for group in (block, warp):
            group.threads.append(self)


class _Block:
    def __init__(self, index):
        self.index = index
        self.shared = {}
        self.threads = []


class _Warp:
    def __init__(self):
        self.threads = []
        self.brought = {}  # numbers of a product of matrices, by thread

    def product(self):
        """Multiply what all threads brought, exactly."""
        a, b = np.empty((16, 8)), np.empty((8, 8))
        for i in range(32):
            row, k = i // 4, i % 4
            a[row, k], a[row + 8, k], a[row, k + 4], a[row + 8, k + 4] = self.brought[
                i
            ][:4]
            b[k, row], b[k + 4, row] = self.brought[i][4:]
        return a @ b


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

    def _sync(self, group=None):
        self.now.barrier = group or self.now.block
        self.hub.switch()

    @staticmethod
    def _to_tf32(value):
        bits = np.float32(value).view(np.uint32)
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)

    def _multiply_add(self, totals, at, *factors):
        """Add sums of products in one rounding: how a device does is not told."""
        warp, i = self.now.warp, self.now.index.x % 32
        warp.brought[i] = factors
        self._sync(warp)
        if self.now.index.x % 32 != i or len(warp.brought) != 32:
            raise AssertionError("not all threads of a warp are here")
        sums, row, column = warp.product(), i // 4, i % 4 * 2
        for j, place in enumerate([(0, 0), (0, 1), (8, 0), (8, 1)]):
            more = sums[row + place[0], column + place[1]]
            totals[at + j] = np.float32(totals[at + j] + more)
        self._sync(warp)

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
            if name == "pointer":
                return lambda array: array
            if name in ("arrive", "arrived", "to_tf32", "multiply_add"):
                return getattr(self, f"_{name}")
            return _INTRINSICS[name](**inspect.getclosurevars(value._defn).nonlocals)
        if isinstance(value, DeviceFunction):
            translation = translated(value.py_func, self._twin)
            if not _nothing_but_sums(value.py_func):
                return translation
            fast = _device(value)

            def call(*given):
                slow = any(isinstance(one, Pointer) for one in given)
                result = (translation if slow else fast)(*given)
                # Numba makes a float of every real number.
                return given[0].dtype.type(result) if type(result) is float else result

            return call
        if isinstance(value, Dispatcher | _Intrinsic):
            return _callable(value)
        return value

    def run(self, kernel, *arguments):
        """Run a kernel to its end."""
        body = translated(kernel, self._twin)
        self.hub = getcurrent()
        waiting = []
        for block in self.blocks:
            warps = [_Warp() for _ in range(0, self.threads, 32)]
            waiting += [
                _Thread(_Index(i), block, warps[i // 32], lambda: body(*arguments))
                for i in range(self.threads)
            ]
        with np.errstate(all="ignore"):
            while waiting:
                self.order.shuffle(waiting)
                for thread in waiting:
                    self.now, thread.barrier = thread, None
                    thread.run.switch()
                left = [t for b in self.blocks for t in b.threads if not t.run.dead]
                groups = {t.barrier for t in left} - {None}
                open_to = {None} | {
                    group
                    for group in groups
                    if all(t.barrier is group or t.run.dead for t in group.threads)
                }
                waiting = [t for t in left if t.barrier in open_to]


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

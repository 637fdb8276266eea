"""Layers on the driver of fakedriver.py: run by test_cuda_libcuda.py, on its own.

Nothing between the package and the driver is replaced: memory, copies, streams,
contexts and launches are those of numba-cuda and cuda.bindings.
"""

import collections
import contextlib
import ctypes
import functools
import sys
import types
import weakref

import fakedriver

LIBRARY = fakedriver.install()  # numba-cuda looks for it when it is imported

import numpy as np
import pytest
from cuda.bindings import driver
from numba import cuda
from numba.cuda import codegen

import ptxgrid
from numbagru import GRU, functional, operands_cuda
from numbagru.kernels.cuda import limits
from numbagru.kernels.cuda.launch import Launch
from ptxcode import Program

B, T, F, U = 5, 4, 3, 6
# What was compiled, by the machine code that the driver gets of it.
PTX = {}


def get_cubin(library, cc=None, get=codegen.CUDACodeLibrary.get_cubin):
    cubin = get(library, cc)
    PTX[bytes(cubin.code)] = library.get_asm_str(cc or (9, 0))
    return cubin


@functools.cache
def program(image):
    return Program(PTX[image])


def run(image, blocks, threads, shared_bytes, parameters):
    """Take what a kernel gets; gives what runs it."""
    code = program(image)
    kinds = code.parameters
    packed = np.empty(kinds[-1][1] + 8, np.uint8)
    addresses = (ctypes.c_void_p * len(kinds)).from_address(parameters)
    for address, (kind, place) in zip(addresses, kinds, strict=True):
        size = ptxgrid.NUMBERS[kind]().itemsize
        found = ctypes.string_at(address, size)
        packed[place : place + size] = np.frombuffer(found, np.uint8)
    launch = Launch(None, (), blocks, threads, (), shared_bytes)
    return lambda spans: ptxgrid.run_threads(launch, code, packed, spans, 0)


codegen.CUDACodeLibrary.get_cubin = get_cubin
LIBRARY.run = run


@pytest.fixture
def libcuda():
    assert cuda.is_available(), cuda.cuda_error()
    yield LIBRARY
    assert LIBRARY.errors == []


def data(seed=0, shape=(B, T, F), dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def twins(units=U, **arguments):
    """Make a layer on the CPU and one on any device, with the same weights."""
    arguments = {"return_sequences": True, "seed": 3} | arguments
    pair = [GRU(units, device=where, **arguments) for where in ("cpu", "auto")]
    for layer in pair:
        layer.build((B, None, F))
    pair[1].set_weights(pair[0].get_weights())
    return pair


def same(expected, found):
    assert expected.dtype == found.dtype
    assert expected.shape == found.shape
    assert expected.tobytes() == found.tobytes()


def check_training(pair, x, mask=None, bring=np.asarray, fetch=np.asarray):
    """Compare outputs and gradients of layers with and without a device."""
    d_y = data(1, (*x.shape[:2], pair[0].config.units), x.dtype)
    results = []
    for layer, put, get in (
        (pair[0], lambda a: a, lambda a: a),
        (pair[1], bring, fetch),
    ):
        y, pullback = layer.vjp(put(x), mask=mask, training=True)
        gradients = pullback(put(d_y))
        results.append([get(a) for a in (y, gradients.inputs, *gradients.weights)])
    for expected, found in zip(*results, strict=True):
        same(expected, found)


ARGUMENTS = {
    "default": {},
    "reset before": {"reset_after": False},
    "backwards": {"go_backwards": True, "zero_output_for_mask": True},
    "both dropouts": {
        "dropout": 0.3,
        "recurrent_dropout": 0.2,
        "implementation": 1,
        "dtype": "float64",
    },
    "time first": {"time_major": True},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arrays_of_numpy(name, libcuda):
    arguments = ARGUMENTS[name]
    pair = twins(**arguments)
    pair[1] = GRU.from_config({**pair[1].get_config(), "device": "cuda"})
    pair[1].build((B, None, F))
    pair[1].set_weights(pair[0].get_weights())
    x = data(dtype=arguments.get("dtype", "float32"))
    mask = None if "time_major" in arguments else data(2, (B, T)) > -1
    for _ in range(2):  # plans and memory are there the second time
        check_training(pair, x, mask)


def on_stream(stream):
    """Bring arrays to the device on a stream, and fetch them."""

    def fetch(array):
        assert array.__cuda_array_interface__["stream"] == int(stream)
        found = array.copy_to_host(stream=stream)
        stream.synchronize()
        return found

    return (lambda array: cuda.to_device(array, stream=stream)), fetch


@pytest.fixture(params=[0, fakedriver.NON_BLOCKING])
def streams(request, libcuda):
    """Make two streams that wait for the null stream, or do not."""
    cuda.current_context()
    made = [driver.cuStreamCreate(request.param)[1] for _ in range(2)]
    return [cuda.external_stream(int(one)) for one in made]


def test_arrays_of_numba(streams):
    bring, fetch = on_stream(streams[0])
    for _ in range(2):
        check_training(twins(), data(), data(2, (B, T)) > -1, bring, fetch)


def test_layers_one_after_the_other(streams):
    bring, fetch = on_stream(streams[0])
    first, second = twins(F), twins()
    x = data()
    same(second[0](first[0](x)), fetch(second[1](first[1](bring(x)))))


def test_streams_share_nothing(streams):
    """What runs later on one finds what it left, whatever ran on the other."""
    both = [on_stream(stream) for stream in streams]
    given = [data(i) for i in range(2)]  # copied when a stream comes to it
    pair = twins()
    for _ in range(4):
        found = [pair[1](bring(x)) for x, (bring, _) in zip(given, both, strict=True)]
        for i in (1, 0):
            same(pair[0](given[i]), both[i][1](found[i]))


def test_the_second_device(libcuda):
    pair = twins(reset_after=False)
    with cuda.gpus[1]:
        x = cuda.to_device(data())
    y = pair[1](x)
    with cuda.gpus[1]:
        same(pair[0](data()), y.copy_to_host())
    with pytest.raises(ValueError, match="on the device of `sequences`, number 1"):
        pair[1](x, initial_state=cuda.to_device(np.zeros((B, U), "float32")))


def test_blocks_that_meet(libcuda):
    """Their launch is cooperative, and asks for more shared memory than is usual."""
    pair = twins(600)
    x = data(shape=(1, 1, F))
    assert "cuda_grid" in pair[1].explain(cuda.to_device(x))
    same(pair[0](x), pair[1](cuda.to_device(x)).copy_to_host())


OUT_OF_RESOURCES = 701


def test_a_launch_that_fails(libcuda):
    """Leaves the layer as it was."""
    pair = twins(stateful=True, reset_after=False)
    x = data()
    same(pair[0](x), pair[1](cuda.to_device(x)).copy_to_host())
    before = [*pair[1].get_weights(), pair[1].states[0].numpy()]
    libcuda.failing["cuLaunchKernel"] = OUT_OF_RESOURCES
    with pytest.raises(cuda.cudadrv.driver.CudaAPIError, match="OUT_OF_RESOURCES"):
        pair[1](cuda.to_device(x))
    after = [*pair[1].get_weights(), pair[1].states[0].numpy()]
    for left, right in zip(before, after, strict=True):
        same(left, right)
    same(pair[0](x), pair[1](cuda.to_device(x)).copy_to_host())


def test_too_little_memory(libcuda):
    _, layer = twins()
    x = cuda.to_device(data(shape=(B, 1000, F)))
    left, libcuda.left = libcuda.left, 1000
    try:
        with pytest.raises(MemoryError, match="bytes more on the CUDA device"):
            layer(x)
    finally:
        libcuda.left = left


def test_copies_stay_in_their_memory(libcuda):
    there, here = cuda.device_array(4, np.float32), np.zeros(5, np.float32)
    address, size = there.__cuda_array_interface__["data"][0], here.nbytes
    invalid = driver.CUresult.CUDA_ERROR_INVALID_VALUE
    assert driver.cuMemcpyHtoD(address, here.ctypes.data, size) == (invalid,)
    assert driver.cuMemcpyDtoH(here.ctypes.data, address, size) == (invalid,)


def test_results_of_size_0(libcuda):
    _, layer = twins()
    assert layer(cuda.to_device(np.empty((0, T, F), "float32"))).shape == (0, T, U)
    found = layer(cuda.to_device(np.empty((B, 0, F), "float32")))
    assert found.shape == (B, 0, U)


Device = collections.namedtuple("Device", "id")


class Library(types.ModuleType):
    """As much of PyTorch, or of CuPy, as the package takes of it."""

    def __init__(self, name):
        super().__init__(name)
        library, self.pointer = self, 0

        class Array:
            requires_grad, is_sparse, is_cuda = False, False, True

            def __init__(self, block):
                self.block, self.shape, self.dtype = block, block.shape, block.dtype
                self.device = Device(0)
                library.made.append(self)

            def is_contiguous(self):
                return self.block.is_c_contiguous()

            def data_ptr(self):
                return self.block.__cuda_array_interface__["data"][0]

            def reshape(self, shape):
                return Array(self.block.reshape(shape))

            @property
            def flags(self):
                return types.SimpleNamespace(c_contiguous=self.is_contiguous())

            @property
            def data(self):
                return types.SimpleNamespace(ptr=self.data_ptr())

            @property
            def __cuda_array_interface__(self):
                if self.requires_grad:
                    raise RuntimeError("requires grad")
                return self.block.__cuda_array_interface__

        Array.__module__ = name
        self.Array, self.made = Array, []
        self.float32, self.float64 = np.dtype("float32"), np.dtype("float64")
        stream = types.SimpleNamespace
        self.cuda = types.SimpleNamespace(
            current_stream=lambda device: stream(cuda_stream=self.pointer),
            get_current_stream=lambda: stream(ptr=self.pointer),
        )

    def empty(self, shape, dtype, device=None):
        """Make an array whose numbers are anything."""
        return self.Array(cuda.device_array(shape, dtype))

    def put(self, array):
        """Copy an array to the device."""
        return self.Array(cuda.to_device(array))

    def get(self, array):
        """Copy one back, once its stream has made it."""
        if self.pointer:
            cuda.external_stream(self.pointer).synchronize()
        return array.block.copy_to_host()


@pytest.fixture(params=["torch", "cupy"])
def module(request, libcuda, monkeypatch):
    made = Library(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    monkeypatch.setattr(limits, "cupy_found", lambda: False)
    return made


def only_recorded(monkeypatch, only=True):
    """Let general calls fail."""

    def refuse(*arguments):
        raise AssertionError("a general call")

    with monkeypatch.context() as patch:
        if only:
            patch.setattr(functional, "_call", refuse)
        yield


@pytest.fixture
def recorded(monkeypatch):
    return contextlib.contextmanager(functools.partial(only_recorded, monkeypatch))


FORMS = {
    "sequences": {},
    "last": {"return_sequences": False},
    "last and state": {"return_sequences": False, "return_state": True},
    "both": {"return_state": True, "reset_after": False},
    "backwards": {"go_backwards": True},
    "time first": {"time_major": True, "return_state": True},
}


def listed(outputs):
    return outputs if isinstance(outputs, (list, tuple)) else [outputs]


@pytest.mark.parametrize("name", FORMS)
def test_calls_are_recorded(name, module, recorded):
    pair = twins(**FORMS[name])
    rows = T if "time_major" in FORMS[name] else B
    given = {"initial_state": data(9, (rows, U))}
    for h0 in ({}, given):
        for i in range(2):
            with recorded(i > 0):
                x, state = data(i), {k: v + np.float32(i) for k, v in h0.items()}
                on = {k: module.put(v) for k, v in state.items()}
                found = listed(pair[1](module.put(x), **on))
            for left, right in zip(listed(pair[0](x, **state)), found, strict=True):
                same(left, module.get(right))


def test_what_was_not_recorded(module, recorded, monkeypatch):
    pair = twins()
    x, on = data(), module.put(data())
    pair[1](on)
    other = module.put(data(1, (B, T + 1, F)))
    with recorded():
        pair[1](on)
        for arguments in ((other,), (on, None, np.ones((B, T), bool))):
            with pytest.raises(AssertionError, match="a general call"):
                pair[1](*arguments)
        stream = driver.cuStreamCreate(fakedriver.NON_BLOCKING)[1]
        module.pointer = int(stream)
        with pytest.raises(AssertionError, match="a general call"):
            pair[1](on)
    same(pair[0](x), module.get(pair[1](on)))
    module.pointer = 0
    with pytest.raises(ValueError, match="`initial_state` must have shape"):
        pair[1](on, module.put(data(0, (B + 1, U))))
    if module.__name__ == "torch":
        on.requires_grad = True
        with pytest.raises(RuntimeError, match="requires grad"):
            pair[1](on)


def test_records_know_their_weights_and_zeros(module, monkeypatch):
    monkeypatch.setattr(operands_cuda, "_LEAST_ZEROS", 4)
    operands_cuda._zeros.clear()
    pair, on = twins(), module.put(data())
    pair[1](on)
    more = data(1, (B + 1, T, F))
    same(pair[0](more), module.get(pair[1](module.put(more))))  # with new zeros
    cuda.current_context().deallocations.clear()
    same(pair[0](data()), module.get(pair[1](on)))
    for layer in pair:
        layer.set_weights([2 * w for w in layer.get_weights()])
    same(pair[0](data()), module.get(pair[1](on)))


def test_records_keep_nothing_of_the_caller(module):
    _, layer = twins(return_state=True)
    on, state = module.put(data()), module.put(data(0, (B, U)))
    for _ in range(2):
        layer(on, state)
    del on, state
    gone = [weakref.ref(one) for one in module.made]
    module.made.clear()
    assert [one() for one in gone] == [None] * len(gone)

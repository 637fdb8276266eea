"""Layers on the driver of fakedriver.py: run by test_cuda_libcuda.py, on its own.

Nothing between the package and the driver is replaced: memory, copies, streams,
contexts and launches are those of numba-cuda and cuda.bindings.
"""

import ctypes
import functools

import fakedriver

LIBRARY = fakedriver.install()  # numba-cuda looks for it when it is imported

import numpy as np
import pytest
from numba import cuda
from numba.cuda import codegen

import ptxgrid
from numbagru import GRU
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
    from cuda.bindings import driver

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


def test_results_of_size_0(libcuda):
    _, layer = twins()
    assert layer(cuda.to_device(np.empty((0, T, F), "float32"))).shape == (0, T, U)
    found = layer(cuda.to_device(np.empty((B, 0, F), "float32")))
    assert found.shape == (B, 0, U)

"""What is missing is named: package, driver, toolkit, device, memory."""

import contextlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numba import types

pytest.importorskip("numba_cuda", reason="the driver is numba-cuda's")

from numbagru import _driver_cuda
from numbagru._driver_cuda import Driver
from numbagru.kernels.cuda.launch import Launch, Products


class OutOfMemory(Exception):
    """What numba-cuda raises."""


def cuda_of(version=(13, 0), capability=(9, 0), memory=1 << 30):
    """Make what Driver takes of numba-cuda."""

    def device_array(size, dtype, stream):
        if size > memory:
            raise OutOfMemory("CUDA_ERROR_OUT_OF_MEMORY")
        return np.empty(size, dtype)

    driver = SimpleNamespace(get_version=lambda: version, CudaAPIError=OutOfMemory)
    return SimpleNamespace(
        cudadrv=SimpleNamespace(driver=driver),
        get_current_device=lambda: SimpleNamespace(compute_capability=capability),
        current_context=lambda: SimpleNamespace(
            get_memory_info=lambda: (memory, 2 * memory)
        ),
        device_array=device_array,
    )


LAUNCH = Launch(lambda n: None, (types.int32,), (1,), 32, (1,))


def test_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba_cuda", None)
    with pytest.raises(RuntimeError, match=r"pip install numbagru\[cuda\].*'cpu'"):
        _driver_cuda.driver.__wrapped__()  # it may be remembered


def test_no_driver(monkeypatch):
    from numba import cuda

    monkeypatch.setattr(cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"NVIDIA driver.*nvidia-smi.*'cpu'"):
        _driver_cuda.driver.__wrapped__()  # it may be remembered


def test_driver_older_than_the_toolkit(monkeypatch):
    monkeypatch.setattr(_driver_cuda, "_toolkit", lambda: (13, 0))
    with pytest.raises(RuntimeError, match=r"CUDA 12.4.*CUDA 13.0.*numba-cuda\[cu12\]"):
        Driver(cuda_of(version=(12, 4)))


def test_old_device():
    driver = Driver(cuda_of(capability=(7, 0)))
    with pytest.raises(RuntimeError, match=r"7\.5.*7\.0.*'cpu'"):
        driver._compiled(LAUNCH)


def test_device_without_tensor_cores_for_tf32():
    driver = Driver(cuda_of(capability=(7, 5)))
    with pytest.raises(RuntimeError, match=r"'tf32' needs.*8\.0.*7\.5.*'dtype'"):
        driver._compiled(LAUNCH._replace(capability=(8, 0)))


class Entered(contextlib.nullcontext):
    """Remember what was entered."""

    def __init__(self, log, *what):
        super().__init__()
        self.log, self.what = log, what

    def __enter__(self):
        """Write it down."""
        self.log.append(self.what)


def cupy_of(log):
    """Make what the driver takes of CuPy, for memory of the host."""

    def asarray(value):
        interface = value.__cuda_array_interface__
        assert interface["version"] == 3
        return np.asarray(SimpleNamespace(__array_interface__=interface, owner=value))

    cuda = SimpleNamespace(
        ExternalStream=lambda stream: Entered(log, "stream", stream),
        Stream=SimpleNamespace(null=Entered(log, "stream", 0)),
        Device=lambda number: Entered(log, "device", number),
    )
    return SimpleNamespace(cuda=cuda, asarray=asarray, empty=np.empty, add=np.add)


@pytest.mark.parametrize("stream", [0, 17])
def test_products_of_cupy(stream, monkeypatch):
    log = []
    monkeypatch.setitem(sys.modules, "cupy", cupy_of(log))
    cuda = cuda_of()
    cuda.current_context = lambda: SimpleNamespace(device=SimpleNamespace(id=3))
    left, right = np.arange(12.0).reshape(3, 4)[:, ::2], np.ones(2)

    def function(xp, first, second, none, number):
        assert (none.shape, number) == ((0,), 5)
        xp.add(first, second, out=first)

    products = Products(function, (left, right, np.empty(0), 5))
    Driver(cuda).multiply([products], stream)
    assert left.tolist() == [[1, 3], [5, 7], [9, 11]]
    assert log == [("device", 3), ("stream", stream)]


def test_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"'free'.*cupy-cuda13x.*'dtype'"):
        Driver(cuda_of()).multiply([Products(lambda xp: None, ())], 0)


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_parts_of_the_toolkit_missing(error, monkeypatch):
    from numbagru import _jit_cuda

    def compiled(*arguments):
        raise error("libnvvm cannot be found")

    monkeypatch.setattr(_jit_cuda, "compiled", compiled)
    with pytest.raises(RuntimeError, match=r"libnvvm.*pip install numbagru\[cuda\]"):
        Driver(cuda_of())._compiled(LAUNCH)


def test_too_little_memory():
    with pytest.raises(MemoryError, match=r"1,001 bytes more.*1,000 of 2,000 left"):
        Driver(cuda_of(memory=1000)).memory(1001)


def test_the_toolkit_is_found():
    assert _driver_cuda._toolkit() >= (12, 0)


def test_kernels_are_compiled_once_for_a_capability(monkeypatch):
    from numbagru import _jit_cuda

    made = []
    monkeypatch.setattr(_jit_cuda, "compiled", lambda *given: made.append(given))
    driver = Driver(cuda_of())
    driver._compiled(LAUNCH)
    driver._compiled(LAUNCH)
    assert len(made) == 1

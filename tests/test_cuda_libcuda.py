"""All between a layer and NVIDIA's driver, on a driver without a device.

In a process of its own: a driver that was loaded cannot be replaced.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="the driver's callers are numba-cuda's")
pytest.importorskip("nvidia.cu13", reason="compiling takes NVVM")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_layers_on_a_driver_without_a_device():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name("on_libcuda.py"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr

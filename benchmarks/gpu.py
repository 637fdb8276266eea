"""The kernels for CUDA on a device: ``python benchmarks/gpu.py``, up to eight minutes.

Each part runs in a process of its own with a time limit, the safest first: what the
device can do, whether every kernel has the bits of the CPU and the values of a float64
reference (with TF32, or sums in any order, only those), then times beside PyTorch's
``nn.GRU`` (cuDNN, with TF32 and without) and, for what cuDNN refuses, beside the same
written in PyTorch. Needs ``numbagru[cuda]`` and PyTorch for CUDA; takes CuPy if there.
"""

import argparse
import datetime
import functools
import subprocess
import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.device_check import CHECKED, check
from benchmarks.device_times import compare, describe, refused

ROOT = Path(__file__).parents[1]
# Seconds that each part may take.
PARTS = {
    "machine": 40,
    **dict.fromkeys(CHECKED, 50),
    "inference": 80,
    "training": 110,
    "refused": 50,
}


def main():
    """Run all parts, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    if part:
        run = {
            "machine": describe,
            **{kernel: functools.partial(check, kernel) for kernel in CHECKED},
            "inference": lambda: compare("inference"),
            "training": lambda: compare("training"),
            "refused": refused,
        }[part]
        sys.exit(0 if run() else 1)
    from numbagru._driver_cuda import driver

    try:
        driver()
    except RuntimeError as error:
        sys.exit(str(error))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    report, failed = [f"{today}\n"], []
    for name, seconds in PARTS.items():
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name]
        try:
            found = subprocess.run(
                command, cwd=ROOT, timeout=seconds, stdout=subprocess.PIPE, text=True,
                check=False,
            )  # fmt: skip
            text, passed = found.stdout, found.returncode == 0
        except subprocess.TimeoutExpired as late:
            text = late.stdout or ""  # bytes even of text, in some versions of Python
            text = text.decode() if isinstance(text, bytes) else text
            text += f"\nnot done after {seconds} s"
            passed = False
        failed += [] if passed else [name]
        report.append(f"## {name}\n\n{text}\n")
        print(report[-1], flush=True)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"gpu-{today}.md").write_text("\n".join(report), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Processes for engines: their environment, and talking to a worker."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What holds engines to an instruction set. OpenVINO, PyTorch and TensorFlow multiply
# with oneDNN, PyTorch also with MKL; XLA, of Keras/JAX, heeds it in the code that it
# makes, not in the library it calls. The kernels that OpenVINO has of its own listen
# (OV_CPU_MAX_ISA) in debug builds only.
ISA = {
    "native": {},
    "avx2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OV_CPU_MAX_ISA": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
}


def environment(threads, isa="native"):
    """Return the variables of a process that may use so many threads."""
    threads = str(threads)
    return os.environ | {
        "PEERS_THREADS": threads,
        "PEERS_ISA": isa,
        "NUMBA_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        **ISA[isa],
    }


def usable_cpus():
    """Return the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count()))


def restrict(threads):
    """Keep this process and its children on as many CPUs as threads.

    Pools that size themselves read this.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cpus()[:threads])


class Remote:
    """A process of `worker.py`."""

    def __init__(self, engine, dtype, variables, verbose=False):
        self.engine = engine
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", engine, dtype],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, *command):
        """Send a command; return its result, or None after naming the error."""
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            answer = {"error": "the worker has died"}
        if "error" in answer:
            note(f"{self.engine} cannot {command[0]}: {answer['error']}")
        return answer.get("result")

    def close(self):
        """End the worker."""
        self.process.stdin.close()
        self.process.wait()


def start(engines, dtype, variables, verbose=False):
    """Start the workers that can start; return them and the versions behind them."""
    workers, versions = [], {}
    for engine in engines:
        worker = Remote(engine, dtype, variables, verbose)
        if found := worker.ask("versions"):
            versions |= found
            workers.append(worker)
        else:
            worker.close()
    return workers, versions


def note(text):
    """Say something about the run, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def machine(threads):
    """Return one line about the machine."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        cpu = fields.get("model name", cpu)
        vectors = [f for f in ("avx512f", "avx2") if f in fields.get("flags", "")]
        cpu = " ".join([cpu, *vectors[:1]])
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return (
        f"{cpu}, {os.cpu_count()} cores, {threads} threads, {platform.system()}, "
        f"Python {platform.python_version()}, {today}"
    )

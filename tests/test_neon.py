"""The machine code of the register tiles, for CPUs that this machine is not.

The code is made here, by the very functions that the kernels are made of, and read.
"""

import inspect
import os
import re
import subprocess
import sys
from collections import Counter

import llvmlite.binding as llvm
import pytest
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from numbagru.kernels import register_tiles, simd, vector_ir

LINUX_ARM, MAC_ARM = "aarch64-unknown-linux-gnu", "arm64-apple-darwin"
LINUX_X86 = "x86_64-unknown-linux-gnu"
# Rows of the largest tile beside the CPU: with three vectors each, 24 accumulators of
# 32 registers, 12 of 16.
CPUS = [
    (LINUX_ARM, "generic", 8),
    (LINUX_ARM, "neoverse-n1", 8),
    (LINUX_ARM, "neoverse-v2", 8),
    (MAC_ARM, "apple-m1", 8),
    (LINUX_X86, "haswell", 4),
    (LINUX_X86, "znver3", 4),
    (LINUX_X86, "skylake-avx512", 8),
    (LINUX_X86, "znver4", 8),
]
REALS = [types.float32, types.float64]
FMA = re.compile(r"fmla|vfmadd\d+p")
OTHER_SUMS = re.compile(r"v?f?(mul|add|sub|madd)[sp]?[sd]?\b.*([vsdq]|[xyz]mm)\d")
STACK = re.compile(r"\[sp|%rsp")
VECTOR = re.compile(r"\b[qv]\d|[xyz]mm\d")


def machine_of(triple, cpu):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this llvmlite cannot compile for {triple}")
    return target.create_target_machine(cpu=cpu, features="", opt=3)


def assembly_of(text, machine):
    """Optimise a module, on the level that Numba uses, and give its assembly."""
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return machine.emit_assembly(module)


def loops(assembly):
    """Give the instructions of every loop without branches inside."""
    found, label, body = [], None, []
    for line in assembly.splitlines():
        if start := re.match(r"([\w.$]+):", line):
            label, body = start[1], []
        elif re.match(r"\s+\w", line):
            body.append(line.strip())
            if label is not None and line.split()[-1] == label:
                found.append(body)
                label, body = None, []
    return found


def is_vector(instruction, real):
    """Whether it works on vectors of these numbers, in either syntax."""
    neon, x86 = {32: ("4s", "ps"), 64: ("2d", "pd")}[real.bitwidth]
    return f".{neon}" in instruction or f"{x86} " in instruction.replace("\t", " ")


@pytest.fixture(params=CPUS, ids=lambda cpu: cpu[1])
def cpu(request, monkeypatch):
    """Let tiles be made for another CPU; gives its name, rows and `loops_of(tile)`."""
    triple, name, rows = request.param
    machine = machine_of(triple, name)
    registers = vector_ir.registers_of(machine)
    monkeypatch.setattr(vector_ir, "vector_registers", lambda: registers)
    monkeypatch.setattr(simd, "vector_registers", lambda: registers)
    assert vector_ir.most_tile_rows() == rows

    def loops_of(tile, real):
        context = cpu_target.target_context
        make = tile.__wrapped__
        arguments = len(inspect.signature(make).parameters) - 1
        signature, codegen = make(None, *[types.CPointer(real)] * arguments)
        kinds = [context.get_value_type(kind) for kind in signature.args]
        module = ir.Module()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "tile")
        builder = ir.IRBuilder(function.append_basic_block())
        codegen(context, builder, signature, function.args)
        builder.ret_void()
        return loops(assembly_of(str(module), machine))

    return name, rows, loops_of


def check(loop, multiply_adds, real, spilled=0, pointers_on_stack=False):
    """One multiply-add for each accumulator, and all of them in registers."""
    sums = [line for line in loop if FMA.match(line)]
    assert len(sums) == multiply_adds
    assert all(is_vector(line, real) for line in sums)
    assert not [line for line in loop if OTHER_SUMS.match(line)]
    stack = [line for line in loop if STACK.search(line)]
    if pointers_on_stack:
        stack = [line for line in stack if VECTOR.search(line) and line not in sums]
    assert len(stack) <= spilled


@pytest.mark.parametrize("real", REALS, ids=str)
@pytest.mark.parametrize("per_gate", [False, True])
@pytest.mark.parametrize("candidate", [True, False])
def test_step_tile(cpu, candidate, per_gate, real):
    name, rows, loops_of = cpu
    inputs, states = loops_of(
        register_tiles.step_tile(rows, 1, candidate, per_gate), real
    )
    # This model of LLVM has the loads of three weights side by side at any price: one
    # accumulator less in a register, away for less time than the others' sums take.
    spilled = 2 if name == "neoverse-n1" else 0
    # 24 addresses are more than x86 has registers for; only those may be in memory.
    check(inputs, 3 * rows, real, spilled, per_gate)
    check(states, (3 if candidate else 2) * rows, real, spilled, per_gate)


@pytest.mark.parametrize("real", REALS, ids=str)
def test_step_tile_of_one_row(cpu, real):
    _, _, loops_of = cpu
    for loop in loops_of(register_tiles.step_tile(1, simd.ALONE, True, False), real):
        check(loop, 3 * simd.ALONE, real)


def multiplies(loop):
    return any(map(FMA.match, loop))


@pytest.mark.parametrize("real", REALS, ids=str)
@pytest.mark.parametrize("make", [register_tiles.product_tile, register_tiles.sum_tile])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_product_tiles(cpu, columns, make, real):
    _, rows, loops_of = cpu
    # Where there is nothing to multiply, LLVM has a loop of its own over the parts, and
    # of one column, for some CPUs, it takes two parts in a round, then one.
    found = list(filter(multiplies, loops_of(make(rows, columns), real)))
    assert len(found) in (1, 3)
    for loop in found:
        # Addresses of eight rows and three columns: x86 keeps a stride in memory.
        check(loop, rows * columns, real, pointers_on_stack=columns == 3)


@pytest.mark.parametrize("real", REALS, ids=str)
@pytest.mark.parametrize("panels", [1, simd.PAIR, simd.ALONE])
@pytest.mark.parametrize("gates", [2, 3])
def test_gates_of_one_row(cpu, gates, panels, real):
    _, _, loops_of = cpu
    (loop,) = loops_of(register_tiles.gates_tile(gates, panels), real)
    # Addresses of three gates of four panels: x86 keeps some in memory.
    check(loop, gates * panels, real, pointers_on_stack=panels == simd.ALONE)


PROGRAM = """
import sys
from numba import njit, types
from numbagru import elementary
from numbagru._jit import OPTIONS

function = getattr(elementary, sys.argv[1])
array = types.Array(getattr(types, sys.argv[2]), 1, "C")

@njit((array, array), **OPTIONS)
def loop(x, y):
    for i in range(x.size):
        y[i] = function(x[i])

print(*loop.inspect_llvm().values())
"""


@pytest.mark.parametrize("real", REALS, ids=str)
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_functions_of_gates(function, real):
    """NEON gets a vector loop without calls; Numba brings code not yet optimised."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, function, real.name],
        env={**os.environ, "NUMBA_OPT": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    text = re.sub(r'target (triple|datalayout) = ".*"\n', "", done.stdout)
    for triple, cpu in [(LINUX_ARM, "neoverse-n1"), (MAC_ARM, "apple-m1")]:
        found = loops(assembly_of(text, machine_of(triple, cpu)))
        (loop,) = (
            loop
            for loop in found
            if any(line.startswith("fdiv") and is_vector(line, real) for line in loop)
        )
        count = Counter(line.split()[0].split(".")[0] for line in loop)
        assert count["fdiv"] == 1
        assert count["fmla"] >= 8  # the polynomial and the reduction of the argument
        assert not {"bl", "blr", "fmadd", "fmsub"} & set(count)
        assert not [line for line in loop if STACK.search(line)]

"""The walls between the rooms of the package, as data."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import numbagru

PACKAGE = Path(__file__).parents[1] / "numbagru"

# A room is a module or a folder of the package. Imports go down only: a room may import
# what stands in its row, and rows only name rooms above them in this table.
MAY_IMPORT = {
    "_linked": "",
    "_jit": "_linked",
    "scalar": "",
    "folds": "scalar",
    "registry": "",
    "elementary": "_jit scalar",
    "activations": "_jit scalar folds elementary",
    "gates": "_jit scalar activations",
    "_jit_cuda": "_jit",
    "kernels": "_jit _jit_cuda scalar activations gates",
    "operands": "registry kernels",
    "_driver_cuda": "_jit_cuda",
    "libraries_cuda": "",
    "operands_cuda": "_driver_cuda kernels libraries_cuda operands",
    "dispatch": "kernels operands operands_cuda",
    "prepared": "dispatch kernels operands",
    "recorded_cuda": "kernels libraries_cuda",
    "weights": "dispatch kernels operands prepared recorded_cuda",
    "functional": "dispatch kernels operands prepared weights",
    "random": "registry",
    "initializers": "registry random",
    "regularizers": "registry",
    "constraints": "registry",
    "config": "activations initializers regularizers constraints",
    "layers": (
        "registry activations functional random initializers regularizers constraints "
        "config"
    ),
    "training": "registry activations random layers",
    "compat": "layers",
    "forecasting": "initializers layers training",
    "machine": "_jit kernels",
    "warmup": "layers machine",
    "__main__": "forecasting machine warmup",
}
THIRD_PARTY = {"numba", "numpy"}
LLVM_ROOMS = {"scalar", "folds", "kernels"}
OPTIONAL = {"matplotlib", "tqdm", "numba_cuda", "cuda", "cupy", "torch"}
COMPILE_OPTIONS = {"boundscheck", "cache", "error_model", "fastmath"}


def sources(room):
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def rooms_on_disk():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def absolute(node, path):
    """Return the dotted names that an import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = path.relative_to(PACKAGE.parent).parts[: -node.level]
        base = ".".join([*package, *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


def imports(room, top_level_only=False):
    for path in sources(room):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if top_level_only else ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from absolute(node, path)


def test_table_has_every_room_once_and_in_order():
    seen = set()
    for room, row in MAY_IMPORT.items():
        assert set(row.split()) <= seen, room
        seen.add(room)
    assert seen == rooms_on_disk()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_down(room):
    ours = [name.split(".") for name in imports(room) if name.startswith("numbagru.")]
    assert {parts[1] for parts in ours} - {room} <= set(MAY_IMPORT[room].split())


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_only_numba_and_numpy_are_required(room):
    allowed = sys.stdlib_module_names | THIRD_PARTY | {"numbagru"}
    allowed |= {"llvmlite"} if room in LLVM_ROOMS else set()
    at_import = {name.split(".")[0] for name in imports(room, top_level_only=True)}
    later = {name.split(".")[0] for name in imports(room)}
    assert at_import <= allowed
    assert later <= allowed | OPTIONAL


@pytest.mark.parametrize("room", sorted(set(MAY_IMPORT) - {"_jit", "_jit_cuda"}))
def test_compile_options_stand_in_one_place(room):
    for path in sources(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                used = {keyword.arg for keyword in node.keywords}
                assert not used & COMPILE_OPTIONS, f"{path.name}:{node.lineno}"


def run(code):
    """Return what a new process prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_is_light():
    loaded = run(
        "import sys, numba; before = set(sys.modules); import numbagru; "
        "print(*set(sys.modules) - before)"
    ).split()
    top = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert "numbagru" in top
    assert top <= THIRD_PARTY | {"llvmlite", "numbagru"}
    later = {"compat", "forecasting", "machine", "training", "warmup", "__main__"}
    later |= {"dispatch", "functional", "kernels", "layers"}
    assert not {f"numbagru.{room}" for room in later} & set(loaded)
    assert not {"argparse", "concurrent.futures"} & set(loaded)


def test_every_name_is_there_when_asked_for():
    assert dir(numbagru) == sorted(numbagru.__all__)
    code = "import numbagru; print(*[hasattr(numbagru, n) for n in dir(numbagru)])"
    assert set(run(code).split()) == {"True"}
    run("from numbagru import *; Sequential([GRU(2)]); compat.v1.GRU(2)")
    run("import numbagru; numbagru.training.Sequential; numbagru.compat.v2.GRU(2)")
    run("from numbagru import optimizers; optimizers.Adam()")
    run("import numbagru; numbagru.functional.gru_vjp")


def test_no_other_names():
    with pytest.raises(AttributeError, match="'numbagru' has no attribute 'GRV'"):
        _ = numbagru.GRV

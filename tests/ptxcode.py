"""PTX, the code that NVVM makes of a CUDA kernel, as code for the CPU."""

import ctypes
import re

from llvmlite import binding as llvm

from ptxisa import Instructions
from ptxlines import GOOD, LOCAL, PARAMETERS, REGISTERS, SHARED, bits_of


def _operands(text):
    """Split at commas that are not in braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text)]


class Program(Instructions):
    """A kernel in PTX, as a function that runs one of its threads.

    Parameters
    ----------
    ptx : str
        With one entry.

    Attributes
    ----------
    parameters : list of (str, int)
        Kind of each parameter, and its place among their bytes.
    thread_bytes, shared_bytes : int
        Of a thread's memory, and of a block's but what a launch adds to it.
    """

    def __init__(self, ptx):
        ptx = re.sub(r"//.*", "", ptx)
        _, given, body = re.search(
            r"\.entry\s+(\S+?)\s*\((.*?)\).*?\{(.*)\}", ptx, re.DOTALL
        ).groups()
        super().__init__()
        self._declare_parameters(given)
        self._declare_memory(ptx)
        for label, statement in re.findall(r"(\$\w+):|([^;$]*(?:\$\w+\s*)?);", body):
            if label:
                self._label(label)
            else:
                self._statement(" ".join(statement.split()))
        self._compile()

    def _declare_parameters(self, given):
        self.parameters, place = [], 0
        for kind, name in re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", given):
            size = bits_of(kind) // 8
            place = -(-place // size) * size
            self.parameters.append((kind, place))
            self.symbols[name] = PARAMETERS, place
            place += size

    def _declare_memory(self, ptx):
        local = [*re.findall(r"\.local [^;]*?(\w+)\[(\d+)\];", ptx), ("", "0")][0]
        self.symbols[local[0]] = LOCAL, 0
        self.local_bytes = -(-int(local[1]) // 16) * 16
        place, last = 0, []
        for name, size in re.findall(r"\.shared [^;]*?(\w+)\[(\d*)\];", ptx):
            if size:
                self.symbols[name] = SHARED, place
                place += -(-int(size) // 16) * 16
            else:
                last.append(name)
        for name in last:  # the one whose size a launch gives
            self.symbols[name] = SHARED, place
        self.shared_bytes = place

    def _compile(self):
        self.thread_bytes = REGISTERS + 8 * len(self.registers)
        cases = " ".join(
            f"i32 {i}, label %resume{i}" for i in range(1, self.resumes + 1)
        )
        text = "\n".join(
            [
                GOOD,
                "define i32 @run(ptr %thread) {",
                "  %resume = load i32, ptr %thread",
                f"  switch i32 %resume, label %begin [ {cases} ]",
                "begin:",
                *self.lines,
                "  unreachable",
                "}",
                *self._declarations(),
            ]
        )
        self._engine = _engine(text)
        address = self._engine.get_function_address("run")
        self.run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(address)

    def _declarations(self):
        """Declare LLVM's own functions that were called."""
        calls = {
            (result, name, re.sub(r"(\w+) [^,]+", r"\1", given))
            for line in self.lines
            for result, name, given in re.findall(
                r"call (\w+) @(llvm\S+?)\((.*)\)", line
            )
        }
        return [f"declare {result} @{name}({kinds})" for result, name, kinds in calls]

    def _statement(self, text):
        if not text or text.startswith("."):
            return
        guard, name, operands = re.fullmatch(
            r"(?:@(!?%p\d+) )?(\S+) ?(.*)", text
        ).groups()
        operands = _operands(operands) if operands else []
        if guard:
            do, skip = self._fresh(), self._fresh()
            condition = self.read(guard, "pred")
            self._emit(f"br i1 {condition}, label %{do}, label %{skip}")
            self.lines.append(f"{do}:")
        self.instruction(name.split("."), operands)
        if guard:
            self._emit(f"br label %{skip}")
            self.lines.append(f"{skip}:")


def _engine(text):
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=1,
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    return engine

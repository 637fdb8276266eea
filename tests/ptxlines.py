"""Lines of LLVM's for what a thread of PTX keeps: registers, and memory.

Registers stand in the thread's own memory, so that it may return at a barrier, and go
on from there; where it reads and writes is looked at first.
"""

import re

# What a thread's memory begins with, by place: where to go on, threadIdx.x, blockIdx,
# gridDim, bytes of shared memory that the launch gives; addresses of parameters, of
# shared and local memory, and of the list of what may be read and written; the place of
# a fault; what a thread brings to a product of its warp, and is given.
RESUME, THREAD, BLOCK, GRID, DYNAMIC = 0, 4, 8, 20, 32
PARAMETERS, SHARED, LOCAL, SPANS, FAULT, BROUGHT = 40, 48, 56, 64, 72, 80
REGISTERS = 144
# What running a thread returns.
ENDED, AT_BARRIER, LOOKING, AT_PRODUCT, FAULTED = range(5)

_SPECIAL = {
    "%tid.x": THREAD,
    "%dynamic_smem_size": DYNAMIC,
    **{f"%ctaid.{axis}": BLOCK + 4 * i for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": GRID + 4 * i for i, axis in enumerate("xyz")},
}
# A place is good if it is aligned and in one of the spans, which end with zeros.
GOOD = f"""
define i1 @good(ptr %thread, i64 %place, i64 %size) {{
  %where = getelementptr i8, ptr %thread, i64 {SPANS}
  %spans = load ptr, ptr %where
  %less = sub i64 %size, 1
  %over = and i64 %place, %less
  %end = add i64 %place, %size
  %aligned = icmp eq i64 %over, 0
  br i1 %aligned, label %look, label %bad
look:
  %span = phi ptr [%spans, %0], [%next, %more]
  %first = load i64, ptr %span
  %beyond = getelementptr i64, ptr %span, i64 1
  %last = load i64, ptr %beyond
  %none = icmp eq i64 %last, 0
  br i1 %none, label %bad, label %compare
compare:
  %after = icmp uge i64 %place, %first
  %before = icmp ule i64 %end, %last
  %inside = and i1 %after, %before
  br i1 %inside, label %fine, label %more
more:
  %next = getelementptr i64, ptr %span, i64 2
  br label %look
fine:
  ret i1 true
bad:
  %fault = getelementptr i8, ptr %thread, i64 {FAULT}
  store i64 %place, ptr %fault
  ret i1 false
}}
"""


def bits_of(kind):
    """Count the bits of a kind of PTX: f32, u64, pred."""
    return 1 if kind == "pred" else int(kind[1:])


def type_of(kind):
    """Give LLVM's type of a kind of PTX."""
    if kind[0] == "f":
        return {32: "float", 64: "double"}[bits_of(kind)]
    return f"i{bits_of(kind)}"


class Lines:
    """Lines of a function of LLVM's, one after the other, and how operands get there.

    Attributes
    ----------
    lines : list of str
    symbols : dict
        For each name of PTX the field of the thread that its memory's address is in,
        and its place from there.
    registers : dict
        Number of each, by name.
    resumes : int
        How often the thread may return and go on.
    """

    def __init__(self):
        self.lines, self.symbols, self.registers = [], {}, {}
        self._count, self.resumes = 0, 0

    def _emit(self, line):
        self.lines.append(f"  {line}")

    def _name(self):
        self._count += 1
        return f"%v{self._count}"

    def _new(self, expression):
        name = self._name()
        self._emit(f"{name} = {expression}")
        return name

    def _label(self, label):
        """Begin a block; the one before may go on into it."""
        label = label.replace("$", "")
        self._emit(f"br label %{label}")
        self.lines.append(f"{label}:")

    def _fresh(self):
        self._count += 1
        return f"next{self._count}"

    def _leave(self, reason):
        """Return, and go on here."""
        self.resumes += 1
        self._emit(f"store i32 {self.resumes}, ptr %thread")
        self._emit(f"ret i32 {reason}")
        self.lines.append(f"resume{self.resumes}:")

    def _field(self, place):
        return self._new(f"getelementptr i8, ptr %thread, i64 {place}")

    def _register(self, name):
        number = self.registers.setdefault(name, len(self.registers))
        return self._field(REGISTERS + 8 * number)

    def read(self, operand, kind):
        """Give an operand as a value of a kind."""
        real, bits = kind[0] == "f", bits_of(kind)
        if operand.startswith("!"):
            return self._new(f"xor i1 {self.read(operand[1:], kind)}, true")
        if operand in _SPECIAL:
            return self._new(f"load i32, ptr {self._field(_SPECIAL[operand])}")
        if operand.startswith("%"):
            return self._new(f"load {type_of(kind)}, ptr {self._register(operand)}")
        if operand in self.symbols:
            return self._new(f"ptrtoint ptr {self._symbol(operand)} to i64")
        if operand[:2] in ("0f", "0d"):
            number = int(operand[2:], 16)
        else:
            number = int(operand, 0)
        number %= 1 << bits
        return f"bitcast (i{bits} {number} to {type_of(kind)})" if real else f"{number}"

    def write(self, register, kind, value):
        """Set a register: of one that is wider than the value, all of it."""
        spot = self._register(register)
        if kind[0] != "f" and 1 < bits_of(kind) < 64:
            how = "sext" if kind[0] == "s" else "zext"
            value = self._new(f"{how} {type_of(kind)} {value} to i64")
            kind = "b64"
        self._emit(f"store {type_of(kind)} {value}, ptr {spot}")

    def _symbol(self, name):
        where, place = self.symbols[name]
        base = self._new(f"load ptr, ptr {self._field(where)}")
        return self._new(f"getelementptr i8, ptr {base}, i64 {place}")

    def _address(self, operand):
        name, offset = re.fullmatch(r"\[([^+]+)(?:\+(-?\d+))?\]", operand).groups("0")
        if name in self.symbols:
            spot = self._symbol(name)
        else:
            spot = self._new(f"inttoptr i64 {self.read(name, 'b64')} to ptr")
        return self._new(f"getelementptr i8, ptr {spot}, i64 {offset}")

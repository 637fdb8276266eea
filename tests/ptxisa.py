"""Instructions of PTX as lines of LLVM's: what the kernels use, all else is refused.

Semantics: the PTX ISA. An instruction is a method of its name, or one of `_FORMS`.
"""

from ptxlines import (
    AT_BARRIER,
    AT_PRODUCT,
    BROUGHT,
    ENDED,
    FAULTED,
    LOOKING,
    Lines,
    bits_of,
    type_of,
)

# Instructions that are one of LLVM's, of reals and of integers; the lesser of a number
# and what is not a number is the number.
_FORMS = {
    "add": ("fadd {sort} {0}, {1}", "add {sort} {0}, {1}"),
    "sub": ("fsub {sort} {0}, {1}", "sub {sort} {0}, {1}"),
    "div": ("fdiv {sort} {0}, {1}", "{s}div {sort} {0}, {1}"),
    "rcp": ("fdiv {sort} 1.0, {0}", None),
    "rem": (None, "{s}rem {sort} {0}, {1}"),
    "and": (None, "and {sort} {0}, {1}"),
    "or": (None, "or {sort} {0}, {1}"),
    "xor": (None, "xor {sort} {0}, {1}"),
    "not": (None, "xor {sort} {0}, -1"),
    "neg": ("fneg {sort} {0}", "sub {sort} 0, {0}"),
    "abs": ("call {sort} @llvm.fabs.{of}({sort} {0})", None),
    "sqrt": ("call {sort} @llvm.sqrt.{of}({sort} {0})", None),
    "copysign": ("call {sort} @llvm.copysign.{of}({sort} {1}, {sort} {0})", None),
    "fma": ("call {sort} @llvm.fma.{of}({sort} {0}, {sort} {1}, {sort} {2})", None),
    "min": (
        "call {sort} @llvm.minimumnum.{of}({sort} {0}, {sort} {1})",
        "call {sort} @llvm.{s}min.{of}({sort} {0}, {sort} {1})",
    ),
    "max": (
        "call {sort} @llvm.maximumnum.{of}({sort} {0}, {sort} {1})",
        "call {sort} @llvm.{s}max.{of}({sort} {0}, {sort} {1})",
    ),
}
_ORDERED = "eq", "ne", "lt", "le", "gt", "ge"
_COMPARED = {
    **{name: f"o{name}" for name in _ORDERED},
    **{f"{name}u": f"u{name}" for name in _ORDERED},
    "num": "ord", "nan": "uno",
}  # fmt: skip


class Instructions(Lines):
    """Lines that instructions become."""

    def instruction(self, parts, operands):
        """Write an instruction, of a name in parts."""
        name, kind = parts[0], parts[-1]
        special = getattr(self, f"_{name}", None)
        if special:
            special(parts[1:], operands)
            return
        if name not in _FORMS:
            raise NotImplementedError(".".join(parts))
        real, sort = kind[0] == "f", type_of(kind)
        if real and name not in ("min", "max", "neg", "abs", "copysign"):
            assert parts[1:-1] == ["rn"], parts  # to the nearest, nothing to zero
        values = [self.read(operand, kind) for operand in operands[1:]]
        form = _FORMS[name][not real].format(
            *values, sort=sort, s="s" if kind[0] == "s" else "u",
            of=("f" if real else "i") + str(bits_of(kind)),
        )  # fmt: skip
        self.write(operands[0], kind, self._new(form))

    def _mul(self, parts, operands):
        (*how, kind), (to, *factors) = parts, operands
        a, b = (self.read(factor, kind) for factor in factors)
        if kind[0] == "f":
            assert how == ["rn"]
            self.write(to, kind, self._new(f"fmul {type_of(kind)} {a}, {b}"))
            return
        bits, extend = bits_of(kind), "sext" if kind[0] == "s" else "zext"
        a, b = (
            self._new(f"{extend} i{bits} {factor} to i{2 * bits}") for factor in (a, b)
        )
        product = self._new(f"mul i{2 * bits} {a}, {b}")
        if how == ["hi"]:
            product = self._new(f"lshr i{2 * bits} {product}, {bits}")
        if how != ["wide"]:
            product = self._new(f"trunc i{2 * bits} {product} to i{bits}")
        self.write(to, f"{kind[0]}{2 * bits}" if how == ["wide"] else kind, product)

    def _mad(self, parts, operands):
        *factors, more = operands
        kind = parts[-1]
        self._mul(parts, factors)
        if parts[0] == "wide":
            kind = f"{kind[0]}{2 * bits_of(kind)}"
        total = f"add {type_of(kind)} {self.read(factors[0], kind)}, "
        self.write(factors[0], kind, self._new(total + self.read(more, kind)))

    def _shift(self, how, kind, operands):
        """Shift by no more than all bits."""
        value, by = self.read(operands[1], kind), self.read(operands[2], "u32")
        bits = bits_of(kind)
        wide = 2 * bits
        by = self._new(f"call i32 @llvm.umin.i32(i32 {by}, i32 {bits})")
        if bits != 16:
            by = self._new(f"zext i32 {by} to i{wide}")
        extend = "sext" if how == "ashr" else "zext"
        value = self._new(f"{extend} i{bits} {value} to i{wide}")
        value = self._new(f"{how} i{wide} {value}, {by}")
        value = self._new(f"trunc i{wide} {value} to i{bits}")
        self.write(operands[0], kind, value)

    def _bfi(self, parts, operands):
        """Put the lowest bits of one number into another."""
        (kind,), sort = parts, type_of(parts[0])
        to, source, into, *where = operands
        begin, length = (int(number) for number in where)
        mask = ((1 << length) - 1) << begin
        moved = self._new(f"shl {sort} {self.read(source, kind)}, {begin}")
        moved = self._new(f"and {sort} {moved}, {mask}")
        rest = self._new(f"and {sort} {self.read(into, kind)}, {~mask}")
        self.write(to, kind, self._new(f"or {sort} {moved}, {rest}"))

    def _shl(self, parts, operands):
        self._shift("shl", parts[-1], operands)

    def _shr(self, parts, operands):
        how = "ashr" if parts[-1][0] == "s" else "lshr"
        self._shift(how, parts[-1], operands)

    def _setp(self, parts, operands):
        compare, kind = parts
        a, b = (self.read(operand, kind) for operand in operands[1:])
        if kind[0] == "f":
            how = f"fcmp {_COMPARED[compare]}"
        elif compare in ("eq", "ne"):
            how = f"icmp {compare}"
        else:
            how = f"icmp {'s' if kind[0] == 's' else 'u'}{compare}"
        self.write(operands[0], "pred", self._new(f"{how} {type_of(kind)} {a}, {b}"))

    def _selp(self, parts, operands):
        (kind,), sort = parts, type_of(parts[0])
        a, b = (self.read(operand, kind) for operand in operands[1:3])
        which = self.read(operands[3], "pred")
        value = self._new(f"select i1 {which}, {sort} {a}, {sort} {b}")
        self.write(operands[0], kind, value)

    def _mov(self, parts, operands):
        (kind,), (to, source) = parts, operands
        if "{" in to + source:
            raise NotImplementedError(f"mov {to}, {source}")
        self.write(to, kind, self.read(source, kind))

    def _cvta(self, parts, operands):
        """All addresses are those of one memory."""
        self.write(operands[0], "b64", self.read(operands[1], "b64"))

    def _cvt(self, parts, operands):
        *how, to, source = parts
        value, old = self.read(operands[1], source), type_of(source)
        new = "i32" if to == "tf32" else type_of(to)
        if to == "tf32":
            # Half of the last bit that stays, then all that do not stay.
            assert how == ["rna"]
            bits = self._new(f"bitcast float {value} to i32")
            more = self._new(f"add i32 {bits}, 4096")
            value, to = self._new(f"and i32 {more}, -8192"), "b32"
        elif to[0] == source[0] == "f":
            name = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
            if how == ["rn"]:
                value = self._new(f"fptrunc {old} {value} to {new}")
            elif how:
                form = f"call {old} @llvm.{name[how[0]]}.{source}({old} {value})"
                value = self._new(form)
            else:
                value = self._new(f"fpext {old} {value} to {new}")
        elif to[0] == "f":
            assert how == ["rn"]
            form = "sitofp" if source[0] == "s" else "uitofp"
            value = self._new(f"{form} {old} {value} to {new}")
        elif source[0] == "f":
            assert how == ["rzi"]
            name = f"llvm.fpto{to[0]}i.sat.{new}.{source}"
            value = self._new(f"call {new} @{name}({old} {value})")
        elif bits_of(to) > bits_of(source):
            form = "sext" if source[0] == "s" else "zext"
            value = self._new(f"{form} {old} {value} to {new}")
        elif bits_of(to) < bits_of(source):
            value = self._new(f"trunc {old} {value} to {new}")
        self.write(operands[0], to, value)

    def _bra(self, parts, operands):
        self._emit(f"br label %{operands[0].replace('$', '')}")
        self.lines.append(f"{self._fresh()}:")

    def _ret(self, parts, operands):
        self._emit(f"ret i32 {ENDED}")
        self.lines.append(f"{self._fresh()}:")

    def _bar(self, parts, operands):
        assert (parts, operands) == (["sync"], ["0"])
        self._leave(AT_BARRIER)

    def _ld(self, parts, operands):
        to, source = operands
        if "acquire" in parts:  # all others may go on before
            self._leave(LOOKING)
        self._each(parts, to, source, self._load)

    def _st(self, parts, operands):
        to, source = operands
        self._each(parts, source, to, self._store)

    def _each(self, parts, registers, address, move):
        kind, names = parts[-1], registers.strip("{}").split(",")
        size = bits_of(kind) // 8
        spot = self._address(address)
        if parts[0] != "param":
            place = self._new(f"ptrtoint ptr {spot} to i64")
            good = f"call i1 @good(ptr %thread, i64 {place}, i64 {size * len(names)})"
            fine, bad = self._fresh(), self._fresh()
            self._emit(f"br i1 {self._new(good)}, label %{fine}, label %{bad}")
            self.lines += [f"{bad}:", f"  ret i32 {FAULTED}", f"{fine}:"]
        for i, name in enumerate(names):
            here = self._new(f"getelementptr i8, ptr {spot}, i64 {i * size}")
            move(name.strip(), kind, here)

    def _load(self, name, kind, spot):
        self.write(name, kind, self._new(f"load {type_of(kind)}, ptr {spot}"))

    def _store(self, name, kind, spot):
        self._emit(f"store {type_of(kind)} {self.read(name, kind)}, ptr {spot}")

    def _red(self, parts, operands):
        assert parts[-2:] == ["add", "s32"]
        spot = self._address(operands[0])
        old = self._new(f"load i32, ptr {spot}")
        total = self._new(f"add i32 {old}, {self.read(operands[1], 's32')}")
        self._emit(f"store i32 {total}, ptr {spot}")

    def _mma(self, parts, operands):
        """Bring factors, go on when all of the warp have, and add what they make."""
        totals, *factors, sums = (
            [name.strip() for name in operand.strip("{}").split(",")]
            for operand in operands
        )
        for i, name in enumerate([*factors[0], *factors[1]]):
            value = self.read(name, "b32")
            self._emit(f"store i32 {value}, ptr {self._field(BROUGHT + 4 * i)}")
        for i, name in enumerate(sums):
            spot = self._field(BROUGHT + 24 + 4 * i)
            self._emit(f"store float {self.read(name, 'f32')}, ptr {spot}")
        self._leave(AT_PRODUCT)
        for i, name in enumerate(totals):
            self._load(name, "f32", self._field(BROUGHT + 24 + 4 * i))

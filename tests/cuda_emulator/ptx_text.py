"""Reads PTX, the text that nvcc makes of a kernel, into the numbered instructions that ptx.cpp executes.

What it does not understand it refuses with NotPossible; the instructions themselves are looked up by ptx.cpp.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BYTES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "b32": 4, "u32": 4, "s32": 4}
BYTES |= {"f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}

# The first slots of a thread, as in ptx.h.
INDICES = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
FIXED = ["true", "parameters", "local", "_", *INDICES, "%laneid"]
TRUE, PARAMETERS, LOCAL = range(3)

# Modifiers that change nothing here: caches, who sees an access when, and that all threads of a warp take part.
IGNORED = {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "L1::no_allocate", "L1::evict_first", "L1::evict_last"}
IGNORED |= {"L2::64B", "L2::128B", "L2::256B", "volatile", "weak", "relaxed", "acquire", "release", "acq_rel", "sc"}
IGNORED |= {"cta", "gpu", "sys", "aligned"}

POISON = 2**64 - 1  # what registers hold before they are written: NaN, -1
GAP = 16  # bytes between arrays of shared memory, so that a step past the end of one is not in the next


class NotPossible(Exception):
    """PTX that is not understood."""


@dataclass
class Instruction:
    opcode: str
    operands: list[int]
    guard: int
    unless: bool
    file: str
    line: int


@dataclass
class Kernel:
    """What ptx.h calls KernelText."""

    instructions: list[Instruction] = field(default_factory=list)
    slots: list[int] = field(default_factory=lambda: [0] * len(FIXED))
    parameters: list[tuple[int, int]] = field(default_factory=list)
    shared: list[tuple[int, int]] = field(default_factory=list)
    shared_bytes: int = 0
    local_bytes: int = 0


class Module:
    """A text of nvcc: its kernels by name, without comments."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        self.files = dict(re.findall(r'^\t\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
        # Outside of kernels: shared memory of functions that they have in common, and dynamic shared memory.
        shared = re.finditer(r"^(?:\.extern )?(\.shared\b.*?([\w$]+)(?:\[\d*\])?);", text, re.MULTILINE)
        self.shared = {match[2]: match[1] for match in shared}
        found = re.finditer(r"^(?:\.\w+ )*\.entry\s+([\w$]+).*?^\}", text, re.MULTILINE | re.DOTALL)
        self.entries = {_as_of_gcc(match[1]): match[0] for match in found}

    def read(self, entry: str, edit: Callable[[str], str] = lambda text: text) -> Kernel:
        """The kernel, after `edit` has changed its text."""
        return _Reader(self).read(edit(self.entries[entry]))


class _Reader:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.kernel = Kernel()
        self.names = {name: number for number, name in enumerate(FIXED)}  # to slots
        self.constants: dict[int, int] = {}  # value to slot
        self.addresses: dict[str, int] = {}  # of parameters: offsets
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[Instruction, str]] = []
        self.place = ("PTX", 0)

    def read(self, text: str) -> Kernel:
        head, _, body = text.partition("{")
        for parameter in re.findall(r"\.param[^,)]*", head):
            self._parameter(" ".join(parameter.split()))
        words = set(re.findall(r"[\w$]+", body))
        for name, statement in self.module.shared.items():
            if name in words and not statement.endswith("[]"):
                self._shared(statement)
        dynamic = {
            name: self._new_slot(0) for name, statement in self.module.shared.items() if statement.endswith("[]")
        }
        self.names |= dynamic
        for statement in _statements(body[: body.rindex("}")]):
            self._statement(statement)
        for instruction, label in self.branches:
            instruction.operands = [self.labels[label]]
        for name in dynamic:  # it lies behind the static
            self.kernel.slots[self.names[name]] = self.kernel.shared_bytes
        return self.kernel

    def _statement(self, statement: str) -> None:
        if statement.endswith(":"):
            self.labels[statement[:-1]] = len(self.kernel.instructions)
        elif match := re.match(r"\.loc (\d+) (\d+)(?:.* inlined_at (\d+) (\d+))?", statement):
            file, line = self.module.files[match[1]], match[2]
            if match[3] and file.endswith(".hpp"):  # an intrinsic of CUDA: rather who calls it
                file, line = self.module.files[match[3]], match[4]
            self.place = (file, int(line))
        elif match := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement):
            if match[1] not in BYTES:
                raise NotPossible(f"a register of type {match[1]}")
            for names in match[2].split(","):
                self._registers(names.strip())
        elif statement.startswith(".shared"):
            self._shared(statement)
        elif statement.startswith(".local"):  # nvcc makes one of all
            name, size, _ = self._variable(statement)
            self.names[name] = LOCAL
            self.kernel.local_bytes = _aligned(size, 16)
        elif not statement.startswith(".pragma"):
            self._instruction(statement)

    def _registers(self, names: str) -> None:
        match = re.fullmatch(r"([%\w$]+)<(\d+)>", names)
        for name in [f"{match[1]}{i}" for i in range(int(match[2]))] if match else [names]:
            self.names[name] = self._new_slot(POISON)

    def _parameter(self, statement: str) -> None:
        name, size, alignment = self._variable(statement)
        begin = _aligned(self.kernel.parameters[-1][1] if self.kernel.parameters else 0, alignment)
        self.kernel.parameters.append((begin, begin + size))
        self.addresses[name] = begin

    def _shared(self, statement: str) -> None:
        name, size, alignment = self._variable(statement)
        begin = _aligned(self.kernel.shared_bytes, alignment)
        self.kernel.shared.append((begin, begin + size))
        self.kernel.shared_bytes = _aligned(begin + size + GAP, 16)
        self.names[name] = self._constant(begin)

    def _variable(self, statement: str) -> tuple[str, int, int]:
        """Name, bytes and alignment of .space .align 8 .b8 name[16], or .space .u64 name."""
        match = re.fullmatch(r"\.\w+ (?:\.align (\d+) )?\.(\w+) (?:\.ptr\b.* )?([\w$]+)(?:\[(\d+)\])?", statement)
        if match is None or match[2] not in BYTES:
            raise NotPossible(statement)
        return match[3], BYTES[match[2]] * int(match[4] or 1), int(match[1] or BYTES[match[2]])

    # --- instructions -------------------------------------------------------------------------------------------------

    def _instruction(self, statement: str) -> None:
        guard, unless = TRUE, False
        if match := re.match(r"@(!?)([%\w]+)\s+", statement):
            guard, unless = self.names[match[2]], match[1] == "!"
            statement = statement[match.end() :]
        name, _, rest = statement.partition(" ")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
        parts = [part for part in name.split(".") if part not in IGNORED]
        if parts[0] == "mov" and "{" in rest:
            parts[0] = "unpack" if rest.startswith("{") else "pack"
        if parts[0] in ("bra", "ret") and parts[-1] == "uni":
            parts.pop()
        instruction = Instruction(".".join(parts), [], guard, unless, *self.place)
        if parts[0] == "bra":
            self.branches.append((instruction, operands[0]))
        elif parts[0] == "mov" and operands[1] in self.addresses:  # the address of a parameter
            offset = self._constant(self.addresses[operands[1]])
            instruction.opcode, instruction.operands = "add.s64", [self.names[operands[0]], PARAMETERS, offset]
        else:
            instruction.operands = [slot for operand in operands for slot in self._slots(operand, statement)]
        self.kernel.instructions.append(instruction)

    def _slots(self, operand: str, statement: str) -> Iterator[int]:
        """{a, b}: each of them; p|q: both; [a+4]: the address and the offset."""
        if operand[0] == "{":
            for part in operand[1:-1].split(","):
                yield self._slot(part.strip(), statement)
        elif operand[0] == "[":
            base, _, offset = operand[1:-1].replace(" ", "").partition("+")
            if base in self.addresses:
                yield PARAMETERS
                yield self._constant(self.addresses[base] + int(offset or 0))
            else:
                yield self._slot(base, statement)
                yield self._constant(int(offset or 0))
        else:
            for part in operand.split("|"):
                yield self._slot(part, statement)

    def _slot(self, operand: str, statement: str) -> int:
        if operand in self.names:
            return self.names[operand]
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", operand):
            return self._constant(int(match[1], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            return self._constant(int(operand.rstrip("U"), 0))
        raise NotPossible(f"operand {operand} of {statement!r} at {self.place[0]}:{self.place[1]}")

    def _constant(self, value: int) -> int:
        value %= 2**64
        if value not in self.constants:
            self.constants[value] = self._new_slot(value)
        return self.constants[value]

    def _new_slot(self, value: int) -> int:
        self.kernel.slots.append(value)
        return len(self.kernel.slots) - 1


def _statements(body: str) -> Iterator[str]:
    """Without the braces of blocks: a brace at the start of a statement; the names in blocks of nvcc do not clash."""
    body = re.sub(r"(\.loc[^\n;]*)\n", r"\1;\n", body)
    for match in re.finditer(r"\s*(?:([{}])|([\w$]+:)(?!:)|([^;{}\s][^;]*);)", body):
        if not match[1]:
            yield match[2] or re.sub(r"\s+", " ", match[3].strip())


def _as_of_gcc(name: str) -> str:
    """g++ calls all namespaces without a name the same; nvcc makes one that it numbers with the file."""
    while match := re.search(r"(\d+)(_GLOBAL__N__)", name):
        name = name[: match.start()] + "12_GLOBAL__N_1" + name[match.start(2) + int(match[1]) :]
    return name


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment

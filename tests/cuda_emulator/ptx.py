"""Runs what nvcc made of the kernels, their PTX, on the emulator: `from_ptx()` is `emulated()` with the other compiler.

An operator's host code is that of the emulator; where it launches a kernel, the PTX of the same name runs in its place.
Needs nvcc and no GPU, and `run()` not even nvcc.
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from cuda_emulator import build, emulated, load, ptx_text

ARCHITECTURES = [75, 80, 90]
# As in setup.py; without contraction to fused multiply-adds, so that the results are those of g++ bit for bit.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fmad=false",
    "-lineinfo",
    "--expt-relaxed-constexpr",
    f"-DTORCH_TARGET_VERSION={build.ABI}",
]
MAX_OPERANDS = 10  # as in ptx.h


class Instruction(ctypes.Structure):
    _fields_ = [
        ("opcode", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("guard", ctypes.c_int),
        ("unless", ctypes.c_int),
        ("num_operands", ctypes.c_int),
        ("operands", ctypes.c_int * MAX_OPERANDS),
        ("execute", ctypes.c_void_p),
    ]


class KernelText(ctypes.Structure):
    _fields_ = [
        ("instructions", ctypes.POINTER(Instruction)),
        ("slots", ctypes.POINTER(ctypes.c_uint64)),
        ("parameters", ctypes.POINTER(ctypes.c_uint32)),
        ("shared", ctypes.POINTER(ctypes.c_uint32)),
        ("num_instructions", ctypes.c_int),
        ("num_slots", ctypes.c_int),
        ("num_parameters", ctypes.c_int),
        ("num_shared", ctypes.c_int),
        ("static_shared_bytes", ctypes.c_int),
        ("local_bytes", ctypes.c_int),
    ]


Find = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)


# --- nvcc -------------------------------------------------------------------------------------------------------------


@cache
def nvcc() -> str | None:
    """The compiler, if there is one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


@cache
def module(architecture: int) -> ptx_text.Module:
    """What nvcc makes of all csrc/*/*.cu, but those that the emulator replaces, for compute_<architecture>."""
    replaced = {path.stem for path in build.HERE.glob("*.cpp")}
    return compiled([path for path in sorted(build.CSRC.glob("*/*.cu")) if path.stem not in replaced], architecture)


def compiled(sources: list[Path], architecture: int) -> ptx_text.Module:
    """As one file, so that nvcc reads the headers of torch once; what has not changed is kept in build/."""
    version = subprocess.run([nvcc(), "--version"], capture_output=True, check=True).stdout
    torch_flags = [flag for path in build.include_paths("cuda") for flag in ("-isystem", path)]
    flags = [*FLAGS, "-DUSE_CUDA", f"-I{build.CSRC}", *torch_flags, "-ptx", f"-arch=compute_{architecture}"]
    return ptx_text.Module(build.compiled_text(f"compute_{architecture}.ptx", [nvcc(), *flags], sources, version))


# --- kernels in the place of those of g++ -----------------------------------------------------------------------------


@contextmanager
def from_ptx(
    architecture: int, schedule: str = "in_order", edit: Callable[[str], str] = lambda text: text
) -> Iterator[list[str]]:
    """While it lasts, the operators of fastrcnn run the PTX of their kernels, on CPU tensors.

    schedule: as of `emulated`. edit: changes the text of each kernel before it runs. Gives the list of the kernels that
    have run, by their mangled names.
    """
    load("plain")
    with replaced_kernels(build.library("plain"), module(architecture), edit) as names, emulated("plain", schedule):
        yield names


@contextmanager
def replaced_kernels(
    path: Path, module: ptx_text.Module, edit: Callable[[str], str] = lambda text: text
) -> Iterator[list[str]]:
    """While it lasts, launches in the loaded library at `path` run the kernel of the same name of the module."""
    library = ctypes.CDLL(str(path))
    symbols = functions(path)
    names: list[str] = []
    kept = []  # what C++ has addresses of

    def find(kernel: int, offset: int) -> None:
        try:
            name = symbols[offset]
            if name not in module.entries:
                raise ptx_text.NotPossible(f"nvcc made no kernel {name}")
            names.append(name)
            text = _as_structure(module.read(name, edit), kept)
            library.cuda_emulator_ptx_define(ctypes.c_void_p(kernel), ctypes.byref(text))
        except Exception as error:  # which may not leave a callback
            library.cuda_emulator_ptx_refuse(f"PTX: {error}".encode())

    callback = Find(find)
    library.cuda_emulator_ptx_find(callback)
    try:
        yield names
    finally:
        library.cuda_emulator_ptx_find(Find())


def functions(library: Path) -> dict[int, str]:
    """The functions of a library, also hidden ones, by where they lie in it."""
    table = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    return {int(match[1], 16): match[2] for match in re.finditer(r"^([0-9a-f]+) [tTwW] (\S+)$", table, re.MULTILINE)}


def run(
    text: str, parameters: list[torch.Tensor | ctypes._SimpleCData], blocks: int = 1, threads: int = 1, shared: int = 0
) -> None:
    """Runs the only kernel of a PTX text. parameters: tensors, passed by address, and numbers of ctypes."""
    library = ctypes.CDLL(str(build.library("plain")))
    module = ptx_text.Module(text)
    kept: list[object] = []
    (name,) = module.entries
    kernel = _as_structure(module.read(name), kept)
    values = [ctypes.c_void_p(p.data_ptr()) if isinstance(p, torch.Tensor) else p for p in parameters]
    addresses = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
    error = ctypes.create_string_buffer(4096)
    library.cuda_emulator_ptx_run(ctypes.byref(kernel), blocks, threads, ctypes.c_uint64(shared), addresses, error)
    if error.value:
        raise RuntimeError(error.value.decode())


def _as_structure(kernel: ptx_text.Kernel, kept: list[object]) -> KernelText:
    """As ptx.h wants it; its instructions and all names are put into `kept`."""
    instructions = (Instruction * len(kernel.instructions))()
    files = {instruction.file: instruction.file.encode() for instruction in kernel.instructions}
    opcodes = {instruction.opcode: instruction.opcode.encode() for instruction in kernel.instructions}
    for to, it in zip(instructions, kernel.instructions, strict=True):
        if len(it.operands) > MAX_OPERANDS:
            raise ptx_text.NotPossible(f"{it.opcode} with {len(it.operands)} operands")
        to.opcode, to.file, to.line = opcodes[it.opcode], files[it.file], it.line
        to.guard, to.unless, to.num_operands = it.guard, it.unless, len(it.operands)
        to.operands[: len(it.operands)] = it.operands
    kept += [instructions, files, opcodes]
    parameters = [edge for range_ in kernel.parameters for edge in range_]
    shared = [edge for range_ in kernel.shared for edge in range_]
    return KernelText(
        instructions,
        (ctypes.c_uint64 * len(kernel.slots))(*kernel.slots),
        (ctypes.c_uint32 * max(1, len(parameters)))(*parameters),
        (ctypes.c_uint32 * max(1, len(shared)))(*shared),
        len(kernel.instructions),
        len(kernel.slots),
        len(kernel.parameters),
        len(kernel.shared),
        kernel.shared_bytes,
        kernel.local_bytes,
    )

"""Builds csrc's CUDA kernels for the emulator with g++, into build/cuda_emulator; what has not changed is kept.

Three variants of the same sources:
    plain: fast.
    races: finds data races between threads (races.h).
    address: AddressSanitizer and UndefinedBehaviorSanitizer find accesses out of bounds, of global, static and dynamic
        shared memory, and misaligned ones. A program that loads it must be started under PRELOAD.
"""

import fcntl
import hashlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = Path(os.environ.get("CUDA_EMULATOR_CSRC", ROOT / "csrc"))  # test_mutants.py has it elsewhere
FOLDER = ROOT / "build" / "cuda_emulator"
CXX = "g++"  # whose calls of -fsanitize=thread races.cpp knows
ABI = "0x020a000000000000"  # as ABI_TARGET in setup.py

FLAGS = ["-std=c++20", "-w", "-O1", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"]
FLAGS += ["-DFASTRCNN_CUDA_EMULATOR", f"-DTORCH_TARGET_VERSION={ABI}", f"-I{HERE}"]
VARIANTS = {
    "plain": [],
    "races": ["-DCUDA_EMULATOR_RACES"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
}
EMULATOR = ["fiber.cpp", "shared_memory.cpp", "scheduler.cpp", "races.cpp"]
PTX = ["ptx.cpp", "ptx_arithmetic.cpp", "ptx_bits.cpp", "ptx_conversion.cpp", "ptx_memory.cpp", "ptx_threads.cpp"]


def namespace(variant: str) -> str:
    """Where torch.ops has the operators of the variant."""
    return f"fastrcnn_emulated_{variant}"


@cache
def library(variant: str, csrc: Path = CSRC) -> Path:
    """The operators of all csrc/*/*.cu as a library for torch.ops.load_library."""
    kernels = sorted(csrc.glob("*/*.cu"))
    own = {path.stem: path for path in HERE.glob("*.cpp")}
    sources = [csrc / "schemas.cpp", *(own.get(path.stem, path) for path in kernels)]
    torch_flags = [flag for path in include_paths() for flag in ("-isystem", path)]
    torch_flags += [f'-DFASTRCNN_EMULATED="{namespace(variant)}"', "-include", str(HERE / "registration.h")]
    return _build(f"lib{namespace(variant)}.so", variant, sources, torch_flags, csrc)


@cache
def program_library(source: Path, variant: str) -> Path:
    """One source without torch as a library for ctypes."""
    return _build(f"lib{source.stem}_{variant}.so", variant, [source], [], CSRC)


def compiled_text(name: str, command: list[str], sources: list[Path], version: bytes) -> str:
    """What the command, of a compiler of this version, makes of the sources together, as text."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    includes = "".join(f'#include "{source}"\n' for source in sources)
    parts = [includes.encode(), *(source.read_bytes() for source in sources), " ".join(command).encode(), version]
    key = _digest(_headers(CSRC), *parts)
    together = FOLDER / f"together-{key}.cu"
    together.write_text(includes)
    return _cached(name, [*command, str(together)], key).read_text()


def preload() -> dict[str, str]:
    """The environment for a program that loads the variant `address`."""
    libraries = [
        subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python and torch never free some memory, and torch's own libraries are not built for the check of containers.
    options = "detect_leaks=0:detect_container_overflow=0:abort_on_error=0"
    return {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def _build(name: str, variant: str, sources: list[Path], extra: list[str], csrc: Path) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    flags = FLAGS + VARIANTS[variant]
    # The race detector itself is not watched.
    emulator = EMULATOR + (PTX if variant == "plain" else [])
    watched = [*flags, *extra, *(["-fsanitize=thread"] if variant == "races" else [])]
    jobs = [(source, watched) for source in sources] + [(HERE / source, flags) for source in emulator]
    headers = _headers(HERE), _headers(HERE, csrc)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(*job, csrc, *headers), jobs))
    link = [CXX, "-shared", *map(str, objects), *VARIANTS[variant]]
    link += [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"] * bool(extra)
    return _cached(name, link, _digest(*(path.name.encode() for path in objects)))


def _compile(source: Path, flags: list[str], csrc: Path, own_headers: bytes, all_headers: bytes) -> Path:
    text = source.read_bytes()
    included = re.findall(rb'#include "([^"]+)"', text)
    headers = own_headers if all((HERE / name.decode()).is_file() for name in included) else all_headers
    key = _digest(headers, text, " ".join(flags).encode(), torch.__version__.encode())
    return _cached(f"{source.stem}.o", [CXX, "-x", "c++", *flags, f"-I{csrc}", "-c", str(source)], key)


def _headers(*folders: Path) -> bytes:
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ".inl")]
    return _digest(*(path.read_bytes() for path in sorted(files, key=lambda path: path.parts[-2:]))).encode()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _cached(name: str, command: list[str], key: str) -> Path:
    """Runs the command, which makes a file, unless its result for this key is there or another process makes it."""
    stem, dot, suffix = name.rpartition(".")
    made = FOLDER / f"{stem}-{key}{dot}{suffix}"
    if made.exists():
        return made
    with open(made.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            partial = made.with_suffix(".partial")
            done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            partial.rename(made)
    return made

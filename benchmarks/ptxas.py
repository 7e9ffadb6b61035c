"""What nvcc's assembler says of every CUDA kernel of csrc, per architecture; needs a CUDA toolkit, but no GPU.

The source is compiled once per group of architectures for which it is the same (the kernels ask only whether they are
on sm_90 or later, CUDA's own headers also for sm_80), and the assembler turns that into each architecture's code.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARCHITECTURES = {"75": ["75"], "80": ["80", "86", "89"], "90": ["90", "100", "120"]}
# What setup.py compiles with. A process of its own: setup.py sets environment variables.
SETTINGS = """
import json, runpy, sys
sys.argv = ["setup.py", "--version"]
found = runpy.run_path("setup.py")
macros = [f"-D{name}" + (f"={value}" if value else "") for name, value in found["macros"]] + ["-DUSE_CUDA"]
system = [part for path in found["include_paths"]("cuda") for part in ("-isystem", path)]
print(json.dumps({"home": found["cuda_home"], "flags": found["nvcc_flags"] + macros + system}))
"""


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel on one architecture.

    shared: bytes of static shared memory per block. stack: bytes of local memory per thread (arrays that are indexed,
    calls). spills: bytes of registers that did not fit, written and read again. threads: per block, as launched.
    """

    name: str
    architecture: str
    threads: int
    registers: int
    shared: int
    stack: int
    spills: int


@dataclass
class Compiled:
    kernels: list[Kernel]
    warnings: list[str]


def settings() -> tuple[str | None, list[str]]:
    """The folder of the CUDA toolkit, None if there is none, and nvcc's flags."""
    environment = os.environ | {"FASTRCNN_CPU_ONLY": "1"}  # torch may be one without CUDA
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["home"], found["flags"]


def compile_all(home: str, flags: list[str]) -> Compiled:
    """Every csrc/*/*.cu for every architecture. Raises RuntimeError with nvcc's output if one does not compile."""
    sources = sorted((ROOT / "csrc").glob("*/*.cu"), key=lambda path: path.stem != "roi_align")  # the longest first
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda source: compile_one(home, flags, source), sources))
    kernels = sorted({k for part in parts for k in part.kernels}, key=lambda k: (k.name, int(k.architecture)))
    return Compiled(kernels, [line for part in parts for line in part.warnings])


def compile_one(home: str, flags: list[str], source: Path) -> Compiled:
    code = [f"-gencode=arch=compute_{of},code=[{','.join(f'sm_{a}' for a in to)}]" for of, to in ARCHITECTURES.items()]
    with tempfile.TemporaryDirectory() as folder:
        keep = ["--keep", "--keep-dir", folder]  # the PTX, which knows the threads of a block
        command = [f"{home}/bin/nvcc", *flags, *code, "-Xptxas", "-v", *keep, "-fatbin", source, "-o", f"{folder}/out"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc cannot compile {source}:\n{done.stdout}{done.stderr}")
        ptx = "".join(path.read_text() for path in Path(folder).glob("*.ptx"))
    said = done.stdout + done.stderr
    return Compiled(parse(said, block_sizes(ptx)), [line for line in said.splitlines() if "warning" in line.lower()])


def block_sizes(ptx: str) -> dict[str, int]:
    """By mangled name: what __launch_bounds__ says; kernels are launched with just as many threads."""
    return {name: int(n) for name, n in re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx)}


def parse(said: str, threads: dict[str, int]) -> list[Kernel]:
    """What `ptxas -v` says, kernel by kernel."""
    found = []
    for part in said.split("Compiling entry function ")[1:]:
        mangled, architecture = re.match(r"'(\w+)' for 'sm_(\d+)'", part).groups()

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        found.append(
            Kernel(
                mangled,
                architecture,
                threads.get(mangled, 0),
                number(r"Used (\d+) registers"),
                number(r"(\d+) bytes smem"),
                number(r"(\d+) bytes stack frame"),
                number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            )
        )
    names = demangled([kernel.name for kernel in found])
    return [Kernel(name, *list(vars(kernel).values())[1:]) for name, kernel in zip(names, found, strict=True)]


def demangled(names: list[str]) -> list[str]:
    """As in the source, without namespace, result type and parameters: roi_align_kernel<true, 4, float, float>."""
    if not names:
        return []
    done = subprocess.run(["c++filt", "-p", *names], capture_output=True, text=True, check=True)
    short = [re.sub(r"fastrcnn::|\(anonymous namespace\)::|^void ", "", line) for line in done.stdout.splitlines()]
    return [re.sub(r"\((?:int|bool|\w+)\)(?=[\d\w])", "", line) for line in short]

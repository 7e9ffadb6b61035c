"""Builds the native libraries; what the package is stands in pyproject.toml.

    pip install .                                    uses the torch of this environment; downloads none
    pip install -e . --no-build-isolation            for development: rebuilds only what changed

Environment: FORCE_CUDA=1 (fail unless the CUDA library can be built; it needs no GPU), FASTRCNN_CPU_ONLY=1 (never build
it), TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX", CUDA_HOME, MAX_JOBS, DEBUG=1 (symbols, no optimisation), CXX.

Three libraries (DESIGN.md): libfastrcnn.so and libfastrcnn_cuda.so hold the operators and use only the stable ABI of
LibTorch, so they run under any torch >= 2.10 and any Python; fastrcnn._C holds build_info() and does not touch torch.
"""

import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
ABI_TARGET = "2.10"  # the oldest torch whose stable ABI the libraries use


def import_torch():
    """The torch that the user has, also from inside pip's isolated build environment, which hides it."""
    sys.path += [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], site.getusersitepackages()]
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"fastrcnn is compiled against the torch you use, and none is found for {sys.executable}: {error}\n"
            "Install torch (>= 2.10) first; if it is installed, the isolated build hides it: run\n"
            "    pip install setuptools ninja pybind11 && pip install --no-build-isolation ."
        ) from error
    return torch


def find_cuda_home() -> str | None:
    """The toolkit's folder: CUDA_HOME, or where nvcc in PATH really lies, which may be a wrapper script."""
    given = os.environ.get("CUDA_HOME")
    if given:
        if not (Path(given) / "bin" / "nvcc").is_file() and not flag("FASTRCNN_CPU_ONLY"):
            raise SystemExit(f"CUDA_HOME={given} holds no bin/nvcc: set it to a CUDA toolkit, or FASTRCNN_CPU_ONLY=1.")
        return given
    candidates = []
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parent.parent)
        start = Path(nvcc).read_bytes()[:4096]
        if start.startswith(b"#!"):
            called = re.findall(r"(/[^\s\"']*/bin/nvcc)", start.decode(errors="replace"))
            candidates += [Path(path).parent.parent for path in called]
    candidates.append(Path("/usr/local/cuda"))
    for folder in candidates:
        headers = [folder / "include", *folder.glob("targets/*/include")]
        if (folder / "bin" / "nvcc").is_file() and any((h / "cuda_runtime.h").is_file() for h in headers):
            return str(folder)
    return None


def toolkit_version(cuda_home: str) -> str:
    said = subprocess.run([f"{cuda_home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+\.\d+)", said)
    return match.group(1) if match else "unknown"


def why_no_cuda() -> str | None:
    """None if the CUDA library can be built."""
    if flag("FASTRCNN_CPU_ONLY"):
        return "FASTRCNN_CPU_ONLY=1 is set"
    if cuda_home is None:
        return "no CUDA toolkit was found; set CUDA_HOME to its folder"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built for the CPU only"
    toolkit = toolkit_version(cuda_home)
    if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"{cuda_home} is CUDA {toolkit}, torch uses CUDA {torch.version.cuda}; the major versions must agree"
    return None


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off")


cuda_home = find_cuda_home()
if cuda_home:
    os.environ["CUDA_HOME"] = cuda_home  # torch reads it when its build helpers are imported
torch = import_torch()
try:
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ImportError as error:
    raise SystemExit(
        f"A build tool is missing: {error}\nRun: pip install setuptools ninja pybind11 (or pip install . without "
        "--no-build-isolation, which brings them)"
    ) from error

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
    raise SystemExit(f"fastrcnn needs torch >= {ABI_TARGET}, found {torch.__version__}: pip install -U torch")

version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
debug = flag("DEBUG")
obstacle = why_no_cuda()
with_cuda = obstacle is None
if flag("FORCE_CUDA") and not with_cuda:
    raise SystemExit(f"FORCE_CUDA=1, but {obstacle}.")
if with_cuda and not torch.cuda.is_available():
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")  # without a GPU to ask: T4, A100, H100
architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "of the visible GPUs")

optimise = ["-O0", "-g"] if debug else ["-O3", "-g0"]
# No contraction to fused multiply-adds: IoU must not depend on the device (csrc/math/box.h). Nobody looks at the flags
# of floating-point exceptions; not keeping them lets the compiler choose between two results without a branch.
arithmetic = ["-ffp-contract=off", "-fno-trapping-math"]
cxx_flags = ["-std=c++20", *arithmetic, "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", *optimise]
nvcc_flags = ["-std=c++20", "-fmad=false", "-lineinfo", "--expt-relaxed-constexpr", "-Xcompiler", "-fvisibility=hidden"]
nvcc_flags += ["-O0", "-g"] if debug else ["-O3"]
abi = "0x{:02x}{:02x}000000000000".format(*(int(part) for part in ABI_TARGET.split(".")))
macros = [("TORCH_TARGET_VERSION", abi)]


def operators(name: str, pattern: str, extra: list[str], cuda: bool) -> Extension:
    """A library of operators: linked with LibTorch, not with Python."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern)) + extra
    # No warnings from their headers. nvcc wants the option and the path apart.
    system = [part for path in include_paths("cuda" if cuda else "cpu") for part in ("-isystem", path)]
    return Extension(
        f"fastrcnn.{name}",
        sources,
        define_macros=[*macros, *([("USE_CUDA", None)] if cuda else [])],
        library_dirs=library_paths("cuda" if cuda else "cpu"),
        libraries=["c10", "torch", "torch_cpu", *(["torch_cuda", "cudart"] if cuda else [])],
        extra_compile_args={"cxx": cxx_flags + system, "nvcc": nvcc_flags + system},
        language="c++",
    )


info = [
    ("FASTRCNN_VERSION", version),
    ("FASTRCNN_ABI_TARGET", ABI_TARGET),
    ("FASTRCNN_SOURCE", runpy.run_path(str(ROOT / "fastrcnn/ops/_source.py"))["source_hash"](ROOT / "csrc")),
    ("FASTRCNN_TORCH", torch.__version__),
]
extensions = [operators("libfastrcnn", "*/*_cpu.cpp", ["csrc/schemas.cpp"], cuda=False)]
if with_cuda:
    extensions.append(operators("libfastrcnn_cuda", "*/*.cu", [], cuda=True))
    info += [("FASTRCNN_CUDA", torch.version.cuda), ("FASTRCNN_CUDA_ARCHITECTURES", architectures.replace(";", " "))]
extensions.append(
    Extension(
        "fastrcnn._C",
        ["csrc/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=info,
        extra_compile_args={"cxx": ["-std=c++20", "-fvisibility=hidden", "-g0"]},
        language="c++",
    )
)


class Build(BuildExtension):
    """Libraries without Python keep a plain name: libfastrcnn.so, not libfastrcnn.cpython-311-x86_64-linux-gnu.so.

    Every build asks ninja, which knows headers, flags and compilers, and keeps its objects in build/ for the next one.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True
        self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

    def get_ext_filename(self, fullname: str) -> str:
        if "libfastrcnn" in fullname:
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)


print(
    f"fastrcnn {version}: torch {torch.__version__}, ABI target {ABI_TARGET}, {with_cuda = } ({obstacle}), "
    f"{debug = }, CUDA_HOME = {cuda_home}, TORCH_CUDA_ARCH_LIST = {architectures if with_cuda else None}, "
    f"MAX_JOBS = {os.environ.get('MAX_JOBS')}, CXX = {os.environ.get('CXX')}",
    flush=True,
)
setup(ext_modules=extensions, cmdclass={"build_ext": Build})

"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

The library of CPU operators is built with both into a temporary folder, and sanitizer_calls.py runs every operator of
it on every SIMD level of this processor. Python and torch are not built with them, but libasan, loaded before
everything else, guards what they allocate, tensors included. What it cannot see: masked vector loads and stores by
intrinsics. That the harness notices the rest is tested with planted errors.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX", "g++")

# float-cast-overflow is not part of "undefined": a float that is too large for the integer it is converted to.
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
FLAGS = ["-std=c++20", "-fPIC", "-O1", "-g1", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi"]
FLAGS += ["-D_GLIBCXX_ASSERTIONS", *SANITIZE]  # also indices beyond the size of a std::vector

# Each function makes one kind of error when it is told the tensor's length.
PLANTED = """
#include <cstdint>
extern "C" __attribute__((visibility("default"))) float read_past_the_end(const float* x, int64_t n) { return x[n]; }
extern "C" __attribute__((visibility("default"))) float write_before_the_start(float* x, int64_t) { return x[-1] = 1; }
extern "C" __attribute__((visibility("default"))) float read_a_vector_past_the_end(float* x, int64_t n) {
  typedef float Vec __attribute__((vector_size(64)));
  Vec value;
  __builtin_memcpy(&value, x + n - 15, sizeof value);
  value *= value;
  __builtin_memcpy(x, &value, sizeof value);
  return 0;
}
extern "C" __attribute__((visibility("default"))) float misaligned(const float* x, int64_t) {
  return static_cast<float>(*reinterpret_cast<const double*>(x + 1));
}
extern "C" __attribute__((visibility("default"))) float cast_overflow(const float* x, int64_t) {
  return static_cast<float>(static_cast<int>(x[0] * 1e30f));
}
extern "C" __attribute__((visibility("default"))) float no_error(const float* x, int64_t n) { return x[n - 1]; }
"""
CALL_PLANTED = """
import ctypes, sys, torch
x = torch.ones(100)
function = ctypes.CDLL(sys.argv[1])[sys.argv[2]]
function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_float
print("returned", function(x.data_ptr(), len(x)))
"""


@pytest.fixture(scope="module")
def preloaded() -> str:
    """The libraries to load before everything else. Skips where there are none."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("needs the source tree")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"there is no compiler {COMPILER}")
    found = []
    # libstdc++ too: libasan looks for its exception functions when the process starts, and Python does not need it.
    for library in ("libasan.so", "libubsan.so", "libstdc++.so"):
        said = subprocess.run([COMPILER, f"-print-file-name={library}"], capture_output=True, text=True)
        if not Path(said.stdout.strip()).is_absolute():
            pytest.skip(f"{COMPILER} has no {library}")
        found.append(said.stdout.strip())
    return " ".join(found)


@pytest.fixture(scope="module")
def library(preloaded: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libfastrcnn.so with sanitizers."""
    setup = (ROOT / "setup.py").read_text()
    major, minor = re.search(r'^ABI_TARGET = "(\d+)\.(\d+)"', setup, re.MULTILINE).groups()
    from torch.utils.cpp_extension import include_paths, library_paths

    flags = [f"-DTORCH_TARGET_VERSION=0x{int(major):02x}{int(minor):02x}000000000000"]
    flags += [part for path in include_paths("cpu") for part in ("-isystem", path)]
    libraries = [f"-L{path}" for path in library_paths("cpu")] + ["-lc10", "-ltorch", "-ltorch_cpu"]
    sources = [*sorted((ROOT / "csrc").glob("**/*_cpu.cpp")), ROOT / "csrc" / "schemas.cpp"]
    return build(sources, tmp_path_factory.mktemp("sanitized") / "libfastrcnn.so", flags, libraries)


def build(sources: Sequence[Path], output: Path, flags: Sequence[str] = (), libraries: Sequence[str] = ()) -> Path:
    """A shared library with sanitizers, its sources compiled side by side."""

    def run(*arguments: str | Path) -> None:
        done = subprocess.run([COMPILER, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    objects = [output.parent / f"{number}_{source.stem}.o" for number, source in enumerate(sources)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for job in [
            pool.submit(run, *FLAGS, *flags, "-c", source, "-o", target)
            for source, target in zip(sources, objects, strict=True)
        ]:
            job.result()
    run("-shared", *SANITIZE, *objects, *libraries, "-o", output)
    return output


def run_python(preloaded: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that ends with an error at the first report. Python's own leaks are not looked for."""
    settings = {
        "LD_PRELOAD": preloaded,
        # Gaps between allocations are wider than any vector, so that none steps over them.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0:redzone=256",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=170,
    )


def report(text: str) -> str | None:
    """The line that names the error, if a sanitizer wrote one."""
    found = re.search(r"^.*(ERROR: AddressSanitizer|runtime error):?.*$", text, re.MULTILINE)
    return found and found[0]


@pytest.fixture(scope="module")
def planted(preloaded: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cpp").write_text(PLANTED)
    return build([folder / "planted.cpp"], folder / "planted.so")


@pytest.mark.parametrize(
    "function, expected",
    [
        ("read_past_the_end", "heap-buffer-overflow"),
        ("write_before_the_start", "heap-buffer-overflow"),
        ("read_a_vector_past_the_end", "AddressSanitizer"),
        ("misaligned", "misaligned address"),
        ("cast_overflow", "outside the range of representable values"),
    ],
)
def test_a_planted_error_is_reported(preloaded: str, planted: Path, function: str, expected: str):
    result = run_python(preloaded, "-c", CALL_PLANTED, planted, function)
    assert result.returncode != 0
    assert expected in (report(result.stderr) or ""), result.stderr[-3000:]


def test_code_without_error_is_not_reported(preloaded: str, planted: Path):
    result = run_python(preloaded, "-c", CALL_PLANTED, planted, "no_error")
    assert (result.returncode, result.stdout, report(result.stderr)) == (0, "returned 1.0\n", None), result.stderr


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_operator_runs_without_a_report(preloaded: str, library: Path, level: str):
    result = run_python(preloaded, ROOT / "tests" / "sanitizer_calls.py", library, FASTRCNN_SIMD=level)
    if "this processor has levels up to" in result.stderr:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert report(result.stderr) is None, result.stderr[:6000]
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("called"), result.stdout

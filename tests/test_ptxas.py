"""The CUDA kernels as nvcc compiles them, where there is a toolkit: no warning, no spilled register, no stack frame, on
any architecture. No GPU is needed.
"""

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Kernels that may have a stack frame, and why.
EXCEPTIONS: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def scripts():
    if not (ROOT / "benchmarks" / "ptxas.py").is_file():
        pytest.skip("needs the source tree")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def ptxas(scripts):
    return import_module("ptxas")


@pytest.fixture(scope="module")
def occupancy(scripts):
    pytest.importorskip("torchvision")
    return import_module("occupancy")


@pytest.fixture(scope="module")
def compiled(ptxas):
    home, flags = ptxas.settings()
    if home is None:
        pytest.skip("there is no CUDA toolkit")
    return ptxas.compile_all(home, flags)


def test_every_kernel_compiles_for_every_architecture_without_a_warning(ptxas, compiled):
    assert compiled.warnings == []
    everywhere = {a for group in ptxas.ARCHITECTURES.values() for a in group}
    architectures: dict[str, set[str]] = {}
    for kernel in compiled.kernels:
        architectures.setdefault(kernel.name, set()).add(kernel.architecture)
    own = {name: found for name, found in architectures.items() if "cub::" not in name}
    assert len(own) > 80
    assert {name: found for name, found in own.items() if found != everywhere} == {}


def test_no_kernel_spills_registers_or_has_a_stack_frame(compiled):
    bad = [k for k in compiled.kernels if (k.spills or k.stack) and not any(k.name.startswith(n) for n in EXCEPTIONS)]
    assert bad == []


def test_every_kernel_says_how_many_threads_a_block_has(compiled):
    """Without __launch_bounds__ the compiler must assume 1024, and the launch can fail for want of registers."""
    own = [kernel for kernel in compiled.kernels if "cub::" not in kernel.name]
    assert [kernel for kernel in own if not 32 <= kernel.threads <= 1024] == []
    assert [kernel for kernel in own if kernel.registers * kernel.threads > 65536] == []


def test_a_spill_is_seen(ptxas):
    said = (
        "ptxas info    : Compiling entry function '_ZN8fastrcnn13assign_kernelIfEEvv' for 'sm_90'\n"
        "ptxas info    : Function properties for _ZN8fastrcnn13assign_kernelIfEEvv\n"
        "    24 bytes stack frame, 28 bytes spill stores, 36 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 1 barriers, 24 bytes cumulative stack size, 3136 bytes smem\n"
    )
    threads = ptxas.block_sizes(".visible .entry _ZN8fastrcnn13assign_kernelIfEEvv()\n.maxntid 256, 1, 1\n{")
    (kernel,) = ptxas.parse(said, threads)
    assert kernel == ptxas.Kernel("assign_kernel<float>", "90", 256, 64, 3136, 24, 64)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "expected"),
    [
        ("90", 256, 32, 0, 1.0),
        ("90", 256, 64, 0, 0.5),  # 8 * 2048 registers: 4 blocks
        ("90", 256, 65, 0, 0.375),  # 72 are given
        ("75", 256, 64, 0, 1.0),
        ("80", 128, 32, 48 << 10, 3 * 4 / 64),  # 49 of 164 KiB
        ("86", 32, 16, 0, 16 / 48),  # 16 blocks
        ("89", 1024, 64, 0, 32 / 48),
        ("120", 1024, 65, 0, 0.0),  # cannot be launched
    ],
)
def test_occupancy(occupancy, architecture, threads, registers, shared, expected):
    limits = occupancy.MULTIPROCESSORS[architecture]
    assert occupancy.occupancy(limits, threads, registers, shared) == pytest.approx(expected)


def test_the_page_of_occupancy_has_every_kernel(occupancy, compiled):
    """Otherwise: python benchmarks/occupancy.py > benchmarks/occupancy.md"""
    page = (ROOT / "benchmarks" / "occupancy.md").read_text()
    rows = occupancy.kernel_table(compiled.kernels)[2:]
    assert [name for name in (row.split(" |")[0] + " |" for row in rows) if name not in page] == []

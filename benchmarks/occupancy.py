"""Registers, shared memory and theoretical occupancy of the CUDA kernels, and what each op should take on an H100.

    python benchmarks/occupancy.py > benchmarks/occupancy.md      needs nvcc, but no GPU

The predictions are beside the times of gpu_h100.md. They are bounds by simple arithmetic, not a model fitted to them:
an op that takes much longer than predicted wants an explanation.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import op_cases
import ptxas
import torch
from op_cases import CHANNELS, CLASSES, SIZES, STRIDES

from fastrcnn.ops import reference

HERE = Path(__file__).parent

# --- occupancy --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor (CUDA C++ Programming Guide, compute capabilities). Bytes, of shared memory.

    All: 65536 registers in four parts, given to warps in units of 256.
    """

    warps: int
    blocks: int
    shared: int
    shared_unit: int = 128
    shared_reserved: int = 1024  # per block, by the system


MULTIPROCESSORS = {
    "75": Multiprocessor(32, 16, 64 << 10, 256, 0),
    "80": Multiprocessor(64, 32, 164 << 10),
    "86": Multiprocessor(48, 16, 100 << 10),
    "89": Multiprocessor(48, 24, 100 << 10),
    "90": Multiprocessor(64, 32, 228 << 10),
    "100": Multiprocessor(64, 32, 228 << 10),
    "120": Multiprocessor(48, 24, 100 << 10),
}


def occupancy(of: Multiprocessor, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that can be resident."""
    warps = math.ceil(threads / 32)
    registers_of_warp = math.ceil(registers * 32 / 256) * 256
    by_registers = 65536 // 4 // registers_of_warp * 4 // warps
    shared_of_block = math.ceil((shared + of.shared_reserved) / of.shared_unit) * of.shared_unit
    by_shared = of.shared // shared_of_block if shared_of_block else of.blocks
    return min(of.blocks, of.warps // warps, by_registers, by_shared) * warps / of.warps


def dynamic_shared(name: str) -> int:
    """RoIAlign's lists for 7 x 7 bins, at most: adaptive sampling, 64 cells each (cell_lists_bytes)."""
    return 14 * (64 * 8 + 4) if re.match(r"roi_align_(scatter_)?kernel", name) else 0


def is_main(name: str) -> bool:
    """float32, and float16 where features are of any type, in the form for aligned memory; not CUB's."""
    return not re.search(r"cub::|double|bfloat16|kernel<(true|false), 1,", name)


def kernel_table(kernels: list[ptxas.Kernel]) -> list[str]:
    rows = [
        "| kernel | threads | shared bytes |" + "".join(f" sm_{a} |" for a in MULTIPROCESSORS),
        "|---|---|---|" + "---|" * len(MULTIPROCESSORS),
    ]
    for name in dict.fromkeys(kernel.name for kernel in kernels if is_main(kernel.name)):
        found = [kernel for kernel in kernels if kernel.name == name]
        shared = max(kernel.shared for kernel in found) + dynamic_shared(name)
        cells = []
        for architecture, limits in MULTIPROCESSORS.items():  # a kernel of several sources: the largest
            registers = max(kernel.registers for kernel in found if kernel.architecture == architecture)
            share = occupancy(limits, found[0].threads, registers, shared)
            cells.append(f" {registers}, {share:.0%} |")
        short = re.sub(r"^for_each_kernel<(.*?) ?>$", r"\1", name)
        rows.append(f"| {short} | {found[0].threads} | {shared} |" + "".join(cells))
    return rows


# --- what an op should take on an H100 --------------------------------------------------------------------------------

# Nominal: memory of the SXM card; arithmetic without fused multiply-adds, 132 multiprocessors, 128 lanes, 1.755 GHz.
MEMORY, ARITHMETIC = 3.35e12, 132 * 128 * 1.755e9
# Assumed, from published microbenchmarks: reading from L2; what a launch costs after another one; from one access of
# global memory to the next that depends on it, and of shared memory with a barrier.
L2, LAUNCH, GLOBAL_STEP, SHARED_STEP = 5.5e12, 2.5e-6, 0.6e-6, 0.05e-6
HOST = 20e-6  # Python, PyTorch's dispatcher, allocation, and waiting for the end


@dataclass
class Work:
    """Of one call. bytes: to and from memory, everything once. l2: bytes that multiprocessors ask L2 for.

    operations: of float32, in all threads. global_steps, shared_steps: one after the other.
    """

    launches: int
    bytes: float
    l2: float = 0
    operations: float = 0
    global_steps: float = 0
    shared_steps: float = 0

    def seconds(self) -> tuple[float, str]:
        """And what takes the longest."""
        parts = {
            "host": HOST,
            "launches": self.launches * LAUNCH,
            "steps": self.global_steps * GLOBAL_STEP + self.shared_steps * SHARED_STEP,
        }
        busy = {"memory": self.bytes / MEMORY, "L2": self.l2 / L2, "arithmetic": self.operations / ARITHMETIC}
        limit = max(busy, key=lambda name: busy[name])  # these overlap
        parts[limit] = busy[limit]
        return sum(parts.values()), max(parts, key=lambda name: parts[name])


def roi_align(name: str, moved: int) -> Work:
    """Every bin reads its cells from L2, or adds to them: read, add, write. The rest is small beside it."""
    size = 2 if "float16" in name else 4
    cells = cells_of_bins(2 if "sampling 2" in name else 0)
    maps = sum(h * w for h, w in SIZES[:4]) * CHANNELS
    pooled = 1000 * 49 * CHANNELS * size
    if "deterministic" in name:
        # A block per 8 x 8 cells and 32 channels looks at every RoI, some 100 operations; those that touch the tile it
        # visits one after another, each with some ten steps (weights, barriers), four blocks per multiprocessor.
        tiles = sum(math.ceil(h / 8) * math.ceil(w / 8) for h, w in SIZES[:4])
        visits = float((roi_cells() / 8 + 1).prod(1).sum()) * CHANNELS / 32 / (132 * 4)
        # In a visit a warp per row of cells reads the bins that reach the row, and has 8 cells for each.
        reads = cells / 3 * CHANNELS
        return Work(1, moved, reads * size, tiles * CHANNELS / 32 * 1000 * 100 + reads * 8 * 3, 0, visits * 10)
    if "backward" in name:  # sums are float32, zeroed, for float16 converted
        return Work(5 + 4 * (size == 2), moved + maps * 4, 2 * cells * CHANNELS * 4 + pooled)
    if "NCHW" in name:  # copied to channels-last before, the result back after
        return Work(6, moved + 2 * maps * size + 2 * pooled, cells * CHANNELS * size)
    return Work(1 + ("sampling 0" in name), moved, cells * CHANNELS * size)


def roi_cells() -> torch.Tensor:
    """The width and height [1000, 2] of the RoIs of op_cases in cells of their levels."""
    boxes = op_cases.random_boxes(1000, 16, 400, torch.device("cpu"))
    levels = reference.roi_levels(torch.cat([boxes.new_zeros(1000, 1), boxes], 1), 4)
    return (boxes[:, 2:] - boxes[:, :2]) / torch.tensor(STRIDES[:4])[levels][:, None]


def cells_of_bins(sampling_ratio: int) -> float:
    """The cells that all bins of these RoIs draw from, for one channel."""
    size = roi_cells() / 7
    samples = torch.full_like(size, sampling_ratio) if sampling_ratio else size.ceil()
    # Samples lie `size / samples` apart; each touches two cells, and neighbours may share one.
    return float(49 * torch.minimum(2 * samples, size * (samples - 1) / samples + 2).prod(1).sum())


def roi_pool(name: str, moved: int) -> Work:
    """A bin reads all of its cells: a RoI of side s (pixels) has (s / 16 + 7)^2 of them, edges counted twice."""
    boxes = op_cases.random_boxes(1000, 16, 400, torch.device("cpu"))
    sides = (boxes[:, 2:] - boxes[:, :2]) / 16 + 7
    pooled = 1000 * 49 * CHANNELS * 4
    if "backward" in name:
        return Work(2, moved + pooled, 2 * pooled + 2 * pooled)
    return Work(1, moved + pooled, float(sides.prod(1).sum()) * CHANNELS * 4 + 2 * pooled)


def nms(name: str, moved: int) -> Work:
    """Sorts; all pairs of a segment; then tile by tile: two barriers and 64 dependent steps on bits in registers.

    A radix sort of 35 bits is five passes and two launches more, up to some 4000 candidates a single launch.
    """
    count = int(re.search(r"(\d+) boxes", name)[1])
    sort = 1 if count <= 4000 else 7
    batched = "batched" in name
    longest = 25 if "80 classes" in name else 1000 if "5 levels" in name else count
    pairs = count * longest / 2
    launches = 1 + sort + batched * (1 + (1 if count <= 4000 else 3)) + 4
    tiles = longest / 64
    if "the best" in name:
        tiles = min(tiles, 1.3 * 1000 / 64)  # as many candidates as are looked at before 1000 are kept
    return Work(launches, moved + count * 60 + pairs / 8, pairs / 8, pairs * 20, 5, tiles * (2 + 64 * 0.07) + 64)


def assignment(name: str, moved: int) -> Work:
    """268569 x 100 pairs, some 20 operations each; two passes, of which the second computes few again."""
    return Work(3, 2 * moved, 0, 268569 * 100 * (20 + 4), 4, 4)


def proposals(name: str, moved: int) -> Work:
    """Top-k in four launches, of which two have a block per level: 18 and 32 barriers, some passes over its survivors;
    NMS of 4819 candidates in five levels, sorted twice; the output."""
    thinned = nms("batched NMS, 4819 boxes, 5 levels", 0)
    return Work(
        4 + thinned.launches + 1,
        2 * moved + thinned.bytes,
        thinned.l2,
        thinned.operations,
        thinned.global_steps + 4 + 6,
        thinned.shared_steps + 18 + 32 + 5 * 8,
    )


def detections(name: str, moved: int) -> Work:
    """Softmax and decoding of what passes; NMS of the 20 slots that each RoI has; its order; the output."""
    slots = 1000 * 20
    thinned = nms(f"batched NMS, {slots} boxes, 80 classes", 0)
    thinned.operations = 1800 * 25 / 2 * 20
    return Work(
        2 + thinned.launches,
        moved + thinned.bytes,
        thinned.l2,
        thinned.operations + 1000 * CLASSES * 40,
        thinned.global_steps + 6,
        thinned.shared_steps + 20,
    )


def elementwise(name: str, moved: int) -> Work:
    return Work(1, moved, 0, 0, 2)


def losses(name: str, moved: int) -> Work:
    """Through autograd: two kernels of ours, sum, its gradient, and the zeros and ones that autograd makes."""
    return Work(7, moved, 0, 0, 14)


ESTIMATES: dict[str, Callable[[str, int], Work]] = {
    "RoIAlign": roi_align,
    "RoIPool": roi_pool,
    "NMS": nms,
    "batched NMS": nms,
    "assignment": assignment,
    "proposals": proposals,
    "detections": detections,
    "decoding": elementwise,
    "encoding": elementwise,
    "IoU": elementwise,
    "GIoU": losses,
}


def measured_times() -> dict[str, float]:
    """Case: ms, from gpu_h100.md."""
    ops = (HERE / "gpu_h100.md").read_text().partition("## ops")[2].partition("\n## ")[0]
    return {name: float(ms) for name, ms in re.findall(r"^\| ([^|]+?) \| ([\d.]+) \|", ops, re.MULTILINE)}


def prediction_table() -> list[str]:
    measured = measured_times()
    rows = [
        "| op | launches | MB | L2 MB | 10^9 operations | steps | predicted ms | longest part | measured ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in op_cases.cases(torch.device("cuda")):  # only named; their inputs are made on the CPU
        estimate = max((name for name in ESTIMATES if case.name.startswith(name)), key=len)
        work = ESTIMATES[estimate](case.name, case.make(torch.device("cpu")).moved)
        seconds, longest = work.seconds()
        found = measured.get(case.name)
        beside = f"{found:.3f} | {found / seconds / 1e3:.1f}" if found is not None else "- | -"
        rows.append(
            f"| {case.name} | {work.launches} | {work.bytes / 1e6:.1f} | {work.l2 / 1e6:.0f} | "
            f"{work.operations / 1e9:.2f} | {work.global_steps + work.shared_steps:.0f} | {seconds * 1e3:.3f} | "
            f"{longest} | {beside} |"
        )
    return rows


def main() -> None:
    home, flags = ptxas.settings()
    if home is None:
        raise SystemExit("no CUDA toolkit was found; set CUDA_HOME to its folder")
    kernels = ptxas.compile_all(home, flags).kernels
    lines = [
        "# CUDA kernels: occupancy, and what to expect of an H100",
        "",
        "Written by `benchmarks/occupancy.py`. Occupancy is the share of a multiprocessor's warps that can be",
        "resident, by registers, shared memory, warps and blocks; no kernel spills (`tests/test_ptxas.py`).",
        "",
        "## Kernels",
        "",
        "Per architecture: registers of a thread, occupancy. Kernels for float32, and float16 where features can have",
        "it, in the form for aligned memory. RoIAlign's shared memory is that of adaptive sampling, its largest; with",
        "sampling ratio 2 it is 504 bytes. Rows without `kernel` are functions of `for_each` (`csrc/common/launch.h`);",
        "`ComputeLoss<k>`: the kinds of IoU loss in the order of `IouLossKind`.",
        "",
        *kernel_table(kernels),
        "",
        "## H100",
        "",
        f"Predicted: {HOST * 1e6:.0f} us for the host, {LAUNCH * 1e6:.1f} us per launch, dependent steps of",
        f"{GLOBAL_STEP * 1e6:.1f} us (global memory) or {SHARED_STEP * 1e9:.0f} ns (shared memory, barrier), and the",
        f"longest of: bytes at {MEMORY / 1e12:.2f} TB/s, bytes of L2 at {L2 / 1e12:.1f} TB/s, operations at",
        f"{ARITHMETIC / 1e12:.1f} * 10^12 per second. Bytes and operations per second are nominal, except L2's; the",
        "rest is assumed. What goes into each op stands in the script. Measured: `gpu_h100.md`. A ratio well above 1",
        "is time that this arithmetic does not explain.",
        "",
        *prediction_table(),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()

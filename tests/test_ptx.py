"""What nvcc makes of the kernels, their PTX, executed on the CPU (cuda_emulator/ptx.py), gives what the emulator gives.

The emulator compiles the same source with g++, so equal results mean that neither compiler, and nothing that depends on
undefined behaviour, changed them: bit for bit, but for the few functions that CUDA and the C library approximate each
in its own way. Every kernel runs, as made for T4 (75), A100 (80) and H100 (90).
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from conftest import seeded
from cuda_emulator import SCHEDULES, VARIANT, build, emulated, planted, ptx
from test_emulated_ops import gradient, hard_boxes, hard_rois, pyramid
from test_iou_loss import value_and_gradient as loss_and_gradient
from test_proposals import random_levels
from test_selection import random_outputs
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops

pytestmark = pytest.mark.skipif(VARIANT != "plain", reason="PTX runs in the plain emulator only")
needs_nvcc = pytest.mark.skipif(ptx.nvcc() is None, reason="needs nvcc, the compiler of CUDA")
architectures = pytest.mark.parametrize("architecture", ptx.ARCHITECTURES)

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
MEANS, STDS = (0.1, 0.2, -0.1, 0.0), (0.1, 0.1, 0.2, 0.3)
IMAGES, FACTORS = [(90.0, 120.0), (100.0, 80.0)], [(0.5, 0.5), (1.25, 0.75)]


@pytest.fixture(scope="session")
def compiled() -> None:
    """Two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ptx.module, ptx.ARCHITECTURES))


@needs_nvcc
def test_flags_are_those_of_the_build():
    setup = (build.ROOT / "setup.py").read_text()
    assert [flag for flag in ptx.FLAGS if flag.startswith("-D") or f'"{flag}"' in setup] == ptx.FLAGS


# --- every operator ---------------------------------------------------------------------------------------------------


@dataclass
class Case:
    compute: Callable[[], Any]
    kernels: set[str]  # that it launches
    rtol: float = 0  # 0: bit for bit


def anchors() -> Any:
    base = [hard_boxes(count, dtype) for dtype in (F32, F64) for count in (1, 3, 15)]
    return [ops.grid_anchors([size] * 6, [8.0] * 6, base) for size in ((1, 1), (7, 9), (9, 33))]


def box_iou() -> Any:
    boxes = {n: hard_boxes(n, F32, n) for n in (1, 32, 65, 257)}
    float32 = [ops.box_iou(a, b) for a in boxes.values() for b in boxes.values()]
    return float32, ops.box_iou(boxes[65].double(), boxes[32].double())


def assign() -> Any:
    return [
        ops.assign_max_iou(hard_boxes(n, dtype), hard_boxes(num_gt, dtype, 1), 0.5, 0.3, 0.3, True)
        for dtype in (F32, F64)
        for n in (1, 31, 257)
        for num_gt in (0, 1, 33, 257)
    ]


def nms() -> Any:
    results = []
    for dtype, count in ((F32, 1), (F32, 33), (F32, 64), (F32, 65), (F32, 300), (F64, 65)):
        boxes = torch.stack([hard_boxes(count, dtype, seed) for seed in (0, 1)])
        scores = (torch.rand(2, count, generator=seeded(2)) * 50).round().to(dtype) / 50 - 0.3
        classes = torch.randint(3, (2, count), generator=seeded(3))
        some = torch.rand(2, count, generator=seeded(5)) < 0.7
        results += [ops.nms_padded(boxes, scores, 0.5, count), ops.nms_padded(boxes, scores, 0.3, 33, classes, some)]
    return results


def box_coding(dtype: torch.dtype) -> Any:
    results = []
    for count in (1, 65, 257):
        boxes, targets = hard_boxes(count, dtype), hard_boxes(count, dtype, 1)
        deltas = (torch.randn(count, 12, generator=seeded(2)) * 2).to(dtype).requires_grad_()
        decoded = ops.decode_boxes(boxes, deltas, MEANS, STDS, (80.0, 90.0))
        slopes = torch.autograd.grad(decoded, deltas, torch.randn(count, 12, generator=seeded(3)).to(dtype))
        results += [ops.encode_boxes(boxes, targets, MEANS, STDS), decoded, *slopes]
    return results


def iou_loss(kind: str) -> Any:
    results = []
    for dtype in (F32, F64):
        pred, target = hard_boxes(257, dtype), hard_boxes(257, dtype, 1)
        pred[:100] = target[:100] + torch.randn(100, 4, generator=seeded(2)).to(dtype)
        for mode in ("linear", "square", "log") if kind == "iou" else ("log",):
            results.append(loss_and_gradient(ops.iou_loss, pred, target, kind=kind, mode=mode))
    return results


def roi_align(dtype: torch.dtype) -> Any:
    results: list[Any] = []
    for channels, channels_last in ((3, False), (8, True), (36, True)):
        features = pyramid(channels, dtype, channels_last)
        for settings in ((7, 0), ((2, 3), 2)):
            rois = hard_rois(13, dtype)
            results.append(ops.multilevel_roi_align(features, rois, (4, 8), *settings, 28).detach())
            results += [gradient(features, rois, settings, deterministic) for deterministic in (True, False)]
        # More cells in a bin than its list in shared memory holds.
        wide = torch.randn(1, channels, 3, 80, generator=seeded(0)).to(dtype).requires_grad_()
        if channels_last:
            wide = wide.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        pooled = ops.roi_align(wide, torch.tensor([[0.0, 0, 0, 80, 3], [0, 5, 1, 74, 2]]).to(rois), 1, 1.0, 40)
        results += [pooled.detach(), *torch.autograd.grad(pooled, wide, torch.ones_like(pooled))]
    return results


def roi_pool(dtype: torch.dtype) -> Any:
    results = []
    for channels, layout in ((3, torch.contiguous_format), (5, torch.channels_last), (24, torch.channels_last)):
        features = torch.randn(2, channels, 20, 25, generator=seeded(0)).to(dtype).contiguous(memory_format=layout)
        features.requires_grad_()
        pooled = ops.roi_pool(features, hard_rois(17, dtype), (7, 6), 0.25)
        weight = torch.randn(pooled.shape, generator=seeded(1)).to(dtype)
        for deterministic in (True, False):
            torch.use_deterministic_algorithms(deterministic)
            try:
                results += [pooled.detach(), *torch.autograd.grad(pooled, features, weight, retain_graph=True)]
            finally:
                torch.use_deterministic_algorithms(False)
    return results


def proposals(dtype: torch.dtype) -> Any:
    levels = random_levels(dtype=dtype)
    return [ops.generate_proposals(*levels, IMAGES, *settings) for settings in ((300, 65, 0.7), (33, 33, 0.5, 4.0))]


def selection(dtype: torch.dtype) -> Any:
    outputs = [random_outputs(count, classes, dtype=dtype) for count, classes in ((33, 1), (65, 16))]
    return [ops.select_detections(*o, IMAGES, FACTORS, 0.05, 0.5, 33, MEANS, STDS) for o in outputs]


NMS_KERNELS = {"nms_mask_kernel", "nms_scan_kernel", "nms_collect_kernel", "WriteScoreKey", "WriteGroups"}
ROI_ALIGN_KERNELS = {"roi_align_kernel", "roi_align_scatter_kernel", "PlaceOnTiles", "roi_align_gather_kernel"}
ROI_POOL_KERNELS = {"roi_pool_kernel", "roi_pool_scatter_kernel", "roi_pool_gather_kernel"}
PROPOSAL_KERNELS = {"top_k_bounds_kernel", "top_k_filter_kernel", "top_k_select_kernel", "WriteGroupMaximum"}
PROPOSAL_KERNELS |= {"WriteProposal"} | NMS_KERNELS
CODING_KERNELS = {"EncodeBox", "DecodeBox", "DecodeBoxBackward"}
SELECTION_KERNELS = {"detection_candidates_kernel", "detection_output_kernel"} | NMS_KERNELS
LOSS_KERNELS = {"ComputeLoss", "ScaleDerivative"}
KINDS = ("iou", "giou", "diou", "ciou", "bounded_iou")

CASES = {
    "anchors": Case(anchors, {"WriteGridAnchor"}),
    "box_iou": Case(box_iou, {"box_iou_kernel"}),
    "assign_max_iou": Case(assign, {"assign_kernel", "assign_low_quality_kernel"}),
    "nms": Case(nms, NMS_KERNELS | {"WriteImageKey", "WriteClassKey"}),
    **{f"box_coding {dtype}": Case(lambda t=dtype: box_coding(t), CODING_KERNELS) for dtype in (F32, F64)},
    **{f"iou_loss {kind}": Case(lambda k=kind: iou_loss(k), LOSS_KERNELS) for kind in KINDS},
    **{f"roi_align {dtype}": Case(lambda t=dtype: roi_align(t), ROI_ALIGN_KERNELS) for dtype in (F32, F64, F16, BF16)},
    **{f"roi_pool {dtype}": Case(lambda t=dtype: roi_pool(t), ROI_POOL_KERNELS) for dtype in (F32, F64, F16, BF16)},
    **{f"proposals {dtype}": Case(lambda t=dtype: proposals(t), PROPOSAL_KERNELS) for dtype in (F32, F16, BF16)},
    # The exp of softmax: CUDA's and the C library's differ in the last bit.
    **{f"selection {t}": Case(lambda t=t: selection(t), SELECTION_KERNELS, rtol=3e-7) for t in (F32, F16, BF16)},
}


@cache
def run_from_ptx(name: str, architecture: int) -> tuple[Any, list[str]]:
    """The result of a case, and the kernels that ran."""
    with ptx.from_ptx(architecture) as kernels:
        return CASES[name].compute(), kernels


@needs_nvcc
@architectures
@pytest.mark.parametrize("name", CASES)
def test_ptx_equals_emulator(compiled, name, architecture):
    case = CASES[name]
    with emulated():
        expected = case.compute()
    value, kernels = run_from_ptx(name, architecture)
    assert_close(value, expected, rtol=case.rtol, atol=0, equal_nan=True)
    missing = {kernel for kernel in case.kernels if not any(kernel in mangled for mangled in kernels)}
    assert not missing, f"did not run from PTX: {missing}"


@needs_nvcc
@architectures
def test_every_kernel_runs(compiled, architecture):
    """For every type and layout that it is compiled for. (Those of sort.cu are CUB's; the emulator has its own.)"""
    launched = {kernel for name in CASES for kernel in run_from_ptx(name, architecture)[1]}
    assert set(ptx.module(architecture).entries) - launched == set()


@needs_nvcc
@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("name", ["assign_max_iou", "nms", f"proposals {F32}"])
def test_schedules(compiled, name, schedule):
    """The order of blocks and threads changes nothing."""
    with ptx.from_ptx(80, schedule):
        value = CASES[name].compute()
    assert_close(value, run_from_ptx(name, 80)[0], rtol=0, atol=0, equal_nan=True)


@needs_nvcc
def test_the_whole_detector(compiled):
    """R-50-FPN on the reference numbers: inference, losses and gradients (test_golden.py)."""
    chosen = ["-k", "emulated and r50_fpn_1x", "tests/test_golden.py"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        env=os.environ | {"CUDA_EMULATOR_PTX": "80"},
        cwd=build.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


# --- that it can fail -------------------------------------------------------------------------------------------------


def altered(kernel: str, pattern: str, replacement: str) -> Callable[[str], str]:
    """Changes every match of the pattern in the PTX of the kernel whose name contains `kernel`."""

    def edit(text: str) -> str:
        if kernel not in text.partition("(")[0]:
            return text
        text, changed = re.subn(pattern, replacement, text)
        assert changed, f"no {pattern} in {kernel}"
        return text

    return edit


def exactly_at_the_threshold() -> Tensor:
    return ops.nms(torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.tensor([0.9, 0.8]), 0.5)


@needs_nvcc
@pytest.mark.parametrize(
    ("compute", "kernel", "pattern", "replacement"),
    [
        # Only such as do not change addresses of global memory, which are not checked.
        (box_iou, "box_iou_kernelIf", r"max\.f32", "min.f32"),
        (anchors, "WriteGridAnchorIf", r"add\.rn\.f32", "sub.rn.f32"),
        (lambda: iou_loss("ciou"), "IouLossKindE5Ef", r"mul\.rn\.f32", "add.rn.f32"),
        (exactly_at_the_threshold, "nms_mask_kernelIf", r"setp\.gt\.f32", "setp.ge.f32"),
        (nms, "nms_mask_kernelIf", r"bar\.sync\s+0;", ""),
        (nms, "nms_mask_kernelIf", r"(ld\.shared\.f32\s+%f\d+, \[%r\d+)\]", r"\1+4]"),
        (assign, "assign_kernelIf", r"atom\.shared\.max", "atom.shared.min"),
    ],
)
def test_an_altered_instruction_is_noticed(compiled, compute, kernel, pattern, replacement):
    with emulated():
        expected = compute()
    with pytest.raises((AssertionError, RuntimeError)) as raised:
        with ptx.from_ptx(80, edit=altered(kernel, pattern, replacement)):
            value = compute()
        assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
    assert "PTX: " not in str(raised.value)  # not because it could not be executed


@needs_nvcc
@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", r"threads are at different barriers: .*planted\.cu:\d+.*planted\.cu:\d+"),
        ("exit_before_barrier", r"threads are missing at a barrier: 28 of 128 have exited.*planted\.cu:\d+"),
        ("barrier_in_one_warp", r"threads wait for each other:\n  thread \(.*|threads are at different barriers"),
        ("full_mask_in_a_branch", r"threads wait for each other:[\s\S]*planted\.cu:\d+ with mask ffffffff"),
        ("lane_not_in_mask", "a lane is not in the mask of its warp operation"),
        ("source_not_in_mask", "a shuffle reads lane 20, which is not in the mask"),
        ("past_static_shared", r"an access past the end of shared memory by st\.shared.* at .*planted\.cu:\d+"),
        ("past_dynamic_shared", r"an access past the end of shared memory by st\.shared.* at .*planted\.cu:\d+"),
    ],
)
def test_planted_bug(kernel, message, architecture):
    with pytest.raises(RuntimeError, match=f"CUDA emulator: {kernel}: ({message})"):
        run_planted(kernel, architecture)


@needs_nvcc
@architectures
def test_planted_race(architecture):
    """Seen in the result: what no thread has written yet is NaN."""
    for kernel in ("missing_barrier", "missing_syncwarp", "uninitialised_shared"):
        assert torch.tensor(run_planted(kernel, architecture)[:128]).isnan().any()
    assert run_planted("right", architecture) == [i + 5.0 for i in range(100)] + [0.0] * 29


def run_planted(kernel: str, architecture: int) -> list[float]:
    source = build.HERE / "planted.cu"
    library = build.program_library(source, "plain")
    with ptx.replaced_kernels(library, ptx.compiled([source], architecture)) as kernels:
        result = planted.run(library, kernel, 100)
    assert len(kernels) == 1
    return result

"""What nvcc makes of the kernels, their PTX, executed on the CPU (cuda_emulator/ptx.py), gives what the emulator gives.

The emulator compiles the same source with g++, so equal results mean that neither compiler, and nothing that depends on
undefined behaviour, changed them: bit for bit, but for the few functions that CUDA and the C library approximate each
in its own way. Every kernel runs, as made for T4 (75), A100 (80) and H100 (90).
"""

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import random_rois, seeded
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


# --- every operator ---------------------------------------------------------------------------------------------------


@dataclass
class Case:
    compute: Callable[[], Any]
    kernels: set[str]  # that it launches
    rtol: float = 0
    atol: float = 0  # both 0: bit for bit


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


def iou_loss(kind: str, dtype: torch.dtype) -> Any:
    modes = ("linear", "square", "log") if kind == "iou" else ("log",)
    pred, target = hard_boxes(257, dtype), hard_boxes(257, dtype, 1)
    pred[:100] = target[:100] + torch.randn(100, 4, generator=seeded(2)).to(dtype)
    return [loss_and_gradient(ops.iou_loss, pred, target, kind=kind, mode=mode) for mode in modes]


def roi_align(dtype: torch.dtype) -> Any:
    results: list[Any] = []
    for channels, channels_last in ((3, False), (8, True), (36, True)):
        features = pyramid(channels, dtype, channels_last)
        for settings in ((7, 0), ((2, 3), 2)):
            rois = hard_rois(13, dtype)
            results.append(ops.multilevel_roi_align(features, rois, (4, 8), *settings, 28).detach())
            results += [gradient(features, rois, settings, deterministic) for deterministic in (True, False)]
    return results


def roi_pool(dtype: torch.dtype) -> Any:
    results = []
    for channels, layout in ((3, torch.contiguous_format), (5, torch.channels_last)):
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
ROI_ALIGN_KERNELS = {"roi_align_kernel", "roi_align_scatter_kernel", "roi_align_gather_kernel"}
ROI_POOL_KERNELS = {"MaxOfBin", "AddToMaximum", "roi_pool_gather_kernel"}
TOP_K_KERNELS = {"WriteGroupMaximum", "top_k_bounds_kernel", "top_k_filter_kernel", "top_k_select_kernel"}
CODING_KERNELS = {"EncodeBox", "DecodeBox", "DecodeBoxBackward"}
SELECTION_KERNELS = {"detection_candidates_kernel", "detection_output_kernel"}

CASES = {
    "anchors": Case(anchors, {"WriteGridAnchor"}),
    "box_iou": Case(box_iou, {"box_iou_kernel"}),
    "assign_max_iou": Case(assign, {"assign_kernel", "assign_low_quality_kernel"}),
    "nms": Case(nms, NMS_KERNELS | {"WriteImageKey", "WriteClassKey"}),
    # exp and log: CUDA's and the C library's may differ in the last bits
    "box_coding": Case(lambda: box_coding(F32), CODING_KERNELS, 1e-5, 1e-5),
    "box_coding float64": Case(lambda: box_coding(F64), CODING_KERNELS, 1e-13, 1e-13),
    **{f"iou_loss {kind}": Case(lambda k=kind: iou_loss(k, F32), {"ComputeLoss"}) for kind in ("giou", "diou")},
    "iou_loss bounded_iou": Case(lambda: iou_loss("bounded_iou", F32), {"ComputeLoss", "ScaleDerivative"}),
    "iou_loss iou": Case(lambda: iou_loss("iou", F32), {"ComputeLoss", "ScaleDerivative"}, 1e-6, 1e-6),  # log
    "iou_loss ciou": Case(lambda: iou_loss("ciou", F32), {"ComputeLoss"}, 1e-5, 1e-6),  # atan
    "iou_loss giou float64": Case(lambda: iou_loss("giou", F64), {"ComputeLoss"}),
    **{f"roi_align {dtype}": Case(lambda t=dtype: roi_align(t), ROI_ALIGN_KERNELS) for dtype in (F32, F64, F16, BF16)},
    **{f"roi_pool {dtype}": Case(lambda t=dtype: roi_pool(t), ROI_POOL_KERNELS) for dtype in (F32, F64, F16, BF16)},
    # exp, when boxes are decoded
    "proposals": Case(lambda: proposals(F32), TOP_K_KERNELS | NMS_KERNELS | {"WriteProposal"}, 1e-5, 1e-4),
    "proposals float16": Case(lambda: proposals(F16), TOP_K_KERNELS | NMS_KERNELS | {"WriteProposal"}, 1e-5, 1e-4),
    "proposals bfloat16": Case(lambda: proposals(BF16), TOP_K_KERNELS, 1e-5, 1e-4),
    "selection": Case(lambda: selection(F32), SELECTION_KERNELS | NMS_KERNELS, 1e-5, 1e-4),
    "selection float16": Case(lambda: selection(F16), SELECTION_KERNELS, 1e-5, 1e-4),
}


@needs_nvcc
@architectures
@pytest.mark.parametrize("name", CASES)
def test_ptx_equals_emulator(compiled, name, architecture):
    case = CASES[name]
    with emulated():
        expected = case.compute()
    with ptx.from_ptx(architecture) as launched:
        value = case.compute()
    assert_close(value, expected, rtol=case.rtol, atol=case.atol, equal_nan=True)
    missing = {kernel for kernel in case.kernels if not any(kernel in mangled for mangled in launched)}
    assert not missing, f"did not run from PTX: {missing}"

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
from functools import cache
from typing import Any

import pytest
import torch
from conftest import random_rois, seeded
from cuda_emulator import SCHEDULES, VARIANT, build, emulated, planted, ptx, ptx_text
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
    """Also for every type and layout that it is compiled for. (Those of sort.cu are CUB's; the emulator has its own.)"""
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
        (box_iou, "box_iou_kernelIf", r"max\.f32", "min.f32"),
        (exactly_at_the_threshold, "nms_mask_kernelIf", r"setp\.gt\.f32", "setp.ge.f32"),
        (nms, "nms_mask_kernelIf", r"bar\.sync\s+0;", ""),
        (nms, "nms_scan_kernelIf", r"bar\.sync\s+0;", ""),
        (nms, "nms_collect_kernelIf", r"popc\.b32", "clz.b32"),
        (nms, "nms_mask_kernelIf", r"(ld\.shared\.f32\s+%f\d+, \[%r\d+)\]", r"\1+4]"),
        (assign, "assign_kernelIf", r"atom\.shared\.max", "atom.shared.min"),
        (assign, "assign_low_quality_kernelIf", r"add\.s32(\s+%r\d+, %r\d+), 1;", r"add.s32\1, 2;"),
    ],
)
def test_an_altered_instruction_is_noticed(compiled, compute, kernel, pattern, replacement):
    with emulated():
        expected = compute()
    with pytest.raises((AssertionError, RuntimeError)) as raised:  # noqa: SIM117
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


# --- instructions: what PTX says of them, without nvcc ----------------------------------------------------------------

KERNEL = """
.visible .entry kernel(
	.param .u64 result,
	.param .align 8 .b8 structure[16]
)
{
	.reg .pred %p<3>;
	.reg .b16 %h<5>;
	.reg .b32 %r<9>;
	.reg .f32 %f<4>;
	.reg .b64 %x<9>;
	.reg .f64 %d<4>;
	.shared .align 4 .b8 tile[12];
	.local .align 8 .b8 depot[16];
	ld.param.u64 %x1, [result];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %x2, %r1, 8;
	add.s64 %x1, %x1, %x2;
	BODY
	st.global.TYPE [%x1], RESULT;
	ret;
}
"""
INTEGER, FLOAT, DOUBLE = ("s64", "%x3", torch.int64), ("f32", "%f1", F32), ("f64", "%d1", F64)
NAN32, HALF, ONE, MINUS_ZERO = "0f7FC00000", "0f3F000000", "0f3F800000", "0f80000000"


def execute(body: str, result: tuple[str, str, torch.dtype], threads: int = 1, shared: int = 0) -> list[float]:
    """The registers that `result` names, one of each thread."""
    kind, register, dtype = result
    values = torch.zeros(threads, 8 // dtype.itemsize, dtype=dtype)
    text = KERNEL.replace("BODY", body).replace("TYPE", kind).replace("RESULT", register)
    structure = torch.tensor([11, 22]).numpy().ctypes.data_as(ctypes.POINTER(ctypes.c_int64 * 2)).contents
    ptx.run(text, [values, structure], threads=threads, shared=shared)
    return values[:, 0].tolist()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("mov.s64 %x3, -5;", -5),
        ("add.s32 %r2, 2147483647, 1; cvt.s64.s32 %x3, %r2;", -(2**31)),
        ("mul.wide.s32 %x3, -3, 1000000000;", -3_000_000_000),
        ("mul.hi.u32 %r2, -1, -1; cvt.u64.u32 %x3, %r2;", 2**32 - 2),
        ("mul.hi.s64 %x3, -1, 5;", -1),
        ("mad.lo.s32 %r2, -2, 3, 7; cvt.s64.s32 %x3, %r2;", 1),
        ("mad.wide.s32 %x3, -2, 3, 5000000000;", 4_999_999_994),
        ("div.s32 %r2, -7, 2; cvt.s64.s32 %x3, %r2;", -3),
        ("div.s64 %x3, 7, 0;", -1),
        ("div.s32 %r2, 0x80000000, -1; cvt.s64.s32 %x3, %r2;", -(2**31)),
        ("rem.s32 %r2, -7, 2; cvt.s64.s32 %x3, %r2;", -1),
        ("rem.u64 %x3, 7, 0;", 7),
        ("min.s32 %r2, -1, 1; cvt.s64.s32 %x3, %r2;", -1),
        ("min.u32 %r2, -1, 1; cvt.u64.u32 %x3, %r2;", 1),
        ("abs.s64 %x3, -9;", 9),
        ("shl.b32 %r2, 1, 32; cvt.u64.u32 %x3, %r2;", 0),
        ("shr.s32 %r2, -8, 40; cvt.s64.s32 %x3, %r2;", -1),
        ("shr.u64 %x3, -1, 60;", 15),
        ("shf.l.wrap.b32 %r2, 0x80000000, 1, 33; cvt.u64.u32 %x3, %r2;", 3),
        ("shf.r.clamp.b32 %r2, 1, 2, 40; cvt.u64.u32 %x3, %r2;", 2),
        ("bfe.s32 %r2, 0xF0, 4, 4; cvt.s64.s32 %x3, %r2;", -1),
        ("bfe.u64 %x3, 0xABCD, 4, 8;", 0xBC),
        ("bfi.b64 %x3, 0xF, 0xABCD, 4, 4;", 0xABFD),
        ("lop3.b32 %r2, 12, 10, 6, 0x96; cvt.u64.u32 %x3, %r2;", 12 ^ 10 ^ 6),
        ("prmt.b32 %r2, 0x33228011, 0x77665544, 0x9174; cvt.u64.u32 %x3, %r2;", 0xFF807744),
        ("popc.b64 %r2, -1; clz.b32 %r3, 1; sub.s32 %r2, %r2, %r3; cvt.s64.s32 %x3, %r2;", 33),
        ("brev.b32 %r2, 6; cvt.u64.u32 %x3, %r2;", 6 << 28 | 0),
        ("not.b16 %h1, 0; cvt.u64.u16 %x3, %h1;", 65535),
        ("mov.b32 %r2, {1, 2}; cvt.u64.u32 %x3, %r2;", 0x20001),
        ("mov.b64 {%r2, %r3}, 0x500000007; cvt.u64.u32 %x3, %r3;", 5),
        # comparisons
        (f"setp.lt.f32 %p1, {NAN32}, {ONE}; selp.b64 %x3, 1, 2, %p1;", 2),
        (f"setp.ltu.f32 %p1, {NAN32}, {ONE}; selp.b64 %x3, 1, 2, %p1;", 1),
        (f"setp.ne.f32 %p1, {NAN32}, {NAN32}; selp.b64 %x3, 1, 2, %p1;", 2),
        (f"setp.neu.f32 %p1, {NAN32}, {NAN32}; selp.b64 %x3, 1, 2, %p1;", 1),
        (f"setp.equ.f32 %p1, {NAN32}, {ONE}; selp.b64 %x3, 1, 2, %p1;", 1),
        ("setp.lt.s32 %p1, -1, 1; setp.lt.u32 %p2, -1, 1; xor.pred %p1, %p1, %p2; selp.b64 %x3, 1, 2, %p1;", 1),
        ("mov.pred %p1, -1; setp.lt.and.s32 %p1|%p2, 2, 1, %p1; selp.b64 %x3, 1, 2, %p2;", 1),
        ("mov.u64 %x3, 1; setp.eq.s32 %p1, 1, 1; @%p1 bra past; mov.u64 %x3, 2; past:", 1),
        ("mov.u64 %x3, 1; setp.eq.s32 %p1, 1, 1; @!%p1 bra past; mov.u64 %x3, 2; past:", 2),
        # conversions
        ("cvt.rzi.s32.f32 %r2, 0f4F800000; cvt.s64.s32 %x3, %r2;", 2**31 - 1),
        ("cvt.rzi.u32.f32 %r2, 0fBF800000; cvt.u64.u32 %x3, %r2;", 0),
        (f"cvt.rzi.s32.f32 %r2, {NAN32}; cvt.s64.s32 %x3, %r2;", 0),
        (f"cvt.rzi.s64.f32 %x3, {NAN32};", -(2**63)),
        ("cvt.rni.s64.f64 %x3, 0d4004000000000000;", 2),
        ("cvt.rmi.s64.f64 %x3, 0dC004000000000000;", -3),
        ("cvt.s64.s8 %x3, 255;", -1),
        ("cvt.rn.f16x2.f32 %r2, 0f3F800000, 0f40000000; cvt.u64.u32 %x3, %r2;", 0x3C004000),
        ("cvt.rn.bf16.f32 %h1, 0f3F808000; cvt.u64.u16 %x3, %h1;", 0x3F80),
        # memory
        ("st.local.u32 [depot+4], -2; ld.local.s32 %r2, [depot+4]; cvt.s64.s32 %x3, %r2;", -2),
        ("mov.u64 %x4, depot; st.u8 [%x4], 200; ld.s8 %h1, [%x4]; cvt.s64.s16 %x3, %h1;", -56),
        ("ld.param.u64 %x3, [structure+8];", 22),
        ("mov.b64 %x4, structure; ld.param.u64 %x3, [%x4];", 11),
        ("st.shared.u32 [tile+8], 7; ld.shared.u32 %r2, [tile+8]; cvt.u64.u32 %x3, %r2;", 7),
        ("st.shared.u32 [tile], 7; mov.u64 %x4, tile; cvta.shared.u64 %x4, %x4; ld.u32 %r2, [%x4]; cvt.u64.u32 %x3, %r2;", 7),
        ("st.shared.u32 [tile], 7; atom.shared.add.u32 %r2, [tile], 5; ld.shared.u32 %r3, [tile];"
         "mad.lo.s32 %r2, %r3, 100, %r2; cvt.u64.u32 %x3, %r2;", 1207),
        ("st.shared.u32 [tile], 7; atom.shared.cas.b32 %r2, [tile], 7, 9; red.shared.max.u32 [tile], 8;"
         "ld.shared.u32 %r3, [tile]; cvt.u64.u32 %x3, %r3;", 9),
    ],
)  # fmt: skip
def test_integer_instruction(body, expected):
    assert execute(body, INTEGER) == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"min.f32 %f1, {NAN32}, {ONE};", 1.0),
        (f"max.f32 %f1, {ONE}, {NAN32};", 1.0),
        (f"max.f32 %f1, {MINUS_ZERO}, 0f00000000; div.rn.f32 %f1, {ONE}, %f1;", float("inf")),
        (f"min.f32 %f1, 0f00000000, {MINUS_ZERO}; div.rn.f32 %f1, {ONE}, %f1;", float("-inf")),
        (f"add.rz.f32 %f1, {ONE}, 0f33C00000;", 1.0),  # 1 + 3/4 of the distance to the next number
        (f"add.rn.f32 %f1, {ONE}, 0f33C00000;", 1.0 + 2**-23),
        (f"add.rp.f32 %f1, {ONE}, 0f00000001;", 1.0 + 2**-23),
        (f"fma.rm.f32 %f1, {ONE}, 0f33C00000, {ONE};", 1.0),
        ("fma.rn.f32 %f1, 0f3F800001, 0f3F800001, 0fBF800002;", 2.0**-46),  # rounded once
        ("mul.f32 %f1, 0f3F800001, 0f3F800001; sub.f32 %f1, %f1, 0f3F800002;", 0.0),
        (f"copysign.f32 %f1, {MINUS_ZERO}, {HALF};", -0.5),
        ("sqrt.rn.f32 %f1, 0f40000000;", torch.tensor(2.0).sqrt().item()),
        ("ex2.approx.ftz.f32 %f1, 0f40400000;", 8.0),
        ("cvt.sat.f32.f32 %f1, 0f40000000;", 1.0),
        (f"cvt.sat.f32.f32 %f1, {NAN32};", 0.0),
        (f"cvt.rni.f32.f32 %f1, {HALF};", 0.0),
        (f"cvt.rpi.f32.f32 %f1, {HALF};", 1.0),
        ("cvt.rn.f32.s64 %f1, 16777217;", 16777216.0),
        ("cvt.f32.f16 %f1, 0x3E00;", 1.5),
        ("cvt.f32.bf16 %f1, 0x3FC0;", 1.5),
    ],
)
def test_float_instruction(body, expected):
    assert execute(body, FLOAT) == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # shfl: up and down stop at the ends of a segment, here of 16 lanes; outside of it a lane keeps its own
        ("shfl.sync.up.b32 %r2, %r1, 1, 0x1000, -1;", [max(i - 1, i // 16 * 16) for i in range(32)]),
        ("shfl.sync.down.b32 %r2, %r1, 3, 0x100F, -1;", [i + 3 if i % 16 < 13 else i for i in range(32)]),
        ("shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1;", [i ^ 5 for i in range(32)]),
        ("shfl.sync.idx.b32 %r2, %r1, 18, 0x100F, -1;", [i // 16 * 16 + 2 for i in range(32)]),
        ("shfl.sync.up.b32 %r3|%p1, %r1, 1, 0, -1; selp.b32 %r2, 1, 0, %p1;", [0] + [1] * 31),
        ("setp.lt.u32 %p1, %r1, 3; vote.sync.ballot.b32 %r2, %p1, -1;", [7] * 32),
        ("setp.lt.u32 %p1, %r1, 3; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r2, 1, 0, %p2;", [0] * 32),
        ("setp.lt.u32 %p1, %r1, 3; bar.red.popc.u32 %r2, 0, %p1;", [3] * 32),
        ("setp.lt.u32 %p1, %r1, 3; bar.red.and.pred %p2, 0, %p1; selp.b32 %r2, 1, 0, %p2;", [0] * 32),
        ("setp.lt.u32 %p1, %r1, 3; bar.red.or.pred %p2, 0, %p1; selp.b32 %r2, 1, 0, %p2;", [1] * 32),
        ("st.shared.u32 [tile], %r1; bar.sync 0; ld.shared.u32 %r2, [tile];", [31] * 32),
        ("mov.u32 %r2, %laneid; mov.u32 %r3, %ntid.x; add.s32 %r2, %r2, %r3;", [i + 32 for i in range(32)]),
    ],
)
def test_instruction_of_many_threads(body, expected):
    assert execute(f"{body} cvt.u64.u32 %x3, %r2;", INTEGER, threads=32) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("mma.sync.m8n8k4 %r2, %r1;", r"PTX: no instruction mma\.sync\.m8n8k4/2, needed at "),
        ("bar.sync 0, 32;", "PTX: no instruction bar.sync/2"),
        ("bar.sync 1;", "expected barrier 0"),
        ("trap;", "a trap by trap of thread"),
        ("ld.shared.u32 %r2, [tile+12];", "past the end of shared memory by ld.shared.u32 of thread"),
        ("ld.shared.u32 %r2, [tile+-4];", "past the end of shared memory"),
        ("ld.shared.v2.u32 {%r2, %r3}, [tile+4];", "a misaligned access of 8 bytes"),
        ("ld.global.u64 %x3, [%x1+4];", "a misaligned access of 8 bytes by ld.global.u64 of thread"),
    ],
)
def test_refused(body, message):
    with pytest.raises(RuntimeError, match=message):
        execute(body, INTEGER)


def test_an_unknown_symbol_is_refused():
    with pytest.raises(ptx_text.NotPossible, match="operand some_table of 'mov.u64 %x3, some_table'"):
        execute("mov.u64 %x3, some_table;", INTEGER)


def test_dynamic_shared_memory_lies_behind_the_static():
    text = ".extern .shared .align 16 .b8 behind[];" + KERNEL
    body = "st.shared.u32 [behind+12], 5; ld.shared.u32 %r2, [behind+12]; cvt.u64.u32 %x3, %r2;"
    values = torch.zeros(1, dtype=torch.int64)
    text = text.replace("BODY", body).replace("TYPE", "u64").replace("RESULT", "%x3")
    parameters = [values, (ctypes.c_int64 * 2)()]
    ptx.run(text, parameters, shared=16)
    assert values.item() == 5
    with pytest.raises(RuntimeError, match="past the end of shared memory"):
        ptx.run(text, parameters, shared=12)

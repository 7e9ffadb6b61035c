"""The CUDA kernels, executed on the CPU (cuda_emulator/README.md), give what the CPU kernels give.

For numbers of boxes around the edges of warps and tiles, every type and layout; with the blocks and threads in several
orders; under the race detector; and, in a process of its own, under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TOLERANCE, random_boxes, seeded
from cuda_emulator import SCHEDULES, build, emulated, load
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")
COUNTS = [0, 1, 31, 32, 33, 63, 64, 65, 1023, 1025]
RUNS = [*(("plain", schedule) for schedule in SCHEDULES), ("races", "in_order"), ("races", "1")]
if "CUDA_EMULATOR_VARIANT" in os.environ:  # only this one, which may not be mixed with others
    RUNS = [(os.environ["CUDA_EMULATOR_VARIANT"], schedule) for schedule in SCHEDULES[:1]]

runs = pytest.mark.parametrize("run", RUNS, ids="-".join)
counts = pytest.mark.parametrize("count", COUNTS)
box_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# The order of threads and the types of numbers have nothing to do with each other: float32 meets every order.
feature_types_and_runs = pytest.mark.parametrize(
    ("dtype", "run"),
    [(dtype, run) for dtype in TOLERANCE for run in RUNS if dtype == torch.float32 or run in (RUNS[0], RUNS[-1])],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else "-".join(value),
)


def assert_same(run: tuple[str, str], function: Callable, rtol: float = 0, atol: float = 0) -> None:
    """The function gives the same numbers with the emulated kernels as with those of the CPU."""
    expected = function()
    with emulated(*run):
        value = function()
    assert_close(value, expected, rtol=rtol, atol=atol, equal_nan=True)


def hard_boxes(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random boxes; where there are enough, some are equal, without area, reversed, not finite or far away."""
    boxes = random_boxes(count, seed=seed)
    boxes[::3] = boxes[::3].round()
    if count > 30:
        boxes[5:9] = boxes[4]
        boxes[10, 2:] = boxes[10, :2]
        boxes[11] = boxes[11, [2, 3, 0, 1]]
        boxes[12] = NAN
        boxes[13, 3] = NAN
        boxes[14, 2] = INF
        boxes[-1] = -1e20
    return boxes.to(dtype)


# --- that it is what it says ------------------------------------------------------------------------------------------


def test_every_cuda_kernel_is_emulated():
    sources = "".join(path.read_text() for path in build.CSRC.glob("*/*.cu"))
    assert sorted(load()) == sorted(re.findall(r'm\.impl\("(\w+)"', sources))


def test_emulated_takes_the_place_of_the_cpu_kernels_and_gives_it_back():
    boxes, scores = random_boxes(3), torch.rand(3)
    with emulated(schedule="sideways"), pytest.raises(RuntimeError, match="expected in_order, reversed or a number"):
        ops.nms(boxes, scores, 0.5)
    assert len(ops.nms(boxes, scores, 1.0)) == 3


# --- boxes ------------------------------------------------------------------------------------------------------------


@runs
@counts
@box_types
def test_nms(run, count, dtype):
    boxes = torch.stack([hard_boxes(count, dtype, seed) for seed in (0, 1)])
    scores = (torch.rand(2, count, generator=seeded(2)) * 50).round().to(dtype) / 50 - 0.3
    if count > 30:
        scores[0, :5] = torch.tensor([NAN, INF, -INF, 0.0, -0.0])
    few = torch.randint(3, (2, count), generator=seeded(3))
    shared_low_bits = torch.randint(-1, 2, (2, count), generator=seeded(4)) * (1 << 40) + few
    some = torch.rand(2, count, generator=seeded(5)) < 0.7
    for classes in (None, few, shared_low_bits):
        assert_same(run, lambda c=classes: ops.nms_padded(boxes, scores, 0.5, count, c))
        assert_same(run, lambda c=classes: ops.nms_padded(boxes, scores, 0.3, 33, c, some))
    assert_same(run, lambda: ops.nms_padded(boxes[:1], scores[:1], 1.0, 1, None, torch.zeros_like(some[:1])))


@runs
def test_nms_of_long_segments(run):
    """Of more tiles than the ring in shared memory holds; chunks of the mask, small in the emulator, cut them."""
    count, last = 4400, 200
    # In the order of scores; who is suppressed has one other to thank for it, most of them far ahead.
    boxes = torch.arange(count)[:, None] * 10.0 + torch.tensor([0.0, 0, 8, 8])
    copies = torch.randperm(count, generator=seeded(0))[: count // 3].sort().values[1:]
    boxes[copies] = boxes[(torch.rand(len(copies), generator=seeded(1)) * copies).long()]
    boxes[-last:] = boxes[:last]
    mixed = torch.randperm(count, generator=seeded(2))
    boxes, scores = boxes[mixed], torch.linspace(1, 0, count)[mixed]
    two = (torch.arange(count) < 1200).long()[mixed]
    assert_same(run, lambda: ops.nms(boxes, scores, 0.7))
    assert_same(run, lambda: ops.batched_nms(boxes, scores, two, 0.5, 500))


@runs
@counts
@pytest.mark.parametrize("num_gt", [0, 1, 33, 257])
def test_assign_max_iou(run, count, num_gt):
    for dtype in (torch.float32, torch.float64):
        boxes, gt_boxes = hard_boxes(count, dtype), hard_boxes(num_gt, dtype, seed=1)
        boxes[: num_gt // 2] = gt_boxes[: num_gt // 2][: len(boxes)]
        for thresholds in ((0.7, 0.3, 0.3), (0.5, 0.5, 0.0)):
            assert_same(run, lambda b=boxes, g=gt_boxes, t=thresholds: ops.assign_max_iou(b, g, *t, True))
        assert_same(run, lambda b=boxes, g=gt_boxes: ops.assign_max_iou(b, g, 0.5, 0.5, 0.5, False))


@runs
@counts
@box_types
def test_box_iou(run, count, dtype):
    for others in (0, 1, 33, 64):
        a, b = hard_boxes(count, dtype), hard_boxes(others, dtype, seed=1)
        assert_same(run, lambda a=a, b=b: (ops.box_iou(a, b), ops.box_iou(b, a)))


@runs
@counts
@box_types
def test_box_coding(run, count, dtype):
    boxes, targets = hard_boxes(count, dtype), hard_boxes(count, dtype, seed=1)
    if count > 30:  # sides whose logarithm is infinite, or none
        targets[15, 2], targets[16, 3] = targets[15, 0], targets[16, 1] - 5
    means, stds = (0.1, 0.2, -0.1, 0.0), (0.1, 0.1, 0.2, 0.3)
    deltas = (torch.randn(count, 12, generator=seeded(2)) * 4).to(dtype).requires_grad_()
    weight = torch.randn(count, 12, generator=seeded(3)).to(dtype)

    def decode(shape):
        decoded = ops.decode_boxes(boxes, deltas, means, stds, shape)
        return decoded, *torch.autograd.grad(decoded, deltas, weight)

    assert_same(run, lambda: ops.encode_boxes(boxes, targets, means, stds))
    rows = torch.rand(count, 2, generator=seeded(4)).to(dtype) * 100
    for shape in (None, (80.0, 90.0), rows):
        assert_same(run, lambda s=shape: decode(s))


@runs
@pytest.mark.parametrize("size", [(0, 4), (1, 1), (7, 9), (20, 33)], ids=str)
@box_types
def test_grid_anchors(run, size, dtype):
    base = [hard_boxes(count, dtype) for count in (0, 1, 3, 15)]
    assert_same(run, lambda: ops.grid_anchors([size] * 4, [8.0] * 4, base))


# --- RoIAlign ---------------------------------------------------------------------------------------------------------


def hard_rois(count: int, dtype: torch.dtype) -> Tensor:
    """On two images, partly outside; some are padding, not finite, or far larger than the image."""
    rois = torch.cat((torch.randint(2, (count, 1), generator=seeded(7)).float(), random_boxes(count)), dim=1)
    if count > 10:
        rois[0, 0] = -1
        rois[1, 1:] = torch.tensor([-300.0, -100, 500, 900])
        rois[2, 1:] = NAN
        rois[3, 3] = INF
        rois[4, 3:] = rois[4, 1:3]
        rois[5, 1:] += 1e7
        rois[6, 1:] = torch.tensor([-2e9, -1e9, 1e9, 2e9])  # more samples than float32 can tell apart
    return rois.to(torch.promote_types(dtype, torch.float32))


def backward(
    pooled: Tensor, features: Tensor | list[Tensor], weight: Tensor, deterministic: bool
) -> tuple[Tensor, ...]:
    """The gradient of the features, by atomic additions or by the kernel that adds in a fixed order."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        return torch.autograd.grad(pooled, features, weight)
    finally:
        torch.use_deterministic_algorithms(False)


def gradient(features: list[Tensor], rois: Tensor, settings: tuple, deterministic: bool) -> tuple[Tensor, ...]:
    pooled = ops.multilevel_roi_align(features, rois, (4, 8), *settings, finest_scale=28)
    return backward(pooled, features, torch.randn(pooled.shape, generator=seeded(8)).to(pooled), deterministic)


def pyramid(channels: int, dtype: torch.dtype, channels_last: bool) -> list[Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [(20, 25), (10, 13)] if channels < 256 else [(9, 8), (5, 4)]
    if channels > 256:
        sizes = [(3, 4), (2, 2)]
    maps = [torch.randn(2, channels, *size, generator=seeded(channels)).to(dtype) for size in sizes]
    return [level.contiguous(memory_format=layout).requires_grad_() for level in maps]


@pytest.mark.parametrize("channels", [1, 3, 8, 36, 256, 2048])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@feature_types_and_runs
def test_roi_align(dtype, run, channels_last, channels):
    """The result bit for bit; the gradient, which the CPU sums in another order, up to rounding."""
    features = pyramid(channels, dtype, channels_last)
    for count in {36: (13,), 256: (5,), 2048: (2,)}.get(channels, (0, 1, 33)):
        rois = hard_rois(count, dtype)
        for settings in ((7, 0), ((2, 3), 2)) if channels < 2048 else (((2, 3), 0),):
            assert_same(run, lambda r=rois, s=settings: ops.multilevel_roi_align(features, r, (4, 8), *s, 28))
            for deterministic in (True, False):
                expected = gradient(features, rois, settings, deterministic)
                with emulated(*run):
                    value = gradient(features, rois, settings, deterministic)
                scale = max(1.0, *(level.abs().max().item() for level in expected))
                assert_close(value, expected, rtol=0, atol=TOLERANCE[dtype]["atol"] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_deterministic_gradient_does_not_depend_on_the_schedule(dtype):
    features, rois = pyramid(8, dtype, True), hard_rois(33, dtype)
    results = []
    for schedule in SCHEDULES:
        with emulated(RUNS[0][0], schedule):
            results.append(gradient(features, rois, (7, 0), True))
    for result in results[1:]:
        assert_close(result, results[0], rtol=0, atol=0)


@runs
def test_roi_align_of_as_many_levels_as_there_may_be(run):
    """RoIs on each of the 8, and on the two outermost whatever their size."""
    features = [torch.randn(2, 4, 12 - i, 14 - i, generator=seeded(i)).requires_grad_() for i in range(8)]
    side = torch.tensor([0.5, *(1.5 * 2**i for i in range(8)), 900])
    rois = torch.stack((side.long() % 2, side * 0 + 1, side * 0 + 2, side + 1, side + 2), dim=1)
    strides = [2**i for i in range(8)]
    assert reference.roi_levels(rois, 8, 1.0).unique().tolist() == list(range(8))

    def call(deterministic):
        pooled = ops.multilevel_roi_align(features, rois, strides, 3, 2, 1.0)
        weight = torch.randn(pooled.shape, generator=seeded(9))
        return pooled, *backward(pooled, features, weight, deterministic)

    for deterministic in (False, True):
        assert_same(run, lambda d=deterministic: call(d), 0, 1e-5)


@runs
def test_roi_align_of_many_bins_and_samples(run):
    features = torch.randn(1, 5, 3, 4, generator=seeded(0))
    rois = torch.tensor([[0.0, 1, 2, 9, 12], [0, 0, 0, 16, 12]])
    assert_same(run, lambda: ops.roi_align(features, rois, (18, 33), 0.25, 40))


@runs
def test_roi_align_of_bins_with_many_cells(run):
    """More cells in a bin than its list in shared memory holds (64), exactly as many, and one less."""
    features = torch.randn(1, 5, 90, 150, generator=seeded(0)).requires_grad_()
    for height in (90.0, 66.0, 65.0, 64.0, 63.0, 62.0, 61.0):
        rois = torch.tensor([[0.0, 0, 0, 150, height], [0, 0, 0, height, 90], [0, 3.5, 2.5, 3.5 + height, 90]])
        assert_same(run, lambda r=rois: ops.roi_align(features.detach(), r, (1, 2)))
        assert_same(run, lambda r=rois: ops.roi_align(features.detach(), r, 1))
    for flat, end in ((features[:, :, :9], (150, 9)), (features[..., :9], (9, 90))):
        assert_same(run, lambda f=flat, e=end: ops.roi_align(f.detach(), torch.tensor([[0.0, 0, 0, *e]]), 1))
    assert_same(run, lambda: torch.autograd.grad(ops.roi_align(features, rois, 1).square().sum(), features), 0, 1e-5)


@runs
def test_roi_align_of_reversed_rois(run):
    """With a fixed number of samples: a cell can come twice, and a list holds 64, 10 or none."""
    features = torch.randn(1, 3, 90, 300, generator=seeded(0)).requires_grad_()
    rois = torch.tensor([[0.0, 290, 0, 0, 80], [0, 0, 80, 290, 0], [0, 5, 5, 5, 5], [0, 3, 3, 9, 9]])
    for bins, samples in (((2, 1), 40), ((300, 1), 20), ((4200, 1), 2), ((4200, 1), 0)):
        assert_same(run, lambda b=bins, s=samples: ops.roi_align(features.detach(), rois, b, 1.0, s))

    weight = torch.randn(4, 3, 2, 1, generator=seeded(1))
    for deterministic in (False, True):
        assert_same(
            run,
            lambda d=deterministic: backward(ops.roi_align(features, rois, (2, 1), 1.0, 40), features, weight, d),
            0,
            1e-4,
        )


@runs
@pytest.mark.parametrize(("count", "bins"), [(1100, (1, 2)), (20, (18, 33))], ids=["many_rois", "many_bins"])
def test_deterministic_gradient_in_several_parts(run, count, bins):
    """More RoIs than a block lists at once, more on a tile than it takes together, more bins than it weighs at once."""
    features = torch.randn(2, 4, 9, 10, generator=seeded(0)).requires_grad_()
    rois = hard_rois(count, torch.float32)

    weight = torch.randn(count, 4, *bins, generator=seeded(1))
    assert_same(run, lambda: backward(ops.roi_align(features, rois, bins, 0.25, 2), features, weight, True), 1e-5, 1e-3)


# --- RoIPool ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 8, 36, 260, 2048])
@feature_types_and_runs
def test_roi_pool(dtype, run, channels):
    """Bit for bit: the gradients are whole numbers. With fewer channels than a block has threads, and with more."""
    size, count = {36: ((20, 25), 13), 260: ((5, 6), 7), 2048: ((5, 6), 2)}.get(channels, ((20, 25), 33))
    features = torch.randn(2, channels, *size, generator=seeded(0)).to(dtype)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()

    def call(rois, bins, deterministic):
        pooled = ops.roi_pool(features, rois, bins, 0.25)
        weight = torch.randint(1, 5, pooled.shape, generator=seeded(1)).to(pooled)
        return pooled, *backward(pooled, features, weight, deterministic)

    for rois, bins in ((hard_rois(count, dtype), (7, 6)), (hard_rois(2, dtype), (2, 3)), (hard_rois(0, dtype), 7)):
        for deterministic in (False, True):
            assert_same(run, lambda r=rois, b=bins, d=deterministic: call(r, b, d))


@runs
def test_roi_pool_of_many_bins(run):
    features, rois = torch.randn(2, 3, 20, 25, generator=seeded(0)), hard_rois(3, torch.float32)
    assert_same(run, lambda: ops.roi_pool(features, rois, (2, 300)))


@runs
@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool])
def test_images_that_do_not_exist(run, pool):
    """The CPU raises an error; CUDA, where looking would mean waiting, takes such a RoI for padding."""
    features = torch.randn(2, 3, 20, 25, generator=seeded(0)).requires_grad_()
    padding = hard_rois(9, torch.float32)
    padding[2:7, 0] = -1
    wrong = padding.clone()
    wrong[2:7, 0] = torch.tensor([2.0, 1e30, NAN, INF, -2.0])

    def call(rois, deterministic):
        pooled = pool(features, rois, 3, 0.25)
        return pooled, *backward(pooled, features, torch.ones_like(pooled), deterministic)

    with emulated(*run):
        for deterministic in (False, True):
            assert_close(call(wrong, deterministic), call(padding, deterministic), rtol=0, atol=0)


# --- memory that does not begin at 16 bytes ---------------------------------------------------------------------------


def displaced(tensor: Tensor) -> Tensor:
    """The same numbers in the same layout, one number behind where an allocation begins: as a slice can lie."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


@runs
@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool])
def test_features_and_gradients_at_any_address(run, pool):
    rois = hard_rois(13, torch.float32)
    for dtype in (torch.float32, torch.float16):
        maps = torch.randn(2, 16, 9, 8, generator=seeded(0)).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randint(1, 5, (13, 16, 3, 3), generator=seeded(1)).to(dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        for features, gradient in ((displaced(maps), weight), (maps, displaced(weight))):
            features.requires_grad_()

            def call(deterministic, features=features, gradient=gradient):
                pooled = pool(features, rois, 3, 0.25)
                return pooled, *backward(pooled, features, gradient, deterministic)

            for deterministic in (False, True):
                assert_same(run, lambda d=deterministic: call(d), 0, 10 * TOLERANCE[dtype]["atol"])


# --- out of bounds, misaligned ----------------------------------------------------------------------------------------

OP_TESTS = {
    "boxes": ("anchors", "assignment", "box_coding", "box_iou", "nms", "iou_loss"),
    "pooling": ("roi_align", "roi_pool"),
    "stages": ("proposals", "selection"),
}


@pytest.mark.skipif("CUDA_EMULATOR_VARIANT" in os.environ, reason="runs in the process that starts the others")
@pytest.mark.parametrize(
    ("variant", "files"),
    [
        *(pytest.param("address", files, id=f"address-{name}") for name, files in OP_TESTS.items()),
        pytest.param("address", ("emulated_ops",), id="address-this_file"),
        *(pytest.param("races", files, id=f"races-{name}") for name, files in OP_TESTS.items()),
    ],
)
def test_op_tests_under(variant, files):
    """All op tests again but those of compilers and peers, and for AddressSanitizer those of this file."""
    build.library(variant)
    paths = [Path(__file__).parent / f"test_{name}.py" for name in files]
    environment = os.environ | {"CUDA_EMULATOR_VARIANT": variant}
    chosen = "emulated and not compile and not opcheck and not torchvision"
    if variant == "races":
        chosen += " and not 2_to_the_31"  # whether addresses are right is not a question of threads
    if variant == "address":
        environment |= build.preload()
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", chosen, *map(str, paths)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]

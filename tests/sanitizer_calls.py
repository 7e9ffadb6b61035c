"""Calls of every CPU operator whose inputs end, or are wrong, where a kernel could read or write beyond them.

    python tests/sanitizer_calls.py LIBRARY

Run by test_sanitizers.py in a process of its own, with LIBRARY (libfastrcnn.so built with sanitizers) in place of the
installed one. Results are not looked at here: the sanitizer ends the process at the first report. Tensors are as large
as their contents, so that one element further lies outside.
"""

import itertools
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
SIZES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 1000)  # around vectors of 8 and 16, and several chunks
NAN, INF = float("nan"), float("inf")
COORDINATES = (torch.float32, torch.float64)
FEATURES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
generator = torch.Generator().manual_seed(0)


def load_ops(library: str) -> types.ModuleType:
    """fastrcnn.ops on top of `library`, without the rest of the package."""
    package = types.ModuleType("fastrcnn")
    package.__path__ = [str(ROOT / "fastrcnn")]
    sys.modules["fastrcnn"] = package
    load_library = torch.ops.load_library

    def load_sanitized(path) -> None:
        if Path(path).name == "libfastrcnn.so":  # there is nothing to find in that of CUDA
            load_library(library)

    torch.ops.load_library = load_sanitized
    from fastrcnn import ops

    return ops


class CalledOperators(TorchDispatchMode):
    """Notes the names of the operators of this package that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func.name().split("::")
        if namespace == "fastrcnn":
            self.names.add(name.split(".")[0])
        return func(*args, **(kwargs or {}))


# --- inputs -----------------------------------------------------------------------------------------------------------


def random_boxes(count: int, extent: float = 60.0, dtype: torch.dtype = torch.float32) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * extent - 4
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * extent / 2], 1).to(dtype)


def strange_boxes(dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN, infinite, huge, reversed, empty and negative boxes."""
    rows = [
        [NAN, 0, 5, 5], [0, 0, NAN, 5], [NAN] * 4, [-INF, -INF, INF, INF], [INF, 0, INF, 9], [0, 0, INF, 5],
        [-1e30, -1e30, 1e30, 1e30], [3e38, 3e38, -3e38, -3e38], [-3e38, 0, 3e38, 1], [9, 9, 2, 2], [4, 4, 4, 4],
        [-50, -60, -40, -45], [1e9, 1e9, 2e9, 2e9], [0, 0, 1e-40, 1e-40], [0, 0, 60, 60], [0, 0, 60, 60],
    ]  # fmt: skip
    return torch.tensor(rows, dtype=dtype)


def forms(tensor: Tensor) -> Iterator[Tensor]:
    """The same values dense; beginning one element into the memory, so that vectors are misaligned; and strided."""
    yield tensor.contiguous().clone()
    moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    yield moved.copy_(tensor)
    yield torch.stack([tensor, tensor], -1)[..., 1]


def all_boxes(dtype: torch.dtype) -> Iterator[Tensor]:
    for count in SIZES:
        yield random_boxes(count, dtype=dtype)
    yield strange_boxes(dtype)
    yield from forms(torch.cat([random_boxes(23, dtype=dtype), strange_boxes(dtype)]))


def rejected(call: Callable[[], object]) -> None:
    """The call must raise, and not compute."""
    try:
        call()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return
    raise AssertionError("a wrong argument was accepted")


# --- calls ------------------------------------------------------------------------------------------------------------


def call_nms(ops) -> None:
    for dtype in COORDINATES:
        for boxes in all_boxes(dtype):
            count = len(boxes)
            scores = torch.rand(count, generator=generator).to(dtype)
            scores[::5] = 0.5
            scores[1::7], scores[2::7], scores[3::7] = NAN, INF, -INF
            classes = torch.randint(-3, 4, (count,), generator=generator)
            classes[::6], classes[1::6] = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
            for threshold, limit in itertools.product((0.0, 0.5, 1.0), (None, 0, 1, 5, 2**40)):
                ops.nms(boxes, scores, threshold, limit)
                ops.batched_nms(boxes, scores, classes, threshold, limit)
    same = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(500, 1)
    ops.nms(same, torch.zeros(500), 0.5)
    ops.batched_nms(random_boxes(3000), torch.rand(3000), torch.arange(3000) % 80, 0.3, 100)
    for images, count in itertools.product((0, 1, 3), (0, 1, 17, 400)):
        boxes = random_boxes(images * count).view(images, count, 4)
        scores, classes = torch.rand(images, count), torch.randint(5, (images, count))
        for valid, ids in itertools.product((None, torch.rand(images, count) > 0.5), (None, classes)):
            ops.nms_padded(boxes, scores, 0.4, 10, ids, valid)


def call_box_ops(ops) -> None:
    stds = (0.1, 0.1, 0.2, 0.2)
    for dtype in COORDINATES:
        for boxes in all_boxes(dtype):
            count = len(boxes)
            for others in (random_boxes(0, dtype=dtype), random_boxes(9, dtype=dtype), strange_boxes(dtype)):
                ops.box_iou(boxes, others)
                ops.assign_max_iou(boxes, others, 0.6, 0.3, 0.1, True)
                ops.assign_max_iou(boxes, others, 1.0, 0.0, 0.0, False)
            for targets in forms(random_boxes(count, dtype=dtype)):
                ops.encode_boxes(boxes, targets, (0.0,) * 4, stds)
            sizes = torch.rand(count, 2, generator=generator).to(dtype) * 60
            for classes, shape in itertools.product((1, 3, 17), (None, (50, 40), sizes)):
                deltas = torch.randn(count, 4 * classes, generator=generator).to(dtype)
                deltas[::4, 0], deltas[1::4, 2], deltas[2::4, 3] = NAN, 1e30, -INF
                for form in forms(deltas):
                    form.requires_grad_()
                    ops.decode_boxes(boxes, form, (0.0,) * 4, stds, shape).sum().backward()
    ops.assign_max_iou(random_boxes(5000), random_boxes(100), 0.7, 0.3, 0.3, True)
    rejected(lambda: ops.box_iou(random_boxes(3)[:, :3], random_boxes(3)))
    rejected(lambda: ops.encode_boxes(random_boxes(3), random_boxes(4), (0.0,) * 4, stds))
    rejected(lambda: ops.encode_boxes(random_boxes(3), random_boxes(3), (0.0,) * 3, stds))
    rejected(lambda: ops.decode_boxes(random_boxes(3), torch.zeros(3, 7), (0.0,) * 4, stds))


def call_anchors(ops) -> None:
    for scales, ratios in itertools.product(([8.0], [1.0, 2.0, 4.0], []), ([0.5, 1.0, 2.0], [1.0], [])):
        base = ops.base_anchors(16, scales, ratios)
        sizes = [(0, 5), (1, 1), (7, 9), (40, 51)]
        ops.grid_anchors(sizes, [4, 8.5, 16, 1e30], [base] * 4)
        ops.grid_anchors(sizes, [4, 8.5, 16, 1e30], [base.double()] * 4)


def rois_for(height: int, width: int) -> Tensor:
    """RoIs [R, 5] on two images of height x width: inside, at every border and corner, beyond it, and strange ones."""
    inside = random_boxes(12, min(height, width))
    edges = [
        [0, 0, width, height], [width - 1, height - 1, width, height], [-1, -1, 0, 0], [-0.5, -0.5, 0.5, 0.5],
        [width - 0.5, 0, width + 1, 1], [0, height - 0.5, 1, height + 1], [width, height, width + 2, height + 2],
        [-9, -9, width + 9, height + 9], [width + 50, 0, width + 90, 5], [1e9, 0, 1e9 + 64, 5], [-400, -300, 500, 600],
    ]  # fmt: skip
    boxes = torch.cat([inside, torch.tensor(edges, dtype=torch.float32), strange_boxes()])
    image = torch.arange(len(boxes))[:, None] % 3 - 1  # -1 is padding
    return torch.cat([image.to(boxes), boxes], 1)


def call_roi_ops(ops) -> None:
    def every_call(features: Tensor, rois: Tensor, output_size, sampling: int, aligned: bool) -> None:
        features.requires_grad_(features.is_floating_point())
        ops.roi_align(features, rois, output_size, 0.5, sampling, aligned).float().sum().backward()

    for dtype in FEATURES:
        for channels in (1, 3, 8, 15, 16, 17, 33, 130):
            rois = rois_for(11, 14)
            features = torch.randn(2, channels, 11, 14, generator=generator).to(dtype)
            for layout in (torch.contiguous_format, torch.channels_last):
                every_call(features.contiguous(memory_format=layout), rois, 3, 2, True)
            every_call(features[:, :, 1:, 2:-1].detach(), rois, 3, 2, False)
            every_call(
                features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, : channels // 2 + 1], rois, 2, 1, True
            )
    for (height, width), aligned in itertools.product(((1, 1), (1, 9), (8, 1), (5, 33)), (True, False)):
        rois = rois_for(2 * height, 2 * width)
        for output_size, sampling in itertools.product((1, 7, (2, 5)), (0, 1, 2, 5)):
            features = torch.randn(2, 19, height, width, generator=generator)
            every_call(features.contiguous(memory_format=torch.channels_last), rois, output_size, sampling, aligned)
            every_call(features, rois, output_size, sampling, aligned)
    for form in forms(rois_for(11, 14)):
        every_call(torch.randn(2, 16, 11, 14), form, 7, 0, True)
    every_call(torch.randn(2, 16, 11, 14), torch.zeros(0, 5), 7, 0, True)
    every_call(torch.randn(2, 0, 11, 14), rois_for(11, 14), 7, 2, True)
    for levels in range(1, 6):
        maps = [torch.randn(2, 20, 64 >> k, 48 >> k, requires_grad=True) for k in range(levels)]
        rois = torch.cat([rois_for(256, 192), rois_for(32, 32)])
        for sampling in (0, 2):
            ops.multilevel_roi_align(maps, rois, [4 << k for k in range(levels)], 7, sampling, 8).sum().backward()
    for index in (2, -2, 1e10, -1e10, NAN, INF, 3e38):  # none of these is an image of the two
        wrong = torch.tensor([[0, 1, 1, 5, 5], [index, 1, 1, 5, 5]], dtype=torch.float32)
        rejected(lambda wrong=wrong: ops.roi_align(torch.randn(2, 3, 8, 8), wrong, 7))
        rejected(lambda wrong=wrong: ops.multilevel_roi_align([torch.randn(2, 3, 8, 8)] * 2, wrong, [4, 8], 7))
        rejected(lambda wrong=wrong: ops.roi_pool(torch.randn(2, 3, 8, 8), wrong, 7))
    rejected(lambda: ops.roi_align(torch.randn(2, 3, 8, 8), torch.zeros(3, 4), 7))
    rejected(lambda: ops.roi_align(torch.randn(2, 3, 8, 8), rois_for(8, 8), (0, 7)))


def call_roi_pool(ops) -> None:
    for dtype, channels in itertools.product(FEATURES, (1, 3, 8, 15, 16, 17, 33, 130)):
        features = torch.randn(2, channels, 11, 14, generator=generator).to(dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            form = features.contiguous(memory_format=layout).requires_grad_()
            ops.roi_pool(form, rois_for(11, 14), 3, 0.5).float().sum().backward()
    for height, width in ((1, 1), (1, 9), (8, 1), (5, 33)):
        for output_size, rois in itertools.product((1, 7, (2, 5)), forms(rois_for(2 * height, 2 * width))):
            form = torch.randn(2, 19, height, width, requires_grad=True)
            ops.roi_pool(form, rois, output_size, 0.5).sum().backward()
    ops.roi_pool(torch.randn(2, 16, 11, 14), torch.zeros(0, 5), 7)


def call_iou_loss(ops) -> None:
    kinds = [("iou", mode) for mode in ("log", "linear", "square")]
    kinds += [(kind, "log") for kind in ("giou", "diou", "ciou", "bounded_iou")]
    for dtype, (kind, mode) in itertools.product(COORDINATES, kinds):
        for pred in all_boxes(dtype):
            for target in (random_boxes(len(pred), dtype=dtype), pred.flip(0), pred.clone()):
                for form in forms(pred):
                    form.requires_grad_()
                    ops.iou_loss(form, target, kind, mode).sum().backward()
                    ops.iou_loss(form.detach(), target, kind, mode)


def call_proposals(ops) -> None:
    def maps(channels: int, images: int, sizes) -> list[Tensor]:
        return [torch.randn(images, channels, *size, generator=generator) for size in sizes]

    base = ops.base_anchors(8, [4.0], [0.5, 1.0, 2.0])
    for sizes in ([(1, 1)], [(16, 17), (8, 9), (4, 5), (2, 3), (1, 1)], [(5, 0), (3, 3)]):
        strides = [4 << k for k in range(len(sizes))]
        anchors = ops.grid_anchors(sizes, strides, [base] * len(sizes))
        for images, strange, pre, post in itertools.product((1, 2), (False, True), (1, 15, 1000), (1, 17, 2000)):
            logits, deltas = maps(3, images, sizes), maps(12, images, sizes)
            if strange:
                for level, shift in zip(logits, deltas, strict=True):
                    level.view(-1)[::3], level.view(-1)[1::3] = NAN, INF
                    shift.view(-1)[::5], shift.view(-1)[1::5], shift.view(-1)[2::5] = NAN, INF, 1e30
            shapes = [(60, 70), (1, 1)][:images]
            ops.generate_proposals(logits, deltas, anchors, shapes, pre, post, 0.7)
            logits = [level.contiguous(memory_format=torch.channels_last) for level in logits]
            deltas = [level.contiguous(memory_format=torch.channels_last) for level in deltas]
            ops.generate_proposals(logits, deltas, anchors, shapes, pre, post, 0.7, 3.0)
            half = [level.half() for level in deltas]
            ops.generate_proposals([level.half() for level in logits], half, anchors, shapes, pre, post, 0.7)


def call_selection(ops) -> None:
    settings = (0.5, 100, (0.0,) * 4, (0.1, 0.1, 0.2, 0.2))
    sizes, factors = [(60, 70), (30, 20)], [(1.0, 1.0), (0.5, 2.0)]
    for count, classes, threshold in itertools.product((0, 1, 7, 16, 33, 300), (1, 3, 15, 16, 80), (0.0, 0.05, 1.0)):
        boxes = random_boxes(count)
        strange = strange_boxes()[:count]
        boxes[: len(strange)] = strange
        image = torch.arange(count)[:, None] % 3 - 1
        rois = torch.cat([image.to(boxes), boxes], 1)
        logits = 3 * torch.randn(count, classes + 1, generator=generator)
        logits[::7, 0], logits[1::7, -1], logits[2::7] = NAN, INF, -INF
        deltas = torch.randn(count, 4 * classes, generator=generator)
        deltas[::5, 0], deltas[1::5, 1] = NAN, 1e30
        for form in forms(logits):
            ops.select_detections(form, deltas, rois, sizes, factors, threshold, *settings)
    for index in (2, 1e10):
        rois = torch.tensor([[index, 1, 1, 5, 5]])
        rejected(
            lambda rois=rois: ops.select_detections(
                torch.zeros(1, 3), torch.zeros(1, 8), rois, sizes, factors, 0.0, *settings
            )
        )


def call_conv3x3(ops) -> None:
    for channels, outputs in itertools.product((0, 1, 15, 16, 17, 40), (1, 16, 17, 32, 49)):
        weight = torch.randn(outputs, channels, 3, 3, generator=generator)
        bias = torch.randn(outputs, generator=generator)
        for images, height, width in ((0, 3, 3), (1, 1, 1), (2, 4, 5), (1, 9, 33)):
            x = torch.randn(images, channels, height, width, generator=generator)
            for form in forms(weight):
                ops.conv3x3(x, form, bias, relu=True)
            ops.conv3x3(x.contiguous(memory_format=torch.channels_last), weight, None)
        rejected(lambda c=channels, w=weight: ops.conv3x3(torch.zeros(1, c + 1, 4, 4), w, None))


def main() -> None:
    ops = load_ops(sys.argv[1])
    torch.set_num_threads(3)
    with CalledOperators() as called:
        for call in (
            call_nms,
            call_box_ops,
            call_anchors,
            call_roi_ops,
            call_roi_pool,
            call_iou_loss,
            call_proposals,
            call_selection,
            call_conv3x3,
        ):
            call(ops)
    existing = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastrcnn::")}
    missing = {name.split(".")[0] for name in existing} - called.names
    if missing:
        raise SystemExit(f"no call of {', '.join(sorted(missing))}: add one here")
    print(f"called {len(called.names)} operators")


if __name__ == "__main__":
    main()

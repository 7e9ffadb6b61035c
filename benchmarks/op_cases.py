"""What benchmarks/ops.py measures: per case the same work for fastrcnn, torchvision and the plain reference.

Sizes are those of R-50-FPN on an image of 1333 x 800, padded to 1344 x 800: pyramid levels of 256 channels at strides 4
to 64, 268,569 anchors. Boxes lie anywhere in the image; their sides are log-uniform in the range that a case names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from fastrcnn import ops
from fastrcnn.ops import reference

HEIGHT, WIDTH, CHANNELS, CLASSES = 800, 1344, 256, 80
STRIDES = [4, 8, 16, 32, 64]
SIZES = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]
MEANS, STDS, UNIT = (0.0,) * 4, (0.1, 0.1, 0.2, 0.2), (1.0,) * 4
LAYOUTS = {"channels-last": torch.channels_last, "NCHW": torch.contiguous_format}
MINUTES = "takes minutes"

Call = Callable[[], object]
Prepare = Callable[[], Call]  # sets one side up, untimed, and returns the call to time


@dataclass
class Sides:
    """The sides of a case, on inputs that they share.

    torchvision: one or more ways to call it, by name; the fastest one counts. reference: a text says why it is left
    out. moved: bytes that the op reads and writes if it touches every input and output once and nothing else.
    """

    ours: Prepare
    torchvision: dict[str, Prepare]
    reference: Prepare | str
    moved: int


@dataclass
class Case:
    """goal: how many times faster than torchvision, on a CPU with two threads; memory_goal: in MB."""

    name: str
    make: Callable[[torch.device], Sides]
    goal: float | None = None
    memory_goal: float | None = None


# --- inputs -----------------------------------------------------------------------------------------------------------


def random_boxes(count: int, low: float, high: float, device: torch.device, seed: int = 0) -> Tensor:
    """Boxes [count, 4] within the image, sides log-uniform in low .. high pixels, centres anywhere."""
    generator = torch.Generator().manual_seed(seed)
    side = low * (high / low) ** torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - side)
    return torch.cat([corner, corner + side], 1).to(device)


def random_scores(count: int, device: torch.device) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1)).to(device)


def random_maps(
    channels: int, strides: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, list[Tensor]]:
    """Per memory layout the same maps [1, channels, h, w], one per stride."""
    generator = torch.Generator().manual_seed(2)
    sizes = [SIZES[STRIDES.index(stride)] for stride in strides]
    maps = [torch.randn(1, channels, *size, generator=generator).to(device, dtype) for size in sizes]
    return {name: [m.contiguous(memory_format=layout) for m in maps] for name, layout in LAYOUTS.items()}


def grid_anchors(device: torch.device) -> list[Tensor]:
    base = [ops.base_anchors(stride, [8.0], [0.5, 1.0, 2.0]).to(device) for stride in STRIDES]
    return ops.grid_anchors(SIZES, STRIDES, base)


def size_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gradient(forward: Call, inputs: Sequence[Tensor]) -> Call:
    """The backward pass alone, of a forward pass made now."""
    for tensor in inputs:
        tensor.requires_grad_()
    output = forward()
    return partial(torch.autograd.grad, output, inputs, torch.randn_like(output), retain_graph=True)


# --- RoI features -----------------------------------------------------------------------------------------------------


def multilevel_roi_align(
    device: torch.device,
    sampling_ratio: int,
    layout: str = "channels-last",
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    deterministic: bool = False,
) -> Sides:
    """1000 RoIs of 16 to 400 pixels on four levels. The peer is the module MultiScaleRoIAlign: torchvision has no op.

    It samples with aligned=False, half a cell elsewhere, which is the same amount of work.
    """
    boxes, strides = random_boxes(1000, 16, 400, device), STRIDES[:4]
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    levels = random_maps(CHANNELS, strides, device, dtype)
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio)

    def prepare(forward: Call, inputs: list[Tensor]) -> Call:
        call = gradient(forward, inputs) if backward else forward
        return partial(run_deterministically, call) if deterministic else call

    def ours() -> Call:
        forward = partial(ops.multilevel_roi_align, levels[layout], rois, strides, 7, sampling_ratio)
        return prepare(forward, levels[layout])

    def theirs(layout: str) -> Call:
        named = {str(k): level for k, level in enumerate(levels[layout])}
        return prepare(partial(pooler, named, [boxes.to(dtype)], [(HEIGHT, WIDTH)]), levels[layout])

    def plain() -> Call:
        return partial(reference.multilevel_roi_align, levels["NCHW"], rois, strides, 7, sampling_ratio)

    pooled = len(rois) * CHANNELS * 49 * dtype.itemsize
    read = covered_cells(rois, strides) * CHANNELS * dtype.itemsize + size_of(rois)
    return Sides(
        ours,
        {name: partial(theirs, name) for name in LAYOUTS},
        MINUTES if backward else plain,
        pooled + (size_of(*levels[layout]) if backward else read),
    )


def covered_cells(rois: Tensor, strides: Sequence[int]) -> int:
    """How many cells of all levels lie under a RoI: what the forward pass must read."""
    covered = [torch.zeros(SIZES[k], dtype=torch.bool) for k in range(len(strides))]
    for level, (x1, y1, x2, y2) in zip(
        reference.roi_levels(rois, len(strides)).tolist(), rois[:, 1:].tolist(), strict=True
    ):
        stride = strides[level]
        covered[level][int(y1 // stride) : int(-(-y2 // stride)), int(x1 // stride) : int(-(-x2 // stride))] = True
    return sum(int(level.sum()) for level in covered)


def run_deterministically(call: Call) -> object:
    torch.use_deterministic_algorithms(True)
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


def roi_pool(device: torch.device, backward: bool = False) -> Sides:
    """1000 RoIs of 16 to 400 pixels on the level of stride 16."""
    boxes = random_boxes(1000, 16, 400, device)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    maps = {layout: levels[0] for layout, levels in random_maps(CHANNELS, [16], device).items()}

    def prepare(op: Callable[..., Tensor], features: Tensor) -> Call:
        forward = partial(op, features, rois, (7, 7), 1 / 16)
        return gradient(forward, [features]) if backward else forward

    return Sides(
        lambda: prepare(ops.roi_pool, maps["channels-last"]),
        {name: partial(prepare, torchvision.ops.roi_pool, features) for name, features in maps.items()},
        MINUTES if backward else lambda: prepare(reference.roi_pool, maps["NCHW"]),
        size_of(maps["NCHW"], rois) + len(rois) * CHANNELS * 49 * 4,
    )


# --- boxes ------------------------------------------------------------------------------------------------------------


def nms(device: torch.device, count: int, max_output: int | None = None) -> Sides:
    """Boxes of 32 to 256 pixels. torchvision has no max_output: it finds all and keeps the first."""
    boxes, scores = random_boxes(count, 32, 256, device), random_scores(count, device)
    return Sides(
        lambda: partial(ops.nms, boxes, scores, 0.7, max_output),
        {"": lambda: lambda: torchvision.ops.nms(boxes, scores, 0.7)[:max_output]},
        "its matrices fill gigabytes"
        if count > 6000
        else lambda: partial(reference.nms, boxes, scores, 0.7, max_output),
        size_of(boxes, scores) + 8 * min(count, max_output or count),
    )


def batched_nms(device: torch.device, group_sizes: Sequence[int], iou_threshold: float) -> Sides:
    """Boxes of 32 to 256 pixels in classes, or levels, of these sizes."""
    count = sum(group_sizes)
    boxes, scores = random_boxes(count, 32, 256, device), random_scores(count, device)
    classes = torch.arange(len(group_sizes)).repeat_interleave(torch.tensor(group_sizes))
    classes = classes[torch.randperm(count, generator=torch.Generator().manual_seed(3))].to(device)
    arguments = (boxes, scores, classes, iou_threshold)
    return Sides(
        lambda: partial(ops.batched_nms, *arguments),
        {"": lambda: partial(torchvision.ops.batched_nms, *arguments)},
        lambda: partial(reference.batched_nms, *arguments),
        size_of(boxes, scores, classes) + 8 * count,
    )


def assign(device: torch.device) -> Sides:
    """All anchors to 100 boxes of 16 to 400 pixels, with low-quality matches."""
    anchors, truth = torch.cat(grid_anchors(device)), random_boxes(100, 16, 400, device)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    arguments = (anchors, truth, 0.7, 0.3, 0.3, True)
    return Sides(
        lambda: partial(ops.assign_max_iou, *arguments),
        {"": lambda: lambda: matcher(torchvision.ops.box_iou(truth, anchors))},
        lambda: partial(reference.assign_max_iou, *arguments),
        size_of(anchors, truth) + len(anchors) * (8 + 4),
    )


def decode(device: torch.device) -> Sides:
    """1000 RoIs, 80 classes."""
    boxes = random_boxes(1000, 16, 400, device)
    deltas = torch.randn(1000, 4 * CLASSES, generator=torch.Generator().manual_seed(4)).to(device)
    coder = BoxCoder(tuple(1 / std for std in STDS))
    return Sides(
        lambda: partial(ops.decode_boxes, boxes, deltas, MEANS, STDS),
        {"": lambda: partial(coder.decode, deltas, [boxes])},
        lambda: partial(reference.decode_boxes, boxes, deltas, MEANS, STDS),
        size_of(boxes, deltas, deltas),
    )


def encode(device: torch.device) -> Sides:
    """All anchors, each with a box of its own."""
    anchors = torch.cat(grid_anchors(device))
    targets = random_boxes(len(anchors), 16, 400, device)
    coder = BoxCoder(tuple(1 / std for std in STDS))
    return Sides(
        lambda: partial(ops.encode_boxes, anchors, targets, MEANS, STDS),
        {"": lambda: partial(coder.encode, [targets], [anchors])},
        lambda: partial(reference.encode_boxes, anchors, targets, MEANS, STDS),
        3 * size_of(anchors),
    )


def box_iou(device: torch.device) -> Sides:
    a, b = random_boxes(2000, 16, 400, device), random_boxes(100, 16, 400, device, seed=1)
    return Sides(
        lambda: partial(ops.box_iou, a, b),
        {"": lambda: partial(torchvision.ops.box_iou, a, b)},
        lambda: partial(reference.box_iou, a, b),
        size_of(a, b) + 4 * len(a) * len(b),
    )


def giou(device: torch.device, count: int) -> Sides:
    """The sum of the losses and its gradient: what a training step asks for."""
    target = random_boxes(count, 16, 400, device)
    jitter = torch.randn(count, 4, generator=torch.Generator().manual_seed(5)).to(device)
    pred = (target + 4 * jitter).requires_grad_()

    def forward_backward(loss: Callable[[Tensor, Tensor], Tensor]) -> object:
        return torch.autograd.grad(loss(pred, target).sum(), pred)

    return Sides(
        lambda: partial(forward_backward, partial(ops.iou_loss, kind="giou")),
        {"": lambda: partial(forward_backward, torchvision.ops.generalized_box_iou_loss)},
        lambda: partial(forward_backward, partial(reference.iou_loss, kind="giou")),
        size_of(pred, target, pred) + 4 * count,
    )


# --- what the model's two stages end with -----------------------------------------------------------------------------


def proposals(device: torch.device) -> Sides:
    """From the RPN's maps to 1000 proposals, 1000 candidates per level. The anchors are given to both sides."""
    anchors, sizes = grid_anchors(device), [(HEIGHT, WIDTH)]
    logits, deltas = random_maps(3, STRIDES, device), random_maps(12, STRIDES, device)
    deltas = {layout: [0.2 * level for level in levels] for layout, levels in deltas.items()}
    limit = {"training": 1000, "testing": 1000}
    rpn = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, limit, limit, 0.7).eval()
    counts = [len(level) for level in anchors]

    def theirs(layout: str) -> object:
        flat_logits, flat_deltas = concat_box_prediction_layers(list(logits[layout]), list(deltas[layout]))
        boxes = rpn.box_coder.decode(flat_deltas, [torch.cat(anchors)]).view(1, -1, 4)
        return rpn.filter_proposals(boxes, flat_logits, sizes, counts)

    arguments = (logits["channels-last"], deltas["channels-last"], anchors, sizes, 1000, 1000, 0.7)
    survivors = sum(min(1000, count) for count in counts)
    return Sides(
        lambda: partial(ops.generate_proposals, *arguments),
        {name: lambda name=name: partial(theirs, name) for name in LAYOUTS},
        lambda: partial(reference.generate_proposals, *arguments),
        4 * sum(counts) + survivors * (16 + 16) + 1000 * 20,
    )


def select_detections(device: torch.device) -> Sides:
    """1000 RoIs, 80 classes, 100 detections; about 1800 scores pass 0.05. torchvision's background class is 0."""
    boxes = random_boxes(1000, 16, 400, device)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    generator = torch.Generator().manual_seed(6)
    logits = 1.5 * torch.randn(1000, CLASSES + 1, generator=generator)
    logits[:, -1] += 5
    logits = logits.to(device)
    deltas = (0.5 * torch.randn(1000, 4 * CLASSES, generator=generator)).to(device)
    heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100).eval()
    their_logits = torch.cat([logits[:, -1:], logits[:, :-1]], 1)
    their_deltas = torch.cat([deltas.new_zeros(1000, 4), deltas], 1)
    sizes, factors = torch.tensor([[HEIGHT, WIDTH]], device=device).float(), torch.ones(1, 2, device=device)
    arguments = (logits, deltas, rois, sizes, factors, 0.05, 0.5, 100, MEANS, STDS)
    return Sides(
        lambda: partial(ops.select_detections, *arguments),
        {"": lambda: partial(heads.postprocess_detections, their_logits, their_deltas, [boxes], [(HEIGHT, WIDTH)])},
        lambda: partial(reference.select_detections, *arguments),
        size_of(logits, rois) + 1800 * 16 + 100 * 28,
    )


def cases(device: torch.device) -> list[Case]:
    found = [
        Case("RoIAlign, sampling 0", partial(multilevel_roi_align, sampling_ratio=0), 15),
        Case("RoIAlign, sampling 2", partial(multilevel_roi_align, sampling_ratio=2), 15),
        Case("RoIAlign, sampling 0, NCHW", partial(multilevel_roi_align, sampling_ratio=0, layout="NCHW"), 6),
        Case("RoIAlign, sampling 2, NCHW", partial(multilevel_roi_align, sampling_ratio=2, layout="NCHW"), 6),
        Case("RoIAlign backward, sampling 0", partial(multilevel_roi_align, sampling_ratio=0, backward=True), 25),
        Case("RoIAlign backward, sampling 2", partial(multilevel_roi_align, sampling_ratio=2, backward=True), 25),
        Case("RoIPool, one level", roi_pool),
        Case("RoIPool backward, one level", partial(roi_pool, backward=True)),
        *[Case(f"NMS, {count} boxes", partial(nms, count=count), 25) for count in (1000, 2000, 6000, 12000)],
        *[
            Case(f"NMS, {count} boxes, the best 1000", partial(nms, count=count, max_output=1000), 90)
            for count in (6000, 12000)
        ],
        Case("batched NMS, 2000 boxes, 80 classes", partial(batched_nms, group_sizes=[25] * 80, iou_threshold=0.5), 15),
        Case(
            "batched NMS, 4819 boxes, 5 levels",
            partial(batched_nms, group_sizes=[1000] * 4 + [819], iou_threshold=0.7),
            15,
        ),
        Case("assignment, 268569 anchors, 100 boxes", assign, 80, 10),
        Case("proposals, 268569 anchors", proposals, 10),
        Case("detections, 1000 RoIs, 80 classes", select_detections),
        Case("decoding, 1000 boxes, 80 classes", decode),
        Case("encoding, 268569 boxes", encode),
        Case("IoU, 2000 x 100", box_iou),
        Case("GIoU loss and gradient, 512 boxes", partial(giou, count=512), 3),
        Case("GIoU loss and gradient, 8192 boxes", partial(giou, count=8192), 5),
    ]
    if device.type == "cuda":
        half = partial(multilevel_roi_align, sampling_ratio=2, dtype=torch.float16)
        found += [
            Case("RoIAlign, sampling 2, float16", half),
            Case("RoIAlign backward, sampling 2, float16", partial(half, backward=True)),
            Case(
                "RoIAlign backward, sampling 2, deterministic",
                partial(multilevel_roi_align, sampling_ratio=2, backward=True, deterministic=True),
            ),
        ]
    return found

"""The ops next to torchvision's on the same inputs, in the sizes of R-50-FPN at 1333 x 800: medians, taking turns.

    python benchmarks/ops.py [--device cpu] [--repeats 9]

torchvision has no multi-level RoIAlign op: its MultiScaleRoIAlign module is the peer, with the sampling and alignment
it has (2 samples per bin and side, aligned=False); ours runs with 2 samples too. Its assigner and box coder work on
lists and carry their own conversions, which are part of what a user of torchvision pays.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import MultiScaleRoIAlign

from fastrcnn import __version__, ops
from fastrcnn.benchmark import machine_name, time_alternately

WIDTH, HEIGHT, STRIDES = 1333, 800, [4, 8, 16, 32]
STDS = (0.1, 0.1, 0.2, 0.2)
Pair = tuple[Callable[[], object], Callable[[], object]]


def boxes(count: int, device: torch.device, seed: int = 0) -> Tensor:
    """Boxes [count, 4] of all sizes, in clusters as proposals are."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.rand(max(count // 20, 1), 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    which = torch.randint(len(middles), (count,), generator=generator)
    size = torch.exp(torch.rand(len(middles), 1, generator=generator) * 3.2 + 2.8)[which]
    sides = size * torch.exp(0.25 * torch.randn(count, 2, generator=generator))
    centre = middles[which] + 0.15 * size * torch.randn(count, 2, generator=generator)
    both = torch.cat([centre - sides / 2, centre + sides / 2], 1)
    limits = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return both.clamp(min=0).minimum(limits).to(device)


def roi_align_pair(device: torch.device, count: int, backward: bool) -> Pair:
    rois = boxes(count, device)
    sizes = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]
    levels = [torch.randn(1, 256, *size, device=device).to(memory_format=torch.channels_last) for size in sizes]
    plain = [level.contiguous() for level in levels]  # torchvision's op wants, and would make, this format
    for level in (*levels, *plain):
        level.requires_grad_(backward)
    indexed = torch.cat([rois.new_zeros(count, 1), rois], 1)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(k): level for k, level in enumerate(plain)}
    ours = lambda: ops.multilevel_roi_align(levels, indexed, STRIDES, 7, 2)  # noqa: E731
    theirs = lambda: pool(named, [rois], [(HEIGHT, WIDTH)])  # noqa: E731
    if not backward:
        return ours, theirs
    gradient = torch.randn(count, 256, 7, 7, device=device)
    pooled = [ours(), theirs()]
    given = [gradient.to(memory_format=torch.channels_last), gradient]
    return tuple(
        lambda out=out, inputs=inputs, grad=grad: torch.autograd.grad(out, inputs, grad, retain_graph=True)
        for out, inputs, grad in zip(pooled, (levels, plain), given, strict=True)
    )


def nms_pair(device: torch.device, count: int) -> Pair:
    candidates, scores = boxes(count, device), torch.rand(count, device=device)
    return lambda: ops.nms(candidates, scores, 0.7), lambda: torchvision.ops.nms(candidates, scores, 0.7)


def batched_nms_pair(device: torch.device, count: int) -> Pair:
    candidates, scores = boxes(count, device), torch.rand(count, device=device)
    classes = torch.randint(80, (count,), device=device)
    ours = lambda: ops.batched_nms(candidates, scores, classes, 0.5)  # noqa: E731
    return ours, lambda: torchvision.ops.batched_nms(candidates, scores, classes, 0.5)


def assign_pair(device: torch.device, count: int, objects: int) -> Pair:
    anchors, truth = boxes(count, device), boxes(objects, device, seed=1)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    ours = lambda: ops.assign_max_iou(anchors, truth, 0.7, 0.3, 0.3, True)  # noqa: E731
    return ours, lambda: matcher(torchvision.ops.box_iou(truth, anchors))


def decode_pair(device: torch.device, count: int, classes: int) -> Pair:
    rois, deltas = boxes(count, device), torch.randn(count, 4 * classes, device=device)
    coder = BoxCoder(tuple(1 / std for std in STDS))
    ours = lambda: ops.decode_boxes(rois, deltas, (0.0,) * 4, STDS)  # noqa: E731
    return ours, lambda: coder.decode(deltas, [rois])


def iou_pair(device: torch.device, count: int, objects: int) -> Pair:
    a, b = boxes(count, device), boxes(objects, device, seed=1)
    return lambda: ops.box_iou(a, b), lambda: torchvision.ops.box_iou(a, b)


CASES: dict[str, Callable[[torch.device], Pair]] = {
    "RoIAlign, 4 levels, 1000 RoIs": lambda device: roi_align_pair(device, 1000, backward=False),
    "RoIAlign backward, 4 levels, 512 RoIs": lambda device: roi_align_pair(device, 512, backward=True),
    "NMS, 1000 boxes": lambda device: nms_pair(device, 1000),
    "NMS, 5000 boxes": lambda device: nms_pair(device, 5000),
    "class-wise NMS, 5000 boxes, 80 classes": lambda device: batched_nms_pair(device, 5000),
    "assignment, 267069 anchors, 20 objects": lambda device: assign_pair(device, 267069, 20),
    "decoding, 1000 boxes, 80 classes": lambda device: decode_pair(device, 1000, 80),
    "IoU, 2000 x 100": lambda device: iou_pair(device, 2000, 100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    versions = f"fastrcnn {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{machine_name(device)}; {versions}; median of {arguments.repeats} runs each, in turn\n")
    print("| op | fastrcnn ms | torchvision ms | ratio |\n|---|---|---|---|")
    for name, make in CASES.items():
        ours, theirs = (1e3 * median(times) for times in time_alternately(make(device), arguments.repeats, device))
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()

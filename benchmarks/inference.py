"""Time and memory of detection, one picture at a time: fastrcnn as it is, optimized, compiled and, on a GPU, captured;
torchvision's Faster R-CNN of the same shape as a user runs it and with what a user can do by hand; and how far our ways
move the detections.

python benchmarks/inference.py faster_rcnn_r50_fpn_1x_coco --threads 2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastrcnn import ops
from fastrcnn.benchmark import (
    BFLOAT16,
    BY_HAND,
    CAPTURED,
    COMPILED,
    OPTIMIZED,
    OURS,
    THEIRS,
    Ours,
    benchmark,
    detector_of_row,
)
from fastrcnn.config import load_config
from fastrcnn.data.image import read_image
from fastrcnn.detector import Detector
from fastrcnn.device import choose_device
from fastrcnn.models import Detections

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "coffee.png"
SAME_PLACE = 0.5  # IoU of two boxes that are one detection


def differences(detector: Detector, image: Path, names: Sequence[str]) -> str:
    """A table: the detections of the detectors of these rows, each beside its counterpart of the eager one."""
    lines = [
        "| against eager float32 | matched | without counterpart | largest box difference, px | median px "
        "| largest score difference | median |",
        "|---|---|---|---|---|---|---|",
    ]
    threshold = detector.config.model.box_head.score_threshold
    eager = detector.detect(image, threshold)
    for name in names:
        found = detector_of_row(name, detector).detect(image, threshold)
        ours, theirs = matched(found, eager)
        boxes = (found.boxes[ours] - eager.boxes[theirs]).abs().amax(1)
        scores = (found.scores[ours] - eager.scores[theirs]).abs()
        alone = len(found) + len(eager) - 2 * len(ours)
        cells = [f"{boxes.max():.2g}", f"{boxes.median():.2g}", f"{scores.max():.2g}", f"{scores.median():.2g}"]
        lines.append(f"| {name} | {len(ours)} of {len(eager)} | {alone} | {' | '.join(cells)} |")
    return "\n".join(lines)


def matched(found: Detections, expected: Detections) -> tuple[Tensor, Tensor]:
    """Pairs of one class and IoU above SAME_PLACE, each detection in one pair at most, nearest boxes first."""
    ious = ops.box_iou(found.boxes, expected.boxes)
    ious[found.labels[:, None] != expected.labels] = 0
    pairs = []
    while ious.numel() and ious.max() > SAME_PLACE:
        i, j = divmod(int(ious.argmax()), ious.shape[1])
        pairs.append((i, j))
        ious[i], ious[:, j] = 0, 0
    ours, theirs = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    return ours, theirs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--image", type=Path, default=PHOTO, help="the picture (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each model (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    ways = [OPTIMIZED, BFLOAT16, COMPILED, *([CAPTURED] if device.type == "cuda" else [])]
    names = (OURS, *ways, THEIRS, BY_HAND)
    print(benchmark(arguments.config, arguments.image, str(device), arguments.repeats, names), flush=True)
    detector = Ours(OURS, load_config(arguments.config), read_image(arguments.image), str(device)).detector
    print(f"\n{differences(detector, arguments.image, ways)}")

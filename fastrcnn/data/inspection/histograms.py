"""How large, how long and how many the objects are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from fastrcnn.data.image import box_factors, resized_size
from fastrcnn.data.sample import Dataset

SIDES = [0, 4, 8, 16, 32, 64, 128, 256, 512]
RATIOS = [0, 1 / 8, 1 / 4, 1 / 2, 4 / 5, 5 / 4, 2, 4, 8]
COUNTS = [0, 1, 2, 3, 5, 9, 17, 33, 65, 101]
COLOURS = [(180, 120, 40), (60, 150, 240)]  # BGR: the first dataset blue, the second orange


@dataclass(frozen=True)
class Histogram:
    """Counts of one quantity in one or two datasets, in the same bins."""

    title: str
    bins: list[str]
    counts: dict[str, np.ndarray]  # name of a dataset -> int64 [bins]


def histograms(datasets: dict[str, Dataset], scale: Sequence[int]) -> list[Histogram]:
    """Box sides, aspect ratios and objects per image of datasets by name.

    Args:
        scale: [long, short] that images are resized to. Sides are those in the network's input, which anchors have to
            fit; crowds are left out, and boxes of images without a size.
    """
    sides, ratios, numbers = {}, {}, {}
    for name, dataset in datasets.items():
        boxes = [np.zeros((0, 2))]  # (width, height) in the network's input
        for sample in dataset.samples:
            if sample.width > 0:
                size = sample.height, sample.width
                kept = sample.boxes[~sample.crowd]
                boxes.append((kept[:, 2:] - kept[:, :2]) * box_factors(size, resized_size(*size, scale)))
        width, height = np.concatenate(boxes).T
        sides[name] = _count(np.sqrt(width * height), SIDES)
        ratios[name] = _count(height[width > 0] / width[width > 0], RATIOS)
        numbers[name] = _count(np.array([(~sample.crowd).sum() for sample in dataset.samples]), COUNTS)
    title = f"box side (root of the area) in pixels of the network's input, {max(scale)} x {min(scale)}"
    whole = [f"{low} - {high - 1}" for low, high in pairwise(COUNTS[3:])] + [f"{COUNTS[-1]} .."]
    return [
        Histogram(title, _labels(SIDES), sides),
        Histogram("height / width of boxes", _labels(["0", "1/8", "1/4", "1/2", "4/5", "5/4", "2", "4", "8"]), ratios),
        Histogram("objects per image", ["0", "1", "2", *whole], numbers),
    ]


def as_text(histogram: Histogram) -> str:
    """A line per bin: for each dataset its count, share and a bar."""
    lines = [f"{histogram.title}: {', '.join(histogram.counts)}"]
    width = max(map(len, histogram.bins))
    for index, label in enumerate(histogram.bins):
        cells = []
        for counts in histogram.counts.values():
            share = counts[index] / max(1, counts.sum())
            cells.append(f"{counts[index]:>8} {share:>6.1%} {'#' * round(share * 20):<20}")
        lines.append(f"  {label:>{width}} {' '.join(cells)}".rstrip())
    return "\n".join(lines)


def as_picture(all_histograms: Sequence[Histogram]) -> np.ndarray:
    """Bars of each bin's share, one panel per histogram; uint8 BGR."""
    return np.concatenate([_panel(histogram) for histogram in all_histograms])


def _panel(histogram: Histogram, width: int = 900, height: int = 260) -> np.ndarray:
    canvas = np.full((height, width, 3), 255, np.uint8)
    floor, ceiling, left = height - 40, 50, 20
    step = (width - 2 * left) // len(histogram.bins)
    bar = (step - 8) // len(histogram.counts)
    shares = {name: counts / max(1, counts.sum()) for name, counts in histogram.counts.items()}
    largest = max(max(share.max() for share in shares.values()), 1e-9)
    _write(canvas, histogram.title, (left, 20))
    for i, (name, share) in enumerate(shares.items()):
        _write(canvas, name, (left + 150 * i, 40), COLOURS[i])
        for k, value in enumerate(share):
            x, top = left + k * step + i * bar, round(floor - value / largest * (floor - ceiling))
            if value > 0:
                cv2.rectangle(canvas, (x, min(top, floor - 1)), (x + bar - 2, floor), COLOURS[i], cv2.FILLED)
                _write(canvas, f"{value:.0%}" if value >= 0.005 else "<1%", (x, top - 3), scale=0.33)
    for k, label in enumerate(histogram.bins):
        _write(canvas, label, (left + k * step, floor + 18))
    return canvas


def _write(
    canvas: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int] = (0, 0, 0), scale: float = 0.45
) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _count(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """How many values are in [edge, next edge), the last bin without an end."""
    return np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))


def _labels(edges: Sequence[object]) -> list[str]:
    """Such as "4 - 8", "512 .."."""
    return [*(f"{low} - {high}" for low, high in pairwise(edges)), f"{edges[-1]} .."]

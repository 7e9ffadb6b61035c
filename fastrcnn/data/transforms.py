"""A Sample -> what the network sees of it: decode, resize, flip, normalise (padding comes with batching)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fastrcnn.config import DataConfig, TrainDataConfig
from fastrcnn.data.cache import read_resized
from fastrcnn.data.image import normalise
from fastrcnn.data.sample import Sample


@dataclass
class Item:
    """One image, ready for a batch. Boxes are in pixels of the resized image."""

    image: Tensor  # float32 [3, h, w]
    scale_factor: tuple[float, float]  # (width, height): resized / original
    boxes: Tensor  # float32 [G, 4] xyxy, inside the image, both sides above 0
    labels: Tensor  # int64 [G]
    image_id: int
    mismatch: str | None  # the complaint, if the file has another size than its annotation says


def test_item(sample: Sample, data: DataConfig) -> Item:
    """Decodes, resizes to data.test.scale, normalises. No targets: boxes and labels are empty."""
    resized, factor, size = read_resized(sample.path, data.test.scale, data)
    no_boxes, no_labels = torch.from_numpy(np.zeros((0, 4), np.float32)), torch.from_numpy(np.zeros(0, np.int64))
    return Item(normalise(resized, data.image), factor, no_boxes, no_labels, sample.image_id, mismatch(sample, size))


def train_item(sample: Sample, data: DataConfig, random: np.random.Generator) -> Item:
    """As test_item, with a random scale and flip, and the boxes that follow them.

    Boxes of crowds are left out; the others are clipped to the image, and those of which nothing is left (possible only
    if the file has another size than annotated, see training_dataset) are left out too.
    """
    resized, factor, size = read_resized(sample.path, random_scale(data.train, random), data)
    height, width = resized.shape[:2]
    boxes = sample.boxes.astype(np.float32) * np.array(factor * 2, np.float32)
    if random.random() < data.train.flip:
        resized = cv2.flip(resized, 1)
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & ~sample.crowd
    targets = torch.from_numpy(boxes[kept]), torch.from_numpy(sample.labels[kept])
    return Item(normalise(resized, data.image), factor, *targets, sample.image_id, mismatch(sample, size))


def check_scales(data: TrainDataConfig) -> None:
    """ValueError unless scales and scale_mode belong together."""
    count = len(data.scales)
    modes = {"fixed": (count == 1, "one"), "value": (count >= 1, "at least one"), "range": (count == 2, "two")}
    if data.scale_mode not in modes:
        raise ValueError(f"data.train.scale_mode must be one of {', '.join(modes)}, got {data.scale_mode!r}")
    fits, expected = modes[data.scale_mode]
    if not fits:
        raise ValueError(
            f"data.train.scales must have {expected} [long, short] with scale_mode {data.scale_mode}, got {data.scales}"
        )
    for scale in data.scales:
        check_scale(scale, "each of data.train.scales")


def check_scale(scale: Sequence[int], what: str) -> None:
    """ValueError unless scale is two positive numbers."""
    if len(scale) != 2 or min(scale) < 1:
        raise ValueError(f"{what} must be [long side, short side] in pixels, got {list(scale)}")


def random_scale(data: TrainDataConfig, random: np.random.Generator) -> Sequence[int]:
    """fixed: the scale. value: one of the scales. range: long and short side between those of the two, inclusive."""
    if data.scale_mode == "range":
        first, second = data.scales
        bounds = [sorted((side(first), side(second))) for side in (max, min)]
        return [int(random.integers(low, high, endpoint=True)) for low, high in bounds]
    return data.scales[int(random.integers(len(data.scales)))]


def mismatch(sample: Sample, size: tuple[int, int]) -> str | None:
    """The complaint, if the (height, width) of the file is not what its annotation says."""
    height, width = size
    if (width, height) == (sample.width, sample.height):
        return None
    complaint = f"{sample.path} is {width} x {height} pixels, its annotation says {sample.width} x {sample.height}"
    if (height, width) == (sample.width, sample.height):
        complaint += " (exchanged: was it annotated before its EXIF orientation was applied?)"
    return complaint

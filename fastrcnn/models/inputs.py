"""Checks of what callers hand to the model: every message says what was expected and what came."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor


class Target(TypedDict):
    """The objects of one image.

    boxes: float32 [G, 4], xyxy in pixels of the network input.   labels: int64 [G], 0 .. C - 1.
    """

    boxes: Tensor
    labels: Tensor


def check_images(images: Tensor) -> None:
    """Raises unless images is a floating-point tensor [N, 3, H, W] that is not empty."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, 3, H, W], got {type(images).__name__}")
    if images.dim() != 4 or images.size(1) != 3 or 0 in images.shape:
        raise ValueError(f"images must have shape [N, 3, H, W] with no side 0, got {list(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be normalised floating-point pixels, got {images.dtype}")


def check_sizes(images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
    """Raises unless image_sizes holds one (height, width) per image, within the padded batch."""
    if len(image_sizes) != len(images):
        raise ValueError(f"image_sizes must hold one (height, width) per image, {len(images)}, got {len(image_sizes)}")
    height, width = images.shape[-2:]
    for i, size in enumerate(image_sizes):
        if len(size) != 2 or not (0 < size[0] <= height and 0 < size[1] <= width):
            raise ValueError(
                f"image_sizes[{i}] must be the (height, width) before padding, at most ({height}, {width}), got {size}"
            )


def check_factors(images: Tensor, scale_factors: Sequence[tuple[float, float]]) -> None:
    """Raises unless scale_factors holds one positive (width factor, height factor) per image."""
    if len(scale_factors) != len(images):
        raise ValueError(
            f"scale_factors must hold one (width factor, height factor) per image, {len(images)}, "
            f"got {len(scale_factors)}"
        )
    for i, factors in enumerate(scale_factors):
        if len(factors) != 2 or not (factors[0] > 0 and factors[1] > 0):
            raise ValueError(f"scale_factors[{i}] must be two positive numbers, got {factors}")


def check_targets(images: Tensor, targets: Sequence[Target], num_classes: int) -> None:
    """Raises unless there is one target per image, with finite boxes of positive size and labels below num_classes."""
    if len(targets) != len(images):
        raise ValueError(f"targets must hold one dict per image, {len(images)}, got {len(targets)}")
    for i, target in enumerate(targets):
        if not isinstance(target, dict) or not {"boxes", "labels"} <= target.keys():
            raise TypeError(f'targets[{i}] must be a dict with "boxes" and "labels", got {target!r}')
        boxes, labels = target["boxes"], target["labels"]
        if not (isinstance(boxes, Tensor) and boxes.dim() == 2 and boxes.size(1) == 4):
            raise ValueError(f'targets[{i}]["boxes"] must be a tensor [G, 4], got {_describe(boxes)}')
        if not (isinstance(labels, Tensor) and labels.shape == boxes.shape[:1]):
            raise ValueError(f'targets[{i}]["labels"] must be a tensor [{len(boxes)}], got {_describe(labels)}')
        if boxes.dtype != torch.float32 or labels.dtype != torch.int64:
            raise TypeError(
                f"targets[{i}] must hold float32 boxes and int64 labels, got {boxes.dtype} and {labels.dtype}"
            )
        if boxes.device != images.device or labels.device != images.device:
            raise ValueError(
                f"targets[{i}] must be on {images.device} like the images, got {boxes.device}, {labels.device}"
            )
        sound = (boxes[:, :2] < boxes[:, 2:]).all(1) & boxes.isfinite().all(1)  # NaN compares false
        if not sound.all():
            raise ValueError(
                f'targets[{i}]["boxes"] must be finite with x1 < x2 and y1 < y2, got {boxes[~sound][0].tolist()}'
            )
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(
                f'targets[{i}]["labels"] must be between 0 and {num_classes - 1} '
                f"({num_classes} classes), got {wrong[0].item()}"
            )


def _describe(value: object) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

"""Anchors: the boxes that the RPN's deltas are relative to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_levels, check_number, number_list, whole_numbers
from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def base_anchors(size: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The anchors of one cell, around the origin (Ren et al. 2015, Faster R-CNN, section 3.1.1).

    Args:
        size: side in pixels of the anchor of scale 1 and ratio 1: the level's stride.
        scales: factors on the side. ratios: height / width; the area does not depend on it.
    Returns:
        float32 [A, 4] x1, y1, x2, y2 in pixels, on the CPU, not rounded; A = len(ratios) * len(scales), ratio-major.
    Raises:
        TypeError: not numbers. RuntimeError: a size, scale or ratio that is not positive, or infinite.
    """
    check_number(size=size)
    return torch.ops.fastrcnn.base_anchors(
        float(size),
        [float(scale) for scale in number_list("scales", scales)],
        [float(ratio) for ratio in number_list("ratios", ratios)],
    )


def grid_anchors(
    feature_sizes: Sequence[tuple[int, int]], strides: Sequence[float], base_anchors: Sequence[Tensor]
) -> list[Tensor]:
    """The anchors of every cell of every level.

    Args:
        feature_sizes: (height, width) in cells, one per level. strides: pixels per cell, one per level.
        base_anchors: one [A, 4] tensor per level; it decides type and device of the result.
    Returns:
        One [height * width * A, 4] tensor per level, in the order y, x, anchor. The anchors of cell (y, x) are centred
        on (x * stride, y * stride). A level without cells gives an empty tensor. Not differentiable.
    Raises:
        TypeError: not pairs of whole numbers, not numbers, not tensors. ValueError: another number of sizes, strides
            and base anchors. RuntimeError: wrong shape or type, a stride that is not positive, or infinite.
    """
    check_levels(base_anchors=base_anchors)
    strides = number_list("strides", strides)
    if not isinstance(feature_sizes, (list, tuple)):
        raise TypeError(f"feature_sizes: expected a list of (height, width), got {type(feature_sizes).__name__}")
    sizes = [
        whole_numbers(f"feature_sizes[{level}]", size, "whole numbers (height, width)")
        for level, size in enumerate(feature_sizes)
    ]
    if not len(feature_sizes) == len(strides) == len(base_anchors):
        raise ValueError(
            "feature_sizes, strides and base_anchors: expected one of each per level, got "
            f"{len(feature_sizes)}, {len(strides)} and {len(base_anchors)}"
        )
    return [
        torch.ops.fastrcnn.grid_anchors(base.detach(), height, width, float(stride))
        for (height, width), stride, base in zip(sizes, strides, base_anchors, strict=True)
    ]


@torch.library.register_fake("fastrcnn::base_anchors")
def _(size, scales, ratios):
    return torch.empty((len(scales) * len(ratios), 4), dtype=torch.float32, device="cpu")


@torch.library.register_fake("fastrcnn::grid_anchors")
def _(base_anchors, height, width, stride):
    return base_anchors.new_empty((height * width * base_anchors.shape[0], 4))

"""FPN: [C2, C3, C4, C5] -> [P2, ..., P6], every level with the same number of channels.

"Feature Pyramid Networks for Object Detection" (Lin et al., 2017): no normalisation and no activation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn.models.activation_checkpointing import without_keeping
from fastrcnn.models.convolution import Conv3x3


class FPN(nn.Module):
    """Feature pyramid.

    Args:
        in_channels: of the backbone's levels, finest first.
        channels: of every output level.
        num_levels: output levels; each one beyond len(in_channels) is its predecessor subsampled by two.
    Raises:
        ValueError: fewer output levels than inputs.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, num_levels: int = 5) -> None:
        super().__init__()
        if num_levels < len(in_channels):
            raise ValueError(f"fpn.num_levels must be at least {len(in_channels)}, the backbone's, got {num_levels}")
        self.channels, self.num_levels = channels, num_levels
        self.lateral = nn.ModuleList(nn.Conv2d(inner, channels, 1) for inner in in_channels)
        self.output = nn.ModuleList(Conv3x3(channels, channels) for _ in in_channels)
        for convolution in (*self.lateral, *self.output):
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels [N, in_channels[i], h_i, w_i], finest first -> num_levels maps [N, channels, h, w].

        Raises:
            ValueError: a level's sides are not half of the finer one's, rounded up.
        """
        merged: list[Tensor] = []  # coarsest first, up to the second finest
        for lateral, feature in zip(self.lateral[:0:-1], features[:0:-1], strict=True):
            merged.append(_add_upsampled(lateral(feature), *merged[-1:]))
        # Three quarters of all cells are in the finest level.
        finest = without_keeping(
            partial(self.lateral[0], features[0]), lambda level: _add_upsampled(level, *merged[-1:]), self.output[0]
        )
        outputs = [finest, *(output(level) for output, level in zip(self.output[1:], merged[::-1], strict=True))]
        while len(outputs) < self.num_levels:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs


def _add_upsampled(level: Tensor, coarser: Tensor | None = None) -> Tensor:
    """Adds to each cell of `level`, in place, the one of the next coarser level that it is a part of."""
    if coarser is None:
        return level
    expected = [-(-side // 2) for side in level.shape[2:]]
    if list(coarser.shape[2:]) != expected:
        raise ValueError(
            f"FPN: expected above a level of {list(level.shape[2:])} cells one of {expected}, half the sides rounded "
            f"up, got {list(coarser.shape[2:])}"
        )
    if torch.compiler.is_compiling():
        return level + F.interpolate(coarser, size=level.shape[2:], mode="nearest")
    return _AddUpsampled.apply(level, coarser)


class _AddUpsampled(torch.autograd.Function):
    """Without an upsampled map, which would be the largest of the pyramid once more."""

    @staticmethod
    def forward(ctx: Any, level: Tensor, coarser: Tensor) -> Tensor:
        ctx.mark_dirty(level)
        for quarter in _quarters(level):
            quarter += coarser[:, :, : quarter.shape[2], : quarter.shape[3]]
        return level

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = _quarters(grad)
        grad_coarser = first.clone(memory_format=torch.channels_last)
        for quarter in others:
            grad_coarser[:, :, : quarter.shape[2], : quarter.shape[3]] += quarter
        return grad, grad_coarser


def _quarters(level: Tensor) -> list[Tensor]:
    """The cells (y, x) with y and x even; then those with x odd, with y odd, with both odd."""
    return [level[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)]

"""The 3x3 surroundings of single cells of a feature map: all that a 3x3 convolution's output there depends on.

At most a few hundred anchors per image enter the RPN's losses, out of some 100,000 cells. So training computes the
RPN's outputs with a graph at their cells only, by small matrix products, and the dense ones without: no map of the RPN
is kept for the backward pass, which visits no other cells.
"""

from typing import Any

import torch
from torch import Tensor


def surroundings(feature: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The cells around (y, x), zeros outside the map.

    Args:
        feature: [N, C, h, w], differentiable; its memory may have any layout.
        image, y, x: int64 [K].
    Returns:
        [K, 9C] of the feature's type: row, column, channel.
    """
    return _Surroundings.apply(feature, image, y, x)


class _Surroundings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        images, channels, height, width = feature.shape
        shift = torch.arange(-1, 2, device=feature.device)
        ys, xs = torch.broadcast_tensors(y[:, None, None] + shift[:, None], x[:, None, None] + shift)
        inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
        ys, xs, of = ys.clamp(0, height - 1), xs.clamp(0, width - 1), image[:, None, None].expand_as(ys)
        ctx.save_for_backward((of * height + ys) * width + xs, inside)
        ctx.shape = images, height, width, channels
        return (feature.permute(0, 2, 3, 1)[of, ys, xs] * inside[..., None]).flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cells, inside = ctx.saved_tensors
        images, height, width, channels = ctx.shape
        maps = torch.zeros(images * height * width, channels, dtype=torch.float32, device=grad.device)
        maps.index_add_(0, cells[inside], grad.unflatten(1, (3, 3, channels))[inside].float())
        return maps.view(images, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype), None, None, None

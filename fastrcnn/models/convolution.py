"""Convolutions of training on the CPU: the gradients of autograd's, with less work and less that is kept.

A half of Faster R-CNN's multiplications are in 3x3 convolutions of stride 1. They run by Winograd's method, forwards
and for the gradient of the input, with a quarter of the multiplications; the gradient of the weights stays PyTorch's.
Weights that batch norm scales are scaled once more in the backward pass, rather than kept: they are as many as the
model's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn import ops

_LEAST_CELLS = 4000  # N * h * w: below, transforming the weights costs more than it saves
_LEAST_CHANNELS = 32

Geometry = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self.weight, self.bias, padding=self.padding, training=self.training)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    training: bool = False,
) -> Tensor:
    """F.conv2d with weights times scale, equal up to rounding (ops.conv3x3 says how much).

    Args:
        x: [N, channels, h, w]. weight: [out_channels, channels / groups, kh, kw]. bias: [out_channels], or None.
        scale: [out_channels], or None for 1.
        stride, padding, dilation, groups: as of F.conv2d; padding in cells.
        training: whether this is a training step though gradients are not recorded; if neither, it is F.conv2d itself.
    """
    geometry = (list(stride), [int(side) for side in padding], list(dilation), groups)
    winograd = (training or torch.is_grad_enabled()) and _suits_winograd(x, weight, geometry)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, scale))
    if learns and (winograd or (scale is not None and not torch.is_autocast_enabled(x.device.type))):
        return _Convolution.apply(x, weight, bias, scale, geometry, winograd)
    return _convolve(x, _scaled(weight, scale), bias, geometry, winograd)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        geometry: Geometry,
        winograd: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry, ctx.winograd = geometry, winograd
        return _convolve(x, _scaled(weight, scale), bias, geometry, winograd)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_scale, *_ = ctx.needs_input_grad
        scaled = _scaled(weight, scale)
        wanted = [needs_x and not ctx.winograd, needs_weight or needs_scale, False]
        stride, padding, dilation, groups = ctx.geometry
        grad_x, grad_scaled, _ = torch.ops.aten.convolution_backward(
            grad, x, scaled, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        del x  # which may have been made for this pass only
        if needs_x and ctx.winograd:  # convolution with the weights turned by half a turn, in and out exchanged
            grad_x = ops.conv3x3(grad, scaled.flip(2, 3).transpose(0, 1), None)
        return (
            grad_x,
            _scaled(grad_scaled, scale) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            (grad_scaled * weight).sum((1, 2, 3)) if needs_scale else None,
            None,
            None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, winograd: bool) -> Tensor:
    return ops.conv3x3(x, weight, bias) if winograd else F.conv2d(x, weight, bias, *geometry)


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else weight * scale.view(-1, 1, 1, 1)


def _suits_winograd(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and (tuple(weight.shape[2:]), geometry) == ((3, 3), ([1, 1], [1, 1], [1, 1], 1))
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and x.shape[0] * x.shape[2] * x.shape[3] >= _LEAST_CELLS
    )

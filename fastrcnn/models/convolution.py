"""The 3x3 convolution of stride 1 in training on the CPU: Winograd's method forwards and for the gradient of the input.

A half of Faster R-CNN's multiplications are in such convolutions of FPN and RPN head, and both passes need a quarter of
them. The gradient of the weights stays PyTorch's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn import ops

_LEAST_CELLS = 4000  # N * h * w: below, transforming the weights costs more than it saves
_LEAST_CHANNELS = 32


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv3x3(x, self.weight, self.bias)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1), equal up to rounding (ops.conv3x3 says how much)."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and _pays(x, weight):
        return _Conv3x3.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def convolve3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The forward pass of a training step, without gradients."""
    if _pays(x, weight):
        return ops.conv3x3(x, ops.winograd_weights(weight), bias, weight.shape[0])
    return F.conv2d(x, weight, bias, padding=1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and x.shape[0] * x.shape[2] * x.shape[3] >= _LEAST_CELLS
    )


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve3x3(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = None
        if needs_x:  # the convolution with the weights turned by half a turn, and the channels' parts exchanged
            turned = weight.flip(2, 3).transpose(0, 1)
            grad_x = ops.conv3x3(grad, ops.winograd_weights(turned), None, weight.shape[1])
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, needs_weight, False]
        )
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None

"""The RPN's convolutions on one level in training on the CPU, with gradients computed only where there are any.

At most a few hundred anchors per image enter the losses, out of some 100,000 cells. So the backward pass gathers the
3x3 surroundings of those cells, computes the hidden layer there once more, and multiplies small matrices, instead of
three dense convolutions; the hidden maps, as large as the pyramid itself, are not kept. Exact for any loss: a cell
whose incoming gradient is zero adds nothing to any gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrcnn.models.convolution import convolve3x3

_CHUNK = 4096  # cells at once: bounds the memory if a loss reaches every cell


class RPNLevel(torch.autograd.Function):
    """feature [N, C, h, w]; weight and bias of the 3x3, objectness and deltas convolutions -> objectness, deltas."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, objectness_weight, objectness_bias, deltas_weight, deltas_bias = layers
        ctx.save_for_backward(feature, *layers)
        hidden = F.relu(convolve3x3(feature, weight, bias), inplace=True)
        return F.conv2d(hidden, objectness_weight, objectness_bias), F.conv2d(hidden, deltas_weight, deltas_bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_objectness: Tensor, grad_deltas: Tensor) -> tuple[Tensor, ...]:
        feature, *layers = ctx.saved_tensors
        weight, bias, *heads = (layer.float() for layer in layers)
        head = torch.cat([heads[0], heads[2]]).flatten(1)  # [5A, hidden]
        taps = weight.permute(0, 2, 3, 1).flatten(1)  # [hidden, 9 C]
        grad = torch.cat([grad_objectness, grad_deltas], 1)
        images, _, height, width = feature.shape
        maps = feature.permute(0, 2, 3, 1)  # a view in channels-last memory
        grad_maps = torch.zeros(images * height * width, feature.shape[1], device=feature.device)
        grad_taps, grad_head = torch.zeros_like(taps), torch.zeros_like(head)
        grad_bias, grad_head_bias = torch.zeros_like(bias), head.new_zeros(len(head))
        shift = torch.arange(-1, 2, device=feature.device)

        for cells in (grad != 0).any(1).nonzero().split(_CHUNK):
            image, y, x = cells.unbind(1)
            ys = (y[:, None, None] + shift[:, None]).expand(-1, 3, 3)
            xs = (x[:, None, None] + shift).expand(-1, 3, 3)
            inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
            ys, xs, of = ys.clamp(0, height - 1), xs.clamp(0, width - 1), image[:, None, None].expand(-1, 3, 3)
            around = (maps[of, ys, xs].float() * inside[..., None]).flatten(1)  # [K, 9 C]
            hidden = F.relu(F.linear(around, taps, bias))
            g = grad[image, :, y, x].float()  # [K, 5A]
            grad_head += g.T @ hidden
            grad_head_bias += g.sum(0)
            g = (g @ head) * (hidden > 0)
            grad_taps += g.T @ around
            grad_bias += g.sum(0)
            g = (g @ taps).view(len(cells), 9, feature.shape[1])[inside.flatten(1)]
            grad_maps.index_add_(0, ((of * height + ys) * width + xs)[inside], g)

        anchors = len(heads[0])
        grads = (
            grad_maps.view(images, height, width, -1).permute(0, 3, 1, 2),
            grad_taps.view(len(taps), 3, 3, -1).permute(0, 3, 1, 2),
            grad_bias,
            grad_head[:anchors, :, None, None],
            grad_head_bias[:anchors],
            grad_head[anchors:, :, None, None],
            grad_head_bias[anchors:],
        )
        return tuple(g.to(t) for g, t in zip(grads, (feature, *layers), strict=True))

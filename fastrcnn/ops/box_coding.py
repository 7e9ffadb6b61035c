"""Box coding: boxes as deltas (dx, dy, dw, dh) relative to other boxes (Girshick et al. 2014, R-CNN, appendix C)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_tensors, number_list
from fastrcnn.ops._library import forbid_double_backward


def encode_boxes(boxes: Tensor, targets: Tensor, means: Sequence[float], stds: Sequence[float]) -> Tensor:
    """The deltas that take boxes to targets: centre shift in units of the box size, logarithm of the size ratio.

    Args:
        boxes, targets: [n, 4] x1, y1, x2, y2 in pixels, both float32 or both float64.
        means, stds: 4 numbers each; the result is (deltas - means) / stds.
    Returns:
        [n, 4]. A box without width or height gives infinite or NaN entries. Not differentiable: deltas are targets.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device.
    """
    check_tensors(boxes=boxes, targets=targets)
    return torch.ops.fastrcnn.encode_boxes(
        boxes.detach(), targets.detach(), number_list("means", means), number_list("stds", stds)
    )


def decode_boxes(
    boxes: Tensor,
    deltas: Tensor,
    means: Sequence[float],
    stds: Sequence[float],
    max_shape: tuple[float, float] | Tensor | None = None,
) -> Tensor:
    """The inverse of encode_boxes, for C sets of deltas per box.

    |dw| and |dh| (after means and stds) are clamped to |ln(16 / 1000)| = 4.135, so that no size overflows.

    Args:
        boxes: [n, 4] in pixels, float32 or float64.
        deltas: [n, 4 * C] of the same type, class-major: c * 4 + (dx, dy, dw, dh).
        means, stds: 4 numbers each.
        max_shape: the (height, width) that boxes are clipped to: 0 <= x <= width; a tensor [2], or [n, 2] for one per
            box; None: no clipping.
    Returns:
        [n, 4 * C] in pixels. NaN deltas give NaN boxes. n = 0 gives an empty tensor.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device.

    Differentiable with respect to the deltas, not the boxes or max_shape. Where a value is clamped or clipped the
    gradient is zero; exactly on the boundary it passes.
    """
    check_tensors(boxes=boxes, deltas=deltas)
    shape = None
    if max_shape is not None:
        if not isinstance(max_shape, Tensor):
            max_shape = boxes.new_tensor(number_list("max_shape", max_shape))
        shape = max_shape.detach().to(boxes.device, boxes.dtype)
        shape = shape[None] if shape.dim() == 1 else shape
    means, stds = number_list("means", means), number_list("stds", stds)
    return torch.ops.fastrcnn.decode_boxes(boxes.detach(), deltas, means, stds, shape)


@torch.library.register_fake("fastrcnn::encode_boxes")
def _(boxes, targets, means, stds):
    return boxes.new_empty(boxes.shape)


@torch.library.register_fake("fastrcnn::decode_boxes")
def _(boxes, deltas, means, stds, max_shape):
    return deltas.new_empty(deltas.shape)


@torch.library.register_fake("fastrcnn::_decode_boxes_backward")
def _(grad, boxes, deltas, means, stds, max_shape):
    return deltas.new_empty(deltas.shape)


def _setup_context(ctx, inputs, output) -> None:
    boxes, deltas, ctx.means, ctx.stds, max_shape = inputs
    ctx.save_for_backward(boxes, deltas, max_shape)


def _backward(ctx, grad):
    boxes, deltas, max_shape = ctx.saved_tensors
    grad_deltas = torch.ops.fastrcnn._decode_boxes_backward(grad, boxes, deltas, ctx.means, ctx.stds, max_shape)
    return None, grad_deltas, None, None, None


torch.library.register_autograd("fastrcnn::decode_boxes", _backward, setup_context=_setup_context)
forbid_double_backward("fastrcnn::_decode_boxes_backward")

for _device in ("cpu", "cuda"):  # box coordinates need more digits than 16-bit types have
    for _name in ("encode_boxes", "decode_boxes"):
        torch.library.register_autocast(f"fastrcnn::{_name}", _device, torch.float32)

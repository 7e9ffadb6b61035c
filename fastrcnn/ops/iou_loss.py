"""Losses on the overlap of a predicted and a target box: value and gradient in one pass."""

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_tensors
from fastrcnn.ops._library import forbid_double_backward


def iou_loss(
    pred: Tensor,
    target: Tensor,
    kind: str = "iou",
    mode: str = "log",
    eps: float | None = None,
    beta: float = 0.2,
) -> Tensor:
    """The loss of each predicted box against its target; definitions and epsilons are those of mmdetection 2.28.

    Args:
        pred, target: [n, 4] x1, y1, x2, y2 in pixels, both float32 or both float64. Under autocast 16-bit boxes are
            taken as float32; otherwise they are an error, since they cannot tell neighbouring pixels apart.
        kind: "iou" (Yu et al. 2016, UnitBox), "giou" (Rezatofighi et al. 2019), "diou" or "ciou" (Zheng et al. 2020)
            or "bounded_iou" (Tychsen-Smith and Petersson 2018).
        mode: of "iou" only: "log" -ln IoU, "linear" 1 - IoU, "square" 1 - IoU^2.
        eps: keeps quotients and the logarithm finite (IoU counts as at least eps); None: 1e-6, "bounded_iou" 1e-3.
        beta: of "bounded_iou" only: where its smooth L1 turns from square to linear.
    Returns:
        For boxes that are not reversed (a reversed one can give any finite number), eps and beta of at most 1:
        [n]: "log" from 0 to -ln eps, "linear" and "square" from 0 to 1, "giou", "diou" and "ciou" from 0 to 2.
        "bounded_iou": [n, 4], the terms of centre x, centre y, width and height, each from 0 to 1 - beta / 2.
        n = 0 gives an empty tensor.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device, unknown kind or mode, eps or beta not positive, or
            infinite, in the boxes' type.

    Differentiable with respect to pred, once; target counts as a constant, and so does the weight alpha of "ciou".
    Loss and gradient are finite also where boxes are equal, empty, reversed (x2 < x1) or far apart, as long as areas
    are (float32: coordinates below 1e19); a box with a NaN
    gives a NaN loss ("bounded_iou": in the terms of that axis) and does not touch other boxes. Where two coordinates
    are equal, each has half of the slope of their maximum or minimum, as in PyTorch.
    """
    if eps is None:
        eps = 1e-3 if kind == "bounded_iou" else 1e-6
    check_tensors(pred=pred, target=target)
    if target.requires_grad:
        target = target.detach()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(pred.device.type) or not pred.requires_grad:
        return torch.ops.fastrcnn.iou_loss.default(pred, target, kind, mode, eps, beta)[0]
    return _EagerLoss.apply(pred, target, kind, mode, eps, beta)[0]


@torch.library.register_fake("fastrcnn::_iou_loss")
@torch.library.register_fake("fastrcnn::iou_loss")
def _(pred, target, kind, mode, eps, beta):
    shape = pred.shape if kind == "bounded_iou" else pred.shape[:1]
    return pred.new_empty(shape), pred.new_empty(pred.shape)


@torch.library.register_fake("fastrcnn::_iou_loss_backward")
def _(grad, derivative):
    return derivative.new_empty(derivative.shape)


def _setup_context(ctx, inputs, output) -> None:
    # The derivative is an output that depends on pred, so that differentiating it again is noticed.
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 6
    (derivative,) = ctx.saved_tensors
    return torch.ops.fastrcnn._iou_loss_backward.default(grad, derivative), None, None, None, None, None


class _EagerLoss(torch.autograd.Function):
    """The same without the layers of torch.library, which take longer than the work of a thousand boxes."""

    @staticmethod
    def forward(ctx, *inputs):
        output = torch.ops.fastrcnn._iou_loss.default(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


torch.library.register_autograd("fastrcnn::iou_loss", _backward, setup_context=_setup_context)
forbid_double_backward("fastrcnn::_iou_loss_backward")

for _device in ("cpu", "cuda"):  # box coordinates need more digits than 16-bit types have
    torch.library.register_autocast("fastrcnn::iou_loss", _device, torch.float32)

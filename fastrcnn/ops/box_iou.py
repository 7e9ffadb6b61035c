"""Intersection over union of every pair of boxes."""

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_tensors
from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of a with every box of b: inter / max(union, 1e-6).

    Args:
        a: [n, 4], b: [m, 4]: x1, y1, x2, y2, both float32 or both float64.
    Returns:
        [n, m] in [0, 1] of the same type; 0 for two boxes without area, where a box has NaN, and where the sum of both
        areas is beyond the type (float32: 3.4e38, squares of side 1.3e19). Not differentiable.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device.
    """
    check_tensors(a=a, b=b)
    return torch.ops.fastrcnn.box_iou(a.detach(), b.detach())


@torch.library.register_fake("fastrcnn::box_iou")
def _(a, b):
    return a.new_empty((a.shape[0], b.shape[0]))

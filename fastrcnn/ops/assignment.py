"""Which object each anchor or proposal learns, by IoU."""

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_tensors
from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def assign_max_iou(
    boxes: Tensor,
    gt_boxes: Tensor,
    pos_iou: float,
    neg_iou: float,
    min_pos_iou: float,
    match_low_quality: bool,
) -> tuple[Tensor, Tensor]:
    """Assigns each box to the object that it overlaps most (Ren et al. 2015, Faster R-CNN, section 3.1.2).

    With m the box's largest IoU (as in box_iou): m >= pos_iou is positive, for the first object that reaches m;
    m < neg_iou is negative; between the two the box is ignored. With match_low_quality, each object whose own largest
    IoU reaches min_pos_iou also gets every box that has exactly this IoU with it; later objects overwrite earlier ones.

    Args:
        boxes: [n, 4], gt_boxes: [G, 4]: x1, y1, x2, y2 in pixels, both float32 or both float64.
        pos_iou, neg_iou, min_pos_iou: in [0, 1], neg_iou <= pos_iou; compared in the boxes' type.
    Returns:
        gt_index: int64 [n]: -1 ignored, 0 negative, k > 0 object k - 1. Without objects all are 0.
        max_iou: [n], the largest IoU with any object, 0 without objects.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device, thresholds outside [0, 1] or in the wrong order.

    The IoU matrix is never in memory: the extra memory is O(G).
    """
    check_tensors(boxes=boxes, gt_boxes=gt_boxes)
    return torch.ops.fastrcnn.assign_max_iou(
        boxes.detach(), gt_boxes.detach(), pos_iou, neg_iou, min_pos_iou, match_low_quality
    )


@torch.library.register_fake("fastrcnn::assign_max_iou")
def _(boxes, gt_boxes, pos_iou, neg_iou, min_pos_iou, match_low_quality):
    return boxes.new_empty((boxes.shape[0],), dtype=torch.int64), boxes.new_empty((boxes.shape[0],))

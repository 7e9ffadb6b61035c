"""The loss of boxes, one for the RPN and the box head: predicted deltas of positives, their objects -> a sum.

On the deltas themselves, or on the boxes in pixels that they decode to.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from fastrcnn import ops
from fastrcnn.config import BoxLossConfig

MEANS = (0.0, 0.0, 0.0, 0.0)  # of the box coding, everywhere
OF_DELTAS = ("l1", "smooth_l1")
OF_BOXES = ("iou", "giou", "diou", "ciou", "bounded_iou")


def box_loss(deltas: Tensor, boxes: Tensor, gt_boxes: Tensor, stds: Sequence[float], config: BoxLossConfig) -> Tensor:
    """The weighted sum over n positives.

    Args:
        deltas: [n, 4], predicted, of any floating type; the loss is computed in float32.
        boxes: float32 [n, 4], the anchors or RoIs that the deltas refer to.
        gt_boxes: float32 [n, 4], the objects that they ought to lead to.
        stds: deltas are divided by these (dx, dy, dw, dh).
        config: which loss. Of decoded boxes ("iou", ...): the boxes are not clipped to the image, as in mmdetection.
    Returns:
        A float32 scalar, 0 for n = 0.
    """
    deltas = deltas.float()
    if config.kind in OF_BOXES:
        total = ops.iou_loss(ops.decode_boxes(boxes, deltas, MEANS, stds), gt_boxes, config.kind).sum()
    else:
        wanted = ops.encode_boxes(boxes, gt_boxes, MEANS, stds)
        if config.kind == "l1":
            total = F.l1_loss(deltas, wanted, reduction="sum")
        else:
            total = F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=config.beta)
    return total * config.weight


def check_box_loss(config: BoxLossConfig, part: str) -> None:
    """Raises ValueError, naming the setting, for a value out of range; `part` is "rpn" or "box_head"."""
    if config.kind not in OF_DELTAS + OF_BOXES:
        raise ValueError(f"{part}.box_loss.kind must be one of {OF_DELTAS + OF_BOXES}, got {config.kind!r}")
    if not config.beta > 0 or not config.weight >= 0:
        raise ValueError(
            f"{part}.box_loss must have beta above 0 and weight at least 0, got {config.beta} and {config.weight}"
        )

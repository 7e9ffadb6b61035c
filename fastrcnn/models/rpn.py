"""RPN head: feature levels -> per level objectness [N, A, h, w] and box deltas [N, 4A, h, w]; and its training losses.

"Faster R-CNN" (Ren et al., 2015), section 3.1. Channels of the deltas are anchor-major: a * 4 + (dx, dy, dw, dh).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn import ops
from fastrcnn.config import RpnConfig
from fastrcnn.models.box_loss import box_loss, check_box_loss
from fastrcnn.models.convolution import Conv3x3
from fastrcnn.models.inputs import Target
from fastrcnn.models.rpn_level import RPNLevel
from fastrcnn.models.sampler import sample

STDS = (1.0, 1.0, 1.0, 1.0)  # of the box coding
EPSILON = torch.finfo(torch.float32).eps  # added to every averaging factor, as mmdetection 2.28 does


class RPNHead(nn.Module):
    """The convolutions that slide over every level, and the losses.

    Args:
        in_channels: of the feature levels.
        config: channels; anchors per cell; which anchors enter the losses, and as what.
    Raises:
        ValueError: an unknown loss.
    """

    def __init__(self, in_channels: int, config: RpnConfig) -> None:
        super().__init__()
        check_box_loss(config.box_loss, "rpn")
        self.assigner, self.sampler, self.box_loss = config.assigner, config.sampler, config.box_loss
        num_anchors = len(config.anchor_scales) * len(config.anchor_ratios)
        self.conv = Conv3x3(in_channels, config.channels)
        self.objectness = nn.Conv2d(config.channels, num_anchors, 1)
        self.deltas = nn.Conv2d(config.channels, 4 * num_anchors, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels [N, in_channels, h, w] -> per level logits of objectness [N, A, h, w] and deltas [N, 4A, h, w]."""
        layers = [tensor for layer in (self.conv, self.objectness, self.deltas) for tensor in layer.parameters()]
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*layers, *features))
        if trains and features[0].device.type == "cpu":
            outputs = [RPNLevel.apply(feature, *layers) for feature in features]
            return [objectness for objectness, _ in outputs], [deltas for _, deltas in outputs]
        hidden = [F.relu(self.conv(feature), inplace=True) for feature in features]
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]

    def losses(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        valid: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Binary cross entropy of objectness and the positives' box loss.

        Both are sums over the batch divided by the number of sampled anchors, where an image counts at least one
        positive and one negative. An image without objects has negatives only.

        Args:
            objectness, deltas: what forward gave.
            anchors: float32 [h*w*A, 4] per level.
            valid: bool [sum of h*w*A] per image, AnchorGenerator.valid.
            targets: per image "boxes" float32 [G, 4] in pixels of the network input.
        Returns:
            {"loss_rpn_cls", "loss_rpn_bbox"}, float32 scalars.
        """
        logits, predicted = _flatten(objectness, 1).squeeze(-1), _flatten(deltas, 4)
        boxes = torch.cat(list(anchors))
        classification, regression, count = [], [], 0
        for i, target in enumerate(targets):
            gt_index = self._assign(boxes, valid[i], target["boxes"])
            positive, negative = sample(gt_index, self.sampler.num, self.sampler.positive_fraction)
            sampled = torch.cat([positive, negative])
            labels = (gt_index[sampled] > 0).float()
            gt_boxes = target["boxes"][gt_index[positive] - 1]
            classification.append(
                F.binary_cross_entropy_with_logits(logits[i, sampled].float(), labels, reduction="sum")
            )
            regression.append(box_loss(predicted[i, positive], boxes[positive], gt_boxes, STDS, self.box_loss))
            count += max(len(positive), 1) + max(len(negative), 1)
        return {
            "loss_rpn_cls": torch.stack(classification).sum() / (count + EPSILON),
            "loss_rpn_bbox": torch.stack(regression).sum() / (count + EPSILON),
        }

    def _assign(self, boxes: Tensor, valid: Tensor, gt_boxes: Tensor) -> Tensor:
        """gt_index int64 [n] of all anchors; an anchor that is not valid is ignored and is no object's best one."""
        a = self.assigner
        gt_index = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        gt_index[valid], _ = ops.assign_max_iou(
            boxes[valid], gt_boxes, a.pos_iou, a.neg_iou, a.min_pos_iou, a.match_low_quality
        )
        return gt_index


def _flatten(levels: Sequence[Tensor], size: int) -> Tensor:
    """Maps [N, A * size, h, w] -> [N, sum of h*w*A, size], in the order of the anchors."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in levels], dim=1)

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
from fastrcnn.models.sampler import sample
from fastrcnn.models.surroundings import surroundings

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
        levels = [self._level(feature) for feature in features]
        return [objectness for objectness, _ in levels], [deltas for _, deltas in levels]

    def _level(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.conv(feature), inplace=True)
        return self.objectness(hidden), self.deltas(hidden)

    def at_anchors(self, features: Sequence[Tensor], image: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What forward gives for single anchors, without computing it elsewhere: for the losses.

        Args:
            features: levels [N, in_channels, h, w].
            image: int64 [K], the image of each.
            index: int64 [K], its place among the anchors of all levels, in their order.
        Returns:
            Logits of objectness [K] and deltas [K, 4], equal to forward's up to rounding.
        """
        num_anchors = self.objectness.out_channels
        around, places, first = [], [], 0
        for feature in features:
            height, width = feature.shape[2:]
            place = ((index >= first) & (index < first + height * width * num_anchors)).nonzero().squeeze(1)
            cell = (index[place] - first) // num_anchors
            around.append(surroundings(feature, image[place], cell // width, cell % width))
            places.append(place)
            first += height * width * num_anchors
        hidden = F.relu(F.linear(torch.cat(around), self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias))
        objectness, deltas = (
            F.linear(hidden, layer.weight.flatten(1), layer.bias) for layer in (self.objectness, self.deltas)
        )
        order = torch.cat(places).argsort()  # back from level after level
        rows, anchor = torch.arange(len(order), device=order.device), index % num_anchors
        return objectness[order][rows, anchor], deltas[order].unflatten(1, (num_anchors, 4))[rows, anchor]

    def losses(
        self, features: Sequence[Tensor], anchors: Sequence[Tensor], valid: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Binary cross entropy of objectness and the positives' box loss.

        Both are sums over the batch divided by the number of sampled anchors, where an image counts at least one
        positive and one negative. An image without objects has negatives only.

        Args:
            features: levels [N, in_channels, h, w].
            anchors: float32 [h*w*A, 4] per level.
            valid: bool [sum of h*w*A] per image, AnchorGenerator.valid.
            targets: per image "boxes" float32 [G, 4] in pixels of the network input.
        Returns:
            {"loss_rpn_cls", "loss_rpn_bbox"}, float32 scalars.
        """
        boxes = torch.cat(list(anchors))
        images, sampled, labels, gt_boxes, count = [], [], [], [], 0
        for i, target in enumerate(targets):
            gt_index = self._assign(boxes, valid[i], target["boxes"])
            positive, negative = sample(gt_index, self.sampler.num, self.sampler.positive_fraction)
            sampled.append(torch.cat([positive, negative]))
            images.append(torch.full_like(sampled[-1], i))
            labels.append(gt_index[sampled[-1]] > 0)
            gt_boxes.append(target["boxes"][gt_index[positive] - 1])
            count += max(len(positive), 1) + max(len(negative), 1)
        index, positive = torch.cat(sampled), torch.cat(labels)
        logits, deltas = self.at_anchors(features, torch.cat(images), index)
        classification = F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="sum")
        regression = box_loss(deltas[positive], boxes[index[positive]], torch.cat(gt_boxes), STDS, self.box_loss)
        return {
            "loss_rpn_cls": classification / (count + EPSILON),
            "loss_rpn_bbox": regression / (count + EPSILON),
        }

    def _assign(self, boxes: Tensor, valid: Tensor, gt_boxes: Tensor) -> Tensor:
        """gt_index int64 [n] of all anchors; an anchor that is not valid is ignored and is no object's best one."""
        a = self.assigner
        gt_index = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        gt_index[valid], _ = ops.assign_max_iou(
            boxes[valid], gt_boxes, a.pos_iou, a.neg_iou, a.min_pos_iou, a.match_low_quality
        )
        return gt_index

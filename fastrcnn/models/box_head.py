"""Box head: RoI features [R, channels, s, s] -> class logits [R, C + 1] and box deltas [R, 4C]; and its training.

The Fast R-CNN part of "Faster R-CNN" (Ren et al., 2015), with the two fully connected layers of FPN. Background is the
last class, C. Deltas are class-major, c * 4 + (dx, dy, dw, dh), and have no background block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn import ops
from fastrcnn.config import BoxHeadConfig
from fastrcnn.models.box_loss import box_loss, check_box_loss
from fastrcnn.models.inputs import Target
from fastrcnn.models.proposals import Proposals
from fastrcnn.models.rpn import EPSILON
from fastrcnn.models.sampler import sample


@dataclass
class SampledRois:
    """The RoIs of a training step, image by image, positives before negatives.

    rois: float32 [R, 5].   labels: int64 [R], C for negatives.   gt_boxes: float32 [R, 4], the object of a positive,
    the RoI itself for a negative.
    """

    rois: Tensor
    labels: Tensor
    gt_boxes: Tensor


class BoxHead(nn.Module):
    """Two fully connected layers, then one layer for classes and one for boxes.

    Args:
        in_channels, pool_size: of the RoI features.
        config: channels and classes; which proposals enter the losses, and as what.
    Raises:
        ValueError: no class; a dropout that is no probability; an unknown loss.
    """

    def __init__(self, in_channels: int, pool_size: int, config: BoxHeadConfig) -> None:
        super().__init__()
        if config.num_classes < 1:
            raise ValueError(f"box_head.num_classes must be at least 1, got {config.num_classes}")
        check_box_loss(config.box_loss, "box_head")
        self.num_classes, self.delta_stds = config.num_classes, tuple(config.delta_stds)
        self.assigner, self.sampler, self.box_loss = config.assigner, config.sampler, config.box_loss
        self.fc1 = nn.Linear(in_channels * pool_size**2, config.channels)
        self.fc2 = nn.Linear(config.channels, config.channels)
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.channels, config.num_classes + 1)
        self.deltas = nn.Linear(config.channels, 4 * config.num_classes)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.xavier_uniform_(self.fc2.weight)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.logits, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """[R, in_channels, s, s] -> logits [R, C + 1], deltas [R, 4C]; R may be 0."""
        x = self.dropout(F.relu(self.fc1(roi_features.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.logits(x), self.deltas(x)

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: Sequence[Target]) -> SampledRois:
        """Matches the proposals to the objects and draws the RoIs to train on.

        The objects themselves are put before the proposals as positives, so that there are some from the first step on.
        """
        a, rois, labels, matched = self.assigner, [], [], []
        for i, (target, count) in enumerate(zip(targets, proposals.count.tolist(), strict=True)):
            gt_boxes, found = target["boxes"], proposals.boxes[i, :count]
            gt_index, _ = ops.assign_max_iou(found, gt_boxes, a.pos_iou, a.neg_iou, a.min_pos_iou, a.match_low_quality)
            boxes = torch.cat([gt_boxes, found])
            gt_index = torch.cat([torch.arange(1, len(gt_boxes) + 1, device=gt_index.device), gt_index])
            positive, negative = sample(gt_index, self.sampler.num, self.sampler.positive_fraction)
            sampled = torch.cat([positive, negative])
            rois.append(F.pad(boxes[sampled], (1, 0), value=float(i)))
            labels.append(F.pad(target["labels"][gt_index[positive] - 1], (0, len(negative)), value=self.num_classes))
            matched.append(torch.cat([gt_boxes[gt_index[positive] - 1], boxes[negative]]))
        return SampledRois(torch.cat(rois), torch.cat(labels), torch.cat(matched))

    def losses(self, logits: Tensor, deltas: Tensor, sampled: SampledRois) -> dict[str, Tensor]:
        """Cross entropy over C + 1 classes, and the box loss of the positives' deltas in the block of their class.

        Both are divided by the number of all sampled RoIs, positives and negatives.

        Args:
            logits [R, C + 1], deltas [R, 4C]: what forward gave for sampled.rois.
        Returns:
            {"loss_cls", "loss_bbox"}, float32 scalars; 0, attached to the graph, where there is nothing to sum.
        """
        labels, count = sampled.labels, len(sampled.labels)
        positive = (labels < self.num_classes).nonzero().squeeze(1)
        predicted = deltas.view(count, self.num_classes, 4)[positive, labels[positive]]
        boxes, gt_boxes = sampled.rois[positive, 1:], sampled.gt_boxes[positive]
        regression = box_loss(predicted, boxes, gt_boxes, self.delta_stds, self.box_loss)
        return {
            "loss_cls": F.cross_entropy(logits.float(), labels, reduction="sum") / (max(count, 1) + EPSILON),
            "loss_bbox": regression / (max(count, 1) + EPSILON),
        }

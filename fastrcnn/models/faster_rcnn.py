"""Faster R-CNN, from a batch of images to detections or to losses.

| stage         | in                                       | out                                                  |
|---------------|------------------------------------------|------------------------------------------------------|
| backbone, FPN | float [N, 3, H, W]                       | list of [N, 256, H/s, W/s]                           |
| RPN head      | levels                                   | per level objectness [N, A, h, w], deltas [N, 4A, h, w] |
| proposals     | objectness, deltas                       | boxes [N, P, 4], scores [N, P], count [N]            |
| RoIAlign      | the first len(strides) levels, RoIs      | [R, 256, 7, 7]                                       |
| box head      | pooled                                   | logits [R, C + 1], deltas [R, 4C]                    |
| detections    | + true sizes, scale factors              | Detections in pixels of the original image           |

Without a pyramid there is one level, the backbone's last map: C5 of stride 16 with 2048 channels (DC5), or conv5_3 with
512 (VGG-16, where RoIPool takes RoIAlign's place).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastrcnn import ops
from fastrcnn.config import PoolConfig, ProposalsConfig
from fastrcnn.models.anchors import AnchorGenerator
from fastrcnn.models.backbone import ResNet
from fastrcnn.models.box_head import BoxHead
from fastrcnn.models.box_loss import MEANS
from fastrcnn.models.detections import Detections
from fastrcnn.models.fpn import FPN
from fastrcnn.models.inputs import Target, check_factors, check_images, check_sizes, check_targets
from fastrcnn.models.proposals import Proposals
from fastrcnn.models.rpn import RPNHead
from fastrcnn.models.vgg import VGG16


class PaddedDetections(NamedTuple):
    """K slots per image, filled from the front by descending score: boxes float32 [N, K, 4] in pixels of the original
    image, scores float32 [N, K], labels int64 [N, K], count int64 [N] of filled slots."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    def per_image(self) -> list[Detections]:
        """The filled slots of each image; waits for the device."""
        return [
            Detections(self.boxes[i, :found], self.scores[i, :found], self.labels[i, :found])
            for i, found in enumerate(self.count.tolist())
        ]


class FasterRCNN(nn.Module):
    """The detector, made of its parts; build_model makes it from a config.

    Args:
        backbone, fpn, anchors, rpn_head, box_head: the parts; fpn None: the backbone's last map is the only level.
        train_proposals, test_proposals: how the RPN's outputs become proposals, in training and otherwise.
        pool: RoIAlign or RoIPool.
        score_threshold, iou_threshold, max_detections: a detection's score is above the first, overlaps no better one
            of its class by more than the second, and is among the best so many of its image.
    """

    def __init__(
        self,
        backbone: ResNet | VGG16,
        fpn: FPN | None,
        anchors: AnchorGenerator,
        rpn_head: RPNHead,
        box_head: BoxHead,
        train_proposals: ProposalsConfig,
        test_proposals: ProposalsConfig,
        pool: PoolConfig,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.backbone, self.fpn, self.anchors = backbone, fpn, anchors
        self.rpn_head, self.box_head = rpn_head, box_head
        self.train_proposals, self.test_proposals, self.pool_settings = train_proposals, test_proposals, pool
        self.score_threshold, self.iou_threshold, self.max_detections = score_threshold, iou_threshold, max_detections

    def forward(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        scale_factors: Sequence[tuple[float, float]],
        score_threshold: float | None = None,
    ) -> list[Detections]:
        """Detects the objects in a batch of images. Call eval() first: in training mode the RPN keeps other proposals.

        Args:
            images: float [N, 3, H, W], normalised, padded on the right and bottom to one size. Any H and W work; the
                published models were trained with multiples of 32.
            image_sizes: the true (height, width) of each image before padding.
            scale_factors: (width factor, height factor) of each image, resized / original.
            score_threshold: detections have scores above it; None: the model's own.
        Returns:
            One Detections per image, on the device of the images; without objects its tensors have length 0.
        Raises:
            ValueError, TypeError: an argument of another shape, length or type.
        """
        check_images(images)
        check_sizes(images, image_sizes)
        check_factors(images, scale_factors)
        sizes, factors = _tensor(image_sizes, images), _tensor(scale_factors, images)
        return self.detect_padded(images, sizes, factors, score_threshold).per_image()

    @torch.no_grad()
    def detect_padded(
        self, images: Tensor, sizes: Tensor, factors: Tensor, score_threshold: float | None = None
    ) -> PaddedDetections:
        """As forward, with outputs of fixed shape and without waiting for the device: one graph for torch.compile,
        torch.export and CUDA graphs.

        Args:
            sizes, factors: float32 [N, 2] on the device of the images, (height, width) and (width factor, height
                factor).
            score_threshold: as forward.
        Returns:
            PaddedDetections. Entries beyond an image's count mean nothing.
        """
        features = self.features(images)
        proposals = self.propose(features, sizes)
        rois = proposals.rois()
        logits, deltas = self.box_head(self.pool(features, rois))
        return PaddedDetections(
            *ops.select_detections(
                logits,
                deltas,
                rois,
                sizes,
                factors,
                self.score_threshold if score_threshold is None else score_threshold,
                self.iou_threshold,
                self.max_detections,
                MEANS,
                self.box_head.delta_stds,
            )
        )

    def losses(
        self, images: Tensor, image_sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The four losses of a training step; their sum is what to minimise.

        Args:
            images, image_sizes: as forward.
            targets: per image {"boxes": float32 [G, 4] xyxy in pixels of the network input, "labels": int64 [G]}. G may
                be 0, in every image too: such an image teaches background.
        Returns:
            {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}: float32 scalars. Each has a gradient with
            respect to every trainable parameter on its path, a zero one where there was nothing to learn.
        Raises:
            ValueError, TypeError: an argument of another shape, length or type; a box that is not finite or has no
                area; a label outside 0 .. C - 1.
        """
        check_images(images)
        check_sizes(images, image_sizes)
        check_targets(images, targets, self.box_head.num_classes)
        features = self.features(images)
        feature_sizes = _sizes(features)
        anchors = self.anchors(feature_sizes)
        valid = [self.anchors.valid(anchors, feature_sizes, size) for size in image_sizes]
        rpn_losses = self.rpn_head.losses(features, anchors, valid, targets)

        with torch.no_grad():
            objectness, deltas = self.rpn_head(features)
        proposals = self._select(objectness, deltas, anchors, _tensor(image_sizes, images), self.train_proposals)
        sampled = self.box_head.sample(proposals, targets)
        logits, box_deltas = self.box_head(self.pool(features, sampled.rois))
        return rpn_losses | self.box_head.losses(logits, box_deltas, sampled)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images float [N, 3, H, W] -> the levels, finest first, [N, 256, H/s, W/s]; one level without a pyramid.

        The images may be in either memory format; the levels are channels-last.
        """
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return maps[-1:] if self.fpn is None else self.fpn(maps)

    def propose(self, features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]] | Tensor) -> Proposals:
        """The boxes that may hold an object, with the settings for training or for test by self.training.

        Args:
            features: of self.features.
            image_sizes: the true (height, width) of each image: a list, or float32 [N, 2] on the device.
        Returns:
            Proposals, by descending score, without gradient.
        """
        objectness, deltas = self.rpn_head(features)
        anchors = self.anchors(_sizes(features))
        settings = self.train_proposals if self.training else self.test_proposals
        return self._select(objectness, deltas, anchors, _tensor(image_sizes, features[0]), settings)

    def pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """RoIAlign, each RoI from the level that suits its size; or RoIPool from the one level.

        Args:
            features: of self.features.
            rois: float32 [R, 5], image index and box in pixels of the network input; index -1 is padding.
        Returns:
            [R, 256, 7, 7] of the features' type, in channels-last memory; zeros for padding.
        """
        pool = self.pool_settings
        if pool.kind == "roi_pool":
            return ops.roi_pool(features[0], rois, pool.output_size, 1 / pool.strides[0])
        levels = list(features[: len(pool.strides)])
        return ops.multilevel_roi_align(
            levels, rois, pool.strides, pool.output_size, pool.sampling_ratio, pool.finest_scale
        )

    def _select(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: list[Tensor],
        sizes: Tensor,
        settings: ProposalsConfig,
    ) -> Proposals:
        return Proposals(
            *ops.generate_proposals(
                objectness,
                deltas,
                anchors,
                sizes,
                settings.pre_nms,
                settings.post_nms,
                settings.iou_threshold,
                settings.min_size,
            )
        )


def _sizes(features: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(level.shape[-2], level.shape[-1]) for level in features]


def _tensor(pairs: Sequence[tuple[float, float]] | Tensor, like: Tensor) -> Tensor:
    """On the device of `like`, without waiting for it."""
    values = pairs if isinstance(pairs, Tensor) else torch.tensor(pairs, dtype=torch.float32, device="cpu")
    return values.to(like.device, torch.float32, non_blocking=True)

"""From a config to a model."""

import torch

from fastrcnn.config import ModelConfig
from fastrcnn.models.anchors import AnchorGenerator
from fastrcnn.models.backbone import ResNet
from fastrcnn.models.box_head import BoxHead
from fastrcnn.models.faster_rcnn import FasterRCNN
from fastrcnn.models.fpn import FPN
from fastrcnn.models.rpn import RPNHead


def build_model(config: ModelConfig) -> FasterRCNN:
    """Builds the model of a config with random initial weights; nothing is downloaded.

    Checkpoints are loaded with load_checkpoint, ImageNet weights with load_backbone.

    Returns:
        FasterRCNN on the CPU, float32, channels-last, in training mode.
    Raises:
        ValueError: settings that do not fit together, by their names in the config.
    """
    rpn, pool, head = config.rpn, config.pool, config.box_head
    if len(rpn.strides) != config.fpn.num_levels:
        raise ValueError(f"rpn.strides must have one entry per level, {config.fpn.num_levels}, got {rpn.strides}")
    if pool.strides != rpn.strides[: len(pool.strides)]:
        raise ValueError(f"pool.strides must be the first of rpn.strides, {rpn.strides}, got {pool.strides}")
    if len(head.delta_stds) != 4:
        raise ValueError(f"box_head.delta_stds must have 4 entries (dx, dy, dw, dh), got {head.delta_stds}")

    backbone = ResNet(config.backbone.depth, config.backbone.style, config.backbone.norm, config.backbone.frozen_stages)
    fpn = FPN(backbone.out_channels, config.fpn.channels, config.fpn.num_levels)
    anchors = AnchorGenerator(rpn.anchor_scales, rpn.anchor_ratios, rpn.strides, rpn.allowed_border)
    rpn_head = RPNHead(fpn.channels, rpn.channels, anchors.num_anchors, rpn.assigner, rpn.sampler)
    box_head = BoxHead(
        fpn.channels,
        pool.output_size,
        head.channels,
        head.num_classes,
        head.delta_stds,
        head.assigner,
        head.sampler,
    )
    model = FasterRCNN(
        backbone,
        fpn,
        anchors,
        rpn_head,
        box_head,
        rpn.train_proposals,
        rpn.test_proposals,
        pool,
        head.score_threshold,
        head.iou_threshold,
        head.max_detections,
    )
    # As the features are: the convolutions then need not reorder their weights (CPU, 800 x 1344: 7 % of the backbone).
    return model.to(memory_format=torch.channels_last)

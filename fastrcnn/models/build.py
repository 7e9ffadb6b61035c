"""From a config to a model."""

import torch
from torch import nn

from fastrcnn.config import ModelConfig
from fastrcnn.models.anchors import AnchorGenerator
from fastrcnn.models.backbone import ResNet
from fastrcnn.models.box_head import BoxHead
from fastrcnn.models.faster_rcnn import FasterRCNN
from fastrcnn.models.fpn import FPN
from fastrcnn.models.rpn import RPNHead
from fastrcnn.models.vgg import VGG16


def build_model(config: ModelConfig) -> FasterRCNN:
    """Builds the model of a config with random initial weights; nothing is downloaded.

    Checkpoints are loaded with load_checkpoint, ImageNet weights with load_backbone.

    Returns:
        FasterRCNN on the CPU, float32, channels-last, in training mode.
    Raises:
        ValueError: settings that do not fit together, by their names in the config.
    """
    rpn, pool, head = config.rpn, config.pool, config.box_head
    _check(config)
    backbone = VGG16(config.backbone.frozen_stages) if config.backbone.kind == "vgg16" else ResNet(config.backbone)
    fpn = FPN(backbone.out_channels, config.fpn.channels, config.fpn.num_levels) if config.fpn else None
    channels = fpn.channels if fpn else backbone.out_channels[-1]
    anchors = AnchorGenerator(rpn.anchor_scales, rpn.anchor_ratios, rpn.strides, rpn.allowed_border)
    rpn_head = RPNHead(channels, rpn)
    box_head = BoxHead(channels, pool.output_size, head)
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
    if config.init == "fan_in":
        _initialize_by_fan_in(model)
    # As the features are: the convolutions then need not reorder their weights (CPU, 800 x 1344: 7 % of the backbone).
    return model.to(memory_format=torch.channels_last)


def _initialize_by_fan_in(model: FasterRCNN) -> None:
    """FPN: uniform of variance 1 / inputs. Box head: uniform in +-1 / sqrt(inputs), PyTorch's own; the biases, too."""
    for convolution in (*model.fpn.lateral, *model.fpn.output) if model.fpn else ():
        nn.init.kaiming_uniform_(convolution.weight, a=1)
    head = model.box_head
    for layer in (head.fc1, head.fc2, head.logits, head.deltas):
        layer.reset_parameters()


def _check(config: ModelConfig) -> None:
    """Raises ValueError, naming the setting, for a value out of range or settings that do not fit together."""
    rpn, pool, head = config.rpn, config.pool, config.box_head
    if config.init not in ("mmdet", "fan_in"):
        raise ValueError(f'model.init must be "mmdet" or "fan_in", got {config.init!r}')
    if config.backbone.kind not in ("resnet", "vgg16"):
        raise ValueError(f'backbone.kind must be "resnet" or "vgg16", got {config.backbone.kind!r}')
    if config.backbone.kind == "vgg16" and config.fpn:
        raise ValueError("VGG-16 has one output, so it has no pyramid: set model.fpn to null")
    num_levels = config.fpn.num_levels if config.fpn else 1
    if len(rpn.strides) != num_levels:
        raise ValueError(f"rpn.strides must have one entry per level, {num_levels}, got {rpn.strides}")
    if pool.kind not in ("roi_align", "roi_pool"):
        raise ValueError(f'pool.kind must be "roi_align" or "roi_pool", got {pool.kind!r}')
    if pool.kind == "roi_pool" and len(pool.strides) != 1:
        raise ValueError(f"pool.kind roi_pool reads one level, so pool.strides must have one entry, got {pool.strides}")
    if pool.strides != rpn.strides[: len(pool.strides)]:
        raise ValueError(f"pool.strides must be the first of rpn.strides, {rpn.strides}, got {pool.strides}")
    if len(head.delta_stds) != 4:
        raise ValueError(f"box_head.delta_stds must have 4 entries (dx, dy, dw, dh), got {head.delta_stds}")
    at_least_1 = {
        "fpn.channels": config.fpn.channels if config.fpn else 1,
        "rpn.channels": rpn.channels,
        "rpn.anchor_scales' length": len(rpn.anchor_scales),
        "rpn.anchor_ratios' length": len(rpn.anchor_ratios),
        "rpn.sampler.num": rpn.sampler.num,
        "rpn.train_proposals.pre_nms": rpn.train_proposals.pre_nms,
        "rpn.train_proposals.post_nms": rpn.train_proposals.post_nms,
        "rpn.test_proposals.pre_nms": rpn.test_proposals.pre_nms,
        "rpn.test_proposals.post_nms": rpn.test_proposals.post_nms,
        "pool.output_size": pool.output_size,
        "pool.strides' length": len(pool.strides),
        "box_head.channels": head.channels,
        "box_head.sampler.num": head.sampler.num,
        "box_head.max_detections": head.max_detections,
    }
    for name, value in at_least_1.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    between_0_and_1 = {
        "box_head.dropout": head.dropout,
        "rpn.sampler.positive_fraction": rpn.sampler.positive_fraction,
        "rpn.train_proposals.iou_threshold": rpn.train_proposals.iou_threshold,
        "rpn.test_proposals.iou_threshold": rpn.test_proposals.iou_threshold,
        "box_head.sampler.positive_fraction": head.sampler.positive_fraction,
        "box_head.score_threshold": head.score_threshold,
        "box_head.iou_threshold": head.iou_threshold,
    }
    for name, fraction in between_0_and_1.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {fraction}")
    for part, assigner in (("rpn", rpn.assigner), ("box_head", head.assigner)):
        if not 0 <= assigner.neg_iou <= assigner.pos_iou <= 1:
            raise ValueError(
                f"{part}.assigner must have 0 <= neg_iou <= pos_iou <= 1, got {assigner.neg_iou} and {assigner.pos_iou}"
            )

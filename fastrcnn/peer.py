"""torchvision's Faster R-CNN in the shape of one of our configs: what fastrcnn is compared with in benchmarks.

The only module that needs torchvision, and no part of detection or training. What the two cannot share stays as
torchvision has it: two RoIAlign samples per bin and side, aligned=False, its losses and its proposal settings' meaning.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from fastrcnn.benchmark import BY_HAND, THEIRS, Head, spread_outputs
from fastrcnn.config import Config


def build_peer(config: Config) -> FasterRCNN:
    """torchvision's FasterRCNN with the sizes, thresholds and sampling of a config, and random weights.

    Class 0 is its background: label c of ours is c + 1 there.

    Raises:
        ValueError: a config that torchvision's FPN model cannot express.
    """
    model, data = config.model, config.data
    if model.fpn is None or model.fpn.num_levels != 5 or data.image.channel_order != "rgb":
        raise ValueError("The torchvision peer exists for RGB models with five FPN levels")
    if model.backbone.style != "pytorch" or model.backbone.dilated_c5 or model.box_head.dropout:
        raise ValueError("The torchvision peer strides in 3x3 convolutions and has neither dilated C5 nor dropout")
    norm = {"norm_layer": FrozenBatchNorm2d} if model.backbone.norm != "train" else {}
    groups = {"groups": model.backbone.groups, "width_per_group": model.backbone.base_width}
    body = getattr(resnet, f"resnet{model.backbone.depth}")(weights=None, **norm, **groups)
    for stage in range(model.backbone.frozen_stages + 1):
        for part in (body.conv1, body.bn1) if stage == 0 else (getattr(body, f"layer{stage}"),):
            part.requires_grad_(False)
    widths = [body.inplanes // 8 * 2**stage for stage in range(4)]
    backbone = BackboneWithFPN(body, {f"layer{k}": str(k - 1) for k in range(1, 5)}, widths, model.fpn.channels)
    rpn, head, roi_assigner = model.rpn, model.box_head, model.box_head.assigner
    sizes = tuple(tuple(scale * stride for scale in rpn.anchor_scales) for stride in rpn.strides)
    long, short = data.test.scale
    peer = FasterRCNN(
        backbone,
        min_size=short,
        max_size=long,
        image_mean=[mean / 255 for mean in data.image.mean],
        image_std=[std / 255 for std in data.image.std],
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(rpn.anchor_ratios),) * len(sizes)),
        rpn_pre_nms_top_n_train=rpn.train_proposals.pre_nms,
        rpn_pre_nms_top_n_test=rpn.test_proposals.pre_nms,
        rpn_post_nms_top_n_train=rpn.train_proposals.post_nms,
        rpn_post_nms_top_n_test=rpn.test_proposals.post_nms,
        rpn_nms_thresh=rpn.test_proposals.iou_threshold,
        rpn_fg_iou_thresh=rpn.assigner.pos_iou,
        rpn_bg_iou_thresh=rpn.assigner.neg_iou,
        rpn_batch_size_per_image=rpn.sampler.num,
        rpn_positive_fraction=rpn.sampler.positive_fraction,
        box_head=TwoMLPHead(model.fpn.channels * model.pool.output_size**2, head.channels),
        box_predictor=FastRCNNPredictor(head.channels, head.num_classes + 1),
        box_score_thresh=head.score_threshold,
        box_nms_thresh=head.iou_threshold,
        box_detections_per_img=head.max_detections,
        box_fg_iou_thresh=roi_assigner.pos_iou,
        box_bg_iou_thresh=roi_assigner.neg_iou,
        box_batch_size_per_image=head.sampler.num,
        box_positive_fraction=head.sampler.positive_fraction,
    )
    peer.roi_heads.box_roi_pool.canonical_scale = 4 * model.pool.finest_scale  # the size that goes to the third level
    return peer


def fold_batch_norms(model: nn.Module) -> None:
    """Puts every frozen batch norm into the convolution before it, in place."""
    for module in list(model.modules()):
        children = list(module.named_children())
        for (_, convolution), (name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
                statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, *statistics
                )
                setattr(module, name, nn.Identity())


class Peer:
    """build_peer's model with random weights, as a subject of fastrcnn.benchmark.

    by_hand: with what a user can do without other software: batch norms folded, channels-last memory.
    """

    def __init__(self, config: Config, pixels: np.ndarray, device: str | None, by_hand: bool = False) -> None:
        torch.manual_seed(0)
        self.name = BY_HAND if by_hand else THEIRS
        self.device = torch.device(device or "cpu")
        self._model = build_peer(config).eval().to(self.device)
        if by_hand:
            fold_batch_norms(self._model)
            self._model.to(memory_format=torch.channels_last)
        rpn, predictor = self._model.rpn.head, self._model.roi_heads.box_predictor
        spread_outputs([Head(rpn.cls_logits, 1.0), Head(rpn.bbox_pred, 0.1)], lambda: self.detect(pixels))
        classes = Head(predictor.cls_score, 1.5, background=0)
        spread_outputs([classes, Head(predictor.bbox_pred, 0.5)], lambda: self.detect(pixels))

    @torch.inference_mode()
    def detect(self, pixels: np.ndarray) -> int:
        return len(self._model([self._input(pixels)])[0]["scores"].cpu())

    @torch.inference_mode()
    def count_proposals(self, pixels: np.ndarray) -> int:
        images, _ = self._model.transform([self._input(pixels)])
        proposals, _ = self._model.rpn(images, self._model.backbone(images.tensors))
        return len(proposals[0])

    def _input(self, pixels: np.ndarray) -> Tensor:
        """BGR uint8 [h, w, 3] -> RGB float [3, h, w] in 0 .. 1, what torchvision's model takes."""
        rgb = torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::-1]))
        return rgb.to(self.device).permute(2, 0, 1).float() / 255

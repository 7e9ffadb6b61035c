"""The detector rebuilt for inference: the same parts and data flow as faster_rcnn.py, of fused layers.

| part     | what is different                                                                                        |
|----------|----------------------------------------------------------------------------------------------------------|
| backbone | batch norm folded; ReLU and residual addition within the convolutions; each residual sum in place        |
| FPN      | merged from the coarsest level on, within the lateral convolutions; a map is freed once it is used       |
| RPN head | ReLU within the 3x3 convolution; the two 1x1 convolutions are one; level by level                        |
| box head | fc1 reads RoI features as they lie in memory, channels last; ReLU within the layers                      |

With dtype float16 or bfloat16 on the CPU, 3x3 convolutions stay float32 unless the processor has AMX (FusedConv2d says
why), and so do the pyramid's outputs and the RPN. The RPN's outputs are float32 on every CPU: in bfloat16 many logits
would be equal, and deltas off by up to 1/256.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn.models.backbone import BasicBlock, Bottleneck, ResNet
from fastrcnn.models.box_head import BoxHead
from fastrcnn.models.faster_rcnn import FasterRCNN
from fastrcnn.models.fpn import FPN
from fastrcnn.models.fused import FusedConv2d, FusedLinear, prefers_winograd
from fastrcnn.models.rpn import RPNHead
from fastrcnn.models.vgg import VGG16


class OptimizedFasterRCNN(FasterRCNN):
    """A FasterRCNN that can detect and no longer be trained. Its weights are its own, on the device of the original.

    Args:
        model: in evaluation mode or not; it is not changed.
        dtype: of weights and features.
    """

    def __init__(self, model: FasterRCNN, dtype: torch.dtype) -> None:
        on_cpu = next(model.parameters()).device.type == "cpu"
        levels = torch.float32 if on_cpu and prefers_winograd(dtype) else dtype
        channels, pool = model.rpn_head.conv.in_channels, model.pool_settings
        parts = (  # in place of those that FasterRCNN names, with the same methods as far as detection needs them
            _fused_backbone(model.backbone, dtype),
            None if model.fpn is None else FusedFPN(model.fpn, dtype, levels),
            copy.deepcopy(model.anchors),
            FusedRPNHead(model.rpn_head, levels, torch.float32 if on_cpu else dtype),
            FusedBoxHead(model.box_head, dtype, channels, pool.output_size),
        )
        super().__init__(
            *parts,  # type: ignore[arg-type]
            model.train_proposals,
            model.test_proposals,
            pool,
            model.score_threshold,
            model.iou_threshold,
            model.max_detections,
        )
        super().train(False)

    def train(self, mode: bool = True) -> "OptimizedFasterRCNN":
        """Raises RuntimeError for mode True."""
        if mode:
            raise RuntimeError("An optimized model only detects: train the model that it was made from")
        super().train(False)
        return self

    def losses(self, *arguments: object) -> dict[str, Tensor]:  # type: ignore[override]
        """Raises RuntimeError."""
        raise RuntimeError("An optimized model only detects: its losses are those of the model that it was made from")


def _fused_backbone(backbone: ResNet | VGG16, dtype: torch.dtype) -> nn.Module:
    return FusedVGG16(backbone, dtype) if isinstance(backbone, VGG16) else FusedResNet(backbone, dtype)


class FusedResNet(nn.Module):
    """ResNet of any depth, grouped and dilated ones included."""

    def __init__(self, backbone: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = FusedConv2d(backbone.conv1, backbone.bn1, relu=True, dtype=dtype)
        stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        blocks = [[FusedBlock(block, dtype) for block in stage.children()] for stage in stages]  # type: ignore[arg-type]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As ResNet.forward."""
        x = F.max_pool2d(self.stem(images), kernel_size=3, stride=2, padding=1)
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class FusedBlock(nn.Module):
    """A residual block, of two or three convolutions. Without a shortcut convolution its input becomes its output."""

    def __init__(self, block: BasicBlock | Bottleneck, dtype: torch.dtype) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convolutions = nn.ModuleList(FusedConv2d(*pair, relu=True, dtype=dtype) for pair in pairs)
        self.shortcut = None if block.downsample is None else FusedConv2d(*block.downsample, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.convolutions
        y = x
        for convolution in first:
            y = convolution(y)
        return last(y, x if self.shortcut is None else self.shortcut(x))


class FusedVGG16(nn.Module):
    """VGG-16 up to conv5_3."""

    def __init__(self, backbone: VGG16, dtype: torch.dtype) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for layer in backbone.features:
            if isinstance(layer, nn.Conv2d):
                self.features.append(FusedConv2d(layer, relu=True, dtype=dtype))
            elif isinstance(layer, nn.MaxPool2d):
                self.features.append(layer)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As VGG16.forward."""
        return [self.features(images)]


class FusedFPN(nn.Module):
    """The feature pyramid.

    Args:
        dtype: of the laterals. output_dtype: of the pyramid.
    """

    def __init__(self, fpn: FPN, dtype: torch.dtype, output_dtype: torch.dtype) -> None:
        super().__init__()
        self.num_levels = fpn.num_levels
        self.lateral = nn.ModuleList(FusedConv2d(lateral, dtype=dtype) for lateral in fpn.lateral)  # type: ignore[arg-type]
        self.output = nn.ModuleList(FusedConv2d(output, dtype=output_dtype) for output in fpn.output)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """As FPN.forward, but the list is empty afterwards: a map's memory is for the next ones."""
        merged: list[Tensor] = []  # coarsest first
        for lateral in reversed(self.lateral):
            size = features[-1].shape[-2:]
            above = F.interpolate(merged[-1], size=size, mode="nearest") if merged else None
            merged.append(lateral(features.pop(), above))
        del above
        outputs = [output(merged.pop()) for output in self.output]
        while len(outputs) < self.num_levels:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs


class FusedRPNHead(nn.Module):
    """The RPN's convolutions: its outputs are slices of one map of 5A channels.

    Args:
        dtype: of the hidden maps. output_dtype: of the outputs.
    """

    def __init__(self, rpn_head: RPNHead, dtype: torch.dtype, output_dtype: torch.dtype) -> None:
        super().__init__()
        layers = (rpn_head.objectness, rpn_head.deltas)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.split = [layer.out_channels for layer in layers]
        both = copy.deepcopy(rpn_head.deltas)
        both.out_channels = sum(self.split)
        both.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
        both.bias = nn.Parameter(torch.cat(biases))
        self.conv = FusedConv2d(rpn_head.conv, relu=True, dtype=dtype)
        self.outputs = FusedConv2d(both, dtype=output_dtype)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As RPNHead.forward."""
        levels = [self.outputs(self.conv(feature)).split(self.split, dim=1) for feature in features]
        return [objectness for objectness, _ in levels], [deltas for _, deltas in levels]


class FusedBoxHead(nn.Module):
    """The box head: fc1's inputs are in the order (y, x, channel), that of channels-last memory."""

    def __init__(self, box_head: BoxHead, dtype: torch.dtype, channels: int, pool_size: int) -> None:
        super().__init__()
        self.num_classes, self.delta_stds = box_head.num_classes, box_head.delta_stds
        self.fc1 = FusedLinear(box_head.fc1, relu=True, dtype=dtype)
        weight = self.fc1.weight.view(-1, channels, pool_size, pool_size).permute(0, 2, 3, 1).flatten(1)
        self.fc1.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.fc2 = FusedLinear(box_head.fc2, relu=True, dtype=dtype)
        self.logits = FusedLinear(box_head.logits, dtype=dtype)
        self.deltas = FusedLinear(box_head.deltas, dtype=dtype)

    def forward(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """As BoxHead.forward; features in channels-last memory are not copied."""
        x = self.fc2(self.fc1(roi_features.permute(0, 2, 3, 1).flatten(1)))
        return self.logits(x), self.deltas(x)

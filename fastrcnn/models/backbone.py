"""Backbone: images float [N, 3, H, W] -> [C2, C3, C4, C5], strides 4, 8, 16, 32.

ResNet as in "Deep Residual Learning for Image Recognition" (He et al., 2015), with the two places where a bottleneck
may stride: "caffe" in its first 1x1 convolution, as in the paper, "pytorch" in its 3x3 convolution. Both have the same
parameter names and shapes, those of torchvision and mmdetection, so a checkpoint does not tell which one it is for.
ResNeXt, "Aggregated Residual Transformations for Deep Neural Networks" (Xie et al., 2017), is a ResNet whose 3x3
convolutions are grouped. DC5 is the ResNet of "R-FCN" (Dai et al., 2016) whose last stage is dilated, not strided.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn.config import BackboneConfig
from fastrcnn.models.activation_checkpointing import checkpointed, without_keeping
from fastrcnn.models.convolution import convolution
from fastrcnn.models.precision import BatchNorm2d

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
NORMS = ("eval", "frozen", "train")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ResNet-18 and -34."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_normalised(self.conv1, self.bn1, x), inplace=True)
        y = _normalised(self.conv2, self.bn2, y)
        y += _residual(self.downsample, x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the width; ResNet-50 and -101, ResNeXt-101.

    Args:
        in_channels, width, stride, style: as of the stage that the block is in.
        groups: of the 3x3 convolution.
        group_width: channels of one group where width is 64; they grow with it.
        dilation: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, style: str, groups: int, group_width: int, dilation: int
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if style == "caffe" else (1, stride)
        inner = groups * (width * group_width // 64)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, first, bias=False)
        self.bn1 = BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, dilation, dilation, groups, bias=False)
        self.bn2 = BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        first, second = partial(_normalised, self.conv1, self.bn1, x), partial(_normalised, self.conv2, self.bn2)
        y = second(F.relu_(first())) if self.bn1.training else without_keeping(first, F.relu_, second)
        y = F.relu(y, inplace=True)
        y = _normalised(self.conv3, self.bn3, y)
        y += _residual(self.downsample, x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """ResNet or ResNeXt without its classifier, from the settings of `model.backbone`.

    forward gives the outputs of the four stages; with dilated_c5 the last has stride 16. frozen_stages: the stem (0)
    and the first k stages get no gradient, and their batch norm uses running statistics whatever `norm` says.

    Raises:
        ValueError: a setting out of its range.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        _check(config)
        self.norm, self.frozen_stages = config.norm, config.frozen_stages
        self.activation_checkpointing = False  # in training, backward() computes each stage again: less memory

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(64)
        bottlenecks = config.depth >= 50
        expansion = Bottleneck.expansion if bottlenecks else BasicBlock.expansion
        channels = 64
        for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS[config.depth], strict=True), start=1):
            dilated = config.dilated_c5 and stage == 4
            layers = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 and not dilated else 1
                layers.append(
                    Bottleneck(
                        channels, width, stride, config.style, config.groups, config.base_width, 2 if dilated else 1
                    )
                    if bottlenecks
                    else BasicBlock(channels, width, stride)
                )
                channels = width * expansion
            self.add_module(f"layer{stage}", layers)
        self.out_channels = [width * expansion for width in WIDTHS]

        for module in self.modules():  # batch norm starts at weight 1, bias 0 by itself
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if config.norm == "frozen":
            for module in self._batch_norms():
                module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """images float [N, 3, H, W] -> [C2, C3, C4, C5], each [N, out_channels[i], ceil(H / s), ceil(W / s)]."""
        x = F.relu(_normalised(self.conv1, self.bn1, images), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        outputs = []
        for stage in self._stages():
            x = checkpointed(stage, x) if self.activation_checkpointing and self.training else stage(x)
            outputs.append(x)
        return outputs

    def train(self, mode: bool = True) -> "ResNet":
        """As nn.Module.train, but batch norm keeps its running statistics where `norm` and `frozen_stages` say so."""
        super().train(mode)
        if self.norm != "train":
            for module in self._batch_norms():
                module.eval()
        for module in self._frozen_modules():
            module.eval()
        return self

    def _stages(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.conv1, self.bn1, *self._stages()[: self.frozen_stages]]

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]


def _check(config: BackboneConfig) -> None:
    """Raises ValueError, naming the setting, for a value out of range or settings that do not fit together."""
    if config.depth not in BLOCKS:
        raise ValueError(f"backbone.depth must be one of {sorted(BLOCKS)}, got {config.depth}")
    if config.style not in ("pytorch", "caffe"):
        raise ValueError(f"backbone.style must be 'pytorch' or 'caffe', got {config.style!r}")
    if config.norm not in NORMS:
        raise ValueError(f"backbone.norm must be one of {NORMS}, got {config.norm!r}")
    if not -1 <= config.frozen_stages <= 4:
        raise ValueError(f"backbone.frozen_stages must be between -1 and 4, got {config.frozen_stages}")
    if config.groups < 1 or config.base_width < 1:
        raise ValueError(
            f"backbone.groups and base_width must be at least 1, got {config.groups} and {config.base_width}"
        )
    if config.depth < 50 and (config.groups, config.base_width, config.dilated_c5) != (1, 64, False):
        raise ValueError(
            f"backbone.groups, base_width and dilated_c5 need bottlenecks, depth 50 or 101, got depth {config.depth}"
        )


def _normalised(layer: nn.Conv2d, norm: BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm of a convolution. With running statistics the two are one convolution with scaled weights.

    Then no map is read or kept for the norm's sake: its gradients follow from those of the scaled weights and the bias.
    Not so on a GPU, where scaling is five small launches for each convolution, nor with weights of half precision,
    which scaling would round once more.
    """
    if norm.training or x.device.type != "cpu" or layer.weight.dtype != norm.weight.dtype:
        return norm(layer(x))
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    return convolution(x, layer.weight, bias, scale, layer.stride, layer.padding, layer.dilation, layer.groups)


def _residual(shortcut: Any, x: Tensor) -> Tensor:
    """What the residual connection adds: x, or its projection (convolution, norm)."""
    if shortcut is None:
        return x
    convolution, norm = shortcut
    return _normalised(convolution, norm, x)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of the residual connection where the shape changes, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels))

"""Backbone: images float [N, 3, H, W] -> [C2, C3, C4, C5], strides 4, 8, 16, 32.

ResNet as in "Deep Residual Learning for Image Recognition" (He et al., 2015), with the two places where a bottleneck
may stride: "caffe" in its first 1x1 convolution, as in the paper, "pytorch" in its 3x3 convolution. Both have the same
parameter names and shapes, those of torchvision and mmdetection, so a checkpoint does not tell which one it is for.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn.models.activation_checkpointing import checkpointed

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
NORMS = ("eval", "frozen", "train")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ResNet-18 and -34."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the width; ResNet-50 and -101."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, style: str) -> None:
        super().__init__()
        first, second = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """ResNet without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        style: "pytorch" or "caffe" (module docstring); without effect for 18 and 34, which have no bottlenecks.
        norm: batch norm in training: "eval" running statistics, affine trained | "frozen" affine not trained either |
            "train" statistics of the batch, for training from scratch. In evaluation always running statistics.
        frozen_stages: the stem (0) and the first k stages get no gradient, and their batch norm uses running statistics
            whatever `norm` says; -1: nothing is frozen.
    Raises:
        ValueError: any other value.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, depth: int = 50, style: str = "pytorch", norm: str = "eval", frozen_stages: int = 1) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"backbone.depth must be one of {sorted(BLOCKS)}, got {depth}")
        if style not in ("pytorch", "caffe"):
            raise ValueError(f"backbone.style must be 'pytorch' or 'caffe', got {style!r}")
        if norm not in NORMS:
            raise ValueError(f"backbone.norm must be one of {NORMS}, got {norm!r}")
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f"backbone.frozen_stages must be between -1 and 4, got {frozen_stages}")
        self.depth, self.norm, self.frozen_stages = depth, norm, frozen_stages
        self.activation_checkpointing = False  # in training, backward() computes each stage again: less memory

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        expansion = BasicBlock.expansion if depth < 50 else Bottleneck.expansion
        channels = 64
        for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True), start=1):
            layers = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layers.append(
                    BasicBlock(channels, width, stride) if depth < 50 else Bottleneck(channels, width, stride, style)
                )
                channels = width * expansion
            self.add_module(f"layer{stage}", layers)
        self.out_channels = [width * expansion for width in WIDTHS]

        for module in self.modules():  # batch norm starts at weight 1, bias 0 by itself
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if norm == "frozen":
            for module in self._batch_norms():
                module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """images float [N, 3, H, W] -> [C2, C3, C4, C5], C_i of [N, out_channels[i], ceil(H / s), ceil(W / s)]."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
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


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of the residual connection where the shape changes, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

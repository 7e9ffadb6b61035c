"""Backbone of the paper: images float [N, 3, H, W] -> one map [N, 512, H/16, W/16].

VGG-16 as in "Very Deep Convolutional Networks for Large-Scale Image Recognition" (Simonyan and Zisserman, 2015), up to
the ReLU after conv5_3: thirteen 3x3 convolutions with bias, max-pooling 2x2 between the five blocks. Parameters are
numbered as in torchvision's VGG-16 (features.0, features.2, features.5, ...).
"""

from torch import Tensor, nn

from fastrcnn.models.activation_checkpointing import checkpointed

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # output channels


class VGG16(nn.Module):
    """VGG-16 without its last pooling and its classifier.

    Args:
        frozen_stages: the first k blocks get no gradient; -1 or 0: everything is trained.
    Raises:
        ValueError: any other value.
    """

    def __init__(self, frozen_stages: int = 2) -> None:
        super().__init__()
        if not -1 <= frozen_stages <= len(BLOCKS):
            raise ValueError(f"backbone.frozen_stages must be between -1 and {len(BLOCKS)}, got {frozen_stages}")
        self.activation_checkpointing = False  # in training, backward() computes each block again: less memory
        self.features = nn.Sequential()
        self.block_starts = []
        channels = 3
        for block, widths in enumerate(BLOCKS):
            self.block_starts.append(len(self.features))
            if block > 0:
                self.features.append(nn.MaxPool2d(2))
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
                convolution.requires_grad_(block >= frozen_stages)
                self.features.extend([convolution, nn.ReLU(inplace=True)])
                channels = width
        self.out_channels = [channels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """images float [N, 3, H, W] -> [the output of conv5_3, [N, 512, H // 16, W // 16]]."""
        x = images
        for start, end in zip(self.block_starts, [*self.block_starts[1:], len(self.features)], strict=True):
            block = self.features[start:end]
            x = checkpointed(block, x) if self.activation_checkpointing and self.training else block(x)
        return [x]

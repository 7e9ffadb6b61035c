"""FPN: [C2, C3, C4, C5] -> [P2, ..., P6], every level with the same number of channels.

"Feature Pyramid Networks for Object Detection" (Lin et al., 2017): no normalisation and no activation.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn.models.convolution import Conv3x3


class FPN(nn.Module):
    """Feature pyramid.

    Args:
        in_channels: of the backbone's levels, finest first.
        channels: of every output level.
        num_levels: output levels; each one beyond len(in_channels) is its predecessor subsampled by two.
    Raises:
        ValueError: fewer output levels than inputs.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, num_levels: int = 5) -> None:
        super().__init__()
        if num_levels < len(in_channels):
            raise ValueError(f"fpn.num_levels must be at least {len(in_channels)}, the backbone's, got {num_levels}")
        self.channels, self.num_levels = channels, num_levels
        self.lateral = nn.ModuleList(nn.Conv2d(inner, channels, 1) for inner in in_channels)
        self.output = nn.ModuleList(Conv3x3(channels, channels) for _ in in_channels)
        for convolution in (*self.lateral, *self.output):
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels [N, in_channels[i], h_i, w_i], finest first -> num_levels maps [N, channels, h, w]."""
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for finer, coarser in zip(merged[-2::-1], merged[:0:-1], strict=True):
            # to the exact size of the finer level: sides need not be multiples of 32
            finer += F.interpolate(coarser, size=finer.shape[-2:], mode="nearest")
        outputs = [output(level) for output, level in zip(self.output, merged, strict=True)]
        while len(outputs) < self.num_levels:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs

"""Anchors: sizes of the feature maps -> the reference boxes of the RPN, [h*w*A, 4] per level.

The anchors of cell (y, x) at stride s are centred on (x * s, y * s); their order is y, x, anchor, and within a cell
ratio-major: anchor = ratio index * number of scales + scale index.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastrcnn import ops
from fastrcnn.config import PAD_MULTIPLE
from fastrcnn.models.precision import keeping_float32


class AnchorGenerator(nn.Module):
    """Anchors of every level.

    Args:
        scales: side of an anchor of ratio 1 in strides.
        ratios: height / width.
        strides: pixels of the network input per cell, one per level.
        allowed_border: in training, pixels by which an anchor may cross the border of the true image; -1: any.
    """

    base_anchors: Tensor  # float32 [L, A, 4] around the origin

    def __init__(
        self, scales: Sequence[float], ratios: Sequence[float], strides: Sequence[int], allowed_border: int = -1
    ) -> None:
        super().__init__()
        self.strides, self.allowed_border = list(strides), allowed_border
        self.num_anchors = len(scales) * len(ratios)
        base_anchors = torch.stack([ops.base_anchors(stride, scales, ratios) for stride in strides])
        # Not persistent: published checkpoints do not hold anchors, they follow from the config.
        self.register_buffer("base_anchors", base_anchors, persistent=False)

    def forward(self, feature_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Sizes (h, w) of the levels in cells -> float32 [h*w*A, 4] per level, xyxy in pixels of the network input."""
        return ops.grid_anchors(feature_sizes, self.strides, list(self.base_anchors.unbind()))

    def valid(
        self, anchors: list[Tensor], feature_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
    ) -> Tensor:
        """Which anchors take part in training on one image of a batch.

        Those whose cell lies within the image's own padded size (not the batch's) and, unless allowed_border is -1,
        that cross the border of the true image by no more than that.

        Args:
            anchors: what forward gave for feature_sizes.
            image_size: the true (height, width) before padding.
        Returns:
            bool [sum of h*w*A], levels one after another.
        """
        flags = []
        for level, (height, width), stride in zip(anchors, feature_sizes, self.strides, strict=True):
            rows, columns = (-(-_padded(side) // stride) for side in image_size)
            cells = torch.zeros(height, width, self.num_anchors, dtype=torch.bool, device=level.device)
            cells[:rows, :columns] = True
            flags.append(cells.flatten())
        inside = torch.cat(flags)
        if self.allowed_border < 0:
            return inside
        x1, y1, x2, y2 = torch.cat(anchors).unbind(1)
        height, width = image_size
        border = self.allowed_border
        return inside & (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AnchorGenerator":
        """In half precision an anchor's 22.63 would become 22.62."""
        return super()._apply(keeping_float32(fn), recurse)


def _padded(side: int) -> int:
    return -(-side // PAD_MULTIPLE) * PAD_MULTIPLE

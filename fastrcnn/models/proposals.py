"""Proposals: the boxes that the RPN hands to the box head, in a form whose shape does not depend on the images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Proposals:
    """P slots per image, filled from the front by descending score.

    boxes: float32 [N, P, 4], xyxy in pixels of the network input.   scores: float32 [N, P], between 0 and 1.
    count: int64 [N], the filled slots of each image; the rest is padding.
    """

    boxes: Tensor
    scores: Tensor
    count: Tensor

    def rois(self) -> Tensor:
        """float32 [N * P, 5]: the image index, -1 for padding, then the box."""
        num_images, slots = self.scores.shape
        slot = torch.arange(slots, device=self.count.device)
        image = torch.arange(num_images, device=self.count.device)
        index = torch.where(slot < self.count[:, None], image[:, None], -1)
        return torch.cat([index[..., None].to(self.boxes), self.boxes], dim=2).flatten(0, 1)

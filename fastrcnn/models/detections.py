"""Detections: what the model gives for one image."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Detections:
    """The K objects found in one image, by descending score.

    boxes: float32 [K, 4], xyxy in pixels of the original image.   scores: float32 [K], between 0 and 1.
    labels: int64 [K], 0 .. C - 1.   names: the class names of the labels; empty unless a Detector made the object.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scores)

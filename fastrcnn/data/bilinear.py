"""cv2.resize with INTER_LINEAR on bytes, in integer arithmetic of PyTorch: the same bytes on any device.

An output pixel is a weighted mean of two by two input pixels, without antialiasing. As OpenCV computes it:

| pass    | of what                                 | result, in units of             |
|---------|-----------------------------------------|---------------------------------|
| along x | bytes x weights of 11 bits              | 2^-11, exact                    |
| along y | its upper bits x weights of 11 bits     | 2^-2, each product rounded down |

The last two bits are rounded to nearest.
"""

import torch
from torch import Tensor

_ONE = 2048.0  # a weight of 1


def resize_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """What cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) gives, byte for byte.

    Nothing waits for the device.

    Args:
        image: uint8 [h, w, channels] on any device, none of them 0.
        height, width: of the result, at least 1.
    Returns:
        uint8 [height, width, channels] on the device of the image.
    """
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return image
    columns, x_weights = _neighbours(old_width, width, image.device, one_at_edge=True)
    rows, y_weights = _neighbours(old_height, height, image.device, one_at_edge=False)
    upper, lower = (_along_x(image.index_select(0, row), columns, x_weights) for row in rows)
    upper_weight, lower_weight = (weight[:, None, None] for weight in y_weights)
    quarters = ((upper >> 4) * upper_weight >> 16) + ((lower >> 4) * lower_weight >> 16)
    return ((quarters + 2) >> 2).byte()


def _along_x(rows: Tensor, columns: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> Tensor:
    """uint8 [height, w, channels] -> int32 [height, width, channels]."""
    left, right = (rows.index_select(1, column).int() for column in columns)
    return left * weights[0][:, None] + right * weights[1][:, None]


def _neighbours(
    old: int, new: int, device: torch.device, one_at_edge: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two of `old` pixels around the centre of each of `new` ones, int64, and their weights, int32.

    In OpenCV's steps of float64, then float32. Beyond an edge both are the pixel at the edge, and the weights as
    elsewhere, which may sum to 2047 or 2049; or, with one_at_edge, 2048 and 0.
    """
    scale = 1 / (new / old)
    place = ((torch.arange(new, dtype=torch.float64, device=device) + 0.5) * scale - 0.5).float()
    before = place.floor()
    part = place - before
    if one_at_edge:
        part = part.masked_fill((before < 0) | (before >= old - 1), 0)
    pixels = before.long().clamp(0, old - 1), (before.long() + 1).clamp(0, old - 1)
    return pixels, (((1 - part) * _ONE).round().int(), (part * _ONE).round().int())

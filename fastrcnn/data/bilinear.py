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
    if (old_height, old_width) == (2 * height, 2 * width):  # which OpenCV leaves to its method for areas
        upper, lower = image[0::2].int(), image[1::2].int()
        return ((upper[:, 0::2] + upper[:, 1::2] + lower[:, 0::2] + lower[:, 1::2] + 2) >> 2).byte()

    x, x_part = _places(old_width, width, image.device)
    x_part = x_part.masked_fill((x < 0) | (x >= old_width - 1), 0)  # beyond an edge: its pixel alone
    columns, x_weights = _neighbours(x, old_width), _weights(x_part)
    y, y_part = _places(old_height, height, image.device)
    rows, y_weights = _neighbours(y, old_height), _weights(y_part)  # beyond an edge: its row, with both weights

    upper, lower = (_along_x(image.index_select(0, row), columns, x_weights) for row in rows)
    upper_weight, lower_weight = (weight[:, None, None] for weight in y_weights)
    quarters = ((upper >> 4) * upper_weight >> 16) + ((lower >> 4) * lower_weight >> 16)
    return ((quarters + 2) >> 2).byte()


def _along_x(rows: Tensor, columns: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> Tensor:
    """uint8 [height, w, channels] -> int32 [height, width, channels]."""
    left, right = (rows.index_select(1, column).int() for column in columns)
    return left * weights[0][:, None] + right * weights[1][:, None]


def _places(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the centres of `new` pixels lie among `old` ones: the pixel before, int64, and the way to the next, 0 .. 1.

    In OpenCV's steps of float64, then float32.
    """
    scale = 1 / (new / old)
    place = ((torch.arange(new, dtype=torch.float64, device=device) + 0.5) * scale - 0.5).float()
    before = place.floor()
    return before.long(), place - before


def _neighbours(before: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each place, within the image."""
    return before.clamp(0, size - 1), (before + 1).clamp(0, size - 1)


def _weights(part: Tensor) -> tuple[Tensor, Tensor]:
    """Of the two pixels, int32."""
    return ((1 - part) * _ONE).round().int(), (part * _ONE).round().int()

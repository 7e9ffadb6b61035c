"""What stays float32 in a model of half precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def keeping_float32(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """For nn.Module._apply: as `convert`, but where that would give float16 or bfloat16 only the device changes."""

    def apply(tensor: Tensor) -> Tensor:
        converted = convert(tensor)
        half = converted.dtype in (torch.float16, torch.bfloat16)
        return tensor.to(converted.device) if half else converted

    return apply


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose weights and statistics stay float32 when the model becomes float16 or bfloat16.

    Rounding them to bfloat16 would shift every channel by up to 0.4 %; a float32 vector per channel costs nothing.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BatchNorm2d":
        return super()._apply(keeping_float32(fn), recurse)

"""3x3 convolution by Winograd's method on the CPU: a quarter of the multiplications."""

import torch
from torch import Tensor

from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """3x3 convolution, stride 1, zero padding 1, by Winograd's F(4x4, 3x3) (Lavin & Gray 2015).

    Equal to torch.nn.functional.conv2d(x, weight, bias, padding=1) up to rounding: a tile of 4x4 outputs takes 36
    multiplications per pair of channels instead of 144, and its errors are larger than those of the definition. With
    256 channels of normal numbers, relative to the standard deviation of the outputs, their root mean square is 1.4e-6
    and the largest of 600,000 is 1.4e-5 (torch's conv2d: 2.3e-7 and 1.6e-6); they grow with the square root of the
    number of channels.

    Args:
        x: [N, channels, height, width] float32. Channels-last memory is read as it is; other memory is converted.
        weight: [out_channels, channels, 3, 3] float32. Contiguous memory is read as it is. Output channels are computed
            16 at a time, so multiples of 16 waste nothing.
        bias: [out_channels] float32, or None.
        relu: whether negative outputs become 0 (NaN stays).
    Returns:
        [N, out_channels, height, width] float32 in channels-last memory; empty if one of these is 0. Bitwise the same
        for any number of threads and instruction set. A NaN or infinity in x makes NaN or infinite what it does by the
        definition, the 3x3 outputs around it in every channel, and further the rows and columns of its tile of 4x4
        (tiles start at multiples of 4), but no others. In a weight or bias it stays in that output channel. Numbers
        above 1e37 may overflow on the way.
    Raises:
        RuntimeError: wrong shape or type, or an argument that requires a gradient while gradients are recorded: there
            is no backward pass. NotImplementedError: tensors on another device than the CPU.
    """
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)):
        raise RuntimeError(
            "conv3x3 has no backward pass: expected arguments that require no gradient, or a call within "
            "torch.inference_mode() or torch.no_grad()"
        )
    return torch.ops.fastrcnn.conv3x3(x, weight, bias, relu)


@torch.library.register_fake("fastrcnn::conv3x3")
def _(x, weight, bias, relu):
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

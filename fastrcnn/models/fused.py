"""Layers for inference that do several steps of the network in one.

| layer       | does the work of                                                              |
|-------------|-------------------------------------------------------------------------------|
| FusedConv2d | convolution, batch norm, addition of the residual or of the level above, ReLU |
| FusedLinear | linear layer, ReLU                                                            |

Batch norm with running statistics is a factor and a shift per channel, which go into weight and bias. Addition and ReLU
then happen while an output is still in a register, where oneDNN or our Winograd kernel can do that; on other devices
they are steps of their own, in place.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrcnn import ops

_LEAST_WINOGRAD_CHANNELS = 16  # of the input; below, transforming takes longer than it saves


def _onednn_types() -> tuple[torch.dtype, ...]:
    """The types in which this PyTorch on this processor has oneDNN's convolution with ReLU and addition.

    They are operators that torch.compile uses and PyTorch does not document: without them FusedConv2d takes the steps
    one by one.
    """
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


ONEDNN_TYPES = _onednn_types()

# Whether this processor multiplies matrices of bfloat16 in tiles (AMX), many times as fast as float32. To ask is
# undocumented, and may be impossible.
HAS_TILES = torch.bfloat16 in ONEDNN_TYPES and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def prefers_winograd(dtype: torch.dtype) -> bool:
    """Whether 3x3 convolutions on the CPU are fastest by Winograd's method, in float32, for a model of this type."""
    return dtype != torch.float64 and not (dtype == torch.bfloat16 and HAS_TILES)


class FusedConv2d(nn.Module):
    """A convolution with everything that follows it, for inference.

    3x3 convolutions of stride 1 run by Winograd's method (ops.conv3x3) on the CPU, in float32 whatever `dtype` is: that
    takes less time than the direct method in bfloat16, conversions included, and is more exact. Not so where the
    processor has AMX: there the direct method in bfloat16 takes a sixth to a half of the time.

    Args:
        convolution: whose weights are copied; its device is the layer's.
        norm: the batch norm behind it, which must be in evaluation mode when the model runs.
        relu: whether the last step is a ReLU.
        dtype: of the outputs, and of the weights unless they are Winograd's.
    """

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False, *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        weight, bias = _folded(convolution, norm)
        self.relu, self.dtype = relu, dtype
        self.padding = [int(side) for side in convolution.padding]  # which might be a word, but not in our models
        self.stride = list(convolution.stride)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self.winograd = prefers_winograd(dtype) and _suits_winograd(convolution)
        if self.winograd:
            weight, bias = weight.float().contiguous(), bias.float()
        else:
            weight, bias = weight.to(dtype, memory_format=torch.channels_last), bias.to(dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """[N, channels, h, w] of any floating type -> [N, out_channels, h', w'] of self.dtype, channels-last.

        Args:
            other: of the output's shape, type and memory; it is added before the ReLU, and overwritten by the result.
        """
        if self.winograd:
            y = ops.conv3x3(x.float(), self.weight, self.bias, self.relu and other is None)
            return self._finish(y.to(self.dtype), other)
        x = x.to(self.dtype)
        if _has_onednn(x):
            return self._onednn(x, other)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return self._finish(F.relu(y, inplace=True) if self.relu and other is None else y, other)

    def _onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        relu = "relu" if self.relu else None
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *geometry, relu or "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, self.weight, self.bias, *geometry, "add", 1.0, relu, [], None
        )

    def _finish(self, y: Tensor, other: Tensor | None) -> Tensor:
        if other is None:
            return y
        other += y
        return F.relu(other, inplace=True) if self.relu else other


class FusedLinear(nn.Module):
    """A linear layer, with the ReLU behind it, for inference.

    Args:
        layer: whose weights are copied.
        relu: whether a ReLU follows.
        dtype: of weights and outputs.
    """

    def __init__(self, layer: nn.Linear, relu: bool = False, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.relu, self.dtype = relu, dtype
        self.weight = nn.Parameter(layer.weight.detach().to(dtype, copy=True), requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach().to(dtype, copy=True), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[R, inputs] of any floating type -> [R, outputs] of self.dtype."""
        x = x.to(self.dtype)
        if _has_onednn(x):
            activation = "relu" if self.relu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "")
        y = F.linear(x, self.weight, self.bias)
        return F.relu(y, inplace=True) if self.relu else y


def _has_onednn(x: Tensor) -> bool:
    """Not in graphs: torch.compile and torch.export get the steps one by one, and the former fuses them itself."""
    return x.device.type == "cpu" and x.dtype in ONEDNN_TYPES and not torch.compiler.is_compiling()


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of convolution and batch norm as one convolution, computed in float64."""
    weight = convolution.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().double()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None, "our batch norms keep running statistics"
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    return weight * scale.view(-1, 1, 1, 1), norm.bias.detach().double() + (bias - norm.running_mean.double()) * scale


def _suits_winograd(convolution: nn.Conv2d) -> bool:
    """On the CPU, 3x3, every step 1, and enough channels. Measured from 64 channels on: 2.2 to 3.2 times oneDNN."""
    geometry = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    return (
        convolution.weight.device.type == "cpu"
        and geometry == ((3, 3), (1, 1), (1, 1), (1, 1))
        and convolution.groups == 1
        and convolution.in_channels >= _LEAST_WINOGRAD_CHANNELS
    )

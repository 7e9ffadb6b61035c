"""RoIAlign: each region of interest becomes a small grid of averaged features: levels, RoIs -> [R, C, 7, 7]."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_levels, check_number, check_tensors, number_list, whole_numbers
from fastrcnn.ops._library import forbid_double_backward


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign on one feature map (He et al. 2017, Mask R-CNN, section 3), with torchvision's order of arguments.

    Each RoI is divided into bins; a bin is the mean of bilinear samples on a regular grid inside it.

    Args:
        features: [N, C, height, width], float32, float64, float16 or bfloat16. Channels-last memory is read as it is;
            NCHW memory is converted.
        rois: [R, 5]: image index, x1, y1, x2, y2 in image pixels. Float32 whatever the features' type (float64 for
            float64 features); other floating types are converted. Image index -1 marks padding: zeros come out.
        output_size: bins (height, width), 1 to 32768 each, or one number for both.
        spatial_scale: feature cells per image pixel: 1 / stride.
        sampling_ratio: samples per bin and axis; <= 0: adaptive, ceil(RoI size in cells / bins).
        aligned: True: pixel centres lie at half-integers, a RoI may be smaller than a cell. False: the older form
            without the half-pixel shift, where a RoI is at least one cell large.
    Returns:
        [R, C, *output_size] of the features' type, in channels-last memory if the features are. Samples further than
        one cell outside the map are zero. A RoI with a NaN or infinite coordinate gives zeros. So does an empty or
        reversed one with aligned=True and adaptive sampling; with sampling_ratio > 0 it is sampled as it is, and with
        aligned=False it is at least one cell large. R = 0 gives an empty tensor.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device, a map without cells, a spatial_scale that is not
            positive, or infinite; on the CPU, an image index that does not exist (on CUDA, where looking would wait for
            the device, such a RoI gives zeros).

    Differentiable with respect to the features, not the RoIs. The backward pass is bitwise reproducible on the CPU for
    any number of threads; on CUDA it is under torch.use_deterministic_algorithms(True).
    """
    check_tensors(features=features)
    check_number(spatial_scale=spatial_scale)
    height, width = _bins(output_size)
    return torch.ops.fastrcnn.multilevel_roi_align(
        [features], _roi_coordinates(rois, features), [spatial_scale], height, width, sampling_ratio, aligned, 1.0
    )


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    strides: Sequence[float],
    output_size: int | tuple[int, int],
    sampling_ratio: int = 0,
    finest_scale: float = 56,
) -> Tensor:
    """RoIAlign (aligned) on a feature pyramid, each RoI on the level that fits its size, all levels in one call.

    The level is floor(log2(sqrt(width * height) / finest_scale + 1e-6)), clamped to the levels given (Lin et al. 2017,
    Feature Pyramid Networks, equation 1): RoIs of side below 2 * finest_scale go to the first level.

    Args:
        features: 1 to 8 tensors [N, C, height, width], finest first, of one type; the first one's memory layout is that
            of the result.
        rois: [R, 5] as in roi_align.
        strides: image pixels per cell, one per level.
        output_size, sampling_ratio: as in roi_align.
        finest_scale: image pixels.
    Returns: as roi_align.
    Raises: as roi_align; ValueError: no level, a stride that is not positive.
    """
    check_levels(features=features)
    strides = number_list("strides", strides)
    if not features:
        raise ValueError("features: expected at least one level, got none")
    if not all(0 < stride < math.inf for stride in strides):
        raise ValueError(f"strides: expected positive numbers, got {strides}")
    height, width = _bins(output_size)
    return torch.ops.fastrcnn.multilevel_roi_align(
        list(features),
        _roi_coordinates(rois, features[0]),
        [1.0 / stride for stride in strides],
        height,
        width,
        sampling_ratio,
        True,
        finest_scale,
    )


def _bins(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width)"""
    sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    return whole_numbers("output_size", sizes, "a whole number or (height, width)")


def _roi_coordinates(rois: Tensor, features: Tensor) -> Tensor:
    if not isinstance(rois, Tensor):  # torchvision also takes a list of boxes
        raise TypeError(f"rois: expected one tensor [R, 5] = image index, x1, y1, x2, y2, got {type(rois).__name__}")
    return rois.detach().to(torch.float64 if features.dtype == torch.float64 else torch.float32)


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("fastrcnn::multilevel_roi_align")
def _(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned, finest_scale):
    first = features[0]
    layout = torch.channels_last if _is_channels_last(first) else torch.contiguous_format
    out = first.new_empty((rois.shape[0], first.shape[1], pooled_height, pooled_width))
    return out.contiguous(memory_format=layout)


@torch.library.register_fake("fastrcnn::_multilevel_roi_align_backward")
def _(
    grad,
    rois,
    level_heights,
    level_widths,
    num_images,
    spatial_scales,
    sampling_ratio,
    aligned,
    finest_scale,
    channels_last,
    deterministic,
):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shapes = [(num_images, grad.shape[1], h, w) for h, w in zip(level_heights, level_widths, strict=True)]
    return [grad.new_empty(shape).contiguous(memory_format=layout) for shape in shapes]


def _setup_context(ctx, inputs, output) -> None:
    features, rois, spatial_scales, _, _, sampling_ratio, aligned, finest_scale = inputs
    ctx.save_for_backward(rois)
    ctx.sizes = [level.shape[2] for level in features], [level.shape[3] for level in features], features[0].shape[0]
    ctx.sampling = spatial_scales, sampling_ratio, aligned, finest_scale
    ctx.channels_last = _is_channels_last(features[0])


def _backward(ctx, grad):
    (rois,) = ctx.saved_tensors
    grads = torch.ops.fastrcnn._multilevel_roi_align_backward(
        grad, rois, *ctx.sizes, *ctx.sampling, ctx.channels_last, torch.are_deterministic_algorithms_enabled()
    )
    return grads, None, None, None, None, None, None, None


torch.library.register_autograd("fastrcnn::multilevel_roi_align", _backward, setup_context=_setup_context)
forbid_double_backward("fastrcnn::_multilevel_roi_align_backward")

"""RoIPool: each region of interest becomes a small grid of feature maxima: a level, RoIs -> [R, C, 7, 7]."""

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_number, check_tensors
from fastrcnn.ops._library import forbid_double_backward
from fastrcnn.ops.roi_align import _bins, _is_channels_last, _roi_coordinates


def roi_pool(features: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """RoIPool on one feature map (Girshick 2015, Fast R-CNN, section 2.1), exactly as torchvision's.

    The edges of a RoI are rounded to whole cells (halves away from zero; those beyond 2^30 cells count as 2^30), and it
    includes the cells of both: it is at least one cell large. A bin is the maximum of the cells that it touches.
    RoIAlign, its successor, does not round.

    Args:
        features: [N, C, height, width], float32, float64, float16 or bfloat16. Channels-last memory is read as it is;
            NCHW memory is converted.
        rois: [R, 5]: image index, x1, y1, x2, y2 in image pixels. Float32 whatever the features' type (float64 for
            float64 features); other floating types are converted. Image index -1 marks padding: zeros come out.
        output_size: bins (height, width), 1 to 32768 each, or one number for both.
        spatial_scale: feature cells per image pixel: 1 / stride.
    Returns:
        [R, C, *output_size] of the features' type, in channels-last memory if the features are. A bin outside the map
        is zero. Features that are NaN are passed over; a bin that holds nothing above the lowest float32 is that
        number (in a 16-bit type: -infinity). A RoI with a NaN or infinite coordinate gives zeros. R = 0 gives an empty
        tensor.
    Raises:
        TypeError, RuntimeError: wrong shape, type or device, a map without cells, a spatial_scale that is not
            positive, or infinite; on the CPU, an image index that does not exist (on CUDA, where looking would wait for
            the device, such a RoI gives zeros).

    Differentiable with respect to the features, not the RoIs: the gradient of a bin goes to the cell of its maximum, of
    equal ones the first, row by row. The backward pass is bitwise reproducible on the CPU for any number of threads; on
    CUDA it is under torch.use_deterministic_algorithms(True).
    """
    check_tensors(features=features)
    check_number(spatial_scale=spatial_scale)
    height, width = _bins(output_size)
    rois = _roi_coordinates(rois, features)
    return torch.ops.fastrcnn.roi_pool(features, rois, height, width, spatial_scale)[0]


@torch.library.register_fake("fastrcnn::roi_pool")
def _(features, rois, pooled_height, pooled_width, spatial_scale):
    layout = torch.channels_last if _is_channels_last(features) else torch.contiguous_format
    pooled = features.new_empty((rois.shape[0], features.shape[1], pooled_height, pooled_width))
    argmax = torch.empty_like(pooled, dtype=torch.int32, memory_format=torch.channels_last)
    return pooled.contiguous(memory_format=layout), argmax


@torch.library.register_fake("fastrcnn::_roi_pool_backward")
def _(grad, rois, argmax, num_images, height, width, spatial_scale, channels_last, deterministic):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return grad.new_empty((num_images, grad.shape[1], height, width)).contiguous(memory_format=layout)


def _setup_context(ctx, inputs, output) -> None:
    features, rois, _, _, ctx.spatial_scale = inputs
    _, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(rois, argmax)
    ctx.sizes = features.shape[0], features.shape[2], features.shape[3]
    ctx.channels_last = _is_channels_last(features)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 5
    grad_features = torch.ops.fastrcnn._roi_pool_backward(
        grad,
        *ctx.saved_tensors,
        *ctx.sizes,
        ctx.spatial_scale,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_features, None, None, None, None


torch.library.register_autograd("fastrcnn::roi_pool", _backward, setup_context=_setup_context)
forbid_double_backward("fastrcnn::_roi_pool_backward")

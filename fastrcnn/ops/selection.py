"""Box head outputs -> detections: softmax, decode, threshold, class-wise NMS, the best few."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_tensors, number_list, pair_tensor
from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def select_detections(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_sizes: Tensor | Sequence[tuple[float, float]],
    scale_factors: Tensor | Sequence[tuple[float, float]],
    score_threshold: float,
    iou_threshold: float,
    max_output: int,
    means: Sequence[float],
    stds: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Final detections of N images (Girshick 2015, Fast R-CNN, section 3; NMS in pixels of the original image).

    Args:
        logits: [R, C + 1], background last. deltas: [R, 4 * C], class-major. Of any floating type.
        rois: float32 [R, 5]: image index (-1: padding, never detected), x1, y1, x2, y2 in pixels of the network input.
        image_sizes: [N, 2] (height, width) before padding; boxes are clipped to it.
        scale_factors: [N, 2] (width factor, height factor) = resized / original, positive; boxes are divided by it.
        score_threshold: a detection's softmax score is greater than it.
        iou_threshold: of the NMS within each class. max_output: detections per image.
        means, stds: of the deltas.
    Returns:
        boxes [N, K, 4] in pixels of the original image, scores [N, K], labels int64 [N, K], by descending score, ties
        by RoI and then by class; count int64 [N]; K = min(R * C, max_output); rows beyond the count are zeros. A RoI
        with a NaN or +inf logit has no softmax and is not detected.
    Raises:
        TypeError: not tensors or numbers. ValueError: a wrong shape. RuntimeError: wrong dtype or device, an
        iou_threshold outside [0, 1], a score_threshold that is NaN, a scale factor that is not positive, or infinite.
        IndexError: an image index that is none of -1 .. N - 1. On CUDA, which does not wait to see them, a RoI with
        such an index, or in an image with such a factor, is never detected.

    Not differentiable. No host synchronisation if image_sizes and scale_factors are tensors on the device (lists are
    copied there).
    """
    check_tensors(logits=logits, deltas=deltas, rois=rois)
    image_sizes = pair_tensor("image_sizes", image_sizes, logits)
    scale_factors = pair_tensor("scale_factors", scale_factors, logits)
    _check(logits, deltas, rois, image_sizes, scale_factors)
    return torch.ops.fastrcnn.select_detections(
        logits.detach(),
        deltas.detach(),
        rois.detach(),
        image_sizes,
        scale_factors,
        score_threshold,
        iou_threshold,
        max_output,
        number_list("means", means),
        number_list("stds", stds),
    )


def _check(logits: Tensor, deltas: Tensor, rois: Tensor, image_sizes: Tensor, scale_factors: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: expected shape [R, C + 1] with C of 1 or more, got {list(logits.shape)}")
    num_rois, num_classes = logits.shape[0], logits.shape[1] - 1
    if deltas.shape != (num_rois, 4 * num_classes):
        raise ValueError(f"deltas: expected [R, 4 * C] = [{num_rois}, {4 * num_classes}], got {list(deltas.shape)}")
    if rois.shape != (num_rois, 5):
        raise ValueError(f"rois: expected shape [R, 5] = [{num_rois}, 5], got {list(rois.shape)}")
    if image_sizes.dim() != 2 or image_sizes.shape[0] < 1 or image_sizes.shape[1] != 2:
        raise ValueError(f"image_sizes: expected shape [N, 2] with N of 1 or more, got {list(image_sizes.shape)}")
    if scale_factors.shape != image_sizes.shape:
        raise ValueError(
            f"scale_factors: expected shape [N, 2] = {list(image_sizes.shape)}, got {list(scale_factors.shape)}"
        )


@torch.library.register_fake("fastrcnn::select_detections")
def _(
    logits,
    deltas,
    rois,
    image_sizes,
    scale_factors,
    score_threshold,
    iou_threshold,
    max_output,
    means,
    stds,
):
    num_images = image_sizes.shape[0]
    capacity = torch.sym_min(logits.shape[0] * (logits.shape[1] - 1), max_output)
    return (
        rois.new_empty((num_images, capacity, 4)),
        rois.new_empty((num_images, capacity)),
        rois.new_empty((num_images, capacity), dtype=torch.int64),
        rois.new_empty((num_images,), dtype=torch.int64),
    )

"""Greedy non-maximum suppression. Data flow: scored boxes -> indices of the ones to keep, best first."""

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_tensors
from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int | None = None) -> Tensor:
    """Keeps the best box, drops every box that overlaps it by more than the threshold, and goes on with the next best.

    Box b is dropped because of a kept box a if and only if float32 inter(a, b) / union(a, b), compared as a double, is
    greater than iou_threshold. Two boxes without area do not suppress each other, nor does a box with NaN, nor do two
    whose areas' sum is beyond the type (float32: 3.4e38, squares of side 1.3e19).

    Args:
        boxes: [n, 4] x1, y1, x2, y2; scores: [n]. Computed in float64 if either is, else in float32, to which other
            types are converted. Equal scores are taken by lower index, NaN after all numbers.
        iou_threshold: in [0, 1].
        max_output: stop when this many are kept; None: no limit.
    Returns:
        int64 [K] indices into boxes, by descending score. n = 0 gives an empty tensor.
    Raises:
        ValueError, TypeError, RuntimeError: wrong shape, type or device, a threshold outside [0, 1].

    On CUDA the call waits for the device once, to know K; nms_padded does not.
    """
    return _trimmed(boxes, scores, None, iou_threshold, max_output)


def batched_nms(
    boxes: Tensor, scores: Tensor, class_ids: Tensor, iou_threshold: float, max_output: int | None = None
) -> Tensor:
    """NMS in which only boxes of the same class suppress each other, exactly: boxes are not shifted apart by class.

    Args:
        boxes, scores, iou_threshold: as in nms.
        class_ids: int64 [n]; any values.
        max_output: over all classes together.
    Returns:
        int64 [K] indices into boxes, by descending score over all classes.
    Raises: as nms.
    """
    return _trimmed(boxes, scores, class_ids, iou_threshold, max_output)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    class_ids: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """NMS of N images at once with outputs of fixed size: nothing waits for the device.

    Args:
        boxes: [N, M, 4], scores: [N, M]; as in nms.
        max_output: the most that is kept per image.
        class_ids: int64 [N, M], or None: one class. valid: bool [N, M], the candidates that take part; None: all.
    Returns:
        indices: int64 [N, K] with K = min(M, max_output), by descending score; 0 beyond the count.
        count: int64 [N], how many are kept.
    Raises: as nms.
    """
    check_tensors(boxes=boxes, scores=scores)
    if class_ids is not None:
        check_tensors(class_ids=class_ids)
    if valid is not None:
        check_tensors(valid=valid)
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    return torch.ops.fastrcnn.nms.default(
        _as_type(boxes, dtype), _as_type(scores, dtype), class_ids, valid, iou_threshold, max_output
    )


def _as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers alone, without their history. A thousand boxes are done in the time of a few calls into PyTorch."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _trimmed(
    boxes: Tensor, scores: Tensor, class_ids: Tensor | None, iou_threshold: float, max_output: int | None
) -> Tensor:
    check_tensors(boxes=boxes, scores=scores)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected shape [n, 4], got {list(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores: expected shape [n], one per box ({len(boxes)}), got {list(scores.shape)}")
    if class_ids is not None:
        check_tensors(class_ids=class_ids)
        if class_ids.is_floating_point() or class_ids.dtype == torch.bool:
            raise TypeError(f"class_ids: expected dtype int64 (or another integer type), got {class_ids.dtype}")
        if class_ids.shape != scores.shape:
            raise ValueError(f"class_ids: expected shape [n], one per box ({len(boxes)}), got {list(class_ids.shape)}")
    indices, count = nms_padded(
        boxes.unsqueeze(0),
        scores.unsqueeze(0),
        iou_threshold,
        boxes.shape[0] if max_output is None else max_output,
        None if class_ids is None else _as_type(class_ids, torch.int64).unsqueeze(0),
    )
    kept = count.item()  # the one wait for the device
    if torch.compiler.is_compiling():
        torch._check(kept >= 0)
        torch._check(kept <= indices.shape[1])
    return indices.select(0, 0)[:kept]


@torch.library.register_fake("fastrcnn::nms")
def _(boxes, scores, class_ids, valid, iou_threshold, max_output):
    capacity = torch.sym_min(boxes.shape[1], max_output)
    return (
        boxes.new_empty((boxes.shape[0], capacity), dtype=torch.int64),
        boxes.new_empty((boxes.shape[0],), dtype=torch.int64),
    )

"""RPN outputs -> proposals: the best anchors of each level, decoded, clipped, filtered and thinned by NMS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops._checks import check_levels, pair_tensor
from fastrcnn.ops._library import BUILD_INFO  # noqa: F401  (loads the operators)


def generate_proposals(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_sizes: Tensor | Sequence[tuple[float, float]],
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
    min_size: float = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals of N images (Ren et al. 2015, Faster R-CNN, section 3.3; per level as in Lin et al. 2017, FPN).

    Per level the pre_nms anchors of largest objectness are decoded and clipped to the image; boxes not wider and higher
    than min_size are dropped; NMS runs within each level; the best post_nms over all levels remain.

    Args:
        objectness: L tensors [N, A, h, w], logits. Of any floating type and in any memory layout, as the deltas: they
            are read where they lie.
        deltas: L tensors [N, 4 * A, h, w], channel a * 4 + (dx, dy, dw, dh).
        anchors: L tensors float32 [h * w * A, 4] in the order of ops.grid_anchors.
        image_sizes: [N, 2]: height and width of each image before padding, pixels of the network input; a tensor on
            the same device, or a list (which on CUDA is copied there).
        pre_nms: per level; post_nms: per image. min_size: pixels.
    Returns:
        boxes [N, P, 4] in pixels of the network input, scores [N, P] in [0, 1], both float32 and by descending score,
        count int64 [N]: how many of the P = min(candidates, post_nms) rows are proposals; the rest are zeros. Equal
        scores come by level and then by anchor. A NaN logit passes the top-k as the largest, as in torch.topk, and
        comes after all numbers from then on, as in ops.nms, with score NaN.
    Raises:
        TypeError: not lists of tensors. ValueError: lists of different lengths, a wrong shape. RuntimeError: wrong
        dtype or device, a threshold outside [0, 1], a min_size that is NaN; on CUDA, more than 8 levels.

    Not differentiable. No host synchronisation if image_sizes is a tensor on the device.
    """
    check_levels(objectness=objectness, deltas=deltas, anchors=anchors)
    if not len(objectness) == len(deltas) == len(anchors) > 0:
        raise ValueError(
            f"objectness, deltas and anchors: expected one of each per level, got {len(objectness)}, {len(deltas)} and "
            f"{len(anchors)}"
        )
    image_sizes = pair_tensor("image_sizes", image_sizes, objectness[0])
    for level in range(len(objectness)):
        _check_level(level, objectness[level], deltas[level], anchors[level], image_sizes)
    return torch.ops.fastrcnn.generate_proposals(
        [level.detach() for level in objectness],
        [level.detach() for level in deltas],
        [level.detach() for level in anchors],
        image_sizes,
        pre_nms,
        post_nms,
        iou_threshold,
        min_size,
    )


def _check_level(level: int, objectness: Tensor, deltas: Tensor, anchors: Tensor, image_sizes: Tensor) -> None:
    if objectness.dim() != 4:
        raise ValueError(f"objectness[{level}]: expected shape [N, A, h, w], got {list(objectness.shape)}")
    num_images, num_anchors, height, width = objectness.shape
    expected = (num_images, 4 * num_anchors, height, width)
    if deltas.shape != expected:
        raise ValueError(
            f"deltas[{level}]: expected shape [N, 4 * A, h, w] = {list(expected)}, got {list(deltas.shape)}"
        )
    count = height * width * num_anchors
    if anchors.shape != (count, 4):
        raise ValueError(f"anchors[{level}]: expected shape [h * w * A, 4] = [{count}, 4], got {list(anchors.shape)}")
    if image_sizes.shape != (num_images, 2):
        raise ValueError(f"image_sizes: expected shape [N, 2] = [{num_images}, 2], got {list(image_sizes.shape)}")


@torch.library.register_fake("fastrcnn::generate_proposals")
def _(objectness, deltas, anchors, image_sizes, pre_nms, post_nms, iou_threshold, min_size):
    candidates = sum(torch.sym_min(pre_nms, logits[0].numel()) for logits in objectness)
    num_images, capacity = image_sizes.shape[0], torch.sym_min(candidates, post_nms)
    return (
        image_sizes.new_empty((num_images, capacity, 4)),
        image_sizes.new_empty((num_images, capacity)),
        image_sizes.new_empty((num_images,), dtype=torch.int64),
    )

"""RPN outputs -> proposals: the best anchors of each level, decoded, clipped, filtered and thinned by NMS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops.box_coding import decode_boxes
from fastrcnn.ops.nms import nms_padded

MEANS, STDS = (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)  # the RPN's deltas are not normalised


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
        objectness: L tensors [N, A, h, w], logits.
        deltas: L tensors [N, 4 * A, h, w], channel a * 4 + (dx, dy, dw, dh).
        anchors: L tensors [h * w * A, 4] in the order of ops.grid_anchors.
        image_sizes: [N, 2]: height and width of each image before padding, pixels of the network input; a tensor on
            the same device, or a list (which on CUDA is copied there).
        pre_nms: per level; post_nms: per image. min_size: pixels.
    Returns:
        boxes [N, P, 4] in pixels of the network input, scores [N, P] in (0, 1), both float32 and by descending score,
        count int64 [N]: how many of the P = min(candidates, post_nms) rows are proposals; the rest are zeros.
    Raises:
        ValueError: lists of different lengths, a wrong shape. RuntimeError: wrong type or device.

    Not differentiable. Has no host synchronisation.
    """
    if not len(objectness) == len(deltas) == len(anchors) > 0:
        raise ValueError(
            f"objectness, deltas and anchors: expected one of each per level, got {len(objectness)}, {len(deltas)} and "
            f"{len(anchors)}"
        )
    image_sizes = torch.as_tensor(image_sizes, dtype=torch.float32, device=objectness[0].device)
    for level in range(len(objectness)):
        _check_level(objectness[level], deltas[level], anchors[level], image_sizes)
    return torch.ops.fastrcnn.generate_proposals(
        [level.detach() for level in objectness],
        [level.detach() for level in deltas],
        list(anchors),
        image_sizes,
        pre_nms,
        post_nms,
        iou_threshold,
        min_size,
    )


def _check_level(objectness: Tensor, deltas: Tensor, anchors: Tensor, image_sizes: Tensor) -> None:
    if objectness.dim() != 4:
        raise ValueError(f"objectness: expected shape [N, A, h, w] per level, got {list(objectness.shape)}")
    num_images, num_anchors, height, width = objectness.shape
    expected = (num_images, 4 * num_anchors, height, width)
    if deltas.shape != expected:
        raise ValueError(f"deltas: expected shape [N, 4 * A, h, w] = {list(expected)}, got {list(deltas.shape)}")
    if anchors.shape != (height * width * num_anchors, 4):
        raise ValueError(
            f"anchors: expected shape [h * w * A, 4] = [{height * width * num_anchors}, 4], got {list(anchors.shape)}"
        )
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


def _generate_proposals_cuda(objectness, deltas, anchors, image_sizes, pre_nms, post_nms, iou_threshold, min_size):
    """On CUDA the op is made of others, without a host synchronisation."""
    all_logits, all_boxes, all_levels = [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(objectness, deltas, anchors, strict=True)):
        num_images, num_anchors, height, width = level_logits.shape
        # To the order of the anchors: y, x, anchor.
        logits = level_logits.float().permute(0, 2, 3, 1).reshape(num_images, -1)
        offsets = level_deltas.permute(0, 2, 3, 1).reshape(num_images, height * width * num_anchors, 4)
        top_logits, top = logits.sort(dim=1, descending=True, stable=True)  # unlike topk, ties by index
        top_logits, top = top_logits[:, :pre_nms], top[:, :pre_nms]
        top_deltas = offsets.gather(1, top[:, :, None].expand(-1, -1, 4)).float()
        sizes = image_sizes[:, None].expand(-1, top.shape[1], -1)
        boxes = decode_boxes(
            level_anchors[top].reshape(-1, 4), top_deltas.reshape(-1, 4), MEANS, STDS, sizes.reshape(-1, 2)
        )
        all_logits.append(top_logits)
        all_boxes.append(boxes.reshape(num_images, -1, 4))
        all_levels.append(torch.full_like(top, level))
    logits, boxes, levels = torch.cat(all_logits, 1), torch.cat(all_boxes, 1), torch.cat(all_levels, 1)
    sides = boxes[..., 2:] - boxes[..., :2]
    indices, count = nms_padded(boxes, logits, iou_threshold, post_nms, levels, (sides > min_size).all(-1))
    present = torch.arange(indices.shape[1], device=indices.device) < count[:, None]
    kept_boxes = boxes.gather(1, indices[:, :, None].expand(-1, -1, 4))
    scores = logits.gather(1, indices).sigmoid()
    return torch.where(present[:, :, None], kept_boxes, 0), torch.where(present, scores, 0), count


torch.library.impl("fastrcnn::generate_proposals", "cuda", _generate_proposals_cuda)

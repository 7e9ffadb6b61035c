"""The definition of every op in plain PyTorch: slow, obvious, and what the native code is tested against.

Read this file to learn what an op computes. The signatures are those of ``fastrcnn.ops``, but arguments are not checked
here. Boxes are (x1, y1, x2, y2) in continuous pixels: width = x2 - x1, and the image covers [0, width] x [0, height].
Where an op has a gradient, autograd derives it from these lines: ``roi_align``, ``multilevel_roi_align`` and
``roi_pool`` with respect to the features (not the RoIs), ``decode_boxes`` with respect to the deltas, ``iou_loss`` with
respect to pred.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# --- RoIAlign ---------------------------------------------------------------------------------------------------------


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """The mean of bilinear samples of `features` [N,C,H,W] in each bin of each RoI [R,5]: [R,C,h,w].

    (He et al. 2017, Mask R-CNN.) A RoI (image, x1, y1, x2, y2; times `spatial_scale` in cells) is divided into h x w
    bins without rounding, and a bin holds a regular grid of sampling points: `sampling_ratio` per side, or, where that
    is <= 0, as many as the bin is cells long, rounded up. A RoI of negative size then has no points and gives zeros. So
    does one with a coordinate that is NaN or infinite, and one whose image is -1 (padding).

    `aligned` puts the centre of cell (0, 0) at half a cell from the image's corner, where it is. ``False`` is the first
    version of the op: centres at whole numbers, and no RoI smaller than one cell.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    compute_type = torch.promote_types(features.dtype, torch.float32)  # of half types only the values, not the sums
    rois = rois.detach().to(compute_type)
    pooled = [features.new_zeros((0, features.shape[1], height, width), dtype=compute_type)]
    for roi in rois:
        if roi[0] == -1 or not roi.isfinite().all():
            pooled.append(pooled[0].new_zeros((1, *pooled[0].shape[1:])))
            continue
        x1, y1, x2, y2 = roi[1:] * spatial_scale - (0.5 if aligned else 0.0)
        roi_width, roi_height = x2 - x1, y2 - y1
        if not aligned:
            roi_width, roi_height = roi_width.clamp(min=1), roi_height.clamp(min=1)
        image = features[int(roi[0])].to(compute_type)
        rows = _sample_and_average(image, y1, roi_height, height, sampling_ratio, dim=1)
        pooled.append(_sample_and_average(rows, x1, roi_width, width, sampling_ratio, dim=2)[None])
    return torch.cat(pooled).to(features.dtype)


def _sample_and_average(
    image: Tensor, start: Tensor, length: Tensor, bins: int, sampling_ratio: int, dim: int
) -> Tensor:
    """One axis of RoIAlign: replaces `dim` of `image` by `bins` averages of linear interpolations.

    Bilinear interpolation on a regular grid, and the mean over it, are one such step per axis: the order is irrelevant.
    """
    points_per_bin = sampling_ratio if sampling_ratio > 0 else max(math.ceil(length / bins), 0)
    if points_per_bin == 0:
        return torch.zeros_like(image.narrow(dim, 0, 1)).repeat_interleave(bins, dim)
    bin_length = length / bins
    bin_index = torch.arange(bins).to(start)[:, None]
    point_index = torch.arange(points_per_bin).to(start)
    position = (start + bin_index * bin_length + (point_index + 0.5) * bin_length / points_per_bin).flatten()

    # Outside by more than one cell: 0. Outside by less: the border's value. Inside: between the two nearest cells.
    size = image.shape[dim]
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=size - 1)

    along = [1, 1, 1]
    along[dim] = -1
    weight = (position - low).view(along)
    samples = image.index_select(dim, low) * (1 - weight) + image.index_select(dim, high) * weight
    samples = torch.where(inside.view(along), samples, 0)
    return samples.unflatten(dim, (bins, points_per_bin)).mean(dim + 1)


def roi_levels(rois: Tensor, num_levels: int, finest_scale: float = 56) -> Tensor:
    """The pyramid level int64 [R] of each RoI [R,5]: 0 below a side of 2 * `finest_scale`, one more per doubling.

    (Lin et al. 2017, Feature Pyramid Networks, equation 1; the side is the square root of the area. The last level has
    no upper end.) A RoI whose side is not a number gets level 0.
    """
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    relative = (side / finest_scale + 1e-6).double()  # float32's logarithm would round up to 3 just below 8
    level = relative.log2().floor().nan_to_num(nan=0.0)
    return level.clamp(0, num_levels - 1).long()


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    sampling_ratio: int = 0,
    finest_scale: float = 56,
) -> Tensor:
    """`roi_align` (aligned, scale 1 / stride) of each RoI [R,5] on the level of L x [N,C,H,W] that fits it: [R,C,h,w].

    The level is that of `roi_levels`.
    """
    level = roi_levels(rois, len(features), finest_scale)
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    pooled = features[0].new_zeros((len(rois), features[0].shape[1], height, width))
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (level == i).nonzero()[:, 0]
        part = roi_align(feature, rois[chosen], (height, width), 1 / stride, sampling_ratio)
        pooled = pooled.index_put((chosen,), part)
    return pooled


# --- RoIPool ----------------------------------------------------------------------------------------------------------


def roi_pool(features: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """The maximum of `features` [N,C,H,W] in each bin of each RoI [R,5]: [R,C,h,w].

    (Girshick 2015, Fast R-CNN.) A RoI (image, x1, y1, x2, y2; times `spatial_scale` in cells) is rounded to whole cells
    and includes those of both edges. Its h x w bins are rounded outwards to whole cells too. A cell must be above the
    lowest float32 to be found, so NaN never is; of equal cells the first, row by row, gets the gradient. A bin outside
    the map is 0, and so is a RoI with a coordinate that is NaN or infinite, and one whose image is -1 (padding).
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    compute_type = torch.promote_types(features.dtype, torch.float32)
    lowest = torch.finfo(torch.float32).min
    rois = rois.detach().to(compute_type)
    pooled = features.new_zeros((len(rois), features.shape[1], height, width), dtype=compute_type)
    for i, roi in enumerate(rois):
        if roi[0] == -1 or not roi.isfinite().all():
            continue
        image = features[int(roi[0])].to(compute_type)
        image = torch.where(image > lowest, image, lowest)
        x1, y1, x2, y2 = roi[1:] * spatial_scale
        for row, (top, bottom) in enumerate(_cells_of_bins(y1, y2, height, image.shape[1])):
            for column, (left, right) in enumerate(_cells_of_bins(x1, x2, width, image.shape[2])):
                if top < bottom and left < right:
                    pooled[i, :, row, column] = image[:, top:bottom, left:right].flatten(1).max(dim=1).values
    return pooled.to(features.dtype)


def _cells_of_bins(low: Tensor, high: Tensor, bins: int, cells: int) -> list[tuple[int, int]]:
    """The cells [first, last) of each bin between two edges.

    The edges are rounded first, halves away from zero, and are at most 2^30 cells from the first one.
    """
    start, end = ((edge.double().abs() + 0.5).floor().clamp(max=2.0**30) * edge.sign() for edge in (low, high))
    bin_length = (end - start + 1).clamp(min=1).to(low.dtype) / bins
    index = torch.arange(bins).to(low)
    first = (index * bin_length).floor().double() + start
    last = ((index + 1) * bin_length).ceil().double() + start
    return list(zip(*(edge.clamp(0, cells).long().tolist() for edge in (first, last)), strict=True))


# --- overlap and suppression ------------------------------------------------------------------------------------------


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas [n,m] of a_i n b_j and a_i u b_j for boxes [n,4] and [m,4]."""
    top_left = torch.maximum(a[:, None, :2], b[:, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return intersection, area_a[:, None] + area_b - intersection


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [n,m] of boxes [n,4] and [m,4]; 0 if neither has an area or a coordinate is NaN."""
    intersection, union = _intersection_and_union(a, b)
    return (intersection / union.clamp(min=1e-6)).nan_to_num(nan=0.0)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int | None = None) -> Tensor:
    """Greedy non-maximum suppression: indices int64 [K] of the boxes [M,4] kept, by descending score [M].

    The best box left is kept and removes every other box whose IoU with it is greater than the threshold, until none is
    left or `max_output` are kept. Equal scores: the lower index first; a score that is NaN comes last. The quotient in
    the boxes' type decides, compared as a double; two boxes without area (0 / 0) do not remove each other.
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold, max_output)


def batched_nms(
    boxes: Tensor, scores: Tensor, class_ids: Tensor, iou_threshold: float, max_output: int | None = None
) -> Tensor:
    """`nms` among boxes of the same class [M] only; the boxes kept of all classes in one order, by descending score."""
    intersection, union = _intersection_and_union(boxes, boxes)
    overlaps = (intersection / union).double() > iou_threshold  # 0 / 0 is NaN, which is not greater
    overlaps &= class_ids[:, None] == class_ids

    is_nan = scores.isnan()
    order = scores.masked_fill(is_nan, -math.inf).argsort(descending=True, stable=True)
    order = order[is_nan[order].byte().argsort(stable=True)]

    kept: list[int] = []
    limit = len(boxes) if max_output is None else max_output
    for i in order.tolist():
        if len(kept) == limit:
            break
        if not overlaps[kept, i].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


# --- anchors ----------------------------------------------------------------------------------------------------------


def base_anchors(size: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors [A,4] around the origin of area (size * scale)^2 and height / width = ratio, ratio by ratio."""
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    scale = torch.tensor(scales, dtype=torch.float32)
    half_width = 0.5 * (size * (1 / root) * scale).flatten()
    half_height = 0.5 * (size * root * scale).flatten()
    return torch.stack((-half_width, -half_height, half_width, half_height), dim=1)


def grid_anchors(
    feature_sizes: Sequence[tuple[int, int]], strides: Sequence[int], base_anchors: Sequence[Tensor]
) -> list[Tensor]:
    """Per level the base anchors [A,4] moved to every cell of a feature map (h, w): [h*w*A,4], order y, x, anchor.

    Cell (y, x) lies at the point (x * stride, y * stride): its corner, not its centre.
    """
    levels = []
    for (height, width), stride, base in zip(feature_sizes, strides, base_anchors, strict=True):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        corner = torch.stack((x, y, x, y), dim=-1).to(base)  # [h,w,4]
        levels.append((corner[:, :, None] + base).reshape(-1, 4))
    return levels


# --- box coding -------------------------------------------------------------------------------------------------------

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # no side grows or shrinks more than 62.5-fold, so that exp cannot overflow


def encode_boxes(boxes: Tensor, targets: Tensor, means: Sequence[float], stds: Sequence[float]) -> Tensor:
    """Deltas [n,4] from `boxes` [n,4] to `targets` [n,4]: shift of the centre in box sizes, log of the size ratio.

    (Girshick et al. 2014, R-CNN, appendix C; here normalised by `means` and `stds`.) A box without area: inf or NaN.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    shift = ((targets[:, :2] + targets[:, 2:]) * 0.5 - (boxes[:, :2] + boxes[:, 2:]) * 0.5) / size
    log_ratio = ((targets[:, 2:] - targets[:, :2]) / size).log()
    deltas = torch.cat((shift, log_ratio), dim=1)
    return (deltas - deltas.new_tensor(means)) / deltas.new_tensor(stds)


def decode_boxes(
    boxes: Tensor,
    deltas: Tensor,
    means: Sequence[float],
    stds: Sequence[float],
    max_shape: tuple[float, float] | Tensor | None = None,
) -> Tensor:
    """The inverse of `encode_boxes` for C deltas per box: [n,4] and [n,4C] -> [n,4C].

    `max_shape` (height, width), one for all or one per box [n,2]: the boxes are clipped to [0, width] x [0, height].
    """
    deltas = deltas.reshape(len(boxes), deltas.shape[1] // 4, 4) * deltas.new_tensor(stds) + deltas.new_tensor(means)
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = (boxes[:, :2] + boxes[:, 2:])[:, None] * 0.5 + size * deltas[..., :2]
    half = size * _clamp(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    decoded = torch.cat((centre - half, centre + half), dim=-1)
    if max_shape is not None:
        height_width = torch.as_tensor(max_shape, dtype=deltas.dtype, device=deltas.device).expand(len(boxes), 2)
        limit = height_width.flip(1).repeat(1, 2)[:, None]
        decoded = _clamp(decoded, 0.0, limit)
    return decoded.flatten(1)


def _clamp(values: Tensor, low: float, high: float | Tensor) -> Tensor:
    """Like torch.clamp, but the gradient on the boundary, where versions of PyTorch differ, is let through."""
    values = torch.where(values < low, low, values)
    return torch.where(values > high, high, values)


# --- assignment -------------------------------------------------------------------------------------------------------


def assign_max_iou(
    boxes: Tensor, gt_boxes: Tensor, pos_iou: float, neg_iou: float, min_pos_iou: float, match_low_quality: bool
) -> tuple[Tensor, Tensor]:
    """The object of [G,4] of each box [n,4], int64 [n]: -1 ignored, 0 negative, k > 0 object k-1; and its max IoU [n].

    (Ren et al. 2015, Faster R-CNN, section 3.1.2.) Negative: its largest IoU is below `neg_iou`. Positive: the largest
    is at least `pos_iou`; the object is the first that reaches it. With `match_low_quality`, object by object, every
    box that has the object's largest IoU, if that is at least `min_pos_iou`, goes to it, whatever it had before.
    """
    if len(boxes) == 0 or len(gt_boxes) == 0:  # without objects every box is negative
        return boxes.new_zeros(len(boxes), dtype=torch.int64), boxes.new_zeros(len(boxes))
    iou = box_iou(boxes, gt_boxes)
    max_iou, nearest = iou.max(dim=1)
    gt_index = torch.full_like(nearest, -1)
    gt_index[max_iou < neg_iou] = 0
    positive = max_iou >= pos_iou
    gt_index[positive] = nearest[positive] + 1
    if match_low_quality:
        for k, best in enumerate(iou.max(dim=0).values):
            if best >= min_pos_iou:
                gt_index[iou[:, k] == best] = k + 1
    return gt_index, max_iou


# --- losses -----------------------------------------------------------------------------------------------------------


def iou_loss(
    pred: Tensor,
    target: Tensor,
    kind: str = "iou",
    mode: str = "log",
    eps: float | None = None,
    beta: float = 0.2,
) -> Tensor:
    """The loss [n] of each box [n,4] of `pred` against the one in `target`; for ``bounded_iou`` four terms [n,4].

    All are functions of I and U, the areas of intersection and union, and of the smallest box around both:

    - ``iou`` (UnitBox, Yu et al. 2016): -ln IoU, 1 - IoU or 1 - IoU^2. Blind to how far apart disjoint boxes are.
    - ``giou`` (Rezatofighi et al. 2019) also takes the part of the enclosing box that neither covers.
    - ``diou`` (Zheng et al. 2020): instead the distance of the centres, relative to the enclosing box's diagonal.
    - ``ciou`` (the same paper): also the difference v of the aspect ratios, weighted with a constant alpha that grows
      as the boxes come to overlap.
    - ``bounded_iou`` (Tychsen-Smith and Petersson 2018): see `_bounded_iou_loss`.

    Epsilons stand where mmdetection 2.28 has them.
    """
    target = target.detach()
    if kind == "bounded_iou":
        return _bounded_iou_loss(pred, target, 1e-3 if eps is None else eps, beta)
    eps = 1e-6 if eps is None else eps

    size, target_size = pred[:, 2:] - pred[:, :2], target[:, 2:] - target[:, :2]
    overlap = torch.minimum(pred[:, 2:], target[:, 2:]) - torch.maximum(pred[:, :2], target[:, :2])
    enclosing = torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])
    overlap, enclosing = _at_least(overlap, 0.0), _at_least(enclosing, 0.0)
    intersection = overlap[:, 0] * overlap[:, 1]
    union = size[:, 0] * size[:, 1] + target_size[:, 0] * target_size[:, 1] - intersection

    if kind == "iou":
        iou = _at_least(intersection / _at_least(union, 1e-6), eps)
        return {"log": -iou.log(), "linear": 1 - iou, "square": 1 - iou * iou}[mode]
    if kind == "giou":
        union = _at_least(union, eps)
        area = _at_least(enclosing[:, 0] * enclosing[:, 1], eps)
        return 1 - (intersection / union - (area - union) / area)

    iou = intersection / (union + eps)
    offset = (pred[:, :2] + pred[:, 2:]) / 2 - (target[:, :2] + target[:, 2:]) / 2
    distance = offset.square().sum(1) / (enclosing.square().sum(1) + eps)
    if kind == "diou":
        return 1 - (iou - distance)

    angle = (target_size[:, 0] / (target_size[:, 1] + eps)).atan() - (size[:, 0] / (size[:, 1] + eps)).atan()
    v = 4 / math.pi**2 * angle.square()
    rest = (1 - iou + v).detach()  # 0 for equal boxes; v is 0 too, and alpha does not matter
    alpha = torch.where((iou > 0.5) & (rest > 0), v.detach() / rest, 0)
    return 1 - _clamp(iou - (distance + alpha * v), -1.0, 1.0)


def _bounded_iou_loss(pred: Tensor, target: Tensor, eps: float, beta: float) -> Tensor:
    """Smooth L1 of four losses 1 - IoU: if only the centre's x or y, or only the width or height, were wrong."""
    size, target_size = pred[:, 2:] - pred[:, :2], target[:, 2:] - target[:, :2]
    shift = 2 * ((pred[:, :2] + pred[:, 2:]) / 2 - (target[:, :2] + target[:, 2:]) / 2).abs()
    centre_iou = (target_size - shift) / (target_size + shift + eps)
    centre_iou = torch.maximum(centre_iou, torch.zeros_like(centre_iou))
    size_iou = torch.minimum(target_size / (size + eps), size / (target_size + eps))
    loss = 1 - torch.cat((centre_iou, size_iou), dim=1)
    return torch.where(loss < beta, 0.5 * loss * loss / beta, loss - 0.5 * beta)


def _at_least(values: Tensor, low: float) -> Tensor:
    return _clamp(values, low, math.inf)


# --- from the network's outputs to boxes ------------------------------------------------------------------------------


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
    """The best boxes of L x [N,A,h,w] logits, [N,4A,h,w] deltas, [h*w*A,4] anchors: [N,P,4], scores [N,P], count [N].

    (Ren et al. 2015, Faster R-CNN, section 3.3; Lin et al. 2017, FPN.) Per image and level: the `pre_nms` largest
    logits, of equal ones those of the first anchors, NaN before all numbers; their boxes, clipped to the image, those
    not wider and higher than `min_size` left out. NMS within each level, by descending logit, NaN last; the best
    `post_nms` of all levels. P is `post_nms` or the number of logits taken, if that is less.
    """
    capacity = min(sum(min(pre_nms, len(level)) for level in anchors), post_nms)
    proposals, all_scores, counts = [], [], []
    for i, (height, width) in enumerate(torch.as_tensor(image_sizes).tolist()):
        boxes, logits, levels = [], [], []
        for level, (level_logits, level_deltas, level_anchors) in enumerate(
            zip(objectness, deltas, anchors, strict=True)
        ):
            # [A,h,w] -> y, x, anchor, the order of the anchors
            flat_logits = level_logits[i].float().permute(1, 2, 0).flatten()
            flat_deltas = level_deltas[i].float().unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            top = flat_logits.argsort(descending=True, stable=True)[:pre_nms]  # PyTorch sorts NaN as the largest
            decoded = decode_boxes(level_anchors[top], flat_deltas[top], [0.0] * 4, [1.0] * 4, (height, width))
            large = ((decoded[:, 2:] - decoded[:, :2]) > min_size).all(1)
            boxes.append(decoded[large])
            logits.append(flat_logits[top][large])
            levels.append(torch.full_like(top[large], level))
        image_boxes, image_logits = torch.cat(boxes), torch.cat(logits)
        kept = batched_nms(image_boxes, image_logits, torch.cat(levels), iou_threshold, post_nms)
        proposals.append(_pad(image_boxes[kept], capacity))
        all_scores.append(_pad(image_logits[kept].sigmoid(), capacity))
        counts.append(len(kept))
    return torch.stack(proposals), torch.stack(all_scores), torch.tensor(counts, device=anchors[0].device)


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
    """The objects that [R,C+1] logits and [R,4C] deltas of RoIs [R,5] tell of: boxes [N,K,4], scores, labels, count.

    (Girshick 2015, Fast R-CNN, section 3.) Every class of every RoI of an image (background, the last, is none) whose
    softmax is greater than `score_threshold` is a candidate; its box is clipped to the image, then divided by the
    scale factors (width, height). NMS within each class; the best `max_output` of all classes, equal scores by RoI and
    then by class. A RoI whose image is -1 is padding. K is `max_output` or R * C, if that is less.
    """
    num_rois, num_classes = logits.shape[0], logits.shape[1] - 1
    capacity = min(num_rois * num_classes, max_output)
    scores = logits.float().softmax(1)[:, :num_classes]
    results = []
    image_sizes, scale_factors = torch.as_tensor(image_sizes), torch.as_tensor(scale_factors)
    for i, (size, (width_factor, height_factor)) in enumerate(zip(image_sizes, scale_factors.tolist(), strict=True)):
        of_image = rois[:, 0] == i
        boxes = decode_boxes(rois[of_image, 1:], deltas[of_image].float(), means, stds, size).view(-1, num_classes, 4)
        boxes = boxes / boxes.new_tensor([width_factor, height_factor, width_factor, height_factor])
        roi, label = (scores[of_image] > score_threshold).nonzero(as_tuple=True)  # by RoI, then by class
        candidates, candidate_scores = boxes[roi, label], scores[of_image][roi, label]
        kept = batched_nms(candidates, candidate_scores, label, iou_threshold, max_output)
        found = (candidates[kept], candidate_scores[kept], label[kept])
        count = torch.tensor(len(kept), device=rois.device)
        results.append((*(_pad(values, capacity) for values in found), count))
    boxes, scores, labels, count = (torch.stack(parts) for parts in zip(*results, strict=True))
    return boxes, scores, labels, count


def _pad(values: Tensor, length: int) -> Tensor:
    """Zeros after [k,...]: [length,...]."""
    return torch.cat([values, values.new_zeros((length - len(values), *values.shape[1:]))])


# --- Winograd's 3x3 convolution ---------------------------------------------------------------------------------------


def winograd_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A^T [4,6], G [6,3], B^T [6,6] of F(4, 3), float64: the correlation of d [6] with g [3] is A^T ((G g) * (B^T d)).

    It multiplies polynomials through their values at five points and infinity: a row per point, the last for infinity.
    """
    points = [0.0, 0.625, -0.625, 1.5, -1.5]
    output, weight, data = torch.zeros(3, 6, 6, dtype=torch.float64)
    for i, point in enumerate(points):
        factors = torch.ones(1, dtype=torch.float64)  # coefficients of the product of (X - other), lowest power first
        for other in points[:i] + points[i + 1 :]:
            factors = F.pad(factors, (1, 0)) - other * F.pad(factors, (0, 1))
        powers = torch.tensor([point**k for k in range(4)], dtype=torch.float64)
        output[:4, i], data[i, :5] = powers, factors
        weight[i, :3] = powers[:3] / math.prod(point - other for other in points if other != point)
    output[3, 5] = weight[5, 2] = 1.0
    data[5] = F.pad(data[0, :5], (1, 0))  # (X - 0) times the product over the other points
    return output[:4], weight[:, :3], data


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """3x3 convolution of `x` [N,C,H,W] with `weight` [O,C,3,3], stride 1, zero padding 1: [N,O,H,W].

    (Lavin & Gray 2015, F(4x4, 3x3).) A tile of 4x4 outputs is A^T ((G g G^T) * (B^T d B)) A, summed over C; d are the
    6x6 inputs around it.
    """
    a, g, b = (matrix.to(x.dtype) for matrix in winograd_matrices())
    height, width = x.shape[2:]
    padded = F.pad(x, (1, -width % 4 + 1, 1, -height % 4 + 1))
    patches = padded.unfold(2, 6, 4).unfold(3, 6, 4)  # [N,C,rows of tiles,columns of tiles,6,6]
    inputs = torch.einsum("ia,jb,ncrsab->ijncrs", b, b, patches)
    weights = torch.einsum("ia,jb,ocab->ijco", g, g, weight.to(x.dtype))
    products = torch.einsum("ijncrs,ijco->ijnors", inputs, weights)
    tiles = torch.einsum("ai,bj,ijnors->norasb", a, a, products)
    out = tiles.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
    if bias is not None:
        out = out + bias.to(x.dtype)[:, None, None]
    return out.relu() if relu else out

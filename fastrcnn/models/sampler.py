"""Sampler: which of the assigned boxes enter the loss."""

import torch
from torch import Tensor


def sample(gt_index: Tensor, num: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draws positives up to int(num * positive_fraction), then negatives until there are num, both without replacement.

    Args:
        gt_index: int64 [n] of ops.assign_max_iou: -1 ignored, 0 negative, k > 0 positive.
        num: boxes wanted; fewer come back where there are fewer.
        positive_fraction: at most this share is positive.
    Returns:
        Indices of the positives and of the negatives, int64, each ascending. They depend on torch's random state of
        the tensor's device only where there are more candidates than wanted.
    """
    positive = _choose((gt_index > 0).nonzero().squeeze(1), int(num * positive_fraction))
    negative = _choose((gt_index == 0).nonzero().squeeze(1), num - len(positive))
    return positive, negative


def _choose(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]].sort().values

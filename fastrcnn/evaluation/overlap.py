"""How far detections and objects cover each other, in the float64 of the metrics."""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [n, m] of float64 boxes [n, 4] and [m, 4]; 0 where the union is empty."""
    intersection = _intersection(a, b)
    union = _area(a)[:, None] + _area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def covered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share [n, m] of each box of a [n, 4] that lies in each of b [m, 4]; 0 for boxes of a without area."""
    intersection, area = _intersection(a, b), np.broadcast_to(_area(a)[:, None], (len(a), len(b)))
    return np.divide(intersection, area, out=np.zeros_like(intersection), where=area > 0)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    return (high - low).clip(min=0).prod(-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)

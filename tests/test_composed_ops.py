"""Proposals and detections: the two ops that are made of others. Their numbers are held by test_golden.py."""

import pytest
import torch

from fastrcnn import ops

STDS = (0.1, 0.1, 0.2, 0.2)
MEANS = (0.0,) * 4


def level(delta: float = 0.0) -> tuple[list, list, list]:
    """Two images with one level of 2 x 3 cells and 1 anchor of 16 pixels per cell."""
    base = ops.base_anchors(8, [2], [1])
    anchors = ops.grid_anchors([(2, 3)], [8], [base])
    objectness = torch.arange(12.0).view(2, 1, 2, 3)
    return [objectness], [torch.full((2, 4, 2, 3), delta)], anchors


def test_proposals_are_sorted_clipped_and_padded_with_zeros():
    boxes, scores, count = ops.generate_proposals(*level(), [(16, 24), (16, 24)], 100, 4, 0.9)
    assert boxes.shape == (2, 4, 4) and count.tolist() == [4, 4]
    assert (scores.diff(dim=1) <= 0).all()
    assert boxes.amin() >= 0 and boxes[..., 2].amax() <= 24 and boxes[..., 3].amax() <= 16


def test_rows_beyond_the_count_are_zero_whatever_the_candidates_hold():
    boxes, scores, count = ops.generate_proposals(*level(float("nan")), torch.tensor([[16, 24], [16, 24]]), 100, 4, 0.7)
    assert count.tolist() == [0, 0]
    assert (boxes == 0).all() and (scores == 0).all()


def test_boxes_that_clipping_leaves_without_area_are_no_proposals():
    objectness, deltas, anchors = level()
    deltas[0][0, 0] = 10  # the first image's boxes move beyond its right border
    _, _, count = ops.generate_proposals(objectness, deltas, anchors, [(16, 24), (16, 24)], 100, 4, 0.9)
    assert count.tolist() == [0, 4]


def test_detections_beyond_the_count_are_zero():
    rois = torch.tensor([[0.0, 0, 0, 10, 10], [-1, 0, 0, 10, 10]])
    logits, deltas = torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.full((2, 4), float("nan"))
    deltas[0] = 0
    boxes, scores, labels, count = ops.select_detections(
        logits, deltas, rois, [(20, 20)], [(0.5, 0.5)], 0.05, 0.5, 3, MEANS, STDS
    )
    assert count.tolist() == [1]
    assert boxes[0].tolist() == [[0, 0, 20, 20], [0, 0, 0, 0]]
    assert scores[0, 1] == 0 and labels[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, d, a: (o, d, []), "one of each per level"),
        (lambda o, d, a: (o, [d[0][:, :3]], a), r"deltas: expected .* \[2, 4, 2, 3\], got \[2, 3, 2, 3\]"),
        (lambda o, d, a: (o, d, [a[0][:5]]), r"anchors: expected .* \[6, 4\], got \[5, 4\]"),
        (lambda o, d, a: ([o[0][0]], d, a), r"objectness: expected .* got \[1, 2, 3\]"),
    ],
)
def test_wrong_proposal_input(change, message):
    with pytest.raises(ValueError, match=message):
        ops.generate_proposals(*change(*level()), [(16, 24), (16, 24)], 10, 10, 0.7)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("deltas", torch.zeros(2, 8), r"deltas: expected .* \[2, 4\], got \[2, 8\]"),
        ("rois", torch.zeros(2, 4), r"rois: expected .* \[2, 5\], got \[2, 4\]"),
        ("image_sizes", torch.zeros(0, 2), r"image_sizes: expected .* got \[0, 2\]"),
        ("scale_factors", torch.ones(1, 4), r"scale_factors: expected .* \[1, 2\], got \[1, 4\]"),
    ],
)
def test_wrong_detection_input(name, value, message):
    arguments = {
        "logits": torch.zeros(2, 2),
        "deltas": torch.zeros(2, 4),
        "rois": torch.zeros(2, 5),
        "image_sizes": torch.full((1, 2), 9.0),
        "scale_factors": torch.ones(1, 2),
    } | {name: value}
    with pytest.raises(ValueError, match=message):
        ops.select_detections(*arguments.values(), 0.05, 0.5, 3, MEANS, STDS)


def test_double_backward_is_an_error():
    features = torch.rand(1, 2, 5, 5, requires_grad=True)
    pooled = ops.roi_align(features, torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
    (gradient,) = torch.autograd.grad((pooled**2).sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        gradient.sum().backward()


def test_box_coding_stays_float32_under_autocast():
    boxes = torch.tensor([[0.0, 0, 1333.7, 10]])
    with torch.autocast("cpu", torch.bfloat16):
        decoded = ops.decode_boxes(boxes, torch.zeros(1, 4, dtype=torch.bfloat16), MEANS, STDS)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, boxes)

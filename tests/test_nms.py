"""nms and batched_nms against their definition, torchvision and golden numbers: the same indices, in the same order."""

import pytest
import torch
from conftest import assert_compiles_and_exports, assert_same_for_any_number_of_threads, random_boxes, seeded
from torch import Tensor

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")


def random_scores(count: int, seed: int = 0, device="cpu") -> Tensor:
    return torch.rand(count, generator=seeded(seed + 100)).to(device)


def random_classes(count: int, num_classes: int, seed: int = 0, device="cpu") -> Tensor:
    return torch.randint(num_classes, (count,), generator=seeded(seed + 200)).to(device)


def pair(iou: tuple[int, int]) -> Tensor:
    """Two boxes whose IoU is the fraction n / d: one inside the other, of n and d pixels."""
    return torch.tensor([[0.0, 0, iou[1], 1], [0, 0, iou[0], 1]])


# --- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("max_output", [None, 0, 1, 10, 10_000])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 1.0])
def test_equals_reference(device, iou_threshold, max_output, dtype):
    boxes, scores = random_boxes(500, device=device).to(dtype), random_scores(500, device=device).to(dtype)
    kept = ops.nms(boxes, scores, iou_threshold, max_output)
    assert kept.dtype == torch.int64
    assert kept.tolist() == reference.nms(boxes, scores, iou_threshold, max_output).tolist()
    classes = random_classes(500, 5, device=device)
    kept = ops.batched_nms(boxes, scores, classes, iou_threshold, max_output)
    assert kept.tolist() == reference.batched_nms(boxes, scores, classes, iou_threshold, max_output).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_many_ties(device, seed):
    """Boxes on a coarse grid, with many equal to each other, and eleven different scores."""
    boxes, scores = random_boxes(400, seed=seed, device=device).div(20).round() * 20, random_scores(400, seed, device)
    scores = (scores * 10).round() - 5
    scores[::7] *= -0.0  # which equals 0
    for threshold in (0.25, 1 / 3, 0.5, 0.6):
        assert ops.nms(boxes, scores, threshold).tolist() == reference.nms(boxes, scores, threshold).tolist()


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
def test_equals_torchvision(device, iou_threshold):
    torchvision = pytest.importorskip("torchvision")
    boxes, scores = random_boxes(1000, device=device), random_scores(1000, device=device)
    assert ops.nms(boxes, scores, iou_threshold).tolist() == torchvision.ops.nms(boxes, scores, iou_threshold).tolist()


SPREADS = ["even", "long and thin", "of all sizes", "far away", "one far away", "not finite"]


def spread_boxes(spread: str, count: int) -> Tensor:
    generator = seeded(3)
    corner, side = torch.rand(count, 2, generator=generator) * 900, torch.rand(count, 2, generator=generator) * 150
    if spread == "long and thin":
        side = side * torch.tensor([8.0, 0.05])
    elif spread == "of all sizes":
        side = torch.exp(torch.rand(count, 2, generator=generator) * 12 - 5)
    elif spread == "far away":
        corner = corner - 1e6
    boxes = torch.cat((corner, corner + side), dim=1)
    if spread == "one far away":
        boxes[7] = torch.tensor([1e9, -1e9, 2e9, 1e9])
    elif spread == "not finite":
        boxes[::10, 1], boxes[::11, 2], boxes[::12, 0], boxes[::13] = NAN, INF, -INF, boxes[::13].flip(1)
    boxes[1::2] += torch.randn(count // 2, 4, generator=generator)  # and near doubles
    boxes[::5] = boxes[1::5] + torch.randn(count // 5, 4, generator=generator)
    return boxes


@pytest.mark.parametrize("iou_threshold", [0.0, 0.005, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("spread", SPREADS)
def test_leaves_out_no_pair_that_decides(spread, iou_threshold):
    """The CPU compares near boxes only: what is near depends on all the boxes, and on the threshold."""
    boxes, scores = spread_boxes(spread, 2500), random_scores(2500)
    assert ops.nms(boxes, scores, iou_threshold).tolist() == reference.nms(boxes, scores, iou_threshold).tolist()


@pytest.mark.parametrize("spread", SPREADS)
def test_boxes_of_every_spread(device, spread):
    """As above on every device, with fewer boxes, of more than one tile and no multiple of one."""
    boxes, scores = spread_boxes(spread, 330).to(device), random_scores(330, device=device)
    for threshold in (0.0, 0.3, 0.95):
        assert ops.nms(boxes, scores, threshold).tolist() == reference.nms(boxes, scores, threshold).tolist()


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-19, 1e-15, 1e15, 1e19, 1e25])
def test_boxes_whose_area_is_at_the_end_of_float32(device, scale):
    """Products underflow or overflow, and the rule applies to what is left."""
    boxes, scores = random_boxes(400, 10, device=device) * scale, random_scores(400, device=device)
    for threshold in (0.0, 0.3, 0.7):
        assert ops.nms(boxes, scores, threshold).tolist() == reference.nms(boxes, scores, threshold).tolist()


def test_golden(device, units):
    """Multiclass suppression: every class of every box above a score is a candidate, background (the last) is not."""
    unit = units["multiclass_nms"]
    boxes = torch.tensor(unit["boxes"], device=device).view(-1, 4)
    scores = torch.tensor(unit["scores_with_bg_last"], device=device)[:, :-1].flatten()
    classes = torch.arange(len(scores), device=device) % 3
    candidates = (scores > unit["score_thr"]).nonzero()[:, 0]
    kept = ops.batched_nms(boxes[candidates], scores[candidates], classes[candidates], unit["iou_thr"], unit["max_num"])
    kept = candidates[kept]
    assert kept.tolist() == unit["flat_inds_roi_times_C_plus_class"]
    assert classes[kept].tolist() == unit["labels"]
    detections = torch.cat((boxes[kept], scores[kept, None]), dim=1).cpu()
    torch.testing.assert_close(detections, torch.tensor(unit["dets"]))


# --- the rule, at its edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iou", [(1, 2), (1, 3), (2, 3), (7, 10), (3, 10), (1, 10), (1, 1)], ids=str)
def test_threshold(device, iou):
    """Suppressed if and only if the float32 quotient, as a double, is greater than the threshold, also by one bit."""
    boxes, scores = pair(iou).to(device), torch.tensor([0.9, 0.8], device=device)
    quotient = torch.tensor(iou[0], dtype=torch.float32) / iou[1]
    below, above = (torch.nextafter(quotient, torch.tensor(to)).item() for to in (0.0, 2.0))
    between = (below + quotient.item()) / 2  # a double that is not a float32
    assert ops.nms(boxes, scores, quotient.item()).tolist() == [0, 1]
    assert ops.nms(boxes, scores, min(above, 1.0)).tolist() == [0, 1]
    assert ops.nms(boxes, scores, below).tolist() == [0]
    assert ops.nms(boxes, scores, between).tolist() == [0]
    exact = iou[0] / iou[1]
    assert ops.nms(boxes, scores, exact).tolist() == ([0] if quotient.item() > exact else [0, 1])


def test_order(device):
    boxes = torch.arange(8.0, device=device)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5], device=device)
    scores = torch.tensor([NAN, 0.5, -INF, 0.5, INF, -NAN, 0.0, -0.0], device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [4, 1, 3, 6, 7, 2, 0, 5]
    assert ops.nms(boxes, scores, 0.5, max_output=3).tolist() == [4, 1, 3]


def test_a_suppressed_box_does_not_suppress(device):
    chain = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], device=device)  # only neighbours overlap
    assert ops.nms(chain, torch.tensor([0.9, 0.8, 0.7], device=device), 0.3).tolist() == [0, 2]


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 5), (5, 5, 5, 9), (9, 9, 5, 5), (NAN, 5, 9, 9), (5, 5, 9, NAN), (NAN,) * 4, (-INF, -INF, INF, INF)],
    ids=str,
)
def test_degenerate_boxes_do_not_suppress(device, box):
    """Neither their like nor an ordinary box around them."""
    boxes = torch.tensor([box, box, (0, 0, 20, 20), (0, 0, 19, 20)], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    expected = reference.nms(boxes, scores, 0.5).tolist()
    assert ops.nms(boxes, scores, 0.5).tolist() == expected
    if box != (9, 9, 5, 5):  # reversed both ways: its area is positive again
        assert expected == [0, 1, 2]


@pytest.mark.parametrize("max_output", [None, 0, 5])
def test_no_boxes(device, max_output):
    empty = torch.zeros(0, device=device)
    assert ops.nms(empty.view(0, 4), empty, 0.5, max_output).tolist() == []
    assert ops.batched_nms(empty.view(0, 4), empty, empty.long(), 0.5, max_output).tolist() == []


def test_half_types_are_computed_in_float32(device):
    boxes, scores = random_boxes(200, device=device).half(), random_scores(200, device=device).bfloat16()
    assert ops.nms(boxes, scores, 0.5).tolist() == reference.nms(boxes.float(), scores.float(), 0.5).tolist()


def test_not_contiguous(device):
    boxes, scores = random_boxes(200, device=device).t().contiguous().t(), random_scores(400, device=device)[::2]
    assert not boxes.is_contiguous() and not scores.is_contiguous()
    assert ops.nms(boxes, scores, 0.5).tolist() == reference.nms(boxes, scores, 0.5).tolist()


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_far_apart(device):
    """Any int64 may be a class."""
    boxes, scores = random_boxes(300, device=device), random_scores(300, device=device)
    names = torch.tensor([0, -1, 2**62, -(2**62), 2**31], device=device)
    classes = random_classes(300, 5, device=device)
    assert ops.batched_nms(boxes, scores, names[classes], 0.5).equal(ops.batched_nms(boxes, scores, classes, 0.5))


def test_exact_where_a_coordinate_offset_is_not(device):
    """The usual trick, moving class k by k * (the largest coordinate + 1), rounds float32 coordinates: here to 1/128.

    An image of 1333 pixels with 80 classes; the IoU of the first two boxes is 0.4998.
    """
    boxes = torch.tensor([[100.0040, 100, 104.0035, 104], [101, 100, 102.9990, 104], [0, 0, 1333, 800]], device=device)
    scores, classes = torch.tensor([0.9, 0.8, 0.7], device=device), torch.tensor([79, 79, 0], device=device)
    moved = boxes + classes[:, None] * (boxes.max() + 1)
    assert reference.nms(moved, scores, 0.5).tolist() == [0, 2]
    assert ops.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]


def test_exact_where_torchvision_is_not():
    """The same boxes: torchvision's batched_nms drops the second; its nms of that class alone keeps it, as we do."""
    torchvision = pytest.importorskip("torchvision")
    boxes = torch.tensor([[100.0040, 100, 104.0035, 104], [101, 100, 102.9990, 104], [0, 0, 1333, 800]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([79, 79, 0])
    assert torchvision.ops.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 2]
    assert torchvision.ops.nms(boxes[:2], scores[:2], 0.5).tolist() == [0, 1]
    assert ops.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]


def test_padded(device):
    """nms_padded: several images at once, some candidates invalid, a fixed capacity."""
    boxes = torch.stack([random_boxes(120, seed=i, device=device) for i in range(3)])
    scores = torch.stack([random_scores(120, i, device) for i in range(3)])
    classes = torch.stack([random_classes(120, 4, i, device) for i in range(3)])
    valid = torch.rand(3, 120, generator=seeded(1)).to(device) > 0.3
    valid[2] = False
    indices, count = ops.nms_padded(boxes, scores, 0.5, 30, classes, valid)
    assert indices.shape == (3, 30)
    for i in range(3):
        chosen = valid[i].nonzero()[:, 0]
        expected = chosen[reference.batched_nms(boxes[i, chosen], scores[i, chosen], classes[i, chosen], 0.5, 30)]
        assert count[i] == len(expected)
        assert indices[i].tolist() == expected.tolist() + [0] * (30 - len(expected))
    everything, _ = ops.nms_padded(boxes, scores, 1.0, 1000)
    assert everything.shape == (3, 120)  # the capacity is no more than the number of candidates
    assert everything.equal(scores.argsort(dim=1, descending=True, stable=True))


# --- threads, torch.library, torch.compile, torch.export --------------------------------------------------------------


def test_same_for_any_number_of_threads():
    boxes = torch.stack([random_boxes(2000, seed=i) for i in range(3)])
    scores, classes = random_scores(6000).view(3, 2000), random_classes(6000, 3).view(3, 2000)
    assert_same_for_any_number_of_threads(lambda: ops.nms_padded(boxes, scores, 0.6, 1000, classes))


def test_opcheck(device):
    boxes, scores = random_boxes(60, device=device).view(2, 30, 4), random_scores(60, device=device).view(2, 30)
    classes, valid = random_classes(60, 3, device=device).view(2, 30), scores > 0.2
    torch.library.opcheck(torch.ops.fastrcnn.nms.default, (boxes, scores, None, None, 0.5, 10))
    torch.library.opcheck(torch.ops.fastrcnn.nms.default, (boxes, scores, classes, valid, 0.5, 100))


def test_compile_and_export(device):
    boxes, scores = random_boxes(60, device=device), random_scores(60, device=device)
    classes = random_classes(60, 3, device=device)
    assert_compiles_and_exports(
        lambda b, s, c: ops.nms_padded(b[None], s[None], 0.5, 20, c[None]), boxes, scores, classes
    )
    assert_compiles_and_exports(lambda b, s: ops.nms(b, s, 0.5), boxes, scores)
    assert_compiles_and_exports(lambda b, s, c: ops.batched_nms(b, s, c, 0.5, 20), boxes, scores, classes)


# --- wrong input ------------------------------------------------------------------------------------------------------

BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)


@pytest.mark.parametrize(
    ("boxes", "scores", "settings", "message"),
    [
        (BOXES[:, :3], SCORES, {}, r"boxes: expected shape \[.*4\], got \[.*3\]"),
        (BOXES[0], SCORES, {}, r"boxes.*: expected shapes? .*got \[4\]"),
        (BOXES, SCORES[:, None], {}, r"scores.*: expected shapes? .*got.* \[3, 1\]"),
        (BOXES, SCORES[:2], {}, r"scores: expected shape .*got \[.*2\]"),
        (BOXES, SCORES, {"iou_threshold": 1.5}, r"iou_threshold: expected a number in \[0, 1\], got 1.5"),
        (BOXES, SCORES, {"iou_threshold": NAN}, r"iou_threshold: expected a number in \[0, 1\], got -?nan"),
        (BOXES.tolist(), SCORES, {}, "boxes: expected a tensor, got list"),
        (BOXES, SCORES.tolist(), {}, "scores: expected a tensor, got list"),
        (BOXES, SCORES, {"max_output": -1}, "max_output: expected 0 or more, got -1"),
    ],
)
def test_wrong_input(boxes, scores, settings, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.nms(boxes, scores, **{"iou_threshold": 0.5, **settings})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.zeros(2).long(), r"class_ids: expected shape .*got \[.*2\]"),
        (torch.zeros(3), "class_ids: expected .*int64.*got.* (torch.)?float32"),
    ],
)
def test_wrong_classes(classes, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.batched_nms(BOXES, SCORES, classes, 0.5)


def test_scores_in_float64_decide_for_boxes_in_float32(device):
    """As float32 these scores are equal, and the lower index would win."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
    scores = torch.tensor([0.5, 0.5 + 1e-9, 0.5 + 2e-9], dtype=torch.float64, device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [2, 1]
    assert ops.batched_nms(boxes, scores, torch.tensor([0, 1, 0], device=device), 0.5).tolist() == [2, 1, 0]

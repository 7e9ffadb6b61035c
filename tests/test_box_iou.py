"""box_iou against its definition, torchvision and golden numbers."""

import pytest
import torch
from conftest import TOLERANCE, assert_compiles_and_exports, assert_same_for_any_number_of_threads, random_boxes
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_reference(device, dtype):
    a, b = random_boxes(150, device=device).to(dtype), random_boxes(70, seed=1, device=device).to(dtype)
    iou = ops.box_iou(a, b)
    assert iou.shape == (150, 70)
    # Equal to the last bit: IoU is compared with thresholds, and for equality when low-quality matches are sought.
    assert_close(iou, reference.box_iou(a, b), rtol=0, atol=0)


def test_equals_torchvision(device):
    torchvision = pytest.importorskip("torchvision")
    a, b = random_boxes(150, device=device), random_boxes(70, seed=1, device=device)
    assert_close(ops.box_iou(a, b), torchvision.ops.box_iou(a, b), **TOLERANCE[torch.float32])


def test_golden(device, units):
    gt, boxes, expected = (torch.tensor(units["assigner"][key], device=device) for key in ("gt", "boxes", "ious"))
    assert_close(ops.box_iou(gt, boxes), expected, rtol=0, atol=0)


def test_properties(device):
    boxes = random_boxes(100, device=device)
    iou = ops.box_iou(boxes, boxes)
    assert iou.diagonal().eq(1).all()
    assert iou.equal(iou.t()) and iou.min() == 0 and iou.max() == 1


def test_degenerate_boxes(device):
    """Without area, reversed, NaN or infinite: never NaN, and no overlap with anything, themselves included."""
    degenerate = torch.tensor(
        [(5, 5, 5, 5), (5, 5, 5, 9), (5, 9, 9, 5), (NAN, 5, 9, 9), (5, 5, 9, NAN), (NAN,) * 4, (-INF, -INF, INF, INF)],
        device=device,
    )
    boxes = torch.cat((degenerate, torch.tensor([[0.0, 0, 20, 20]], device=device)))
    assert ops.box_iou(boxes, boxes)[:-1].count_nonzero() == 0
    assert_close(ops.box_iou(boxes, boxes), reference.box_iou(boxes, boxes), rtol=0, atol=0)


def test_union_below_the_smallest(device):
    """A union below 1e-6 counts as 1e-6."""
    tiny = torch.tensor([[0.0, 0, 5e-4, 5e-4]], device=device)
    assert_close(ops.box_iou(tiny, tiny), torch.tensor([[0.25]], device=device))


def test_areas_beyond_the_type(device):
    """0 where the sum of the areas is infinite, also with the box itself; just below, the true number."""
    huge = torch.tensor([[0, 0, side, side] for side in (1e18, 1.2e19, 1.4e19, 1.9e19, 1e20, 3e38)], device=device)
    iou = ops.box_iou(huge, huge)
    assert_close(iou[:2, :2], torch.tensor([[1, 1 / 144], [1 / 144, 1]], device=device))
    assert iou[2, 2] == 0 and iou[3:].count_nonzero() == 0 and iou[:, 3:].count_nonzero() == 0
    assert_close(iou, reference.box_iou(huge, huge), rtol=0, atol=0)
    assert ops.nms(huge[2:], torch.ones(4, device=device), 0.0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_boxes(device, n, m):
    assert ops.box_iou(torch.zeros(n, 4, device=device), torch.zeros(m, 4, device=device)).shape == (n, m)


def test_not_contiguous(device):
    a, b = random_boxes(50, device=device).t().contiguous().t(), random_boxes(60, seed=1, device=device)[::2]
    assert not a.is_contiguous() and not b.is_contiguous()
    assert_close(ops.box_iou(a, b), reference.box_iou(a, b), rtol=0, atol=0)


def test_same_for_any_number_of_threads():
    a, b = random_boxes(1000), random_boxes(100, seed=1)
    assert_same_for_any_number_of_threads(lambda: ops.box_iou(a, b))


def test_opcheck(device):
    a, b = random_boxes(6, device=device), random_boxes(7, seed=1, device=device)
    torch.library.opcheck(torch.ops.fastrcnn.box_iou.default, (a, b))


def test_compile_and_export(device):
    assert_compiles_and_exports(ops.box_iou, random_boxes(6, device=device), random_boxes(7, seed=1, device=device))


BOXES = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (BOXES[:, :3], BOXES, r"a: expected shape \[n, 4\], got \[3, 3\]"),
        (BOXES, BOXES[0], r"b: expected shape \[m, 4\], got \[4\]"),
        (BOXES.half(), BOXES, "a: expected dtype float32 or float64, got float16"),
        (BOXES.tolist(), BOXES, "a: expected a tensor, got list"),
        (BOXES, None, "b: expected a tensor, got NoneType"),
        (BOXES, BOXES.double(), "b: expected dtype float32, got float64"),
    ],
)
def test_wrong_input(a, b, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.box_iou(a, b)

"""assign_max_iou against its definition and golden numbers: equal to the last bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_compiles_and_exports, assert_same_for_any_number_of_threads, random_boxes
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

RPN = (0.7, 0.3, 0.3, True)  # pos_iou, neg_iou, min_pos_iou, match_low_quality
BOX_HEAD = (0.5, 0.5, 0.5, False)
NAN = float("nan")


def assert_equals_reference(boxes: Tensor, gt_boxes: Tensor, *settings) -> Tensor:
    gt_index, max_iou = ops.assign_max_iou(boxes, gt_boxes, *settings)
    assert gt_index.dtype == torch.int64 and max_iou.dtype == boxes.dtype
    expected_index, expected_iou = reference.assign_max_iou(boxes, gt_boxes, *settings)
    assert gt_index.tolist() == expected_index.tolist()
    assert_close(max_iou, expected_iou, rtol=0, atol=0)
    return gt_index


def inside(*widths: int, device) -> Tensor:
    """Boxes of n pixels, whose IoU with the box of 10 pixels is n / 10."""
    return torch.tensor([[0.0, 0, width, 1] for width in widths], device=device)


# --- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("settings", [RPN, BOX_HEAD, (0.6, 0.4, 0.0, True), (0.0, 0.0, 0.0, False)], ids=str)
@pytest.mark.parametrize("num_gt", [1, 9, 70])
def test_equals_reference(device, num_gt, settings, dtype):
    boxes, gt_boxes = (random_boxes(n, seed=n, device=device).to(dtype) for n in (2000, num_gt))
    boxes[:3] = gt_boxes[:1]  # a perfect match, three times
    assert_equals_reference(boxes, gt_boxes, *settings)


def test_equals_reference_on_anchors(device):
    """Anchors on a grid overlap an object in many equal ways, which is where low-quality matches differ."""
    base = ops.base_anchors(16, (2, 4), (0.5, 1.0, 2.0)).to(device)
    (anchors,) = ops.grid_anchors([(20, 20)], (16,), [base])
    gt_boxes = (random_boxes(12, 300, device=device) / 16).round() * 16
    gt_index = assert_equals_reference(anchors, gt_boxes, 0.7, 0.3, 0.1, True)
    assert (gt_index[:, None] == torch.arange(1, 13, device=device)).sum(0).max() > 1


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (RPN, "rpn_gt_inds"),
        ((0.7, 0.3, 0.01, True), "rpn_min_pos_iou_0p01_gt_inds"),
        (BOX_HEAD, "rcnn_gt_inds"),
    ],
)
def test_golden(device, units, settings, key):
    unit = units["assigner"]
    boxes, gt_boxes = torch.tensor(unit["boxes"], device=device), torch.tensor(unit["gt"], device=device)
    gt_index, max_iou = ops.assign_max_iou(boxes, gt_boxes, *settings)
    assert gt_index.tolist() == unit[key]
    assert_close(max_iou.cpu(), torch.tensor(unit["ious"]).amax(0), rtol=0, atol=0)


# --- the rule, at its edges -------------------------------------------------------------------------------------------


def test_thresholds(device):
    """Positive at or above pos_iou, negative below neg_iou; each threshold itself counts as reached."""
    gt_boxes = inside(10, device=device)
    gt_index = assert_equals_reference(inside(8, 7, 6, 3, 2, device=device), gt_boxes, 0.7, 0.3, 0.3, False)
    assert gt_index.tolist() == [1, 1, -1, -1, 0]
    gt_index = assert_equals_reference(inside(2, 3, 1, device=device), gt_boxes, 0.7, 0.5, 0.3, True)
    assert gt_index.tolist() == [0, 1, 0]
    gt_index = assert_equals_reference(inside(2, 2, 1, device=device), gt_boxes, 0.7, 0.5, 0.3, True)
    assert gt_index.tolist() == [0, 0, 0]


def test_ties(device):
    """The first of equal objects; as low-quality match the last object that claims a box."""
    gt_boxes = inside(10, 10, device=device)
    boxes = inside(8, 5, device=device)
    assert assert_equals_reference(boxes, gt_boxes, *BOX_HEAD).tolist() == [1, 1]
    assert assert_equals_reference(boxes, gt_boxes, *RPN).tolist() == [2, -1]
    boxes = inside(5, 5, 4, device=device)  # both best boxes of an object are its own
    assert assert_equals_reference(boxes, gt_boxes[:1], *RPN).tolist() == [1, 1, -1]


def test_low_quality_match_takes_a_good_one_away(device):
    """Box 0 is the best of both objects: it goes to the later, though it fits the first one perfectly."""
    gt_boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 20, 1]], device=device)
    assert assert_equals_reference(inside(10, 2, device=device), gt_boxes, *RPN).tolist() == [2, 0]


def test_an_object_that_nothing_overlaps(device):
    """It has no positive box, unless min_pos_iou is 0: then every box has its largest IoU, 0, as in mmdetection."""
    gt_boxes, boxes = torch.tensor([[500.0, 500, 510, 510]], device=device), random_boxes(50, device=device)
    assert assert_equals_reference(boxes, gt_boxes, 0.7, 0.3, 0.01, True).tolist() == [0] * 50
    assert assert_equals_reference(boxes, gt_boxes, 0.7, 0.3, 0.0, True).tolist() == [1] * 50


@pytest.mark.parametrize("settings", [RPN, BOX_HEAD], ids=["rpn", "box head"])
def test_empty(device, settings):
    boxes, none = random_boxes(5, device=device), torch.zeros(0, 4, device=device)
    gt_index, max_iou = ops.assign_max_iou(boxes, none, *settings)
    assert gt_index.tolist() == [0] * 5 and max_iou.tolist() == [0.0] * 5
    for gt_boxes in (boxes, none):
        gt_index, max_iou = ops.assign_max_iou(none, gt_boxes, *settings)
        assert gt_index.shape == max_iou.shape == (0,)


def test_without_objects_all_are_negative_whatever_the_thresholds(device):
    """0 is not below neg_iou = 0, and reaches pos_iou = 0."""
    none = torch.zeros(0, 4, device=device)
    assert ops.assign_max_iou(random_boxes(3, device=device), none, 0.0, 0.0, 0.0, True)[0].tolist() == [0, 0, 0]


def test_degenerate_boxes(device):
    """Boxes and objects without area or with NaN overlap nothing, and disturb no others."""
    degenerate = torch.tensor([(5, 5, 5, 5), (9, 5, 5, 9), (NAN, 5, 9, 9), (NAN,) * 4], device=device)
    boxes = torch.cat((degenerate, random_boxes(100, device=device)))
    gt_boxes = torch.cat((random_boxes(4, seed=1, device=device), degenerate))
    gt_index = assert_equals_reference(boxes, gt_boxes, 0.7, 0.3, 0.1, True)
    assert gt_index[:4].tolist() == [0, 0, 0, 0] and 0 < gt_index.max() <= 4


def test_not_contiguous(device):
    boxes = random_boxes(100, device=device).t().contiguous().t()
    gt_boxes = random_boxes(10, seed=1, device=device)[::2]
    assert not boxes.is_contiguous() and not gt_boxes.is_contiguous()
    assert_equals_reference(boxes, gt_boxes, *RPN)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory():
    """268,569 anchors and 100 objects: less than 10 MB beside the arguments and the result; their IoU is 107 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10 * 10**6


MEMORY_PROGRAM = """
import torch
from pathlib import Path
from fastrcnn import ops

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

corner = torch.rand(268_569, 2) * 1000
anchors, gt_boxes = torch.cat([corner, corner + 100], 1), torch.cat([corner[:100], corner[:100] + 90], 1)
ops.assign_max_iou(anchors[:40_000], gt_boxes, 0.7, 0.3, 0.3, True)  # starts the threads
Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
before = kilobytes("VmRSS")
gt_index, max_iou = ops.assign_max_iou(anchors, gt_boxes, 0.7, 0.3, 0.3, True)
print(1024 * (kilobytes("VmHWM") - before) - gt_index.nbytes - max_iou.nbytes)
"""


# --- threads, torch.library, torch.compile, torch.export --------------------------------------------------------------


def test_same_for_any_number_of_threads():
    boxes, gt_boxes = random_boxes(30_000), random_boxes(20, seed=1)
    assert_same_for_any_number_of_threads(lambda: ops.assign_max_iou(boxes, gt_boxes, *RPN))


def test_opcheck(device):
    boxes, gt_boxes = random_boxes(30, device=device), random_boxes(4, seed=1, device=device)
    torch.library.opcheck(torch.ops.fastrcnn.assign_max_iou.default, (boxes, gt_boxes, *RPN))
    torch.library.opcheck(torch.ops.fastrcnn.assign_max_iou.default, (boxes, gt_boxes[:0], *RPN))


def test_compile_and_export(device):
    boxes, gt_boxes = random_boxes(30, device=device), random_boxes(4, seed=1, device=device)
    assert_compiles_and_exports(lambda b, g: ops.assign_max_iou(b, g, *RPN), boxes, gt_boxes)


# --- wrong input ------------------------------------------------------------------------------------------------------

BOXES = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("boxes", "gt_boxes", "settings", "message"),
    [
        (BOXES[:, :3], BOXES, RPN, r"boxes: expected shape \[n, 4\], got \[3, 3\]"),
        (BOXES, BOXES[0], RPN, r"gt_boxes: expected shape \[G, 4\], got \[4\]"),
        (BOXES.half(), BOXES, RPN, "boxes: expected dtype float32 or float64, got float16"),
        (BOXES, BOXES.double(), RPN, "gt_boxes: expected dtype float32, got float64"),
        (BOXES.tolist(), BOXES, RPN, "boxes: expected a tensor, got list"),
        (BOXES, BOXES.tolist(), RPN, "gt_boxes: expected a tensor, got list"),
        (BOXES, BOXES, (1.5, 0.3, 0.3, True), r"pos_iou: expected a number in \[0, 1\], got 1.5"),
        (BOXES, BOXES, (0.7, NAN, 0.3, True), r"neg_iou: expected a number in \[0, 1\], got -?nan"),
        (BOXES, BOXES, (0.7, 0.3, -0.1, True), r"min_pos_iou: expected a number in \[0, 1\], got -0.1"),
        (BOXES, BOXES, (0.3, 0.7, 0.3, True), r"neg_iou: expected at most pos_iou \(0.3\), got 0.7"),
    ],
)
def test_wrong_input(boxes, gt_boxes, settings, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.assign_max_iou(boxes, gt_boxes, *settings)

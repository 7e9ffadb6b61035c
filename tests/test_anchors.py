"""base_anchors and grid_anchors against their definition and golden numbers: equal to the last bit."""

import pytest
import torch
from conftest import assert_compiles_and_exports, assert_same_for_any_number_of_threads
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

RATIOS = (0.5, 1.0, 2.0)
EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize(
    ("size", "scales", "ratios"),
    [(4, (8,), RATIOS), (16, (2, 4, 8, 16, 32), RATIOS), (7.5, (1, 1.26, 1.59), (0.1, 0.333, 3)), (8, (), RATIOS)],
)
def test_base_anchors_equal_reference(size, scales, ratios):
    anchors = ops.base_anchors(size, scales, ratios)
    assert anchors.dtype == torch.float32 and anchors.shape == (len(scales) * len(ratios), 4)
    assert_close(anchors, reference.base_anchors(size, scales, ratios), **EXACT)


def test_base_anchors_golden(units):
    for stride, expected in zip((4, 8, 16, 32, 64), units["base_anchors_fpn"], strict=True):
        assert_close(ops.base_anchors(stride, (8,), RATIOS), torch.tensor(expected), **EXACT)
    dc5 = ops.base_anchors(16, (2, 4, 8, 16, 32), RATIOS)
    assert_close(dc5, torch.tensor(units["base_anchors_dc5"]), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_grid_anchors_equal_reference(device, dtype):
    sizes, strides = [(13, 21), (7, 11), (1, 1), (0, 5)], (8, 16, 32, 64)
    base = [ops.base_anchors(stride, (4, 8), RATIOS).to(device, dtype) for stride in strides]
    anchors = ops.grid_anchors(sizes, strides, base)
    assert [len(level) for level in anchors] == [13 * 21 * 6, 7 * 11 * 6, 6, 0]
    assert_close(anchors, reference.grid_anchors(sizes, strides, base), **EXACT)


def test_grid_anchors_golden(device, units):
    base = ops.base_anchors(8, (8,), RATIOS).to(device)
    (anchors,) = ops.grid_anchors([(2, 3)], (8,), [base])
    assert_close(anchors[:9], torch.tensor(units["grid"]["first9"], device=device), **EXACT)
    assert_close(anchors[9:12], torch.tensor(units["grid"]["cell_1_0"], device=device), **EXACT)


def test_grid_anchors_of_a_large_image(device):
    """800 x 1344 pixels have 268,569 anchors on five levels; the last lies on the last cell."""
    strides = (4, 8, 16, 32, 64)
    sizes = [(-(-800 // stride), -(-1344 // stride)) for stride in strides]
    base = [ops.base_anchors(stride, (8,), RATIOS).to(device) for stride in strides]
    anchors = ops.grid_anchors(sizes, strides, base)
    assert sum(map(len, anchors)) == 268_569
    for level, (height, width), stride, of_cell in zip(anchors, sizes, strides, base, strict=True):
        x, y = (width - 1) * stride, (height - 1) * stride
        assert_close(level[-3:], of_cell + torch.tensor([x, y, x, y], device=device), **EXACT)


def test_grid_anchors_not_contiguous(device):
    base = torch.arange(24.0, device=device).view(4, 6).t()
    assert not base.is_contiguous()
    assert_close(ops.grid_anchors([(3, 4)], (8,), [base]), reference.grid_anchors([(3, 4)], (8,), [base]), **EXACT)


def test_grid_anchors_have_no_gradient(device):
    base = ops.base_anchors(8, (8,), RATIOS).to(device).requires_grad_()
    assert not ops.grid_anchors([(2, 3)], (8,), [base])[0].requires_grad


def test_same_for_any_number_of_threads():
    base = ops.base_anchors(4, (8,), RATIOS)
    assert_same_for_any_number_of_threads(lambda: ops.grid_anchors([(200, 336)], (4,), [base]))


def test_opcheck(device):
    base = ops.base_anchors(8, (8,), RATIOS).to(device)
    torch.library.opcheck(torch.ops.fastrcnn.grid_anchors.default, (base, 5, 7, 8.0))
    torch.library.opcheck(torch.ops.fastrcnn.base_anchors.default, (8.0, [8.0], [0.5, 1.0]))


def test_compile_and_export(device):
    base = ops.base_anchors(8, (8,), RATIOS).to(device)

    def anchors_of(feature, base):
        return ops.grid_anchors([feature.shape[-2:]], (8,), [base])

    assert_compiles_and_exports(anchors_of, torch.zeros(1, 3, 5, 7, device=device), base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (8,), RATIOS), "size: expected a positive number, got 0"),
        ((4, (8, -1), RATIOS), "scales: expected positive numbers, got -1"),
        ((4, (8,), (1, 0)), "ratios: expected positive numbers, got 0"),
        ((float("inf"), (8,), RATIOS), "size: expected a positive number, got inf"),
        ((4, (float("nan"),), RATIOS), "scales: expected positive numbers, got -?nan"),
        ((4, (8,), (1e-60,)), r"ratios: expected positive numbers, got 1e-60 \(0 in float32\)"),
        ((8, 8, RATIOS), "scales: expected a list of numbers, got int 8"),
        ((8, (8,), 0.5), "ratios: expected a list of numbers, got float 0.5"),
        ((8, (8,), ("1", "2")), "ratios: expected a list of numbers, got tuple"),
        (((8, 8), (8,), RATIOS), "size: expected a number, got tuple"),
    ],
)
def test_wrong_input_of_base_anchors(arguments, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.base_anchors(*arguments)


BASE = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(2, 3)], (8,), [BASE[:, :3]]), r"base_anchors: expected shape \[A, 4\], got \[3, 3\]"),
        (([(2, 3)], (8,), [BASE.half()]), "base_anchors: expected dtype float32 or float64, got float16"),
        (([(-1, 3)], (8,), [BASE]), "expected.*got -1"),
        (([7], (8,), [BASE]), r"feature_sizes\[0\]: expected whole numbers \(height, width\), got 7"),
        (([(2, 3), (1, 2, 3)], (8, 9), [BASE, BASE]), r"feature_sizes\[1\]: expected .*, got \(1, 2, 3\)"),
        (([(2, 3.5)], (8,), [BASE]), r"feature_sizes\[0\]: expected .*, got \(2, 3.5\)"),
        ((8, (8,), [BASE]), r"feature_sizes: expected a list of \(height, width\), got int"),
        (([(2, 3)], 8, [BASE]), "strides: expected a list of numbers, got int 8"),
        (([(2, 3)], (float("inf"),), [BASE]), "strides: expected positive numbers, got inf"),
        (([(2, 3)], (8,), BASE), "base_anchors: expected a list of tensors, one per level, got Tensor"),
        (([(2, 3)], (8,), [BASE.tolist()]), r"base_anchors\[0\]: expected a tensor, got list"),
        (([(2, 3)], (0,), [BASE]), "stride.*expected.*got 0"),
        (([(2, 3)], (8, 16), [BASE]), "expected.*got.*2"),
    ],
)
def test_wrong_input_of_grid_anchors(arguments, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.grid_anchors(*arguments)

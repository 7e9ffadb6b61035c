"""roi_pool against its definition and torchvision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    TOLERANCE,
    assert_compiles_and_exports,
    assert_same_for_any_number_of_threads,
    random_rois,
    seeded,
)
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")
layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])


def random_features(*shape: int, dtype=torch.float32, device="cpu", channels_last=False, values=None) -> Tensor:
    """Normal, or whole numbers from 0 to `values` - 1, so that many are equal."""
    features = torch.randn(shape, generator=seeded(0))
    if values is not None:
        features = torch.randint(values, shape, generator=seeded(0)).float()
    features = features.to(device, dtype)
    return features.contiguous(memory_format=torch.channels_last) if channels_last else features


def value_and_gradient(function: Callable, features: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of a random weighting of it with respect to the features."""
    leaf = features.detach().requires_grad_()
    value = function(leaf)
    weight = torch.randint(1, 5, value.shape, generator=seeded(9)).to(value)  # their sums are exact in every type
    return value.detach(), torch.autograd.grad((value * weight).sum(), leaf)[0]


def expected_roi_pool(features: Tensor, rois: Tensor, *settings: Any) -> Tensor:
    """The reference, on the CPU: on CUDA, torch divides by multiplying with 1 / 7, which can move a bin's border."""
    return reference.roi_pool(features.cpu(), rois.cpu(), *settings).to(features.device)


# --- equal to the definition ------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("values", [None, 3], ids=["different", "ties"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_reference(device, dtype, channels_last, values):
    """To the last bit: a maximum is one of the features, and the gradients here are whole numbers."""
    features = random_features(2, 83, 25, 22, dtype=dtype, device=device, channels_last=channels_last, values=values)
    rois = random_rois(12, 2, device=device).to(torch.promote_types(dtype, torch.float32))
    settings = (rois, (4, 5), 0.25)
    value, gradient = value_and_gradient(lambda f: ops.roi_pool(f, *settings), features)
    expected, expected_gradient = value_and_gradient(lambda f: expected_roi_pool(f, *settings), features)
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient, rtol=0, atol=0)


@layouts
@pytest.mark.parametrize("values", [None, 2], ids=["different", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(device, dtype, channels_last, values):
    torchvision = pytest.importorskip("torchvision")
    features = random_features(2, 8, 50, 44, dtype=dtype, device=device, channels_last=channels_last, values=values)
    rois = random_rois(300, 2, extent=200, device=device).to(dtype)
    rois[::3, 1:] = (rois[::3, 1:] / 2).round() * 2  # with a scale of 1/4: halves
    value, gradient = value_and_gradient(lambda f: ops.roi_pool(f, rois, (7, 6), 0.25), features)
    expected, expected_gradient = value_and_gradient(
        lambda f: torchvision.ops.roi_pool(f, rois, (7, 6), 0.25), features.contiguous()
    )
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient, rtol=0, atol=0)


DEGENERATE = {
    "no area": (20, 20, 20, 20),
    "reversed": (60, 50, 20, 10),
    "reversed in x": (60, 10, 20, 50),
    "outside": (500, 500, 600, 600),
    "left of the image": (-90, -90, -50, -50),
    "on the border": (80, 0, 100, 30),
    "halves": (10, 14, 50, 54),
    "negative halves": (-10, -14, 50, 54),
    "just below a half": (0.49999997 * 4, 0, 40, 40),
    "much larger than the image": (-3e4, -2e4, 5e4, 4e4),
    "x1 is NaN": (NAN, 10, 40, 40),
    "y1 is NaN": (10, NAN, 40, 40),
    "x2 is NaN": (10, 10, NAN, 40),
    "y2 is NaN": (10, 10, 40, NAN),
    "all NaN": (NAN, NAN, NAN, NAN),
    "infinite": (10, 10, INF, INF),
    "infinite both ways": (-INF, -INF, INF, INF),
}


@layouts
@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_rois(device, box, channels_last):
    features = random_features(2, 3, 25, 22, device=device, channels_last=channels_last)
    # An ordinary RoI beside it, whose result and gradient must not suffer.
    rois = torch.tensor([(1, *box), (1, 10, 12, 60, 70)], device=device)
    value, gradient = value_and_gradient(lambda f: ops.roi_pool(f, rois, 7, 0.25), features)
    expected, expected_gradient = value_and_gradient(lambda f: expected_roi_pool(f, rois, 7, 0.25), features)
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient, rtol=0, atol=0)
    if not np.isfinite(box).all():
        assert value[0].count_nonzero() == 0


def test_coordinates_beyond_integers(device):
    """A RoI far larger than any integer of 32 bits covers the whole map; one far away covers nothing."""
    features = random_features(1, 3, 25, 22, device=device)
    rois = torch.tensor([(0, -1e12, -3e38, 1e20, 3e38), (0, 1e12, 1e12, 1e20, 1e20)], device=device)
    pooled = ops.roi_pool(features, rois, 1, 0.25)
    assert_close(pooled[0, :, 0, 0], features[0].amax((1, 2)), rtol=0, atol=0)
    assert pooled[1].count_nonzero() == 0


@layouts
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_nan_and_infinite_features(device, dtype, channels_last):
    features = random_features(1, 40, 8, 8, dtype=dtype, device=device, channels_last=channels_last)
    features[0, :, ::2] = NAN  # passed over
    features[0, 3], features[0, 37] = NAN, -INF  # nothing to find
    features[0, 5, 1, 1] = INF
    rois = torch.tensor([(0, 0, 0, 7, 7), (0, 2, 2, 3, 3)], device=device).to(torch.promote_types(dtype, torch.float32))
    value, gradient = value_and_gradient(lambda f: ops.roi_pool(f, rois, 2), features)
    expected, expected_gradient = value_and_gradient(lambda f: expected_roi_pool(f, rois, 2), features)
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient, rtol=0, atol=0)
    assert not value.isnan().any() and gradient[0, [3, 37]].count_nonzero() == 0
    assert value[0, 5, 0, 0] == INF
    assert (value[:, [3, 37]] == torch.tensor(torch.finfo(torch.float32).min).to(value)).all()


def test_padding_pools_to_zero(device):
    features, rois = random_features(2, 5, 25, 22, device=device), random_rois(6, 2, device=device)
    expected = ops.roi_pool(features, rois, 7, 0.25)
    expected[::2] = 0
    rois[::2, 0] = -1
    assert_close(ops.roi_pool(features, rois, 7, 0.25), expected, rtol=0, atol=0)


# --- gradients --------------------------------------------------------------------------------------------------------


@layouts
def test_gradcheck(device, channels_last):
    features = random_features(2, 2, 6, 5, dtype=torch.float64, device=device, channels_last=channels_last)
    rois = random_rois(5, 2, extent=20, seed=3, device=device).double()
    assert torch.autograd.gradcheck(lambda f: ops.roi_pool(f, rois, 3, 0.25), features.requires_grad_())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_deterministic_backward(device, dtype):
    """The same sums in a fixed order: on CUDA a kernel of its own."""
    features = random_features(2, 131, 25, 22, dtype=dtype, device=device, values=9)
    rois = random_rois(150, 2, device=device).to(torch.promote_types(dtype, torch.float32))
    rois[4, 0], rois[5, 2] = -1, NAN
    expected = value_and_gradient(lambda f: ops.roi_pool(f, rois, (3, 4), 0.25), features)
    torch.use_deterministic_algorithms(True)
    try:
        given = value_and_gradient(lambda f: ops.roi_pool(f, rois, (3, 4), 0.25), features)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(given, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_edges_beyond_what_can_be_counted(device, dtype):
    """Edges beyond 2^30 cells count as 2^30, in the definition too."""
    features = random_features(1, 2, 9, 8, dtype=dtype, device=device)
    edges = [(-1e10, 3.0), (-4.0, 1e10), (-1e10, 1e10), (-1e30, 2e9), (-(2.0**30) * 4, 2.0**30 * 4), (-3e38, 3e38)]
    rois = torch.tensor([[0, x1, y1, x2, y2] for x1, x2 in edges for y1, y2 in edges], dtype=dtype, device=device)
    for size in (1, 2, 7):
        pooled = ops.roi_pool(features, rois, size, 0.25)
        assert_close(pooled, reference.roi_pool(features, rois, size, 0.25), rtol=0, atol=0)
        assert pooled.count_nonzero() > 0


def test_rois_have_no_gradient(device):
    features, rois = random_features(2, 3, 25, 22, device=device), random_rois(4, 2, device=device).requires_grad_()
    assert not ops.roi_pool(features, rois, 7, 0.25).requires_grad
    ops.roi_pool(features.requires_grad_(), rois, 7, 0.25).sum().backward()
    assert rois.grad is None and features.grad is not None


# --- shapes and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 2])
def test_no_rois(device, images):
    features = random_features(images, 3, 25, 22, device=device).requires_grad_()
    pooled = ops.roi_pool(features, torch.zeros(0, 5, device=device), (7, 6), 0.25)
    assert pooled.shape == (0, 3, 7, 6)
    pooled.sum().backward()
    assert features.grad.shape == features.shape and features.grad.count_nonzero() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_feature_map_of_one_cell(device, size):
    features, rois = random_features(2, 3, *size, device=device), random_rois(20, 2, extent=20, device=device)
    assert_close(ops.roi_pool(features, rois, 3, 0.25), expected_roi_pool(features, rois, 3, 0.25), rtol=0, atol=0)


def test_not_contiguous(device):
    features = random_features(2, 6, 50, 22, device=device)[:, ::2, ::2].transpose(2, 3)
    rois = random_rois(30, 2, device=device).repeat_interleave(2, dim=1)[:, ::2]
    assert not features.is_contiguous() and not rois.is_contiguous()
    leaf = features.detach().requires_grad_()
    pooled = ops.roi_pool(leaf, rois, 7, 0.25)
    assert_close(pooled, ops.roi_pool(features.contiguous(), rois.contiguous(), 7, 0.25), rtol=0, atol=0)
    weight = torch.randn(7, 7, 30, 3, generator=seeded(1)).to(device).permute(2, 3, 0, 1)  # neither is the gradient
    (gradient,) = torch.autograd.grad(pooled, leaf, weight)
    (expected,) = torch.autograd.grad(expected_roi_pool(leaf, rois, 7, 0.25), leaf, weight)
    assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@layouts
def test_memory_of_the_result_is_that_of_the_features(device, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = random_features(2, 5, 25, 22, device=device, channels_last=channels_last).requires_grad_()
    pooled = ops.roi_pool(features, random_rois(9, 2, device=device), 7, 0.25)
    assert pooled.is_contiguous(memory_format=layout)
    pooled.sum().backward()
    assert features.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("deterministic", [False, True])
def test_gradient_of_more_than_2_to_the_31_bins(device, deterministic):
    """All but the last RoI are padding, so that most of the memory is never touched."""
    count, channels = 5400, 8192
    try:
        grad = torch.empty(count, 7, 7, channels, dtype=torch.float16, device=device)
        argmax = torch.empty(count, 7, 7, channels, dtype=torch.int32, device=device)
    except RuntimeError as error:
        pytest.skip(f"the machine refuses 13 GB of unused memory: {error}")
    assert grad[:-1].numel() > 2**31
    grad[-1] = torch.randint(1, 5, (7, 7, channels), generator=seeded(0))
    rois = torch.full((count, 5), -1.0, device=device)
    rois[-1] = torch.tensor([0.0, 0, 0, 2, 2])  # 3 x 3 cells
    argmax[-1] = (torch.arange(7) * 3 // 7)[:, None, None] * 4 + (torch.arange(7) * 3 // 7)[:, None]
    settings = (1, 3, 4, 1.0, True, deterministic)
    grad, argmax = grad.permute(0, 3, 1, 2), argmax.permute(0, 3, 1, 2)
    gradient = torch.ops.fastrcnn._roi_pool_backward(grad, rois, argmax, *settings)
    expected = torch.ops.fastrcnn._roi_pool_backward(grad[-1:].clone(), rois[-1:], argmax[-1:].clone(), *settings)
    assert expected.count_nonzero() > 0
    assert_close(gradient, expected, rtol=0, atol=0)


def test_same_for_any_number_of_threads():
    features, rois = random_features(2, 48, 25, 22), random_rois(200, 2)
    weight = torch.randn(200, 48, 7, 7, generator=seeded(1))

    def compute():
        leaf = features.detach().requires_grad_()
        pooled = ops.roi_pool(leaf, rois, 7, 0.25)
        return pooled.detach(), torch.autograd.grad(pooled, leaf, weight)

    assert_same_for_any_number_of_threads(compute)


# --- torch.library, torch.compile, torch.export -----------------------------------------------------------------------


@layouts
def test_opcheck(device, channels_last):
    features = random_features(2, 5, 25, 22, device=device, channels_last=channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.fastrcnn.roi_pool.default, (features, random_rois(9, 2, device=device), 7, 6, 0.25))


@layouts
def test_compile_and_export(device, channels_last):
    features = random_features(2, 5, 25, 22, device=device, channels_last=channels_last)
    rois = random_rois(9, 2, device=device)
    assert_compiles_and_exports(lambda f, r: ops.roi_pool(f, r, 7, 0.25), features, rois)


def test_compiled_gradient(device):
    features, rois = random_features(2, 5, 25, 22, device=device), random_rois(9, 2, device=device)

    def pool(f):
        return ops.roi_pool(f, rois, 7, 0.25)

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert_close(value_and_gradient(compiled, features), value_and_gradient(pool, features))


# --- wrong input ------------------------------------------------------------------------------------------------------

FEATURES, ROIS = torch.zeros(2, 3, 8, 8), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("features", "rois", "settings", "message"),
    [
        (FEATURES[0], ROIS, {}, r"features: expected shape \[N, C, height, width\].*got \[3, 8, 8\]"),
        (FEATURES.long(), ROIS, {}, "features: expected dtype float32.*got int64"),
        (FEATURES[..., :0], ROIS, {}, "features: expected at least one cell, got 8 x 0"),
        (FEATURES[..., :1, :1].expand(2, 3, 1 << 16, 1 << 16)[:0], ROIS, {}, "expected at most 2147483647 cells"),
        (FEATURES, ROIS[:, :4], {}, r"rois: expected shape \[R, 5\].*got \[4, 4\]"),
        (FEATURES, ROIS + 2, {}, "expected the index of one of 2 images.*got 2"),
        (FEATURES, ROIS - 2, {}, "expected the index of one of 2 images.*got -2"),
        (FEATURES, ROIS + 0.5, {}, "expected the index of one of 2 images.*got 0.5"),
        (FEATURES, ROIS + NAN, {}, "expected the index of one of 2 images.*got -?nan"),
        (FEATURES, ROIS, {"output_size": 0}, "output_size: expected 1 to 32768 bins per side, got 0 x 0"),
        (FEATURES, ROIS, {"spatial_scale": -1.0}, "spatial_scale: expected a positive number, got -1"),
        (FEATURES, ROIS, {"spatial_scale": 0.0}, "spatial_scale: expected a positive number, got 0"),
        (FEATURES, ROIS, {"spatial_scale": NAN}, "spatial_scale: expected a positive number, got -?nan"),
        (FEATURES, ROIS, {"spatial_scale": INF}, "spatial_scale: expected a positive number, got inf"),
        (FEATURES, ROIS, {"spatial_scale": 1e-60}, r"spatial_scale: expected .*, got 1e-60 \(0 in float32\)"),
        (FEATURES, ROIS, {"spatial_scale": "1"}, "spatial_scale: expected a number, got str '1'"),
        (FEATURES, ROIS.tolist(), {}, r"rois: expected one tensor \[R, 5\].*, got list"),
        ([FEATURES], ROIS, {}, "features: expected a tensor, got list"),
    ],
)
def test_wrong_input(features, rois, settings, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.roi_pool(features, rois, **{"output_size": 7, **settings})

"""roi_align and multilevel_roi_align against their definition, torchvision and golden numbers."""

from collections.abc import Callable

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


def random_features(*shape: int, seed: int = 0, dtype=torch.float32, device="cpu", channels_last=False) -> Tensor:
    features = torch.randn(shape, generator=seeded(seed)).to(device, dtype)
    return features.contiguous(memory_format=torch.channels_last) if channels_last else features


def pyramid(dtype=torch.float32, device="cpu", channels_last=False, channels=5, sides=(32, 16, 8)) -> list[Tensor]:
    """Two images of 128 x 112 pixels at strides 4, 8, 16 (and so on)."""
    sizes = [(side, side - side // 8) for side in sides]
    return [
        random_features(2, channels, h, w, seed=h, dtype=dtype, device=device, channels_last=channels_last)
        for h, w in sizes
    ]


def value_and_gradients(function: Callable, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result, and the gradient of a random weighting of it with respect to every feature map."""
    leaves = [feature.detach().requires_grad_() for feature in features]
    value = function(leaves)
    weight = torch.randn(value.shape, generator=seeded(9)).to(value)
    return value.detach(), list(torch.autograd.grad((value * weight).sum(), leaves))


# --- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_reference(device, dtype, channels_last, sampling_ratio, aligned):
    features = random_features(2, 19, 25, 22, dtype=dtype, device=device, channels_last=channels_last)
    rois = random_rois(40, 2, device=device).to(torch.promote_types(dtype, torch.float32))
    settings = ((5, 7), 0.25, sampling_ratio, aligned)
    value, gradient = value_and_gradients(lambda f: ops.roi_align(f[0], rois, *settings), [features])
    expected, expected_gradient = value_and_gradients(lambda f: reference.roi_align(f[0], rois, *settings), [features])
    assert_close(value, expected, **TOLERANCE[dtype])
    # A cell's gradient is a sum over many bins, rounded to the type once here but at every RoI in the reference.
    scale = max(gradient.abs().max().item() for gradient in expected_gradient)
    assert_close(gradient, expected_gradient, rtol=0, atol=TOLERANCE[dtype]["atol"] * 4 * scale)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_multilevel_equals_reference(device, dtype, channels_last):
    features = pyramid(dtype, device, channels_last)
    rois = random_rois(40, 2, extent=110, device=device).to(torch.promote_types(dtype, torch.float32))
    assert reference.roi_levels(rois, 3, 14).unique().tolist() == [0, 1, 2]
    settings = (rois, (4, 8, 16), 7, 0, 14)
    value, gradient = value_and_gradients(lambda f: ops.multilevel_roi_align(f, *settings), features)
    expected, expected_gradient = value_and_gradients(lambda f: reference.multilevel_roi_align(f, *settings), features)
    assert_close(value, expected, **TOLERANCE[dtype])
    scale = max(gradient.abs().max().item() for gradient in expected_gradient)
    assert_close(gradient, expected_gradient, rtol=0, atol=TOLERANCE[dtype]["atol"] * 4 * scale)


DEGENERATE = {
    "no area": (20, 20, 20, 20),
    "no width": (20, 10, 20, 50),
    "reversed": (60, 50, 20, 10),
    "reversed in x": (60, 10, 20, 50),
    "outside": (500, 500, 600, 600),
    "left of the image": (-90, -90, -50, -50),
    "on the border": (80, 0, 100, 30),
    "one cell outside": (-4, -4, 92, 104),
    "tiny": (33.3, 33.3, 33.4, 33.4),
    "much larger than the image": (-3e4, -2e4, 5e4, 4e4),
    "x1 is NaN": (NAN, 10, 40, 40),
    "y2 is NaN": (10, 10, 40, NAN),
    "all NaN": (NAN, NAN, NAN, NAN),
    "infinite": (10, 10, INF, INF),
    "infinite both ways": (-INF, -INF, INF, INF),
}


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("box", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_rois(device, box, sampling_ratio, aligned):
    features = random_features(2, 3, 25, 22, device=device)
    # An ordinary RoI beside it, whose result and gradient must not suffer.
    rois = torch.tensor([(1, *box), (1, 10, 12, 60, 70)], device=device)
    settings = (rois, 7, 0.25, sampling_ratio, aligned)
    value, gradient = value_and_gradients(lambda f: ops.roi_align(f[0], *settings), [features])
    expected, expected_gradient = value_and_gradients(lambda f: reference.roi_align(f[0], *settings), [features])
    assert_close(value, expected, **TOLERANCE[torch.float32])
    assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    if not np.isfinite(box).all():
        assert value[0].count_nonzero() == 0


def test_padding_pools_to_zero(device):
    rois = random_rois(6, 2, extent=110, device=device)
    features = pyramid(device=device)
    expected = ops.multilevel_roi_align(features, rois, (4, 8, 16), 7)
    expected[::2] = 0
    rois[::2, 0] = -1
    assert_close(ops.multilevel_roi_align(features, rois, (4, 8, 16), 7), expected, rtol=0, atol=0)


def test_level_of_a_square(device, units):
    """Level l holds the constant l, so that the result tells which level a RoI was pooled from."""
    features = [torch.full((1, 1, 512 >> level, 512 >> level), float(level), device=device) for level in range(4)]
    side = torch.tensor(units["roi_levels"]["side"])
    rois = torch.stack((0 * side, 0 * side + 10, 0 * side + 20, side + 10, side + 20), dim=1).to(device)
    pooled = ops.multilevel_roi_align(features, rois, (4, 8, 16, 32), 2)
    level = torch.tensor(units["roi_levels"]["level"], device=device)
    assert_close(pooled, level.float()[:, None, None, None].expand(-1, 1, 2, 2))


def test_golden(device, units):
    features = np.random.RandomState(units["roi_align"]["seed"]).standard_normal((1, 2, 12, 15)).astype("float32")
    rois = torch.tensor(units["roi_align"]["rois"], device=device)
    pooled = ops.roi_align(torch.from_numpy(features).to(device), rois, 7, spatial_scale=1 / 4)
    assert_close(pooled[:, 0], torch.tensor(units["roi_align"]["channel0"], device=device), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, -1, 3])
def test_equals_torchvision(device, sampling_ratio, aligned):
    torchvision = pytest.importorskip("torchvision")
    features = random_features(2, 8, 50, 44, device=device)
    rois = random_rois(200, 2, extent=200, device=device)
    settings = (rois, (7, 6), 0.25, sampling_ratio, aligned)
    value, gradient = value_and_gradients(lambda f: ops.roi_align(f[0], *settings), [features])
    expected, expected_gradient = value_and_gradients(lambda f: torchvision.ops.roi_align(f[0], *settings), [features])
    assert_close(value, expected, **TOLERANCE[torch.float32])
    assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_gradcheck(device, channels_last):
    features = pyramid(torch.float64, device, channels_last, channels=2, sides=(4, 2))
    rois = random_rois(5, 2, extent=12, seed=3, device=device).double()
    leaves = [feature.requires_grad_() for feature in features]
    assert torch.autograd.gradcheck(lambda *f: ops.multilevel_roi_align(f, rois, (4, 8), 3, 0, 14), leaves)
    assert torch.autograd.gradcheck(lambda f: ops.roi_align(f, rois, 2, 0.25, 2, False), leaves[:1])


def test_gradient_of_some_levels_only(device):
    features, rois = pyramid(device=device), random_rois(20, 2, extent=110, device=device)
    features[1].requires_grad_()
    ops.multilevel_roi_align(features, rois, (4, 8, 16), 7, 0, 14).sum().backward()
    assert features[1].grad.abs().sum() > 0
    assert features[0].grad is None and features[2].grad is None


def test_rois_have_no_gradient(device):
    features, rois = random_features(2, 3, 25, 22, device=device), random_rois(4, 2, device=device).requires_grad_()
    assert not ops.roi_align(features, rois, 7, 0.25).requires_grad
    features.requires_grad_()
    ops.roi_align(features, rois, 7, 0.25).sum().backward()
    assert rois.grad is None and features.grad is not None


def test_double_backward_is_an_error():
    features = torch.rand(1, 2, 5, 5, requires_grad=True)
    pooled = ops.roi_align(features, torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
    (gradient,) = torch.autograd.grad((pooled**2).sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        gradient.sum().backward()


# --- shapes and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 2])
def test_no_rois(device, images):
    features = random_features(images, 3, 25, 22, device=device).requires_grad_()
    pooled = ops.roi_align(features, torch.zeros(0, 5, device=device), (7, 6), 0.25)
    assert pooled.shape == (0, 3, 7, 6)
    pooled.sum().backward()
    assert features.grad.shape == features.shape and features.grad.count_nonzero() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_feature_map_of_one_cell(device, size):
    features, rois = random_features(2, 3, *size, device=device), random_rois(20, 2, extent=20, device=device)
    assert_close(ops.roi_align(features, rois, 3, 0.25), reference.roi_align(features, rois, 3, 0.25))


def test_not_contiguous(device):
    features = random_features(2, 6, 50, 22, device=device)[:, ::2, ::2].transpose(2, 3)
    rois = random_rois(30, 2, device=device).repeat_interleave(2, dim=1)[:, ::2]
    assert not features.is_contiguous() and not rois.is_contiguous()
    leaf = features.detach().requires_grad_()
    pooled = ops.roi_align(leaf, rois, 7, 0.25)
    assert_close(pooled, ops.roi_align(features.contiguous(), rois.contiguous(), 7, 0.25), rtol=0, atol=0)
    weight = torch.randn(7, 7, 30, 3, generator=seeded(1)).to(device).permute(2, 3, 0, 1)  # neither is the gradient
    (gradient,) = torch.autograd.grad(pooled, leaf, weight)
    (expected,) = torch.autograd.grad(reference.roi_align(leaf, rois, 7, 0.25), leaf, weight)
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_memory_of_the_result_is_that_of_the_features(device, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = [feature.requires_grad_() for feature in pyramid(device=device, channels_last=channels_last)]
    pooled = ops.multilevel_roi_align(features, random_rois(9, 2, device=device), (4, 8, 16), 7)
    assert pooled.is_contiguous(memory_format=layout)
    pooled.sum().backward()
    assert all(feature.grad.is_contiguous(memory_format=layout) for feature in features)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_both_layouts_give_the_same_bits(device, dtype):
    """150 channels: whole slices, whole vectors and a rest, wherever the kernels cut them."""
    rois = random_rois(60, 2, extent=110, device=device).to(torch.promote_types(dtype, torch.float32))
    torch.use_deterministic_algorithms(True)
    try:
        results = [
            value_and_gradients(
                lambda f: ops.multilevel_roi_align(f, rois, (4, 8, 16), 5, 0, 14),
                pyramid(dtype, device, channels_last, channels=150),
            )
            for channels_last in (False, True)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(results[0], results[1], rtol=0, atol=0)


def unused_memory(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where most of it is never touched, it takes no memory on the CPU."""
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:
        pytest.skip(f"the machine refuses gigabytes of unused memory: {error}")


@pytest.mark.parametrize(("images", "side"), [(1, 2920), (64, 372)])
def test_more_than_2_to_the_31_features(device, images, side):
    storage = unused_memory(images, side, side, 256, dtype=torch.float16, device=device)
    assert storage[-1, -16].storage_offset() > 2**31
    corner = torch.randn(16, 16, 256, generator=seeded(0)).half().to(device)
    storage[-1, -16:, -16:] = corner
    box = torch.tensor([[0, 2.0, 2, 14, 14]], device=device)
    shifted = box + torch.tensor([[images - 1] + [side - 16] * 4], device=device)
    pooled = ops.roi_align(storage.permute(0, 3, 1, 2), shifted, 7)
    # Far from the origin a float32 coordinate has 12 bits behind the point.
    assert_close(pooled, ops.roi_align(corner.permute(2, 0, 1)[None], box, 7), rtol=0, atol=5e-3)


@pytest.mark.parametrize("deterministic", [False, True])
def test_gradient_of_more_than_2_to_the_31_bins(device, deterministic):
    """All but the last RoI are padding."""
    count, channels = 5400, 8192
    storage = unused_memory(count, 7, 7, channels, dtype=torch.float16, device=device)
    assert storage[:-1].numel() > 2**31
    storage[-1] = torch.randn(7, 7, channels, generator=seeded(0))
    rois = torch.full((count, 5), -1.0, device=device)
    rois[-1] = torch.tensor([0.0, 1, 1, 6, 5])
    settings = ([8], [7], 1, [1.0], 2, True, 56.0, True, deterministic)
    grad = storage.permute(0, 3, 1, 2)
    (gradient,) = torch.ops.fastrcnn._multilevel_roi_align_backward(grad, rois, *settings)
    (expected,) = torch.ops.fastrcnn._multilevel_roi_align_backward(grad[-1:].clone(), rois[-1:], *settings)
    assert_close(gradient, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_same_for_any_number_of_threads(channels_last):
    features, rois = pyramid(channels=150, channels_last=channels_last), random_rois(200, 2, extent=110)
    assert_same_for_any_number_of_threads(
        lambda: value_and_gradients(lambda f: ops.multilevel_roi_align(f, rois, (4, 8, 16), 7, 0, 14), features)
    )


# --- torch.library, torch.compile, torch.export -----------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_opcheck(device, channels_last):
    features = [feature.requires_grad_() for feature in pyramid(device=device, channels_last=channels_last)]
    rois = random_rois(9, 2, extent=110, device=device)
    op = torch.ops.fastrcnn.multilevel_roi_align.default
    torch.library.opcheck(op, (features, rois, [1 / 4, 1 / 8, 1 / 16], 7, 6, 0, True, 14.0))
    torch.library.opcheck(op, (features[:1], rois, [1 / 4], 7, 6, 2, False, 56.0))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_compile_and_export(device, channels_last):
    features = pyramid(device=device, channels_last=channels_last)
    rois = random_rois(9, 2, extent=110, device=device)
    assert_compiles_and_exports(lambda r, *f: ops.multilevel_roi_align(f, r, (4, 8, 16), 7), rois, *features)
    assert_compiles_and_exports(lambda f, r: ops.roi_align(f, r, 7, 0.25), features[0], rois)


def test_compiled_gradient(device):
    features, rois = pyramid(device=device), random_rois(9, 2, extent=110, device=device)

    def pool(f):
        return ops.multilevel_roi_align(f, rois, (4, 8, 16), 7, 0, 14)

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert_close(value_and_gradients(compiled, features), value_and_gradients(pool, features))


# --- wrong input ------------------------------------------------------------------------------------------------------

FEATURES, ROIS = torch.zeros(2, 3, 8, 8), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("features", "rois", "settings", "message"),
    [
        (FEATURES[0], ROIS, {}, r"features: expected shape \[N, C, height, width\].*got \[3, 8, 8\]"),
        (FEATURES.long(), ROIS, {}, "features: expected dtype float32.*got int64"),
        (FEATURES[..., :0], ROIS, {}, "features: expected levels of at least one cell, got 8 x 0"),
        (FEATURES, ROIS[:, :4], {}, r"rois: expected shape \[R, 5\].*got \[4, 4\]"),
        (FEATURES, ROIS + 2, {}, "expected the index of one of 2 images.*got 2"),
        (FEATURES, ROIS - 2, {}, "expected the index of one of 2 images.*got -2"),
        (FEATURES, ROIS + 0.5, {}, "expected the index of one of 2 images.*got 0.5"),
        (FEATURES, ROIS + NAN, {}, "expected the index of one of 2 images.*got -?nan"),
        (FEATURES, ROIS, {"output_size": 0}, "output_size: expected 1 to 32768 bins per side, got 0 x 0"),
        (FEATURES, ROIS, {"spatial_scale": -1.0}, "spatial_scale: expected a positive number, got -1"),
        (FEATURES, ROIS, {"spatial_scale": 0.0}, "spatial_scale: expected a positive number, got 0"),
        (FEATURES, ROIS, {"spatial_scale": float("nan")}, "spatial_scale: expected a positive number, got -?nan"),
        (FEATURES, ROIS, {"spatial_scale": float("inf")}, "spatial_scale: expected a positive number, got inf"),
        (FEATURES, ROIS, {"spatial_scale": 1e300}, r"spatial_scale: expected .*, got 1e\+300 \(inf in float32\)"),
        (FEATURES, ROIS, {"spatial_scale": [1.0]}, "spatial_scale: expected a number, got list"),
        ([FEATURES], ROIS, {}, "features: expected a tensor, got list"),
    ],
)
def test_wrong_input(features, rois, settings, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.roi_align(features, rois, **{"output_size": 7, **settings})


@pytest.mark.parametrize(
    ("features", "strides", "message"),
    [
        ([], (), "features: expected at least one level, got none"),
        ([FEATURES], (4, 8), "expected one stride per level, got 1 levels and 2 strides"),
        ([FEATURES, FEATURES[:1]], (4, 8), r"the same N and C in every level, got \[2, 3, 8, 8\] and \[1, 3, 8, 8\]"),
        ([FEATURES, FEATURES.double()], (4, 8), r"features\[1\]: expected dtype float32, got float64"),
        ([FEATURES, FEATURES[0]], (4, 8), r"features\[1\]: expected shape .* got \[3, 8, 8\]"),
        ([FEATURES, FEATURES.tolist()], (4, 8), r"features\[1\]: expected a tensor, got list"),
        ([FEATURES], 4, "strides: expected a list of numbers, got int 4"),
        ([FEATURES], (1e-310,), "expected a positive number, got inf"),
        ([FEATURES], (0,), "stride.*expected.*positive.*got"),
    ],
)
def test_wrong_input_of_multilevel(features, strides, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.multilevel_roi_align(features, ROIS, strides, 7)


def test_output_size_of_any_whole_number():
    features, rois = torch.randn(1, 2, 9, 9), torch.tensor([[0, 1.0, 1, 7, 8]])
    expected = ops.roi_align(features, rois, (3, 3))
    for size in (3, [3, 3], np.int64(3), (np.int32(3), 3)):
        assert torch.equal(ops.roi_align(features, rois, size), expected)


@pytest.mark.parametrize("size", [7.0, (3, 4, 5), "7", (3, 4.5)])
@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool])
def test_wrong_output_size(pool, size):
    with pytest.raises(TypeError, match=r"output_size: expected a whole number or .height, width., got"):
        pool(torch.zeros(1, 2, 9, 9), torch.zeros(1, 5), size)


def test_arguments_of_torchvision_that_differ():
    features, rois = torch.zeros(1, 2, 9, 9), torch.zeros(1, 5)
    with pytest.raises(TypeError, match=r"rois: expected one tensor \[R, 5\].*, got list"):
        ops.roi_align(features, [rois[:, 1:]], 7)
    with pytest.raises(TypeError, match="features: expected a list of tensors, one per level, got dict"):
        ops.multilevel_roi_align({"0": features}, rois, [4], 7)
    with pytest.raises(TypeError, match="features: expected a list of tensors, one per level, got Tensor"):
        ops.multilevel_roi_align(features, rois, [4], 7)
    for stride in (0, -4, NAN, float("inf")):
        with pytest.raises(ValueError, match="strides: expected positive numbers, got"):
            ops.multilevel_roi_align([features], rois, [stride], 7)

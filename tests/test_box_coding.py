"""encode_boxes and decode_boxes against their definition and golden numbers."""

import pytest
import torch
from conftest import (
    TOLERANCE,
    assert_compiles_and_exports,
    assert_same_for_any_number_of_threads,
    random_boxes,
    seeded,
)
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

MEANS = (0.0, 0.0, 0.0, 0.0)
STDS = (0.1, 0.1, 0.2, 0.2)
SHIFTED = (0.1, -0.2, 0.05, 0.3)  # means other than 0
CODINGS = {"rpn": (MEANS, (1.0, 1.0, 1.0, 1.0)), "box head": (MEANS, STDS), "shifted": (SHIFTED, STDS)}
NAN, INF = float("nan"), float("inf")

coding = pytest.mark.parametrize(("means", "stds"), CODINGS.values(), ids=CODINGS.keys())
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def random_deltas(count: int, classes: int = 1, device="cpu") -> Tensor:
    """Normal, with some so large that exp is limited, and boxes that leave a 100 x 100 image on every side."""
    deltas = torch.randn(count, 4 * classes, generator=seeded(5))
    deltas[::5] *= 30
    return deltas.to(device)


def shapes(count: int, device) -> dict[str, tuple[int, int] | Tensor | None]:
    sizes = torch.rand(count, 2, generator=seeded(6)) * 100 + 20
    return {"none": None, "pair": (90, 70), "tensor": torch.tensor([90.0, 70.0]).to(device), "rows": sizes.to(device)}


def cast(shape, dtype: torch.dtype):
    return shape.to(dtype) if isinstance(shape, Tensor) else shape


# --- equal to the definition ------------------------------------------------------------------------------------------


@coding
@types
def test_encode_equals_reference(device, dtype, means, stds):
    boxes, targets = (random_boxes(300, seed=seed, device=device).to(dtype) for seed in (0, 1))
    deltas = ops.encode_boxes(boxes, targets, means, stds)
    assert_close(deltas, reference.encode_boxes(boxes, targets, means, stds), **TOLERANCE[dtype])


@coding
@types
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shape", ["none", "pair", "tensor", "rows"])
def test_decode_equals_reference(device, dtype, means, stds, classes, shape):
    boxes = random_boxes(300, device=device).to(dtype)
    deltas = random_deltas(300, classes, device).to(dtype).requires_grad_()
    max_shape = cast(shapes(300, device)[shape], dtype)
    weight = torch.randn(300, 4 * classes, generator=seeded(7)).to(deltas)
    value = ops.decode_boxes(boxes, deltas, means, stds, max_shape)
    expected = reference.decode_boxes(boxes, deltas, means, stds, max_shape)
    tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": 1e-3 if dtype == torch.float32 else 1e-9}
    assert_close(value, expected, **tolerance)
    (gradient,) = torch.autograd.grad((value * weight).sum(), deltas)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), deltas)
    assert_close(gradient, expected_gradient, **tolerance)


@types
def test_decode_inverts_encode(device, dtype):
    boxes, targets = (random_boxes(300, seed=seed, device=device).to(dtype) for seed in (0, 1))
    deltas = ops.encode_boxes(boxes, targets, SHIFTED, STDS)
    close = (targets[:, 2:] - targets[:, :2]).div(boxes[:, 2:] - boxes[:, :2]).log().abs().amax(1) < 4.1
    assert close.sum() > 200  # the others are beyond the limit of exp
    decoded = ops.decode_boxes(boxes, deltas, SHIFTED, STDS)
    assert_close(decoded[close], targets[close], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["coder_rpn", "coder_rcnn"])
def test_golden(device, units, name):
    stds = CODINGS["rpn" if name == "coder_rpn" else "box head"][1]
    boxes, gts, deltas, encoded, decoded, clipped = (
        torch.tensor(units[name][key], device=device)
        for key in ("boxes", "gts", "deltas", "encoded", "decoded_noclip", "decoded_maxshape_120x90")
    )
    assert_close(ops.encode_boxes(boxes[:3], gts, MEANS, stds), encoded)
    assert_close(ops.decode_boxes(boxes, deltas, MEANS, stds), decoded)
    assert_close(ops.decode_boxes(boxes, deltas, MEANS, stds, (120, 90)), clipped)


def test_golden_two_classes(device, units):
    box, deltas, decoded = (
        torch.tensor(units["coder_rcnn_2class"][key], device=device).view(1, -1) for key in ("box", "deltas", "decoded")
    )
    assert_close(ops.decode_boxes(box, deltas, MEANS, STDS), decoded)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["none", "pair", "rows"])
def test_gradcheck(device, shape):
    boxes, deltas = random_boxes(12, device=device).double(), random_deltas(12, 2, device).double().requires_grad_()
    max_shape = cast(shapes(12, device)[shape], torch.float64)
    assert torch.autograd.gradcheck(lambda d: ops.decode_boxes(boxes, d, SHIFTED, STDS, max_shape), deltas)


def test_gradient_on_the_border(device):
    """A box exactly as large as the image, and a delta exactly at a limit: the clamp lets the gradient through."""
    boxes = torch.tensor([[0.0, 0, 70, 90]], device=device)
    deltas = torch.tensor([[0.0, 0, 0, reference.MAX_LOG_RATIO]], device=device)
    weight = torch.tensor([[1.0, 2, 3, 5]], device=device)
    for given in (torch.zeros_like(deltas), deltas, -deltas):
        leaf = given.requires_grad_()
        for max_shape in (None, (90, 70)):
            unit = (MEANS, (1.0,) * 4, max_shape)
            (gradient,) = torch.autograd.grad(ops.decode_boxes(boxes, leaf, *unit), leaf, weight)
            (expected,) = torch.autograd.grad(reference.decode_boxes(boxes, leaf, *unit), leaf, weight)
            assert_close(gradient, expected)
            assert gradient[0, 2] == (3 - 1) * 35


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shape", [None, (90, 70)])
def test_no_boxes(device, max_shape):
    boxes = torch.zeros(0, 4, device=device)
    assert ops.encode_boxes(boxes, boxes, MEANS, STDS).shape == (0, 4)
    deltas = torch.zeros(0, 12, device=device, requires_grad=True)
    decoded = ops.decode_boxes(boxes, deltas, MEANS, STDS, max_shape)
    assert decoded.shape == (0, 12)
    decoded.sum().backward()
    assert deltas.grad.shape == (0, 12)


def test_degenerate_boxes(device):
    """Without area there are no deltas to speak of, but whatever the deltas, such a box decodes to itself."""
    boxes = torch.tensor([(5, 5, 5, 5), (5, 5, 5, 9), (9, 9, 5, 5), (1, 1, 3, 3), (NAN, 1, 3, 3)], device=device)
    targets = torch.tensor([[5.0, 5, 5, 5], [1, 1, 3, 3], [1, 1, 3, 3], [2, 2, 2, 2], [1, 1, 3, 3]], device=device)
    deltas = ops.encode_boxes(boxes, targets, MEANS, STDS)
    assert_close(deltas, reference.encode_boxes(boxes, targets, MEANS, STDS), equal_nan=True)
    assert deltas[:2].isfinite().sum() < 8
    anywhere = random_deltas(5, device=device)
    assert_close(ops.decode_boxes(boxes, anywhere, MEANS, STDS)[0], boxes[0])


@pytest.mark.parametrize("max_shape", [None, (90, 70)])
def test_deltas_that_are_not_finite(device, max_shape):
    """NaN stays NaN, in the box concerned only; an infinite log ratio is limited like any large one."""
    boxes = random_boxes(4, 60, device=device)
    deltas = torch.tensor([(NAN, 0, 0, 0), (0, 0, NAN, 0), (0, 0, INF, -INF), (INF, 0, 0, 0)], device=device)
    decoded = ops.decode_boxes(boxes, deltas, MEANS, STDS, max_shape)
    assert_close(decoded, reference.decode_boxes(boxes, deltas, MEANS, STDS, max_shape), equal_nan=True)
    assert decoded.isnan().sum(1)[:3].tolist() == [2, 2, 0]


def test_not_contiguous(device):
    boxes, targets = (random_boxes(50, seed=seed, device=device).t().contiguous().t() for seed in (0, 1))
    deltas = random_deltas(50, 4, device)[:, ::2]
    assert not boxes.is_contiguous() and not deltas.is_contiguous()
    assert_close(ops.encode_boxes(boxes, targets, MEANS, STDS), reference.encode_boxes(boxes, targets, MEANS, STDS))
    leaf = deltas.detach().requires_grad_()
    decoded, expected = (f(boxes, leaf, MEANS, STDS) for f in (ops.decode_boxes, reference.decode_boxes))
    assert_close(decoded, expected, rtol=1e-5, atol=1e-3)
    weight = torch.randn(8, 50, generator=seeded(8)).to(device).t()
    (gradient,) = torch.autograd.grad(decoded, leaf, weight)
    (expected_gradient,) = torch.autograd.grad(expected, leaf, weight)
    assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-3)


def test_same_for_any_number_of_threads():
    boxes, deltas = random_boxes(5000), random_deltas(5000, 2).requires_grad_()

    def compute():
        decoded = ops.decode_boxes(boxes, deltas, MEANS, STDS, (90, 70))
        return ops.encode_boxes(boxes, boxes.flip(0), MEANS, STDS), decoded, torch.autograd.grad(decoded.sum(), deltas)

    assert_same_for_any_number_of_threads(compute)


def test_image_sizes_have_no_gradient(device):
    """As the boxes, they are constants."""
    sizes = torch.tensor([50.0, 60.0], device=device, requires_grad=True)
    boxes, deltas = torch.rand(3, 4, device=device), torch.rand(3, 8, device=device)
    assert not ops.decode_boxes(boxes, deltas, MEANS, STDS, sizes).requires_grad
    assert ops.decode_boxes(boxes, deltas.requires_grad_(), MEANS, STDS, sizes).requires_grad


# --- torch.library, torch.compile, torch.export -----------------------------------------------------------------------


def test_opcheck(device):
    boxes, deltas = random_boxes(9, device=device), random_deltas(9, 2, device).requires_grad_()
    native = torch.ops.fastrcnn
    torch.library.opcheck(native.encode_boxes.default, (boxes, boxes.flip(0), MEANS, STDS))
    torch.library.opcheck(native.decode_boxes.default, (boxes, deltas, MEANS, STDS, None))
    rows = shapes(9, device)["rows"]
    torch.library.opcheck(native.decode_boxes.default, (boxes, deltas, MEANS, STDS, rows))


@pytest.mark.parametrize("shape", ["none", "pair", "tensor", "rows"])
def test_compile_and_export(device, shape):
    boxes, deltas, max_shape = random_boxes(9, device=device), random_deltas(9, 2, device), shapes(9, device)[shape]
    assert_compiles_and_exports(lambda b, d: ops.decode_boxes(b, d, MEANS, STDS, max_shape), boxes, deltas)
    assert_compiles_and_exports(lambda b, t: ops.encode_boxes(b, t, MEANS, STDS), boxes, boxes.flip(0))


def test_compiled_gradient(device):
    boxes, deltas = random_boxes(9, device=device), random_deltas(9, 2, device).requires_grad_()

    def decode(deltas):
        return ops.decode_boxes(boxes, deltas, MEANS, STDS, (90, 70))

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    (gradient,), (expected,) = (torch.autograd.grad(f(deltas).square().sum(), deltas) for f in (compiled, decode))
    assert_close(gradient, expected)


def test_stays_float32_under_autocast(device):
    boxes = torch.tensor([[0.0, 0, 1333.7, 10]], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        decoded = ops.decode_boxes(boxes, torch.zeros(1, 4, dtype=torch.bfloat16, device=device), MEANS, STDS)
    assert decoded.dtype == torch.float32
    assert_close(decoded, boxes)


# --- wrong input ------------------------------------------------------------------------------------------------------

BOXES, DELTAS = torch.zeros(3, 4), torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("boxes", "targets", "message"),
    [
        (BOXES[:, :3], BOXES, r"boxes: expected shape \[n, 4\], got \[3, 3\]"),
        (BOXES, BOXES[:2], r"targets: expected shape .*got \[2, 4\]"),
        (BOXES.half(), BOXES, "boxes: expected dtype float32 or float64, got float16"),
        (BOXES.tolist(), BOXES, "boxes: expected a tensor, got list"),
        (BOXES, BOXES.tolist(), "targets: expected a tensor, got list"),
        (BOXES, BOXES.double(), "targets: expected dtype float32, got float64"),
    ],
)
def test_wrong_input_of_encode(boxes, targets, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.encode_boxes(boxes, targets, MEANS, STDS)


@pytest.mark.parametrize(
    ("boxes", "deltas", "settings", "message"),
    [
        (BOXES[0], DELTAS, {}, r"boxes: expected shape \[n, 4\], got \[4\]"),
        (BOXES, DELTAS[:2], {}, r"deltas: expected shape .*got \[2, 8\]"),
        (BOXES, DELTAS[:, :6], {}, r"deltas: expected.*got.*6"),
        (BOXES, DELTAS.long(), {}, "deltas: expected dtype float32, got int64"),
        (BOXES.tolist(), DELTAS, {}, "boxes: expected a tensor, got list"),
        (BOXES, DELTAS.tolist(), {}, "deltas: expected a tensor, got list"),
        (BOXES, DELTAS, {"means": 0.5}, "means: expected a list of numbers, got float 0.5"),
        (BOXES, DELTAS, {"max_shape": 5}, "max_shape: expected a list of numbers, got int 5"),
        (BOXES, DELTAS, {"means": (0.0, 0.0)}, "means.*expected.*4.*got.*2"),
        (BOXES, DELTAS, {"stds": (1.0,) * 5}, "stds.*expected.*4.*got.*5"),
        (BOXES, DELTAS, {"max_shape": torch.zeros(2, 2)}, r"max_shape: expected.*per box \(3\), got.* 2"),
        (BOXES, DELTAS, {"max_shape": (1, 2, 3)}, "max_shape: expected.*got"),
    ],
)
def test_wrong_input_of_decode(boxes, deltas, settings, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.decode_boxes(boxes, deltas, **{"means": MEANS, "stds": STDS, **settings})

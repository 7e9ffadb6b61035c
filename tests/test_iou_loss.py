"""iou_loss against its definition, torchvision and golden numbers."""

import math

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

NAN, INF = float("nan"), float("inf")
LOSSES = {
    "iou_log": {"kind": "iou", "mode": "log"},
    "iou_linear": {"kind": "iou", "mode": "linear"},
    "iou_square": {"kind": "iou", "mode": "square"},
    "giou": {"kind": "giou"},
    "diou": {"kind": "diou"},
    "ciou": {"kind": "ciou"},
    "bounded_iou": {"kind": "bounded_iou"},
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def random_pairs(count: int, device="cpu", dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Boxes and targets that overlap from not at all to almost completely."""
    target = random_boxes(count, device=device)
    other = random_boxes(count, seed=1, device=device)
    nearness = torch.rand(count, 1, generator=seeded(2)).to(device)
    return torch.lerp(target, other, nearness).to(dtype), target.to(dtype)


def value_and_gradient(function, pred: Tensor, target: Tensor, **settings) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of a random weighting of it with respect to pred."""
    leaf = pred.detach().requires_grad_()
    value = function(leaf, target, **settings)
    weight = torch.rand(value.shape, generator=seeded(3)).to(value) + 0.5
    (gradient,) = torch.autograd.grad((value * weight).sum(), leaf)
    return value.detach(), gradient


# --- equal to the definition ------------------------------------------------------------------------------------------


@losses
@types
@pytest.mark.parametrize("settings", [{}, {"eps": 1e-2, "beta": 0.7}], ids=["default", "other"])
def test_equals_reference(device, dtype, loss, settings):
    pred, target = random_pairs(500, device, dtype)
    value, gradient = value_and_gradient(ops.iou_loss, pred, target, **loss, **settings)
    expected, expected_gradient = value_and_gradient(reference.iou_loss, pred, target, **loss, **settings)
    assert_close(value, expected, **TOLERANCE[dtype])
    assert_close(gradient, expected_gradient, rtol=TOLERANCE[dtype]["rtol"] * 10, atol=TOLERANCE[dtype]["atol"])
    assert value.shape == ((500, 4) if loss["kind"] == "bounded_iou" else (500,))


def boxes_with_equal_sides(device) -> tuple[Tensor, Tensor]:
    """All pairs of boxes with corners on a small grid: equal, touching, nested, sharing sides, empty, reversed."""
    sides = torch.cartesian_prod(*[torch.tensor([0.0, 2.0, 3.0, 6.0])] * 2)
    boxes = torch.cartesian_prod(torch.arange(len(sides)), torch.arange(len(sides)))
    boxes = torch.cat((sides[boxes[:, 0]], sides[boxes[:, 1]]), dim=1)[:, [0, 2, 1, 3]]
    pairs = torch.cartesian_prod(torch.arange(len(boxes)), torch.arange(0, len(boxes), 7))
    return boxes[pairs[:, 0]].to(device), boxes[pairs[:, 1]].to(device)


@losses
def test_equal_sides(device, loss):
    """Where the slope jumps it is that of the definition: shared between equal coordinates."""
    pred, target = boxes_with_equal_sides(device)
    value, gradient = value_and_gradient(ops.iou_loss, pred, target, **loss)
    expected, expected_gradient = value_and_gradient(reference.iou_loss, pred, target, **loss)
    assert_close(value, expected, **TOLERANCE[torch.float32])
    assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    assert value.isfinite().all() and gradient.isfinite().all()


@losses
@types
def test_equal_boxes(device, dtype, loss):
    """The minimum: no loss, and a gradient that is finite, in particular for ciou (mmdetection's is NaN)."""
    boxes = torch.cat((random_boxes(500, 1000, device=device), random_boxes(500, 1, device=device))).to(dtype)
    value, gradient = value_and_gradient(ops.iou_loss, boxes, boxes, **loss)
    smallest = (boxes[:, 2:] - boxes[:, :2]).amin()
    assert value.abs().max() < 0.1
    assert value[:500].abs().max() < 1e-5
    assert gradient.isfinite().all() and gradient.abs().max() < 10 / smallest


def test_golden(device, units):
    golden = units["iou_loss"]
    pred, target = (torch.tensor(golden[key], device=device) for key in ("pred", "target"))
    for name, loss in LOSSES.items():
        known = [0.0 if number is None else number for number in golden[name]]  # ciou of equal boxes
        assert_close(ops.iou_loss(pred, target, **loss), torch.tensor(known, device=device), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_equals_torchvision(device, kind):
    torchvision = pytest.importorskip("torchvision")
    name = {"giou": "generalized", "diou": "distance", "ciou": "complete"}[kind]
    pred, target = random_pairs(500, device)
    if kind == "ciou":  # torchvision has no threshold of IoU for alpha
        near = ops.box_iou(pred, target).diagonal() > 0.5
        pred, target = pred[near], target[near]
        assert len(pred) > 50
    value, gradient = value_and_gradient(ops.iou_loss, pred, target, kind=kind)
    expected, expected_gradient = value_and_gradient(
        getattr(torchvision.ops, f"{name}_box_iou_loss"), pred, target, eps=1e-6
    )
    assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


# --- gradients --------------------------------------------------------------------------------------------------------


@losses
def test_gradcheck(device, loss):
    pred, target = random_pairs(40, device, torch.float64)
    pred.requires_grad_()
    if loss["kind"] == "ciou":  # alpha counts as a constant, so finite differences would differ where it is not 0
        far = ops.box_iou(pred, target).diagonal() < 0.45
        pred, target = pred[far].detach().requires_grad_(), target[far]
    assert torch.autograd.gradcheck(lambda p: ops.iou_loss(p, target, **loss), pred)


def test_target_has_no_gradient(device):
    pred, target = random_pairs(9, device)
    target.requires_grad_()
    assert not ops.iou_loss(pred, target).requires_grad
    ops.iou_loss(pred.requires_grad_(), target).sum().backward()
    assert target.grad is None and pred.grad is not None


@losses
@types
def test_gradient_of_a_sum(device, dtype, loss):
    """The gradient of a sum is one number for all boxes, that of a sum of columns one for each: neither is copied."""
    pred, target = random_pairs(50, device, dtype)
    leaf = pred.requires_grad_()
    value = ops.iou_loss(leaf, target, **loss)
    weight = torch.rand(value.shape, generator=seeded(3)).to(value)
    rows, columns = weight[:1].expand_as(value), weight.t().contiguous().t()
    for expanded in (value.new_tensor(0.5).expand_as(value), rows, columns):
        (gradient,) = torch.autograd.grad(value, leaf, expanded, retain_graph=True)
        (expected,) = torch.autograd.grad(value, leaf, expanded.contiguous(), retain_graph=True)
        assert_close(gradient, expected, rtol=0, atol=0)


@losses
def test_eager_equals_the_operator(device, loss):
    """In eager mode a shorter way than the operator's own autograd leads to the same numbers."""
    pred, target = random_pairs(50, device)
    operator = torch.ops.fastrcnn.iou_loss.default
    settings = loss["kind"], loss.get("mode", "log"), 1e-3, 0.2
    expected = value_and_gradient(lambda p, t: operator(p, t, *settings)[0], pred, target)
    assert_close(value_and_gradient(ops.iou_loss, pred, target, **loss, eps=1e-3), expected, rtol=0, atol=0)


def test_exported_loss_has_a_gradient(device):
    class Loss(torch.nn.Module):
        def forward(self, pred, target):
            return ops.iou_loss(pred, target, "giou")

    pred, target = random_pairs(9, device)
    exported = torch.export.export(Loss(), (pred.requires_grad_(), target)).module()
    assert_close(
        value_and_gradient(exported, pred, target), value_and_gradient(ops.iou_loss, pred, target, kind="giou")
    )


def test_double_backward_is_an_error(device):
    pred, target = random_pairs(9, device)
    (gradient,) = torch.autograd.grad(ops.iou_loss(pred.requires_grad_(), target).sum(), pred, create_graph=True)
    with pytest.raises(NotImplementedError, match="iou_loss_backward cannot be differentiated"):
        gradient.sum().backward()


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(device, dtype, loss):
    """16-bit boxes are taken as float32."""
    pred, target = random_pairs(50, device, dtype)
    with torch.autocast(device.type, torch.bfloat16):
        value, gradient = value_and_gradient(ops.iou_loss, pred, target, **loss)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    expected, expected_gradient = value_and_gradient(ops.iou_loss, pred.float(), target.float(), **loss)
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(gradient, expected_gradient.to(dtype), rtol=0, atol=0)


# --- edges ------------------------------------------------------------------------------------------------------------


@losses
def test_no_boxes(device, loss):
    pred = torch.zeros(0, 4, device=device, requires_grad=True)
    value = ops.iou_loss(pred, torch.zeros(0, 4, device=device), **loss)
    assert value.shape == ((0, 4) if loss["kind"] == "bounded_iou" else (0,))
    value.sum().backward()
    assert pred.grad.shape == (0, 4)


@losses
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("of", ["pred", "target"])
def test_nan(device, loss, column, of):
    pred, target = random_pairs(40, device)
    expected, expected_gradient = value_and_gradient(ops.iou_loss, pred, target, **loss)
    (pred if of == "pred" else target)[3, column] = NAN
    value, gradient = value_and_gradient(ops.iou_loss, pred, target, **loss)
    axis = slice(column % 2, None, 2) if loss["kind"] == "bounded_iou" else slice(None)
    assert value[3, ...].isnan()[axis].all() if value.dim() == 2 else value[3].isnan()
    assert gradient[3, axis].isnan().all()
    others = torch.arange(40) != 3
    assert_close(value[others], expected[others], rtol=0, atol=0)
    assert_close(gradient[others], expected_gradient[others], rtol=0, atol=0)


@losses
@pytest.mark.parametrize("box", [(10, 10, INF, 40), (-INF, -INF, INF, INF), (INF, 0, INF, 10), (1e30, 0, 3e30, 1e30)])
def test_infinite_and_huge(device, loss, box):
    pred, target = random_pairs(20, device)
    pred[3] = torch.tensor(box)
    value, expected = (function(pred, target, **loss) for function in (ops.iou_loss, reference.iou_loss))
    assert_close(value, expected, **TOLERANCE[torch.float32], equal_nan=True)


@types
def test_logarithm_from_disjoint_to_equal(device, dtype):
    """-ln IoU of IoUs over the whole range, down to eps: the kernels have a logarithm of their own."""
    iou = torch.logspace(-7, 0, 2000, dtype=torch.float64).to(device, dtype)
    target = torch.tensor([0.0, 0, 1, 1], dtype=dtype, device=device).expand(2000, 4)
    pred = torch.stack((0 * iou, 0 * iou, iou, 0 * iou + 1), dim=1)
    expected = -iou.clamp(min=1e-6).log()
    assert_close(ops.iou_loss(pred, target), expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=2e-7)
    assert ops.iou_loss(pred, target)[0].item() == pytest.approx(-math.log(1e-6))


@types
def test_arctangent_of_all_aspect_ratios(device, dtype):
    """v of ciou for boxes around one centre: the kernels have an arctangent of their own."""
    ratio = torch.logspace(-4, 4, 2000, dtype=torch.float64).to(device, dtype)
    pred = torch.stack((-ratio, -1 / ratio, ratio, 1 / ratio), dim=1)
    target = pred[:, [0, 1, 2, 3]] * torch.tensor([1.0, 0.6, 1.0, 0.6]).to(pred)
    value = ops.iou_loss(pred, target, "ciou")
    expected = reference.iou_loss(pred.double(), target.double(), "ciou")
    assert_close(value.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)


@losses
def test_not_contiguous(device, loss):
    pred, target = (boxes.t().contiguous().t() for boxes in random_pairs(50, device))
    assert not pred.is_contiguous() and not target.is_contiguous()
    leaf = pred.detach().requires_grad_()
    value = ops.iou_loss(leaf, target, **loss)
    assert_close(value, ops.iou_loss(pred.contiguous(), target.contiguous(), **loss), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)  # the gradient of a sum is one number, expanded
    (expected,) = torch.autograd.grad(reference.iou_loss(leaf, target, **loss).sum(), leaf)
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@losses
def test_same_for_any_number_of_threads(loss):
    pred, target = random_pairs(50_003)
    assert_same_for_any_number_of_threads(lambda: value_and_gradient(ops.iou_loss, pred, target, **loss))


@losses
def test_same_for_any_number_of_boxes(loss):
    """What does not fill a vector is computed by the same rule."""
    pred, target = random_pairs(40)
    value = ops.iou_loss(pred, target, **loss)
    for count in range(40):
        assert_close(ops.iou_loss(pred[:count], target[:count], **loss), value[:count], rtol=0, atol=0)


# --- torch.library, torch.compile, torch.export -----------------------------------------------------------------------


@losses
def test_opcheck(device, loss):
    pred, target = random_pairs(9, device)
    op = torch.ops.fastrcnn.iou_loss.default
    torch.library.opcheck(op, (pred.requires_grad_(), target, loss["kind"], loss.get("mode", "log"), 1e-6, 0.2))


@losses
def test_compile_and_export(device, loss):
    assert_compiles_and_exports(lambda p, t: ops.iou_loss(p, t, **loss), *random_pairs(9, device))


@losses
def test_compiled_gradient(device, loss):
    pred, target = random_pairs(9, device)
    compiled = torch.compile(ops.iou_loss, fullgraph=True, backend="aot_eager")
    expected = value_and_gradient(ops.iou_loss, pred, target, **loss)
    assert_close(value_and_gradient(compiled, pred, target, **loss), expected)


# --- wrong input ------------------------------------------------------------------------------------------------------

BOXES = torch.zeros(3, 4)


def test_lists_instead_of_boxes():
    for pred, target, name in ((BOXES.tolist(), BOXES, "pred"), (BOXES, BOXES.tolist(), "target")):
        with pytest.raises(TypeError, match=f"{name}: expected a tensor, got list"):
            ops.iou_loss(pred, target)


@pytest.mark.parametrize(
    ("pred", "target", "settings", "message"),
    [
        (BOXES[:, :3], BOXES, {}, r"pred: expected shape \[n, 4\], got \[3, 3\]"),
        (BOXES[0], BOXES, {}, r"pred: expected shape \[n, 4\], got \[4\]"),
        (BOXES, BOXES[:2], {}, r"target: expected shape \[n, 4\], one target per box, got \[2, 4\]"),
        (BOXES.half(), BOXES.half(), {}, "pred: expected dtype float32 or float64, got float16"),
        (BOXES, BOXES.double(), {}, "target: expected dtype float32, got float64"),
        (BOXES, BOXES, {"kind": "siou"}, "kind: expected iou, giou, diou, ciou or bounded_iou, got siou"),
        (BOXES, BOXES, {"mode": "cubic"}, "mode: expected log, linear or square, got cubic"),
        (BOXES, BOXES, {"eps": 0.0}, "eps: expected a positive number, got 0"),
        (BOXES, BOXES, {"eps": NAN}, "eps: expected a positive number, got nan"),
        (BOXES, BOXES, {"eps": INF}, "eps: expected a positive number, got inf"),
        (BOXES, BOXES, {"eps": 1e-60}, r"eps: expected a positive number, got 1e-60 \(0 in float32\)"),
        (BOXES, BOXES, {"beta": -1.0}, "beta: expected a positive number, got -1"),
        (BOXES, BOXES, {"beta": NAN}, "beta: expected a positive number, got nan"),
        (BOXES, BOXES, {"beta": INF}, "beta: expected a positive number, got inf"),
    ],
)
def test_wrong_input(device, pred, target, settings, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        ops.iou_loss(pred.to(device), target.to(device), **settings)

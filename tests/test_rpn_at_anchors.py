"""The RPN at single anchors, for its losses: values and gradients are those of the dense layers there."""

import pytest
import torch
from conftest import seeded
from torch import Tensor, nn
from torch.testing import assert_close

from fastrcnn.config import RpnConfig
from fastrcnn.models.rpn import RPNHead
from fastrcnn.models.surroundings import surroundings

SIZES = ((13, 17), (6, 8), (1, 1))
ANCHORS = 3 * sum(h * w for h, w in SIZES)


def setting() -> tuple[RPNHead, list[Tensor]]:
    torch.manual_seed(0)
    head = RPNHead(16, RpnConfig(channels=24))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    levels = [torch.randn(2, 16, h, w, generator=seeded(h)) for h, w in SIZES]
    return head, [level.contiguous(memory_format=torch.channels_last).requires_grad_() for level in levels]


def dense(head: RPNHead, levels: list[Tensor], image: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The same anchors, taken from forward's maps."""
    objectness, deltas = head(levels)
    logits = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in objectness], 1)
    boxes = torch.cat([level.permute(0, 2, 3, 1).reshape(2, -1, 4) for level in deltas], 1)
    return logits[image, index], boxes[image, index]


def chosen(count: int) -> tuple[Tensor, Tensor]:
    """Images and anchors in any order, the last anchor of all and some twice among them; -1: every anchor once."""
    if count < 0:
        return torch.arange(2).repeat_interleave(ANCHORS), torch.arange(ANCHORS).repeat(2)
    index = torch.randint(ANCHORS, (count,), generator=seeded(1))
    index[count // 2 :: 5] = ANCHORS - 1
    return torch.randint(2, (count,), generator=seeded(2)), index


@pytest.mark.parametrize("count", [0, 1, 50, -1], ids=["none", "one", "some", "all"])
def test_values_and_gradients_are_those_of_the_dense_layers(count):
    head, levels = setting()
    inputs, (image, index) = [*levels, *head.parameters()], chosen(count)
    found, expected = (run(levels, image, index) for run in (head.at_anchors, lambda *a: dense(head, *a)))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    grads = [torch.randn(value.shape, generator=seeded(3)) for value in expected]
    assert_close(
        torch.autograd.grad(found, inputs, grads), torch.autograd.grad(expected, inputs, grads), rtol=1e-4, atol=1e-3
    )


def test_a_gradient_that_is_not_a_number_is_not_lost():
    head, levels = setting()
    logits, _ = head.at_anchors(levels, torch.tensor([1]), torch.tensor([3 * (3 * 17 + 4)]))
    logits.backward(torch.tensor([float("nan")]))
    assert head.conv.weight.grad.isnan().any()
    assert levels[0].grad[1, :, 2:5, 3:6].isnan().any() and levels[0].grad[0].isfinite().all()
    assert levels[0].grad[1, :, 5:].eq(0).all() and levels[1].grad.eq(0).all()


def test_surroundings_of_corners():
    feature = torch.arange(1.0, 13.0).view(1, 1, 3, 4).requires_grad_()
    zero = torch.zeros(2, dtype=torch.int64)
    around = surroundings(feature, zero, torch.tensor([0, 2]), torch.tensor([0, 3]))
    assert around.tolist() == [[0, 0, 0, 0, 1, 2, 0, 5, 6], [7, 8, 0, 11, 12, 0, 0, 0, 0]]
    around.backward(torch.arange(1.0, 19.0).view(2, 9))
    assert feature.grad.view(3, 4).tolist() == [[5, 6, 0, 0], [8, 9, 10, 11], [0, 0, 13, 14]]


def test_half_precision_has_gradients_of_its_types():
    head, levels = setting()
    parameters, (image, index) = list(head.parameters()), chosen(60)
    with torch.autocast("cpu", torch.bfloat16):
        expected = dense(head, levels, image, index)
        found = head.at_anchors([level.bfloat16() for level in levels], image, index)
    assert {value.dtype for value in (*expected, *found)} == {torch.bfloat16}
    grads = [torch.randn(value.shape, generator=seeded(4)).bfloat16() for value in expected]
    expected, found = (torch.autograd.grad(values, parameters, grads) for values in (expected, found))
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32 and (f - e).norm() < 0.02 * e.norm()

"""The RPN's convolutions in training: the gradients of the dense layers, from the few cells that have one."""

import pytest
import torch
from conftest import seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastrcnn.config import RpnConfig
from fastrcnn.models import rpn_level
from fastrcnn.models.rpn import RPNHead


def setting() -> tuple[RPNHead, list[Tensor]]:
    torch.manual_seed(0)
    head = RPNHead(16, RpnConfig(channels=24))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    levels = [torch.randn(2, 16, h, w, generator=seeded(h)) for h, w in ((13, 17), (6, 8), (1, 1))]
    return head, [level.contiguous(memory_format=torch.channels_last).requires_grad_() for level in levels]


def dense(head: RPNHead, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    hidden = [F.relu(F.conv2d(level, head.conv.weight, head.conv.bias, padding=1)) for level in levels]
    return [head.objectness(x) for x in hidden], [head.deltas(x) for x in hidden]


def sparse_grads(outputs: list[Tensor], share: float) -> list[Tensor]:
    return [
        torch.randn(output.shape, generator=seeded(i)) * (torch.rand(output.shape, generator=seeded(50 + i)) < share)
        for i, output in enumerate(outputs)
    ]


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0], ids=["no cell", "some cells", "every cell"])
@pytest.mark.parametrize("chunk", [4096, 7])
def test_gradients_are_those_of_the_dense_layers(share, chunk, monkeypatch):
    monkeypatch.setattr(rpn_level, "_CHUNK", chunk)
    head, levels = setting()
    inputs = [*levels, *head.parameters()]
    found, expected = ([t for ts in run(levels) for t in ts] for run in (head, lambda x: dense(head, x)))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads = sparse_grads(expected, share)
    assert_close(
        torch.autograd.grad(found, inputs, grads), torch.autograd.grad(expected, inputs, grads), rtol=1e-4, atol=1e-4
    )


def test_a_gradient_that_is_not_a_number_is_not_lost():
    head, levels = setting()
    objectness, _ = head(levels)
    grad = torch.zeros_like(objectness[0])
    grad[1, 0, 3, 4] = float("nan")
    objectness[0].backward(grad)
    assert head.conv.weight.grad.isnan().any()
    assert levels[0].grad[1, :, 2:5, 3:6].isnan().any() and levels[0].grad[0].isfinite().all()


def test_half_precision_has_gradients_of_its_types():
    head, levels = setting()
    grads = sparse_grads([t for ts in dense(head, levels) for t in ts], 0.1)
    parameters = list(head.parameters())
    expected = torch.autograd.grad([t for ts in dense(head, levels) for t in ts], parameters, grads)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [t for ts in head(levels) for t in ts]
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    found = torch.autograd.grad(outputs, parameters, [grad.bfloat16() for grad in grads])
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32 and (f - e).norm() < 0.03 * e.norm() + 1e-6

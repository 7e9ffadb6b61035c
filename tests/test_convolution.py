"""The convolutions of training: values and gradients are those of F.conv2d, whichever way is taken."""

import pytest
import torch
from conftest import seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from fastrcnn.models import convolution as module
from fastrcnn.models.backbone import _normalised
from fastrcnn.models.convolution import Conv3x3, convolution
from fastrcnn.models.precision import BatchNorm2d

MANY = (1, 32, 63, 65)  # cells enough for Winograd's method


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def inputs(shape, bias=True, out_channels=48):
    x = randn(*shape, seed=0).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = (0.1 * randn(out_channels, shape[1], 3, 3, seed=1)).requires_grad_()
    return x, weight, randn(out_channels, seed=2).requires_grad_() if bias else None


def conv3x3(x, weight, bias):
    return convolution(x, weight, bias, padding=(1, 1))


def gradients(function, arguments, out_grad):
    out = function(*arguments)
    wanted = [argument for argument in arguments if argument is not None and argument.requires_grad]
    return out.detach(), torch.autograd.grad(out, wanted, out_grad)


@pytest.mark.parametrize("shape", [MANY, (4, 32, 35, 36)], ids=["one", "cells of four images together"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained_input", [True, False])
def test_values_and_gradients_are_those_of_conv2d(bias, trained_input, shape, monkeypatch):
    x, weight, offset = inputs(shape, bias)
    x.requires_grad_(trained_input)
    calls = []
    monkeypatch.setattr(module.ops, "conv3x3", lambda *a: calls.append(a) or torch.ops.fastrcnn.conv3x3(*a, False))
    out_grad = randn(shape[0], 48, *shape[2:], seed=3)
    actual = gradients(conv3x3, (x, weight, offset), out_grad)
    assert len(calls) == 1 + trained_input  # it was Winograd's method
    expected = gradients(lambda x, w, b: F.conv2d(x, w, b, padding=1), (x, weight, offset), out_grad)
    assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "case",
    ["no gradient", "few cells", "few channels", "few outputs", "bfloat16", "autocast"],
    ids=lambda case: case.replace(" ", "_"),
)
def test_where_it_does_not_pay_or_fit_it_is_conv2d(case, monkeypatch):
    monkeypatch.setattr(module.ops, "conv3x3", lambda *_: pytest.fail("Winograd's method was used"))
    shape = {"few cells": (1, 32, 20, 20), "few channels": (1, 16, 63, 65)}.get(case, MANY)
    x, weight, bias = inputs(shape, out_channels=16 if case == "few outputs" else 48)
    if case == "bfloat16":
        x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    with torch.set_grad_enabled(case != "no gradient"), torch.autocast("cpu", enabled=case == "autocast"):
        assert torch.equal(conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


def test_one_graph():
    x, weight, bias = inputs(MANY)
    compiled = torch.compile(conv3x3, fullgraph=True, backend="aot_eager")
    out_grad = randn(1, 48, 63, 65, seed=3)
    expected = gradients(conv3x3, (x, weight, bias), out_grad)
    assert_close(gradients(compiled, (x, weight, bias), out_grad), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["1x1", "strided", "3x3", "grouped"])
def test_a_folded_batch_norm_learns_what_the_layers_one_by_one_learn(kind):
    torch.manual_seed(0)
    layer = {
        "1x1": nn.Conv2d(32, 48, 1, bias=False),
        "strided": nn.Conv2d(32, 48, 3, 2, 1, bias=False),
        "3x3": nn.Conv2d(32, 48, 3, 1, 1, bias=False),
        "grouped": nn.Conv2d(32, 48, 3, 1, 1, groups=4, bias=False),
    }[kind]
    norm = BatchNorm2d(48).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x = randn(*MANY, seed=0).requires_grad_()
    parameters = [x, layer.weight, norm.weight, norm.bias]
    expected = norm(layer(x))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        actual = _normalised(layer, norm, x)
    assert {x.data_ptr(), layer.weight.data_ptr()} <= set(kept)
    assert len(set(kept)) <= 5, "besides vectors, x and the layer's own weight are kept, and no scaled one"
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    out_grad = randn(*expected.shape, seed=3)
    for a, e in zip(
        torch.autograd.grad(actual, parameters, out_grad),
        torch.autograd.grad(expected, parameters, out_grad),
        strict=True,
    ):
        assert_close(a, e, rtol=1e-4, atol=1e-4 * float(e.abs().max()))


@pytest.mark.parametrize("learns", ["weight", "bias", "scale", "x"])
@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_alone(learns, stride):
    x, weight, bias = (tensor.detach() for tensor in inputs(MANY))
    scale = randn(48, seed=4)
    out_grad = randn(1, 48, 63 // stride + stride - 1, 65 // stride + stride - 1, seed=3)
    tensors = {"x": x, "weight": weight, "bias": bias, "scale": scale}
    wanted = tensors[learns].requires_grad_()
    actual = convolution(x, weight, bias, scale, (stride, stride), (1, 1))
    expected = F.conv2d(x, weight * scale[:, None, None, None], bias, stride, 1)
    assert_close(actual, expected, rtol=1e-4, atol=1e-3)
    a, e = (torch.autograd.grad(out, wanted, out_grad)[0] for out in (actual, expected))
    assert_close(a, e, rtol=1e-4, atol=1e-4 * float(e.abs().max()))


def test_batch_statistics_are_not_folded():
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(32, 48, 1, bias=False), BatchNorm2d(48).train()
    x = randn(2, 32, 9, 9, seed=0)
    out = _normalised(layer, norm, x)
    assert_close(out.mean((0, 2, 3)), torch.zeros(48), rtol=0, atol=1e-5)
    assert norm.num_batches_tracked == 1


def test_the_layer_has_the_parameters_of_its_convolution():
    layer = Conv3x3(32, 48)
    x = randn(*MANY, seed=0)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-4, atol=1e-4)


def test_without_gradients_winograds_method_belongs_to_training(monkeypatch):
    """The RPN's dense maps of a training step are made without a graph."""
    calls = []
    monkeypatch.setattr(module.ops, "conv3x3", lambda *a: calls.append(a) or torch.ops.fastrcnn.conv3x3(*a, False))
    layer, x = Conv3x3(32, 48), randn(*MANY, seed=0)
    with torch.no_grad():
        layer.eval()(x)
        assert not calls
        layer.train()(x)
        assert len(calls) == 1

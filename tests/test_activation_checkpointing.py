"""Maps that backward() makes anew: the same gradients to the bit, in every situation, and nothing is kept."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import seeded
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from fastrcnn.models.activation_checkpointing import without_keeping


class Pair(nn.Module):
    """Two convolutions with a ReLU between them; the map between them is kept, or not."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keeps, self.made = keeps, 0
        self.first, self.second = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1)

    def make(self, x: Tensor) -> Tensor:
        self.made += 1
        return self.first(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            return self.second(F.relu_(self.make(x)))
        return without_keeping(partial(self.make, x), F.relu_, self.second)


def x() -> Tensor:
    return torch.randn(2, 4, 5, 6, generator=seeded(0)).requires_grad_()


def gradients(run: Callable[[Pair, Tensor], Tensor], keeps: bool, expected_makes: int | None = None) -> list[Tensor]:
    pair, image = Pair(keeps), x()
    run(pair, image).square().sum().backward()
    if expected_makes is not None:
        assert pair.made == (1 if keeps else expected_makes)
    return [image.grad, *(parameter.grad for parameter in pair.parameters())]


def assert_same_gradients(run: Callable[[Pair, Tensor], Tensor], expected_makes: int | None = None) -> None:
    for with_, without in zip(gradients(run, True), gradients(run, False, expected_makes), strict=True):
        assert torch.equal(with_, without)


def test_same_gradients_and_made_once_more():
    assert_same_gradients(lambda pair, image: pair(image), expected_makes=2)


def test_same_gradients_under_autocast():
    def run(pair: Pair, image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return pair(image)

    assert_same_gradients(run, expected_makes=2)


def test_same_gradients_twice_in_one_graph():
    assert_same_gradients(lambda pair, image: pair(pair(image)))


def test_same_gradients_inside_checkpointing():
    from torch.utils.checkpoint import checkpoint

    assert_same_gradients(lambda pair, image: checkpoint(pair, image, use_reentrant=False))


def test_backward_twice():
    pair, image = Pair(False), x()
    out = pair(image).square().sum()
    first = torch.autograd.grad(out, image, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, image)[0], first) and pair.made == 3


@pytest.mark.parametrize("learns", ["first", "second"])
def test_only_one_of_them_learns(learns):
    results = []
    for keeps in (True, False):
        pair, image = Pair(keeps), x().detach()
        getattr(pair, "second" if learns == "first" else "first").requires_grad_(False)
        pair(image).square().sum().backward()
        results.append([parameter.grad for parameter in getattr(pair, learns).parameters()])
    assert all(map(torch.equal, *results))


def test_the_map_is_gone_until_backward_and_after_it():
    for keeps in (True, False):
        pair, maps = Pair(keeps), []
        pair.first.register_forward_hook(
            lambda _, __, out, maps=maps: maps.append(StorageWeakRef(out.untyped_storage()))
        )
        out = pair(x()).square().sum()
        assert [map_.expired() for map_ in maps] == [not keeps]
        out.backward(retain_graph=True)
        assert [map_.expired() for map_ in maps] == ([False] if keeps else [True, True])


def test_without_gradients_and_in_copies():
    pair = copy.deepcopy(Pair(False))
    with torch.no_grad():
        assert torch.equal(pair(x()), Pair(True)(x())) and pair.made == 1


def test_one_graph():
    compiled = torch.compile(Pair(False), fullgraph=True, backend="aot_eager")
    image, again = x(), x()
    compiled(image).square().sum().backward()
    Pair(True)(again).square().sum().backward()
    torch.testing.assert_close(image.grad, again.grad)

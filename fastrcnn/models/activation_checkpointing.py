"""Memory for time: the activations of a module are not kept for backward(), which computes them again from its input.

"Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Change = Callable[[Tensor], Tensor]


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), with the same gradients and the same running statistics, to the bit, as without."""
    if not (x.requires_grad or any(parameter.requires_grad for parameter in module.parameters())):
        return module(x)  # frozen: nothing is kept for backward() anyway
    return checkpoint(
        module,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing here is random
        context_fn=lambda: (nullcontext(), _keep_running_statistics(module)),
    )


def without_keeping(make: Callable[[], Tensor], change: Change, use: Change) -> Tensor:
    """use(change(make())), with the same gradients, to the bit; but on the CPU backward() makes the result of `change`
    anew, rather than that it is kept. For maps that are large and quickly made.

    Args:
        make: without arguments; it gives the same every time, and changes nothing (such as running statistics).
        change: changes its argument in place and returns it.
        use: any function.
    """
    made = make()
    if not torch.is_grad_enabled() or made.device.type != "cpu" or torch.compiler.is_compiling():
        return use(change(made))
    place, shape = made.data_ptr(), made.shape
    autocast = partial(torch.autocast, "cpu", torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"))

    def again() -> Tensor:
        with torch.no_grad(), autocast():
            return change(make())

    remade = _Remade(again)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: remade.ask() if (kept.data_ptr(), kept.shape) == (place, shape) else kept,
        lambda kept: remade.get() if kept is None else kept,
    ):
        return use(change(made))


class _Remade:
    """What several nodes of a graph ask for in backward(): made for the first of them, forgotten after the last."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make, self._asked, self._left = make, 0, 0
        self._value: Tensor | None = None

    def ask(self) -> None:
        self._asked += 1

    def get(self) -> Tensor:
        if self._value is None:
            self._value, self._left = self._make(), self._asked
        value = self._value
        self._left -= 1
        if self._left == 0:
            self._value = None
        return value


@contextmanager
def _keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside it, batch norm does not count its batch: the first forward pass has."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count

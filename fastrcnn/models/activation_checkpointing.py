"""Memory for time: the activations of a module are not kept for backward(), which computes them again from its input.

"Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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

"""The gradients of a step: added up over its batches by backward(), and over the processes by all-reduce.

Each process has one copy of the weights. Where all start equal and all step with the same gradients, they stay equal.
"""

from collections.abc import Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastrcnn.distributed import world_size

BUCKET = 25 << 20  # bytes that are sent at a time: large enough for full bandwidth, small enough to start early
ALIGNMENT = 16  # elements, at which each gradient in a bucket starts: vector loads


class Bucket:
    """Some parameters' gradients as views of one flat tensor.

    Args:
        parameters: dense, of one type and device. Each one's grad becomes a view with the parameter's own strides, to
            which backward() adds in place and which a fused optimiser needs.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        starts, size = [], 0
        for parameter in parameters:
            starts.append(size)
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self.flat = torch.zeros(size, dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.grad = self.flat.as_strided(parameter.size(), parameter.stride(), start)
        self.missing = 0  # gradients that backward() has still to add


class Gradients:
    """Sums gradients over the backward passes of a step, and over the processes while the last pass still runs.

    The parameters are put into buckets in reverse, about the order in which backward() reaches them; a bucket is sent
    when it is complete and those before it are sent ("PyTorch Distributed", Li et al. 2020,
    https://arxiv.org/abs/2006.15704, section 3.2). So all processes send in the same order, also if one has nothing to
    learn, or no batch at all in the last step of an epoch: it sends zeros, and nobody waits for it in vain.

        gradients.start(passes=len(batches))
        for batch in batches: loss(batch).backward()
        gradients.finish()  # every parameter's grad: the sum over all batches of all processes

    Alone, with one process, it leaves the gradients to backward().
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._buckets: list[Bucket] = []
        self._sent: list[dist.Work] = []
        if world_size() > 1:
            self._buckets = [Bucket(group) for group in _groups(self._parameters[::-1])]
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._added, bucket))

    def start(self, passes: int) -> None:
        """Forgets the gradients of the last step; `passes` calls of backward() follow, maybe none."""
        if not self._buckets:
            for parameter in self._parameters:
                parameter.grad = None
        self._sent = []
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = passes * len(bucket.parameters)

    def finish(self) -> None:
        """Sends what is left (a parameter may have had no gradient) and waits for all sums."""
        for bucket in self._buckets:
            bucket.missing = 0
        self._send_complete()
        for work in self._sent:
            work.wait()

    def _added(self, bucket: Bucket, _: Tensor) -> None:
        bucket.missing -= 1
        self._send_complete()

    def _send_complete(self) -> None:
        for bucket in self._buckets[len(self._sent) :]:
            if bucket.missing > 0:
                return
            self._sent.append(dist.all_reduce(bucket.flat, async_op=True))


def _groups(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Consecutive parameters of BUCKET bytes together, or one larger one."""
    groups: list[list[nn.Parameter]] = []
    size = BUCKET
    for parameter in parameters:
        if size >= BUCKET:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    return groups


def average_running_statistics(model: nn.Module, batches: int) -> None:
    """Batch norm that trains with its batch's statistics: the running ones become their mean over the processes.

    Each process counts by its number of `batches` in the step: those of one that had none are of the step before.
    """
    if world_size() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    if statistics:
        flat = torch.cat([*statistics, statistics[0].new_ones(1)]) * batches
        dist.all_reduce(flat)
        *means, _ = (flat / flat[-1]).split([*(value.numel() for value in statistics), 1])
        torch._foreach_copy_(statistics, means)

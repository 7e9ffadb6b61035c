"""Several processes that train or evaluate together, as torchrun starts them: one per GPU, or some on the CPU.

A process that was started alone is a group of one, for which every function here is free: code needs no two ways.
Small things (losses, flags, detections) travel between CPUs by gloo, gradients between GPUs by NCCL.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from fastrcnn.device import choose_device

# How long a process waits for the others. The main one measures alone after an evaluation: minutes for a large dataset.
TIMEOUT = timedelta(hours=1)
Result = TypeVar("Result")


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, and takes the GPU of this one; use as `with` or as a decorator.

    Does nothing in a process that was started alone (without RANK and WORLD_SIZE in the environment), and in one that
    belongs to a group already.

    Raises:
        ValueError: more processes on this machine than GPUs.
    """
    if dist.is_initialized() or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield
        return
    backend = "gloo"
    if choose_device().type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"A process trains on one GPU: this is number {local_rank + 1} of this machine, which has {gpus}. "
                "Start fewer (torchrun --nproc_per_node), or run on the CPU with CUDA_VISIBLE_DEVICES= (empty)"
            )
        torch.cuda.set_device(local_rank)
    store, number, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        backend, store=_fresh_store(store, number, count), rank=number, world_size=count, timeout=TIMEOUT
    )
    try:
        yield
    except SystemExit:  # all leave together
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after an error: it could wait for processes that know nothing of it


def _fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of the processes' common store to which no earlier start of the group has written.

    torchrun keeps the store when it starts the processes again, and they would find there the addresses of those that
    have died. So the main process draws a name for the part, and each other one knocks with a number of its own until
    it is told the name: an answer to a new number is of a main process that is alive now. One that then calls back by
    the name is alive, too.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"knock/{rank}", own)
        name = store.get(f"name/{own}").decode()  # waits for it
        store.set(f"{name}/{rank}", "here")
        return dist.PrefixStore(name, store)
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"knock/{other}"]):  # perhaps of one that has died; its successor will knock again
                store.set(f"name/{store.get(f'knock/{other}').decode()}", own)
            if store.check([f"{own}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {TIMEOUT} for the processes {sorted(missing)} of {world_size}")
        time.sleep(0.02)
    return dist.PrefixStore(own, store)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, which alone prints and writes files."""
    return rank() == 0


def max_restarts() -> int:
    """How often torchrun would start the group again after a failure (--max-restarts); 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def from_main(function: Callable[[], Result]) -> Result:
    """Calls `function` in the main process and gives its result to all.

    Raises:
        what `function` raises, in the main process. SystemExit: in the others, so that the error is told once.
    """
    if world_size() == 1:
        return function()
    outcome: list[Any] = [False, None]  # failed?, result
    error: Exception | None = None
    if is_main():
        try:
            outcome[1] = function()
        except Exception as caught:
            outcome[0], error = True, caught
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[0]:
        raise SystemExit(2)
    return outcome[1]


def all_gather(values: list[float]) -> list[list[float]]:
    """The equally long lists of all processes, by rank."""
    if world_size() == 1:
        return [values]
    own = torch.tensor(values, dtype=torch.float64)
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own)
    return [row.tolist() for row in rows]


def all_gather_objects(value: Result) -> list[Result]:
    """The values of all processes, by rank; they are pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values

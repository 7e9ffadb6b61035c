"""CUDA kernels executed on the CPU: see README.md. `emulated()` puts them in the place of the CPU kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cuda_emulator import build

VARIANT = os.environ.get("CUDA_EMULATOR_VARIANT", "plain")
SCHEDULES = ["in_order", "reversed", "1", "2"]
_loaded: dict[str, list[str]] = {}


def load(variant: str = VARIANT) -> list[str]:
    """Builds and loads a variant, once. Returns the names of the operators that have a CUDA kernel."""
    if variant not in _loaded:
        torch.ops.load_library(build.library(variant))
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        prefix = f"{build.namespace(variant)}::"
        _loaded[variant] = [
            name.removeprefix(prefix)
            for name in torch._C._dispatch_get_all_op_names()
            if name.startswith(prefix) and has_kernel(name, "CPU")
        ]
    return _loaded[variant]


@contextmanager
def emulated(variant: str = VARIANT, schedule: str = "in_order") -> Iterator[None]:
    """While it lasts, the operators of fastrcnn run their CUDA kernels, emulated, on CPU tensors.

    schedule: the order of blocks and threads: "in_order", "reversed", or the seed of a random one.
    """
    names = load(variant)
    operators = getattr(torch.ops, build.namespace(variant))
    before = os.environ.get("CUDA_EMULATOR_SCHEDULE")
    os.environ["CUDA_EMULATOR_SCHEDULE"] = schedule
    try:
        with torch.library._scoped_library("fastrcnn", "IMPL") as library:
            for name in names:
                library.impl(name, getattr(operators, name).default, "CPU")
            yield
    finally:
        os.environ.pop("CUDA_EMULATOR_SCHEDULE")
        if before is not None:
            os.environ["CUDA_EMULATOR_SCHEDULE"] = before

"""Checks of the types of arguments, which only Python can get wrong; the operators check shapes, dtypes and ranges.

Every message reads "<argument>: expected <what>, got <what came>". Nothing here looks at the numbers in a tensor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensors(**arguments: Any) -> None:
    """TypeError unless every argument is a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {_kind(value)}")


def check_levels(**arguments: Any) -> None:
    """TypeError unless every argument is a list (or tuple) of tensors."""
    for name, value in arguments.items():
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name}: expected a list of tensors, one per level, got {_kind(value)}")
        for level, tensor in enumerate(value):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}[{level}]: expected a tensor, got {_kind(tensor)}")


def check_number(**arguments: Any) -> None:
    """TypeError unless every argument is one number."""
    for name, value in arguments.items():
        if not _is_number(value):
            raise TypeError(f"{name}: expected a number, got {_kind(value)}")


def number_list(name: str, values: Any) -> list[float]:
    """The numbers of a sequence."""
    if isinstance(values, str) or not hasattr(values, "__iter__") or not all(_is_number(value) for value in values):
        raise TypeError(f"{name}: expected a list of numbers, got {_kind(values)}")
    return list(values)


def whole_numbers(name: str, values: Any, expected: str) -> tuple[Any, Any]:
    """The two whole numbers of a pair: int, or SymInt as it is."""
    if not isinstance(values, (tuple, list)) or len(values) != 2 or not all(map(_is_whole, values)):
        raise TypeError(f"{name}: expected {expected}, got {values!r}")
    first, second = (value if isinstance(value, (int, torch.SymInt)) else int(value) for value in values)
    return first, second


def pair_tensor(name: str, values: Tensor | Sequence[Any], like: Tensor) -> Tensor:
    """Pairs of numbers as a tensor float32 [N, 2] on the device of `like`, without their history."""
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values, dtype=torch.float32, device=like.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}: expected a tensor or a list of pairs of numbers, got {values!r}") from None
    return values.detach().to(like.device, torch.float32)


def _is_number(value: Any) -> bool:
    if isinstance(value, (float, int, torch.SymInt, torch.SymFloat)):
        return True
    return hasattr(value, "__float__") and not isinstance(value, Tensor)  # of NumPy


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) or (hasattr(value, "__index__") and not isinstance(value, Tensor))


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}" if isinstance(value, (bool, int, float, str)) else type(value).__name__

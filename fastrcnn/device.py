"""Which device to run on."""

import warnings

import torch

from fastrcnn.ops import BUILD_INFO

_BUILT_FOR_CUDA = BUILD_INFO["cuda"] is not None
_NO_CUDA = "fastrcnn was built without CUDA (`fastrcnn info`); rebuild it with FORCE_CUDA=1 where nvcc is installed"


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for; None: cuda if there is a GPU and fastrcnn was built for it, else the CPU.

    Raises:
        ValueError: no such device, or fastrcnn was not built for it.
    """
    if device is None:
        if torch.cuda.is_available() and not _BUILT_FOR_CUDA:
            warnings.warn(f"Using the CPU although there is a GPU: {_NO_CUDA}", stacklevel=3)
        return torch.device("cuda" if torch.cuda.is_available() and _BUILT_FOR_CUDA else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:<number>", got {device!r}') from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"fastrcnn runs on cpu and cuda, got device {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no device {str(chosen)!r}: torch sees {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "cuda" and not _BUILT_FOR_CUDA:
        raise ValueError(f"Cannot use device {str(chosen)!r}: {_NO_CUDA}")
    return chosen

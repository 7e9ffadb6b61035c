"""Loads the native libraries when `fastrcnn.ops` is imported; afterwards their operators are in torch.ops.fastrcnn.

There is no fallback: an operator that is not built is an error that says which command builds it.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastrcnn.ops._source import source_hash

PACKAGE = Path(__file__).parent.parent
CHECKOUT = (PACKAGE.parent / "setup.py").is_file()
REPAIR = "pip install --no-build-isolation --force-reinstall --no-deps ."
EDITABLE_REPAIR = "pip install -e . --no-build-isolation"


def _repair() -> str:
    if not CHECKOUT:
        return f"Rebuild it: in the folder of its source, run\n    {REPAIR}"
    return (
        f"Rebuild it: in {PACKAGE.parent}, run\n    {EDITABLE_REPAIR}\n"
        "(or start Python in another folder, if fastrcnn was installed with pip install .)"
    )


def load() -> dict:
    """Loads the libraries once. Returns build_info(). Raises ImportError with the command that repairs."""
    try:
        _C = importlib.import_module("fastrcnn._C")
    except ImportError as error:
        raise ImportError(f"The native extension of fastrcnn is not built ({error}).\n{_repair()}") from error
    info = dict(_C.build_info())
    try:
        installed = version("fastrcnn")
    except PackageNotFoundError:
        installed = info["version"]  # used from a checkout that was built in place and not installed
    if info["version"] != installed:
        raise ImportError(
            f"The native extension is of version {info['version']}, the package of version {installed}.\n{_repair()}"
        )
    if CHECKOUT and info["source"] != source_hash(PACKAGE.parent / "csrc"):
        raise ImportError(f"The native extension was built from other sources than those in csrc/.\n{_repair()}")
    _load_library("libfastrcnn.so", info)
    if info["cuda"] is not None and torch.version.cuda is not None:
        _check_cuda_versions(info["cuda"], torch.version.cuda)
        _load_library("libfastrcnn_cuda.so", info)
    return info


def _load_library(name: str, info: dict) -> None:
    try:
        torch.ops.load_library(PACKAGE / name)
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"{PACKAGE / name}, built with torch {info['built_with_torch']}, does not load under torch "
            f"{torch.__version__} ({error}).\n{_repair()}"
        ) from error


def _check_cuda_versions(built: str, running: str) -> None:
    if built.split(".")[0] != running.split(".")[0]:
        raise ImportError(
            f"The CUDA library was built for CUDA {built}, this torch ({torch.__version__}) uses CUDA {running}; "
            f"the major versions must agree.\n{_repair()}"
        )


def forbid_double_backward(name: str) -> None:
    """Differentiating the gradient that operator `name` computes is an error; without this it would silently be 0."""

    def fail(*_: object) -> None:
        raise NotImplementedError(f"{name.replace('::_', '.')} cannot be differentiated: no double backward pass")

    torch.library.register_autograd(name, fail)


BUILD_INFO = load()

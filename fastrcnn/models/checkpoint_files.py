"""Checkpoint files: where they are found, and what they hold. Reading one never runs code from it.

| suffix       | format                                                                                              |
|--------------|-----------------------------------------------------------------------------------------------------|
| .safetensors | tensors by name, and text (needs the package safetensors)                                           |
| any other    | torch.save's, the zip archive or the older pickle stream, read with weights_only=True               |
"""

import json
import threading
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from fastrcnn.config import Config, config_names, load_config
from fastrcnn.download import download

ZIP = b"PK\x03\x04"  # how a zip archive begins
# What a server, or a repository without its large files, gives instead of a checkpoint: first bytes -> what to call it.
TEXTS = {
    b"<": "a web page",
    b"{": "an answer of a server in JSON",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull` gets the file)",
}

# --- finding ----------------------------------------------------------------------------------------------------------


def find_checkpoint(source: str | Path) -> Path:
    """The file that a source names: a path, a URL (downloaded once), or a config's name (its published file).

    Raises:
        FileNotFoundError: neither a file nor a config. ConnectionError: the download failed; the message says where to
        put the file. ValueError: the file has another hash than its name or the config says.
    """
    if urlparse(str(source)).scheme in ("http", "https", "file"):
        return download(str(source))
    path = Path(source)
    if not path.is_file() and str(source) in config_names():
        return published_checkpoint(load_config(source))
    if path.exists():
        return path
    raise FileNotFoundError(f"No checkpoint file {source}, and no config of that name")


def published_checkpoint(config: Config) -> Path:
    """The file of a config's `published` block, downloaded once and checked against its hash.

    Raises:
        ValueError: there is none, or the file has another hash. ConnectionError: the download failed.
    """
    if not config.published.checkpoint:
        raise ValueError("This config has no published checkpoint: give the path of one as checkpoint (--checkpoint)")
    return download(config.published.checkpoint, config.published.sha256)


# --- reading ----------------------------------------------------------------------------------------------------------


class _StandIn:
    """Takes the place of another class or function while a file is read: accepts everything, does and keeps nothing."""

    def __new__(cls, *_: object) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What mmengine's training checkpoints hold besides tensors and plain values: the curves of the run, as buffers of numpy
# arrays. Nothing of it is needed. The names are those written in the files; numpy 2 moved its own.
STAND_INS = [
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # how a pickle refers to HistoryBuffer.mean and the like
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
]
_one_at_a_time = threading.Lock()  # torch's list of allowed names is global


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict that a checkpoint file holds, tensors on the CPU. Nothing in the file is executed.

    Of mmengine's training curves only placeholders remain. A .safetensors file gives {"model": tensors by name} and
    the "classes" and "meta" that convert wrote into it.

    Raises:
        FileNotFoundError: no such file. IsADirectoryError, PermissionError: it cannot be read. ImportError: safetensors
        is not installed. ValueError: it is truncated or no checkpoint, or holds other Python objects.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a checkpoint file")
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file {path}")
    with path.open("rb") as file:  # a file that may not be read is an OSError that says so
        head = file.read(512)
    for start, what in TEXTS.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise ValueError(f"{path} is not a checkpoint: it looks like {what}")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, head)
    except ImportError:
        raise
    except Exception as error:  # many unrelated types on broken bytes, OSError among them
        reason = str(error)
        if "Unsupported global" in reason or "Unsupported class" in reason or "is blocked" in reason:
            raise ValueError(
                f"{path} holds Python objects besides tensors, and loading them could run code. "
                f'Where you trust it, save its "state_dict" alone first. ({_unsupported(reason)})'
            ) from error
        first_line = reason.splitlines()[0] if reason else "no reason given"
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a readable checkpoint: truncated, or not written by "
            f"torch.save or safetensors ({type(error).__name__}: {first_line})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: expected a dict, got {type(content).__name__}")
    return content


def _read_torch(path: Path, head: bytes) -> Any:
    if head.startswith(ZIP):
        _refuse_compression(path)
    with _one_at_a_time, torch.serialization.safe_globals([(_StandIn, name) for name in STAND_INS]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _refuse_compression(path: Path) -> None:
    """torch.save stores tensors as they are. A compressed archive may be any number of times larger than its file."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or size > path.stat().st_size:
        raise ValueError(f"a compressed archive of {size} bytes")


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = import_safetensors()
    with safetensors.safe_open(path, framework="pt") as file:
        text = file.metadata() or {}
        names = json.loads(text["names"]) if "names" in text else list(file.keys())
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
    return content | {key: json.loads(text[key]) for key in ("classes", "meta") if key in text}


def import_safetensors() -> Any:
    """The package, which is optional. Raises ImportError with the command that installs it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(".safetensors files need the package safetensors: pip install safetensors") from error
    return safetensors


def _unsupported(reason: str) -> str:
    """The sentence of torch's long message that names the object."""
    return next(line.strip() for line in reason.splitlines() if "Unsupported" in line or "is blocked" in line)

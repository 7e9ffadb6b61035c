"""Images kept on disk as arrays, so that the next epoch and the next run need not decode (and resize) them again.

One file per image and scale, written atomically: several workers, several training processes and several runs may share
a folder. Nothing is ever evicted. The pixels are bit for bit those of read_image and resize.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.atomic import atomic_write
from fastrcnn.config import DataConfig
from fastrcnn.data.image import box_factors, read_image, resize


def read_resized(
    path: Path, scale: Sequence[int], data: DataConfig
) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    """read_image, then resize to scale, through data.cache.

    Returns:
        the resized image (uint8 BGR [h', w', 3]), its factors as resize returns them, and the (height, width) of the
        image before.
    Raises:
        what read_image raises. A cache that cannot be written is a warning.
    """
    if data.cache == "none":
        original = read_image(path)
        return *resize(original, scale), original.shape[:2]
    key = f"{min(scale)}x{max(scale)}" if data.cache == "resized" else "decoded"
    try:
        file = _cache_file(path, key, Path(data.cache_folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No image file {path}") from error
    pixels, size = _load(file)
    if pixels is None:
        original = read_image(path)
        pixels, size = resize(original, scale)[0] if data.cache == "resized" else original, original.shape[:2]
        _store(file, pixels, size)
    if data.cache == "decoded":
        return *resize(pixels, scale), size
    return pixels, box_factors(size, pixels.shape[:2]), size


def check_cache(data: DataConfig) -> None:
    """ValueError unless cache, cache_folder and data.train's scales belong together."""
    kinds = ("none", "decoded", "resized")
    if data.cache not in kinds:
        raise ValueError(f"data.cache must be one of {', '.join(kinds)}, got {data.cache!r}")
    if data.cache != "none" and not data.cache_folder:
        raise ValueError(f"data.cache={data.cache} needs data.cache_folder, the folder to keep the images in, got ''")
    if data.cache == "resized" and data.train.scale_mode == "range":
        raise ValueError(
            "data.cache=resized would keep every image at every scale of scale_mode range: use data.cache=decoded"
        )


def _cache_file(path: Path, key: str, folder: Path) -> Path:
    """Its name changes with everything that the pixels depend on: file, scale, decoder."""
    state = os.stat(path)
    identity = f"{os.path.abspath(path)}\0{state.st_mtime_ns}\0{state.st_size}\0{key}\0{cv2.__version__}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    return folder / digest[:2] / f"{digest[2:34]}.npy"


def _load(file: Path) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The pixels and the size of the original; None without a whole file."""
    try:
        with open(file, "rb") as stream:
            height, width = np.load(stream, allow_pickle=False).tolist()
            return np.load(stream, allow_pickle=False), (height, width)
    except FileNotFoundError:
        return None, (0, 0)
    except (OSError, ValueError, EOFError):  # after a power cut; it is written anew
        return None, (0, 0)


def _store(file: Path, pixels: np.ndarray, size: Sequence[int]) -> None:
    try:
        with atomic_write(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, np.array(size, np.int64))
            np.save(stream, pixels)
    except OSError as error:
        warnings.warn(f"The image cache cannot be written, images are decoded each time: {error}", stacklevel=2)

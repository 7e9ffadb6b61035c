"""What can be said of an image file by decoding it once."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fastrcnn.data.image import read_image


@dataclass(frozen=True)
class FileReport:
    """One image file. Of a file with an error, only that is known."""

    error: str | None  # what read_image raised
    size: tuple[int, int] = (0, 0)  # (height, width) as decoded
    digest: bytes = b""  # of the pixels: equal for copies, whatever their names
    turned: bool = False  # its EXIF orientation is not upright
    darkest: int = 0  # over all pixels and channels
    brightest: int = 255


def inspect_files(paths: Sequence[Path], threads: int) -> dict[Path, FileReport]:
    """A FileReport of each path, every path once. (Decoding and hashing release Python's lock, so threads do.)"""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        reports = tqdm(pool.map(inspect_file, distinct), total=len(distinct), unit="image", leave=False, disable=None)
        return dict(zip(distinct, reports, strict=True))


def inspect_file(path: Path) -> FileReport:
    try:
        pixels = read_image(path)
    except (OSError, ValueError) as error:
        return FileReport(str(error))
    digest = hashlib.blake2b(pixels.data, digest_size=16)
    digest.update(str(pixels.shape).encode())
    return FileReport(
        error=None,
        size=pixels.shape[:2],
        digest=digest.digest(),
        turned=_is_turned(path, pixels),
        darkest=int(pixels.min()),
        brightest=int(pixels.max()),
    )


def _is_turned(path: Path, pixels: np.ndarray) -> bool:
    """Whether the decoder applied an orientation: judged by its own result without."""
    content = path.read_bytes()
    if not any(mark in content for mark in (b"Exif", b"eXIf", b"EXIF", b"II*\0", b"MM\0*")):
        return False
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return stored is not None and not np.array_equal(stored, pixels)

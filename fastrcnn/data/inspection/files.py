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

FLAT = 1.0  # grey levels from pixel to pixel of the 9 x 8: below it, noise decides the difference hash


@dataclass(frozen=True)
class FileReport:
    """One image file. Of a file with an error, only that is known."""

    error: str | None  # what read_image raised
    size: tuple[int, int] = (0, 0)  # (height, width) as decoded
    digest: bytes = b""  # of the pixels: equal for copies, whatever their names
    likeness: bytes = b""  # 8 bytes that differ in few bits for copies at another size or compression; b"": all is flat
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
        likeness=_likeness(pixels),
        turned=_is_turned(path, pixels),
        darkest=int(pixels.min()),
        brightest=int(pixels.max()),
    )


def _likeness(pixels: np.ndarray) -> bytes:
    """The difference hash: of the image at 9 x 8 pixels, whether each is darker than its right neighbour (64 bits)."""
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    steps = np.diff(small, axis=1)
    return np.packbits(steps > 0).tobytes() if np.abs(steps).mean() >= FLAT else b""


def _is_turned(path: Path, pixels: np.ndarray) -> bool:
    """Whether the decoder applied an orientation: judged by its own result without."""
    content = path.read_bytes()
    if not any(mark in content for mark in (b"Exif", b"eXIf", b"EXIF", b"II*\0", b"MM\0*")):
        return False
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return stored is not None and not np.array_equal(stored, pixels)

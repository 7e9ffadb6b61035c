"""The size of an image from the first bytes of its file, without decoding it."""

from pathlib import Path
from typing import BinaryIO

from fastrcnn.data.image import read_image

TURNED = range(5, 9)  # the EXIF orientations that exchange width and height


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of what read_image returns, so after the EXIF orientation is applied.

    Only JPEG and PNG headers are read, other files are decoded. A file with a whole header and a broken rest passes.

    Raises:
        FileNotFoundError, ValueError: as read_image.
    """
    size = None
    if Path(path).is_file():
        with open(path, "rb") as file:
            start = file.read(8)
            if start == b"\x89PNG\r\n\x1a\n":
                size = _png_size(file)
            elif start.startswith(b"\xff\xd8\xff"):
                file.seek(2)
                size = _jpeg_size(file)
    if size is None:
        height, width = read_image(path).shape[:2]
        return width, height
    return size


def size_or_zero(path: str | Path) -> tuple[int, int]:
    """image_size, or (0, 0) for a file that is missing or broken."""
    try:
        return image_size(path)
    except (OSError, ValueError):
        return 0, 0


def _png_size(file: BinaryIO) -> tuple[int, int] | None:
    """From the first chunk; None if that is not where it should be, or if an orientation may follow."""
    size = None
    while len(chunk := file.read(8)) == 8:
        length, kind = int.from_bytes(chunk[:4], "big"), chunk[4:]
        if kind == b"IHDR":
            header = file.read(8)
            size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
            length -= 8
        if kind == b"IDAT":
            return size if size and min(size) > 0 else None
        if kind == b"eXIf":
            return None
        file.seek(length + 4, 1)
    return None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """From the frame header; the EXIF block, if any, comes before it. None if the frame header is not found."""
    orientation = 1
    while file.read(1) == b"\xff":
        while (marker := file.read(1)) == b"\xff":  # fill bytes
            pass
        length = int.from_bytes(file.read(2), "big") - 2
        if not marker or length < 0 or marker == b"\xda":  # the scan, before any frame
            return None
        content = file.read(length)
        if marker == b"\xe1" and content.startswith(b"Exif\0\0") and orientation == 1:
            orientation = _orientation(content[6:])
        elif 0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC) and length >= 5:  # a frame header
            height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            if min(height, width) == 0:
                return None
            return (height, width) if orientation in TURNED else (width, height)
    return None


def _orientation(tiff: bytes) -> int:
    """The tag 0x0112 of the first directory of an EXIF block; 1 (upright) where there is none."""
    if tiff[:2] not in (b"II", b"MM"):
        return 1
    order = "little" if tiff[:2] == b"II" else "big"

    def number(position: int, size: int) -> int:
        return int.from_bytes(tiff[position : position + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == 0x0112:
            return number(entry + 8, 2)
    return 1

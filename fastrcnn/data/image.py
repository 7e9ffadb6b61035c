"""The image pipeline, bit for bit that of mmdetection 2.28 (OpenCV): decode, resize, normalise, pad, batch.

The resize comes before the normalisation and works on bytes; the padding comes after it, so padding is 0.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fastrcnn.config import PAD_MULTIPLE, DataConfig, ImageConfig
from fastrcnn.data.bilinear import resize_bilinear

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}  # of image files in a folder, in any case


def read_image(image: str | Path | np.ndarray) -> np.ndarray:
    """Decodes an image file; an array is checked and passed through.

    Args:
        image: a path, or a uint8 array [h, w, 3] in BGR order.
    Returns:
        uint8 [h, w, 3], BGR, as OpenCV's IMREAD_COLOR decodes:
        grey: three equal channels; palette: its colours; CMYK JPEG: converted to RGB without a colour profile;
        transparency: ignored where the file has colours under it (PNG), on black where they are mixed with it (TIFF);
        16 bits: the full range becomes 0 .. 255 (12 bits in a file of 16 are dark: `fastrcnn data` tells);
        EXIF orientation: applied: upright, as a viewer shows it, so width and height may be exchanged;
        several pictures in one file (animations, pages): the first;
        the suffix does not matter. A JPEG that is damaged inside, not cut, may come out with a grey or coloured rest.
    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty, truncated or undecodable file (one of floating-point numbers, too); an image of more
            than 2^20 pixels a side or 2^30 in all (OpenCV's limits), or too large for the memory; an array of another
            shape or type, or empty.
        TypeError: neither a path nor an array.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"An image array must be uint8 [height, width, 3] (BGR), got {image.dtype} {list(image.shape)}"
            )
        if image.size == 0:
            raise ValueError(f"The image is empty: its shape is {list(image.shape)}")
        return image
    if not isinstance(image, (str, Path)):
        raise TypeError(
            f"An image must be a path or a uint8 array [height, width, 3] (BGR), got {type(image).__name__}"
        )
    try:
        content = Path(image).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(f"No image file {image}") from error
    if not content:
        raise ValueError(f"The image file {image} is empty (0 bytes)")
    if _is_truncated(content):
        raise ValueError(f"The image file {image} is truncated: its end is missing after {len(content)} bytes")
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ValueError(
                f"The image file {image} is too large: expected at most 2^20 pixels a side and 2^30 in all, OpenCV's "
                "limits (its environment variables OPENCV_IO_MAX_IMAGE_WIDTH, _HEIGHT and _PIXELS move them)"
            ) from error
        if error.code == cv2.Error.StsNoMem:  # 20,000 x 20,000 pixels are 1.2 GB
            raise ValueError(f"The image file {image} is too large for the memory that is free: {error}") from error
        raise ValueError(f"The image file {image} cannot be decoded: {error}") from error
    if pixels is None:
        raise ValueError(
            f"The image file {image} cannot be decoded: it is damaged, not an image, of floating-point numbers, or "
            f"larger than 10^6 pixels a side ({len(content)} bytes)"
        )
    return pixels


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end. Decoders may fill what is missing with grey and say nothing."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        position = 8
        while position + 12 <= len(content):  # a chunk: length, type, data, checksum
            if content[position + 4 : position + 8] == b"IEND":
                return False
            position += 12 + int.from_bytes(content[position : position + 4], "big")
        return True
    if content.startswith(b"\xff\xd8\xff"):
        # Segments have a length; only after the start of the scan is "end of image" not part of something else, such
        # as a thumbnail. It need not end the file: cameras append previews and videos.
        position = 2
        while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != b"\xda":
            if content[position + 1 : position + 2] == b"\xff":  # a fill byte
                position += 1
            else:
                position += 2 + max(2, int.from_bytes(content[position + 2 : position + 4], "big"))
        return content.find(b"\xff\xd9", position) < 0
    return False


def resized_size(height: int, width: int, scale: Sequence[int]) -> tuple[int, int]:
    """The (height, width) of the largest image of the same shape whose sides fit scale.

    Args:
        height, width: pixels.
        scale: the bounds of the long and of the short side, pixels, in either order.
    Returns:
        Rounded half up, at least one pixel each.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize(image: np.ndarray, scale: Sequence[int]) -> tuple[np.ndarray, tuple[float, float]]:
    """Resizes to resized_size, bilinear, without antialiasing.

    Args:
        image: uint8 [h, w, 3].
    Returns:
        uint8 [h', w', 3], and (w' / w, h' / h), which are float32 values: the factors of the boxes.
    """
    height, width = image.shape[:2]
    new_height, new_width = resized_size(height, width, scale)
    resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    return resized, box_factors(image.shape[:2], resized.shape[:2])


def box_factors(size: Sequence[int], new_size: Sequence[int]) -> tuple[float, float]:
    """(w' / w, h' / h), float32 values, of an image that was resized from size (h, w) to new_size (h', w')."""
    (height, width), (new_height, new_width) = size, new_size
    return float(np.float32(new_width / width)), float(np.float32(new_height / height))


def normalise(image: np.ndarray, config: ImageConfig) -> Tensor:
    """(pixel - mean) / std in the channel order of the config.

    Args:
        image: uint8 BGR [h, w, 3].
    Returns:
        float32 [3, h, w], contiguous. A pixel has 256 values, so this is a table look-up.
    """
    tables = _standardise(torch.arange(256, dtype=torch.uint8, device="cpu")[:, None].expand(256, 3), config)
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(planes):
        source = channel if config.channel_order == "bgr" else 2 - channel
        cv2.LUT(cv2.extractChannel(image, source), tables[:, channel].contiguous().numpy(), plane)
    return torch.from_numpy(planes)


def _standardise(pixels: Tensor, config: ImageConfig) -> Tensor:
    """uint8 [..., 3] in the channel order of the config -> float32 (pixel - mean) / std, the same bits on any device.

    As OpenCV computes it: the difference in float32, its product with 1 / std in float64.
    """
    if config.channel_order not in ("rgb", "bgr"):
        raise ValueError(f"data.image.channel_order must be rgb or bgr, got {config.channel_order!r}")
    mean = torch.tensor(config.mean, dtype=torch.float32, device="cpu")
    factor = torch.tensor([1 / std for std in config.std], dtype=torch.float64, device="cpu")
    mean, factor = (values.to(pixels.device, non_blocking=True) for values in (mean, factor))
    return ((pixels - mean) * factor).float()


def prepare_picture(
    image: np.ndarray, data: DataConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, tuple[int, int], tuple[float, float]]:
    """A decoded picture as the model takes it: resized to data.test.scale, normalised, padded, on the device.

    Args:
        image: uint8 BGR [h, w, 3].
    Returns:
        The batch, [1, 3, H, W] of `dtype` in channels-last memory; its (height, width) before padding; the factors of
        resize. Bit for bit the same, wherever data.test.resize says that the picture is resized.
    Raises:
        ValueError: data.test.resize is neither "cpu" nor "device".
    """
    if data.test.resize == "cpu":
        resized, factors = resize(image, data.test.scale)
        return prepare(resized, data.image, device, dtype), (resized.shape[0], resized.shape[1]), factors
    if data.test.resize == "device":
        size = resized_size(image.shape[0], image.shape[1], data.test.scale)
        batch = _prepare_there(resize_bilinear(_send(image, device), *size), data.image, dtype)
        return batch, size, box_factors(image.shape[:2], size)
    raise ValueError(f"data.test.resize must be cpu or device, got {data.test.resize!r}")


def prepare(image: np.ndarray, config: ImageConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A resized picture as the model takes it: normalised, padded, on the device.

    Args:
        image: uint8 BGR [h, w, 3].
    Returns:
        [1, 3, H, W] of `dtype` in channels-last memory: what pad_and_batch([normalise(image)]) gives, bit for bit.
    """
    if device.type != "cpu":
        return _prepare_there(_send(image, device), config, dtype)
    return pad_and_batch([normalise(image, config)]).to(dtype, memory_format=torch.channels_last)


def _send(image: np.ndarray, device: torch.device) -> Tensor:
    """The bytes, a quarter of float32, on the device; from pinned memory, so that nothing waits for the copy."""
    pixels = torch.from_numpy(np.ascontiguousarray(image))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    return pixels.to(device, non_blocking=True)


def _prepare_there(pixels: Tensor, config: ImageConfig, dtype: torch.dtype) -> Tensor:
    """As prepare, where the pixels are: little work for a GPU, and nothing waits for it."""
    if config.channel_order == "rgb":
        pixels = pixels.flip(2)
    height, width = pixels.shape[:2]
    batch = torch.zeros(1, _padded(height), _padded(width), 3, dtype=dtype, device=pixels.device)
    batch[0, :height, :width] = _standardise(pixels, config)
    return batch.permute(0, 3, 1, 2)


def pad_and_batch(images: Sequence[Tensor]) -> Tensor:
    """Pads with zeros on the right and bottom, to the largest height and width rounded up to a PAD_MULTIPLE.

    Args:
        images: N >= 1 float32 tensors [3, h, w].
    Returns:
        float32 [N, 3, H, W].
    """
    largest = (max(image.shape[side] for image in images) for side in (1, 2))
    height, width = map(_padded, largest)
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.float32, device="cpu")
    for image, padded in zip(images, batch, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch


def _padded(side: int) -> int:
    """Rounded up to a PAD_MULTIPLE."""
    return -(-side // PAD_MULTIPLE) * PAD_MULTIPLE

"""The image pipeline: decoding and its errors, and the numbers of mmdetection's resize and normalisation."""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fastrcnn.config import DataConfig, ImageConfig, TrainDataConfig
from fastrcnn.data.image import (
    _prepare_there,
    _send,
    normalise,
    pad_and_batch,
    prepare,
    prepare_picture,
    read_image,
    resize,
    resized_size,
)
from fastrcnn.data.image_size import image_size, size_or_zero
from fastrcnn.data.sample import make_sample
from fastrcnn.data.transforms import train_item


def noise(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def encoded(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with a further segment at its beginning."""
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def orientation(value: int) -> bytes:
    """An EXIF block that says only how the camera was held."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + value.to_bytes(2, "little") + b"\x00\x00"
    return b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + b"\x00\x00\x00\x00"


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_reads_bgr(tmp_path: Path) -> None:
    image = noise(5, 7)
    cv2.imwrite(str(tmp_path / "ünïcode.png"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "ünïcode.png"), image)
    np.testing.assert_array_equal(read_image(str(tmp_path / "ünïcode.png")), image)
    assert read_image(image) is image


def test_grey_and_transparent_files(tmp_path: Path) -> None:
    """Grey becomes three equal channels; transparency is ignored, whatever it hides."""
    grey, alpha = noise(5, 7, 1), noise(5, 7, 4)
    for name, image, expected in (("grey", grey, grey.repeat(3, axis=2)), ("alpha", alpha, alpha[..., :3])):
        for suffix in ("png", "bmp", "tiff") if name == "grey" else ("png", "bmp"):
            cv2.imwrite(str(tmp_path / f"{name}.{suffix}"), image)
            np.testing.assert_array_equal(read_image(tmp_path / f"{name}.{suffix}"), expected)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("png", 4), ("tiff", 1), ("tiff", 3)])
def test_16_bits_become_8(tmp_path: Path, suffix: str, channels: int) -> None:
    """The full range: 0 is 0, 65535 is 255; between them the upper byte, or rounded (OpenCV's TIFF in colour)."""
    deep = np.linspace(0, 65535, 900).astype(np.uint16)[:, None].repeat(channels, axis=1).reshape(30, 30, channels)
    cv2.imwrite(str(tmp_path / f"deep.{suffix}"), deep)
    found = read_image(tmp_path / f"deep.{suffix}")
    expected = np.round(deep / 257) if (suffix, channels) == ("tiff", 3) else deep // 256
    assert found.dtype == np.uint8 and found[0, 0, 0] == 0 and found[-1, -1, 0] == 255
    np.testing.assert_array_equal(found, np.broadcast_to(expected[..., :3], (30, 30, 3)))


def test_kinds_that_opencv_cannot_write(tmp_path: Path) -> None:
    """Palette, one bit, CMYK, grey or TIFF with transparency: Pillow writes them and says what they show."""
    Image = pytest.importorskip("PIL.Image")
    colour = Image.fromarray(cv2.resize(noise(6, 8), (40, 32)))
    palette, bit = colour.quantize(16), colour.convert("1")
    path = tmp_path / "image"
    for image, format, options in (
        (palette, "PNG", {}),
        (palette, "PNG", {"transparency": 0}),
        (palette, "GIF", {}),
        (bit, "PNG", {}),
        (bit, "TIFF", {"compression": "group4"}),
        (colour, "WEBP", {"lossless": True}),
    ):
        image.save(path, format, **options)
        np.testing.assert_array_equal(read_image(path), np.array(image.convert("RGB"))[..., ::-1], err_msg=format)
    Image.fromarray(noise(5, 7, 2), "LA").save(path, "PNG")
    np.testing.assert_array_equal(read_image(path), noise(5, 7, 2)[..., :1].repeat(3, axis=2))

    cmyk = Image.fromarray(cv2.resize(noise(4, 5, 4), (40, 32)), "CMYK")
    for format in ("JPEG", "TIFF"):
        cmyk.save(path, format, quality=95)
        shown = np.array(cmyk.convert("RGB"))[..., ::-1].astype(int)
        assert np.abs(read_image(path) - shown).mean() < 2, format  # inverted, as some decoders have it: above 100

    transparent = noise(5, 7, 4)
    Image.fromarray(transparent).save(path, "TIFF")
    on_black = transparent[..., 2::-1] * (transparent[..., 3:] / 255)
    np.testing.assert_allclose(read_image(path), on_black, atol=0.51)


def test_floating_point_files_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "depth.tiff"), np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    with pytest.raises(ValueError, match=r"depth.tiff cannot be decoded: .* floating-point numbers"):
        read_image(tmp_path / "depth.tiff")


def test_one_pixel(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tiff"):
        cv2.imwrite(str(tmp_path / f"one.{suffix}"), np.array([[[1, 2, 3]]], np.uint8))
        image = read_image(tmp_path / f"one.{suffix}")
        assert image.tolist() == [[[1, 2, 3]]] and image_size(tmp_path / f"one.{suffix}") == (1, 1)
        assert (resize(image, (40, 30))[0] == image).all()


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size, without pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """Beyond OpenCV's limits; 70 bytes must not ask for gigabytes."""
    (tmp_path / "pixels.png").write_bytes(png_header(40000, 40000))
    (tmp_path / "side.png").write_bytes(png_header(2**20 + 1, 1))
    cv2.imwrite(str(tmp_path / "side.bmp"), np.zeros((1, 2**20 + 1, 3), np.uint8))
    for name in ("pixels.png", "side.bmp"):
        with pytest.raises(ValueError, match=rf"{name} is too large: expected at most 2\^20 pixels a side and 2\^30"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"side.png cannot be decoded: .* larger than 10\^6 pixels a side"):
        read_image(tmp_path / "side.png")
    assert image_size(tmp_path / "pixels.png") == (40000, 40000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")
def test_images_that_do_not_fit_into_memory_are_errors(tmp_path: Path) -> None:
    """In a process of its own, which may take 500 MB more than it has: the picture says that it has 2.7 GB."""
    (tmp_path / "large.png").write_bytes(png_header(30000, 30000))
    program = """
import resource, sys
from fastrcnn.data.image import read_image
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20,) * 2)
try:
    read_image(sys.argv[1])
except ValueError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program, str(tmp_path / "large.png")], capture_output=True, text=True)
    assert f"The image file {tmp_path}/large.png is too large for the memory that is free" in found.stdout, found.stderr


def test_paths_of_any_letters_and_length(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["with space " + "ü" * 80] * 8, "照片 %s {x} [1]")
    folder.mkdir(parents=True)
    path = folder / "Foto é\u0301 'quoted'.PNG"
    path.write_bytes(encoded(noise(5, 7), ".png"))
    assert len(os.fsencode(path)) > 1400
    np.testing.assert_array_equal(read_image(path), noise(5, 7))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="照片"):
        read_image(path)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> what a viewer does with the pixels
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("value", UPRIGHT)
def test_exif_orientation_is_applied_and_boxes_are_of_the_upright_image(tmp_path: Path, value: int) -> None:
    """A bright rectangle near one corner: its box is where a viewer, and a labelling tool, shows it."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[8:16, 8:40] = 255
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_segment(encoded(image), 0xE1, orientation(value)))
    decoded = cv2.imdecode(np.frombuffer(encoded(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[value](decoded))

    rows, columns = np.nonzero(UPRIGHT[value](image)[..., 0])
    box = [float(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
    sample = make_sample(1, path, read_image(path).shape[1::-1], [box], [0], [256])
    data = DataConfig(train=TrainDataConfig(scales=[[128, 96]], flip=0.0))
    item = train_item(sample, data, np.random.default_rng(0))
    assert item.mismatch is None and item.boxes.tolist() == [[2 * side for side in box]]
    x1, y1, x2, y2 = (int(side) for side in item.boxes[0])
    bright = item.image[0] > 0
    assert bright[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].all() and bright.sum() < 1.2 * (y2 - y1) * (x2 - x1)


def big_endian(exif: bytes) -> bytes:
    """The block of orientation(), in the other byte order."""
    value = exif[24]
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, value, 0, 0])
    return b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"


def test_image_size_is_that_of_the_decoded_image(tmp_path: Path) -> None:
    image = cv2.resize(noise(3, 4), (64, 48))
    jpegs = {f"turned{k}": with_segment(encoded(image), 0xE1, orientation(k)) for k in range(10)}
    jpegs |= {f"big{k}": with_segment(encoded(image), 0xE1, big_endian(orientation(k))) for k in range(1, 9)}
    jpegs["thumbnail"] = with_segment(encoded(image), 0xE2, encoded(noise(8, 9)))
    jpegs["broken exif"] = with_segment(encoded(image), 0xE1, b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    jpegs["fill"] = encoded(image)[:2] + b"\xff\xff" + encoded(image)[2:]
    jpegs["progressive"] = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    jpegs |= {suffix: encoded(image, suffix) for suffix in (".png", ".bmp", ".webp", ".tiff")}
    png, exif = encoded(image, ".png"), orientation(6)[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    jpegs["png with exif"] = png[:33] + chunk + png[33:]
    sizes = set()
    for name, content in jpegs.items():
        (tmp_path / name).write_bytes(content)
        height, width = read_image(tmp_path / name).shape[:2]
        assert image_size(tmp_path / name) == (width, height), name
        sizes.add((width, height))
    assert sizes == {(64, 48), (48, 64)}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_image_size_of_cut_files_is_right_or_an_error(tmp_path: Path, suffix: str) -> None:
    whole = encoded(cv2.resize(noise(6, 8), (40, 30)), suffix)
    for length in (0, 1, 2, 3, 5, 9, 20, 23, 26, 30, 60, 150, 160, 165, 300, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert size_or_zero(tmp_path / "cut") in ((40, 30), (0, 0))
    assert size_or_zero(tmp_path / "none") == (0, 0)
    with pytest.raises(FileNotFoundError, match="No image file"):
        image_size(tmp_path / "none")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_truncation_is_an_error(tmp_path: Path, suffix: str) -> None:
    whole = encoded(cv2.resize(noise(6, 8), (40, 30)), suffix)
    path = tmp_path / f"cut{suffix}"
    for length in [4, 9, *range(20, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"cut\{suffix} (is truncated|cannot be decoded)"):
            read_image(path)


@pytest.mark.parametrize("format", ["BMP", "GIF", "WEBP", "TIFF", "JPEG2000", "PPM"])
def test_truncation_is_an_error_in_other_formats_too(tmp_path: Path, format: str) -> None:
    """There the decoder tells."""
    Image = pytest.importorskip("PIL.Image")
    path = tmp_path / "cut"
    Image.fromarray(cv2.resize(noise(6, 8), (80, 60))).save(path, format)
    whole = path.read_bytes()
    assert read_image(path).shape == (60, 80, 3)
    for share in (0.02, 0.3, 0.7, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=f"The image file {path} cannot be decoded"):
            read_image(path)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_of_several_pictures_in_a_file_the_first(tmp_path: Path, format: str) -> None:
    """Animations, pages, the second view of a stereo camera."""
    Image = pytest.importorskip("PIL.Image")
    first, second = (Image.fromarray(np.full((30, 40, 3), value, np.uint8)) for value in (10, 200))
    options = {"lossless": True} if format == "WEBP" else {}
    first.save(tmp_path / "several", format, save_all=True, append_images=[second], **options)
    assert (read_image(tmp_path / "several") == 10).all()


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    for suffix in (".png", ".bmp", ".webp", ".tiff"):
        path = tmp_path / f"photo{suffix}.jpg"
        path.write_bytes(encoded(noise(5, 7), suffix))
        assert read_image(path).shape == (5, 7, 3) and image_size(path) == (7, 5)


def test_a_thumbnail_does_not_hide_truncation(tmp_path: Path) -> None:
    """The thumbnail within a JPEG has an end marker of its own."""
    image = cv2.resize(noise(6, 8), (40, 30))
    jpeg = with_segment(encoded(image), 0xE1, encoded(noise(8, 8)))
    (tmp_path / "cut.jpg").write_bytes(jpeg[:-20])
    with pytest.raises(ValueError, match=r"cut.jpg is truncated"):
        read_image(tmp_path / "cut.jpg")


def test_jpeg_with_something_after_its_end(tmp_path: Path) -> None:
    """Phones append videos, which may hold any bytes; progressive files have several scans."""
    image = cv2.resize(noise(6, 8), (40, 30))
    for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]):
        jpeg = cv2.imencode(".jpg", image, flags)[1].tobytes()
        (tmp_path / "whole.jpg").write_bytes(jpeg + b"video \xff\xda and more")
        assert read_image(tmp_path / "whole.jpg").shape == (30, 40, 3)
        (tmp_path / "cut.jpg").write_bytes(jpeg[:-2])
        with pytest.raises(ValueError, match=r"cut.jpg is truncated: its end is missing after"):
            read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize(
    ("content", "message"), [(b"", r"photo.jpg is empty \(0 bytes\)"), (b"hello", "photo.jpg cannot be decoded")]
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "photo.jpg")


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"No image file {path}"):
            read_image(path)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 5), np.uint8), ValueError, r"must be uint8 \[height, width, 3\] \(BGR\), got uint8 \[4, 5\]"),
        (np.zeros((4, 5, 3), np.float32), ValueError, r"got float32 \[4, 5, 3\]"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"image is empty: its shape is \[0, 5, 3\]"),
        (torch.zeros(4, 5, 3), TypeError, "must be a path or a uint8 array .* got Tensor"),
    ],
)
def test_bad_arrays(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_image(image)


def test_real_photos_decode(shared: Path) -> None:
    files = sorted((shared / "data" / "bccd" / "JPEGImages").glob("*.jpg"))[:20]
    files += sorted((shared / "data" / "coco_photos" / "images").glob("*"))[:20]
    assert len(files) == 40
    for path in files:
        np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))
        assert image_size(path) == read_image(path).shape[1::-1]


# --- resizing ---------------------------------------------------------------------------------------------------------


def test_sizes_and_factors_of_the_reference(units: dict[str, Any]) -> None:
    for case in units["rescale_1333x800"]:
        (width, height), (new_width, new_height) = case["wh"], case["new"]
        assert resized_size(height, width, (1333, 800)) == (new_height, new_width), case
        assert resized_size(height, width, (800, 1333)) == (new_height, new_width), case
        image, factors = resize(np.zeros((height, width, 3), np.uint8), (1333, 800))
        assert image.shape == (new_height, new_width, 3)
        assert list(factors) == case["scale_factor"], case
        padded = pad_and_batch([torch.zeros(3, *image.shape[:2])])
        assert list(padded.shape[:1:-1]) == case["padded"], case


def test_extreme_shapes_keep_a_pixel() -> None:
    image, factors = resize(noise(1, 5000), (1000, 600))
    assert image.shape == (1, 1000, 3) and factors == (pytest.approx(0.2), 1.0)


def test_pixels_of_the_reference(units: dict[str, Any]) -> None:
    case = units["image"]
    image = np.random.RandomState(0).randint(0, 256, (6, 9, 3), np.uint8)
    resized, _ = resize(image, case["scale"])
    assert list(resized.shape[:2]) == case["new_hw"]
    assert resized[0].tolist() == case["resized_row0"] and resized[5].tolist() == case["resized_row5"]
    pixels = normalise(resized, ImageConfig())
    assert pixels[:, 0, 0].tolist() == case["norm_rgb_pixel_0_0"]
    assert pixels[:, 5, 7].tolist() == case["norm_rgb_pixel_5_7"]


# --- normalising ------------------------------------------------------------------------------------------------------

CAFFE = ImageConfig("bgr", [103.530, 116.280, 123.675], [1.0, 1.0, 1.0])
X101 = ImageConfig("bgr", [103.530, 116.280, 123.675], [57.375, 57.120, 58.395])


@pytest.mark.parametrize("config", [ImageConfig(), CAFFE, X101], ids=["pytorch", "caffe", "x101"])
@pytest.mark.parametrize("shape", [(37, 53), (1, 300), (300, 1), (1, 1)])
def test_normalise_is_opencvs_arithmetic(config: ImageConfig, shape: tuple[int, int]) -> None:
    """Bit for bit: mmcv's imnormalize is these OpenCV calls."""
    image = noise(*shape)
    expected = image.astype(np.float32)
    if config.channel_order == "rgb":
        expected = np.ascontiguousarray(expected[:, :, ::-1])
    cv2.subtract(expected, np.array([config.mean]), expected)
    cv2.multiply(expected, 1 / np.array([config.std]), expected)
    found = normalise(image, config)
    assert found.dtype == torch.float32 and found.is_contiguous() and found.shape == (3, *shape)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_views_of_arrays_are_accepted() -> None:
    """A caller may turn RGB into BGR, crop or mirror by slicing, which leaves strides that OpenCV does not have."""
    for view in (noise(20, 30)[:, :, ::-1], noise(20, 30)[2:17, 3:-1], noise(20, 30)[::-1, ::-1]):
        found, expected = (normalise(resize(image, (50, 40))[0], CAFFE) for image in (view, view.copy()))
        assert torch.equal(found, expected)
        assert torch.equal(normalise(view, CAFFE), normalise(view.copy(), CAFFE))


def test_unknown_channel_order() -> None:
    with pytest.raises(ValueError, match="channel_order must be rgb or bgr, got 'gbr'"):
        normalise(noise(4, 4), ImageConfig("gbr"))


# --- padding ----------------------------------------------------------------------------------------------------------


def test_pads_right_and_bottom_with_zeros() -> None:
    images = [torch.full((3, 33, 64), 1.0), torch.full((3, 20, 65), 2.0)]
    batch = pad_and_batch(images)
    assert batch.shape == (2, 3, 64, 96) and batch.dtype == torch.float32
    assert torch.equal(batch[0, :, :33, :64], images[0]) and torch.equal(batch[1, :, :20, :65], images[1])
    assert batch.sum() == images[0].sum() + images[1].sum()  # nothing but zeros elsewhere


# --- on the device ----------------------------------------------------------------------------------------------------

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", [torch.device(name) for name in DEVICES], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [ImageConfig(), CAFFE, X101], ids=["pytorch", "caffe", "x101"])
@pytest.mark.parametrize("shape", [(37, 64), (1, 300), (256, 3)])
def test_prepares_the_same_bits_there_as_here(
    config: ImageConfig, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """The way of the bytes (to a GPU; the CPU can go it, too) gives what the look-up tables give, padding included."""
    values = np.arange(np.prod(shape)).reshape(shape)
    image = np.stack([values, values + 85, values + 170], 2).astype(np.uint8)  # every value in every channel
    expected = pad_and_batch([normalise(image, config)]).to(dtype)
    for found in (_prepare_there(_send(image, device), config, dtype), prepare(image, config, device, dtype)):
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.device.type == device.type and found.dtype == dtype
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("device", [torch.device(name) for name in DEVICES], ids=str)
@pytest.mark.parametrize("config", [ImageConfig(), CAFFE], ids=["pytorch", "caffe"])
def test_resizes_to_the_same_bits_there_as_here(config: ImageConfig, device: torch.device) -> None:
    picture, data = noise(60, 80), DataConfig(image=config)
    data.test.scale = [90, 70]
    for image in (picture, picture[:, ::-1], picture[::2, :, ::-1], noise(400, 30), noise(1, 7)):
        data.test.resize = "cpu"
        here, *size_and_factors = prepare_picture(image, data, device, torch.float32)
        data.test.resize = "device"
        there, *same = prepare_picture(image, data, device, torch.float32)
        assert here.is_contiguous(memory_format=torch.channels_last) and here.shape[2] % 32 == 0
        assert there.is_contiguous(memory_format=torch.channels_last) and there.device.type == device.type
        assert torch.equal(there, here) and same == size_and_factors


def test_no_place_to_resize() -> None:
    data = DataConfig()
    data.test.resize = "gpu"
    with pytest.raises(ValueError, match=r"data.test.resize must be cpu or device, got 'gpu'"):
        prepare_picture(noise(4, 4), data, torch.device("cpu"), torch.float32)

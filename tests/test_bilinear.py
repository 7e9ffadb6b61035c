"""resize_bilinear against cv2.resize: every byte, for any sizes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden_recipe import GOLDEN
from torch import Tensor

from fastrcnn.data.bilinear import resize_bilinear
from fastrcnn.data.image import resized_size

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def assert_same(image: np.ndarray, height: int, width: int, device: str = "cpu") -> Tensor:
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    found = resize_bilinear(torch.from_numpy(image).to(device), height, width)
    assert found.dtype == torch.uint8 and found.shape == (height, width, image.shape[2])
    different = (found.cpu().numpy() != expected.reshape(found.shape)).sum()
    assert different == 0, f"{image.shape} -> {height} x {width}: {different} bytes of {expected.size}"
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("extent", [9, 70, 500])
def test_random_sizes(extent: int, device: str) -> None:
    """Up and down, each side by itself; sides of one pixel are common among the smallest."""
    random = np.random.default_rng(extent)
    for _ in range({9: 300, 70: 100, 500: 20}[extent]):
        old_height, old_width, height, width = map(int, random.integers(1, extent + 1, 4))
        assert_same(noise(old_height, old_width), height, width, device)


@pytest.mark.parametrize("factor", [1 / 3, 1 / 2, 1, 2, 3])
def test_whole_factors(factor: float) -> None:
    """OpenCV copies at 1, and takes its method for areas at 1 / 2 of both sides."""
    for height, width in ((12, 18), (60, 102), (6, 600)):
        image = noise(height, width)
        new_height, new_width = round(height * factor), round(width * factor)
        assert_same(image, new_height, new_width)
        assert_same(image, height, new_width)
        assert_same(image, new_height, width)
    assert_same(noise(25, 37), 12, 18)  # nearly half


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_one_pixel_sides(size: tuple[int, int]) -> None:
    for height, width in ((1, 1), (1, 30), (30, 1), (33, 44)):
        assert_same(noise(*size), height, width)
        assert_same(noise(height, width), *size)


def test_weights_that_do_not_sum_to_one() -> None:
    """Those of a place 0.0003 beyond a pixel can sum to 2047 of 2048: a column's at the edge do not, a row's do."""
    values = np.arange(256, dtype=np.uint8).reshape(256, 1, 1)
    assert_same(values, 301, 5463)
    assert_same(values.transpose(1, 0, 2).copy(), 5463, 301)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int) -> None:
    assert_same(noise(40, 30, channels), 17, 53)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_one_colour_as_opencv_keeps_it(value: int) -> None:
    """The cut products can lose a unit, which only some values show."""
    assert_same(np.full((37, 41, 3), value, np.uint8), 61, 97)


@pytest.mark.parametrize("size", [(480, 640), (400, 600), (1080, 1920), (801, 1334), (900, 700)])
def test_the_zoos_fit(size: tuple[int, int]) -> None:
    assert_same(noise(*size), *resized_size(*size, (1333, 800)))


def test_a_real_photo() -> None:
    photo = cv2.imread(str(GOLDEN / "coffee.png"))
    for scale in ((1333, 800), (640, 480), (320, 240)):
        found = assert_same(photo, *resized_size(*photo.shape[:2], scale))
        assert found.float().std() > 20


def test_more_real_photos(shared: Path) -> None:
    files = sorted((shared / "data" / "coco_photos" / "images").glob("*.jpg"))[::16]
    files += sorted((shared / "data" / "demo").glob("*.jpg"))
    assert len(files) > 8
    for path in files:
        photo = cv2.imread(str(path))
        assert_same(photo, *resized_size(*photo.shape[:2], (1333, 800)))

"""Nearly equal images: found whatever was done to the file, and no other images are named."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from inspected_split import Split, inspected, photo

from fastrcnn.config import Config, TrainDataConfig, ValDataConfig
from fastrcnn.data.inspection.copies import BITS, LIMIT, nearest_copies
from fastrcnn.data.inspection.files import inspect_file
from fastrcnn.data.inspection.report import report


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: cv2.imdecode(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
    )


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saved again": jpeg(90),
    "badly saved": jpeg(20),
    "half": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5),
    "double, of another shape": lambda image: cv2.resize(image, None, fx=2, fy=1.8),
    "grey": lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.05, beta=8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_named_with_its_original(train: Split, val: Split, tmp_path: Path, change: str) -> None:
    """Once within the training data, once between them and the validation data, and nothing else."""
    train.image("copy.png", CHANGES[change](photo(1)))
    val.image("leak.bmp", CHANGES[change](photo(2)))
    found = inspected(train, val, tmp_path / "out")
    within = found.pop("images that are nearly the same")
    between = found.pop("validation images that are nearly training images")
    assert found == {}
    assert [problem["data"] for problem in within + between] == ["training", "validation"]
    assert within[0]["text"].startswith(f"{train.folder}/copy.png and {train.folder}/train1.png (")
    assert between[0]["text"].startswith(f"{val.folder}/leak.bmp and {train.folder}/train2.png (")
    assert within[0]["text"].endswith(" of the 64 bits of their difference hashes differ)")
    assert within[0]["image"] == f"{train.folder}/copy.png"
    for name, seed in (("training_problems.jpg", 1), ("validation_problems.jpg", 2)):
        sheet = cv2.imread(str(tmp_path / "out" / name))  # one tile, which shows both
        original = cv2.resize(photo(seed), (180, 135))
        assert np.abs(sheet[10:125, 190:350].astype(int) - original[10:125, 10:170]).mean() < 10
        brightness = cv2.resize(CHANGES[change](photo(seed)), (180, 135))[10:125, 10:170].mean()
        assert abs(sheet[10:125, 10:170].mean() - brightness) < 5


def test_of_a_group_all_but_the_first_are_named_once(train: Split, val: Split, tmp_path: Path) -> None:
    for quality in (90, 80, 70, 60):
        train.image(f"q{quality}.png", jpeg(quality)(photo(1)))
    problems = inspected(train, val, tmp_path / "out")["images that are nearly the same"]
    assert [Path(problem["image"]).name for problem in problems] == ["q90.png", "q80.png", "q70.png", "q60.png"]


def test_equal_pixels_are_no_near_copies_and_broken_files_are_left_out(
    train: Split, val: Split, tmp_path: Path
) -> None:
    train.image("copy.bmp", photo(1))
    val.image("leak.bmp", photo(1))
    for split in (train, val):
        split.image("broken.png", b"nothing")
    assert set(inspected(train, val, tmp_path / "out")) == {
        "images with the same pixels",
        "validation images that are training images, too",
        "images that cannot be read",
    }


def test_flat_images_are_not_like_each_other(train: Split, val: Split, tmp_path: Path) -> None:
    """White pages, skies, nights: what noise leaves in them is no likeness."""
    random = np.random.default_rng(0)
    for i in range(4):
        image = np.full((96, 128, 3), 250, np.uint8) - random.integers(0, 3, (96, 128, 1), np.uint8)
        cv2.putText(image, f"page {i}", (5 + 9 * i, 40 + 9 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (200, 200, 200))
        (train if i % 2 else val).image(f"page{i}.png", image)
    assert inspected(train, val, tmp_path / "out") == {}
    assert (
        inspect_file(train.folder / "page1.png").likeness == b"" != inspect_file(train.folder / "train1.png").likeness
    )


def flipped(item: bytes, bits: int, random: np.random.Generator) -> bytes:
    """The hash with so many of its bits changed."""
    changed = np.unpackbits(np.frombuffer(item, np.uint8))
    changed[random.permutation(64)[:bits]] ^= 1
    return np.packbits(changed).tobytes()


def test_nearest_copies_are_those_of_comparing_all() -> None:
    """Random hashes, and of each of 60 a copy with 0 .. 9 bits changed; some images have none."""
    random = np.random.default_rng(0)
    hashes = [random.integers(0, 256, 8, np.uint8).tobytes() for _ in range(300)]
    hashes += [flipped(hashes[i], i % 10, random) for i in range(60)]
    hashes += [flipped(hashes[i], 3, random) for i in range(20)]
    hashes[30:40] = [b""] * 10
    table = [np.frombuffer(item or bytes(8), np.uint8) for item in hashes]

    def expected(index: int, others: range) -> tuple[int, int, int] | None:
        pairs = [(int(BITS[table[index] ^ table[other]].sum()), other) for other in others if hashes[other]]
        bits, other = min(pairs, default=(64, 0))
        return (index, other, bits) if bits <= LIMIT and hashes[index] else None

    before = [expected(index, range(index)) for index in range(len(hashes))]
    assert nearest_copies(hashes) == [found for found in before if found]
    assert {bits for _, _, bits in nearest_copies(hashes)} == set(range(LIMIT + 1))
    both = [expected(index, range(300)) for index in range(300, 380)]
    assert nearest_copies(hashes[300:], hashes[:300]) == [
        (index - 300, *rest) for index, *rest in (found for found in both if found)
    ]
    assert nearest_copies([]) == nearest_copies([b""], [b"", b""]) == nearest_copies(hashes[:1], []) == []


def test_bccd_has_one_slide_in_both_of_its_parts(shared: Path, tmp_path: Path) -> None:
    """BloodImage_00037 and 38 are two photos of the same cells, one trained on and one validated with."""
    folder = shared / "data" / "bccd"
    config = Config()
    config.data.train = TrainDataConfig("coco", str(folder / "train.json"), str(folder / "JPEGImages"))
    config.data.val = ValDataConfig("coco", str(folder / "val.json"), str(folder / "JPEGImages"))
    report(config, tmp_path)
    problems = json.loads((tmp_path / "problems.json").read_text())
    (problem,) = [entry for entry in problems if "nearly" in entry["kind"] and "images" in entry["kind"]]
    assert problem["kind"] == "validation images that are nearly training images"
    assert "BloodImage_00037.jpg" in problem["text"] and "BloodImage_00038.jpg" in problem["text"]

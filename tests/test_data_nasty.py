"""One nasty dataset in three formats: the readers agree, and each planted error is an error by name or is counted."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nasty_dataset import (
    CLASSES,
    FORMATS,
    Picture,
    Thing,
    nasty_pictures,
    write_annotations,
    write_images,
)

from fastrcnn.config import Config, TrainDataConfig
from fastrcnn.data import loader
from fastrcnn.data.inspection.problems import object_problems
from fastrcnn.data.inspection.report import report
from fastrcnn.data.loader import train_loader, training_dataset
from fastrcnn.data.read import read_annotations, read_dataset
from fastrcnn.data.sample import Dataset


def read(section: TrainDataConfig) -> Dataset:
    return read_dataset(section, CLASSES)


def assert_agree(datasets: list[Dataset], pictures: list[Picture], root: Path) -> None:
    """Every reader found what was written, exactly; YOLO's has no flags."""
    for dataset, format in zip(datasets, FORMATS, strict=True):
        assert dataset.classes == CLASSES and dataset.dropped == {}
        of_path = {sample.path: sample for sample in dataset.samples}
        assert list(of_path) == [root / "images" / picture.name for picture in pictures]
        for picture in pictures:
            sample = of_path[root / "images" / picture.name]
            assert (sample.width, sample.height) == picture.size
            np.testing.assert_array_equal(sample.boxes, np.reshape([t.box for t in picture.things], (-1, 4)))
            assert sample.labels.tolist() == [thing.label for thing in picture.things]
            sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
            np.testing.assert_array_equal(sample.areas, sides.prod(1))
            assert sample.difficult.tolist() == [t.difficult and format != "yolo" for t in picture.things]
            assert not sample.crowd.any()


@pytest.mark.parametrize("seed", range(3))
def test_the_three_readers_agree(tmp_path: Path, seed: int) -> None:
    pictures = nasty_pictures(seed)
    write_images(tmp_path, pictures)
    datasets = [read(write_annotations(tmp_path, pictures, format)) for format in FORMATS]
    assert_agree(datasets, pictures, tmp_path)
    trained = [training_dataset(dataset).dropped for dataset in datasets]
    assert trained[0] == trained[1] and trained[0].pop("objects that are marked difficult") == 1
    assert trained[0] == trained[2]
    found = [[(p.kind, p.path, p.box) for p in object_problems(dataset, [128, 128])] for dataset in datasets]
    assert found[0] == found[1] == found[2]
    assert len({kind for kind, _, _ in found[0]}) == 7  # every kind that all formats can hold


@pytest.mark.parametrize("format", FORMATS)
def test_what_editors_do_to_text_files_changes_nothing(tmp_path: Path, format: str) -> None:
    """Windows line ends, a byte order mark, empty lines at the end, suffixes in capitals."""
    pictures = nasty_pictures()
    write_images(tmp_path, pictures)
    section = write_annotations(tmp_path, pictures, format)
    expected = read(section)
    for path in [path for path in (tmp_path / format).rglob("*") if path.is_file()]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").rstrip() + b"\r\n\r\n")
        if path.suffix in (".xml", ".txt"):
            path.rename(path.with_suffix(path.suffix.upper()))
    for sample, other in zip(read(section).samples, expected.samples, strict=True):
        assert sample.path == other.path
        np.testing.assert_array_equal(sample.boxes, other.boxes)
        assert sample.labels.tolist() == other.labels.tolist()


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A few bytes lost or put in between, or a value of another kind."""
    changed = bytearray(content)
    inserted = [b"<", b">", b"-", b"\0", b"\n", b"{", b'"', b"\xff", b"nan", b"1e400", b"9" * 400, b"[]", b"&x;"]
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(changed) + 1))
        if random.random() < 0.5:
            del changed[place : place + int(random.integers(1, 8))]
        else:
            changed[place:place] = inserted[random.integers(len(inserted))]
    return bytes(changed)


@pytest.mark.parametrize("format", FORMATS)
def test_any_damage_is_an_error_that_names_a_place_or_still_a_dataset(tmp_path: Path, format: str) -> None:
    """Never another exception, nor numbers that are not finite."""
    pictures, random = nasty_pictures(), np.random.default_rng(0)
    write_images(tmp_path, pictures)
    section = write_annotations(tmp_path, pictures, format)
    files = sorted(path for path in (tmp_path / format).rglob("*") if path.is_file())
    read_well = 0
    for round in range(150):
        path = files[round % len(files)]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, random))
        try:
            dataset = read_dataset(section)
            read_well += 1
            for sample in dataset.samples:
                assert np.isfinite(sample.boxes).all() and np.isfinite(sample.areas).all()
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error)
        path.write_bytes(whole)
    assert 0 < read_well < 100  # some damage is none, most is


# --- planted errors ---------------------------------------------------------------------------------------------------

PLAIN = [Picture(f"{name}.png", [Thing(1, (8, 8, 40, 24)), Thing(0, (20, 4, 60, 30))]) for name in "abc"]
PLAIN[2].things.append(Thing(2, (2, 2, 18, 30)))


def change_text(root: Path, format: str, old: str, new: str) -> None:
    """In the annotations of picture b; of COCO's one file, from its entry on."""
    path = root / format / {"coco": "boxes.json", "voc": "xml/b.xml", "yolo": "labels/b.txt"}[format]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def change_box(box: tuple[float, float, float, float]) -> Callable[[Path, str], None]:
    def plant(root: Path, format: str) -> None:
        changed = [replace(PLAIN[1], things=[Thing(1, box), PLAIN[1].things[1]])]
        write_annotations(root, [PLAIN[0], *changed, PLAIN[2]], format)

    return plant


def with_text(**changes: tuple[str, str]) -> Callable[[Path, str], None]:
    return lambda root, format: change_text(root, format, *changes[format])


def with_file(name: str, content: bytes | None) -> Callable[[Path, str], None]:
    def plant(root: Path, format: str) -> None:
        place = {"coco": "boxes.json", "voc": "xml/b.xml", "yolo": "labels/b.txt"}[format]
        path = root / format / place if name == "annotations" else root / "images" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return plant


def cut(root: Path, format: str) -> None:
    path = root / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:-30])


def smaller(root: Path, format: str) -> None:
    write_images(root, [PLAIN[0], replace(PLAIN[1], size=(128, 64))])


NAN = {"coco": ("[8, 8, 32, 16]", "[8, NaN, 32, 16]"), "voc": ("<ymin>8<", "<ymin>nan<"), "yolo": ("0.375", "nan")}
FEW = {"coco": ("[8, 8, 32, 16]", "[8, 8, 32]"), "voc": ("<ymax>24</ymax>", ""), "yolo": (" 0.5\n", "\n")}
WORDS = {"coco": ("[8, 8, 32, 16]", '["8", 8, 32, 16]'), "voc": (">24<", ">24 px<"), "yolo": ("0.375", "0,375")}
UNKNOWN = {"coco": ('"category_id": 4', '"category_id": 99'), "voc": ("cat", "zebra"), "yolo": ("\n0 ", "\n99 ")}

ERRORS = [  # what is planted, and for each format the error of reading or loading; None: no error
    ("not finite", with_text(**NAN), "bbox must be .* four finite", "<ymin> must be a finite number", "got nan"),
    ("too few numbers", with_text(**FEW), "four finite numbers", "no <bndbox> with <ymax>", "expected 4 values"),
    ("no numbers", with_text(**WORDS), "four finite numbers", "finite number, got '24 px'", "got '1 0,375 0.5"),
    ("a class without a name", with_text(**UNKNOWN), "category 99, which is not", None, "class number 99, but"),
    ("far outside", change_box((200, 8, 240, 24)), None, None, "shares of the image's sides"),
    ("negative width", change_box((40, 8, 8, 24)), None, None, "shares of the image's sides"),
    ("an empty file", with_file("annotations", b""), "is not a JSON file", "cannot be read as XML", None),
    ("half a file", with_file("annotations", b'{"im'), "is not a JSON", "cannot be read as XML", "class number below"),
    ("zeros", with_file("annotations", bytes(99)), "is not a JSON file", "cannot be read as XML", "class number below"),
    ("no annotations", with_file("annotations", None), "No annotation file", None, None),
    ("no image", with_file("b.png", None), "1 of the 3 images .* missing", "1 of the 3 images .* missing", None),
    ("an empty image", with_file("b.png", b""), *["b.png is empty"] * 3),
    ("a text as image", with_file("b.png", b"<html>404</html>"), *["b.png cannot be decoded"] * 3),
    ("half an image", cut, *["b.png is truncated"] * 3),
    ("another size", smaller, None, None, None),
]


def planted(root: Path, format: str, plant: Callable[[Path, str], None]) -> TrainDataConfig:
    write_images(root, PLAIN)
    section = write_annotations(root, PLAIN, format)
    plant(root, format)
    return section


def settings(section: TrainDataConfig) -> Config:
    config = Config()
    config.data.train, config.data.classes, config.train.workers = section, CLASSES, 0
    config.data.test.scale, section.scales = [64, 32], [[64, 32]]
    return config


def load_all(section: TrainDataConfig) -> Dataset:
    """Reads, and loads an epoch of training and of validation."""
    dataset = training_dataset(read(section))
    config = settings(section)
    list(train_loader(dataset, config, epoch=0))
    list(loader.test_loader(dataset, config))
    return dataset


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("plant", "messages"), [pytest.param(e[1], e[2:], id=e[0]) for e in ERRORS])
def test_planted_errors_are_named(tmp_path: Path, format: str, plant: Callable, messages: tuple) -> None:
    section = planted(tmp_path, format, plant)
    message = messages[FORMATS.index(format)]
    if message is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_all(section)
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_all(section)
        named = "boxes.json" if format == "coco" and "b.png" not in message else "b."
        assert named in str(error.value)


OUTSIDE, INVERTED = "objects outside the image", "objects whose box has a negative width or height"
COUNTED = [  # what is planted in which format, what it is counted as, and the objects that are left
    ("far outside", "coco voc", OUTSIDE, 6),
    ("negative width", "coco voc", INVERTED, 6),
    ("a class without a name", "voc", "objects of class 'zebra', which is not in data.classes", 6),
    ("no annotations", "voc", "images without an XML file", 5),
    ("no annotations", "yolo", "images without objects to train on", 5),
    ("an empty file", "yolo", "images without objects to train on", 5),
    ("no image", "yolo", "label files without an image", 5),
]


@pytest.mark.parametrize(("name", "formats", "rule", "left"), COUNTED)
def test_what_is_no_error_is_counted(tmp_path: Path, name: str, formats: str, rule: str, left: int) -> None:
    plant = next(entry[1] for entry in ERRORS if entry[0] == name)
    for format in formats.split():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of VOC's classes, one may be absent
            dataset = load_all(planted(tmp_path / format, format, plant))
        assert dataset.dropped == {rule: 1}
        assert sum(len(sample.labels) for sample in dataset.samples) == left


ENTRIES = "entries that cannot be read (training refuses them)"
PROBLEMS = {
    "far outside": "boxes outside the image (left out of training)",
    "negative width": "boxes with a negative width or height (left out)",
    "no image": "images that are missing",
    "an empty image": "images that cannot be read",
    "a text as image": "images that cannot be read",
    "half an image": "images that cannot be read",
    "another size": "images of another size than annotated",
    "not finite": ENTRIES,
    "too few numbers": ENTRIES,
    "no numbers": ENTRIES,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_fastrcnn_data_reports_them(tmp_path: Path, format: str, name: str) -> None:
    """YOLO's files cannot say a size, and say nothing of an image that is not there."""
    plant = next(entry[1] for entry in ERRORS if entry[0] == name)
    config = settings(planted(tmp_path, format, plant))
    write_images(tmp_path / "other", [replace(picture, name=f"other {picture.name}") for picture in PLAIN])
    other = [replace(picture, name=f"other {picture.name}") for picture in PLAIN]
    val = write_annotations(tmp_path / "other", other, "coco")
    config.data.val.annotations, config.data.val.images = val.annotations, val.images
    report(config, tmp_path / "out")
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())
    found = [problem for problem in problems if problem["data"] == "training"]
    kind = PROBLEMS[name]
    if format == "yolo" and name in ("far outside", "negative width"):
        kind = ENTRIES
    if format == "yolo" and name in ("no image", "another size"):
        assert found == []
    else:
        assert [problem["kind"] for problem in found] == [kind]
        assert "b." in found[0]["text"] or "boxes.json" in found[0]["text"]


SEVERAL = {  # (file, what stands in it, what is put there, what the report says), and the objects that are left
    "coco": (
        [
            ("boxes.json", '"bbox": [8, 8, 32, 16]', '"bbox": [8, NaN, 32, 16]', "number 0 (id 5): bbox must be"),
            ("boxes.json", '"bbox": [20, 4, 40, 26]', '"bbox": [20, 4]', "number 1 (id 5): bbox must be"),
            ("boxes.json", '"bbox": [8, 8, 32, 16]', '"bbox": null', "number 2 (id 5): bbox must be"),
            ("boxes.json", '{"id": 114', '{"id": 107', "image 107 (c.png): the id 107 stands twice"),
        ],
        1,
    ),
    "voc": (
        [
            ("xml/a.xml", ">8<", ">nan<", "a.xml: object 1 (big dog): <xmin> must be"),
            ("xml/a.xml", "<xmin>20</xmin>", "", "a.xml: object 2 (cat) has no <bndbox> with <xmin>"),
            ("xml/b.xml", "<annotation>", "<annotation", "b.xml cannot be read as XML"),
            ("xml/c.xml", " cat", "", "c.xml: object 2 has no <name>"),
        ],
        2,
    ),
    "yolo": (
        [
            ("labels/a.txt", "1 0.375", "1 nan", "a.txt, line 1: coordinates are"),
            ("labels/a.txt", " 0.8125\n", "\n", "a.txt, line 2: expected 4 values"),
            ("labels/b.txt", "1 ", "99 ", "b.txt, line 1: class number 99, but"),
            ("labels/c.txt", "2 ", "two ", "c.txt, line 3: expected a class number"),
        ],
        3,
    ),
}


@pytest.mark.filterwarnings("ignore:data.classes")  # of VOC's classes, one is absent
@pytest.mark.parametrize("format", FORMATS)
def test_all_broken_entries_are_reported_at_once(tmp_path: Path, format: str) -> None:
    """What reading for training refuses one by one; what is left is looked at all the same."""
    changes, left = SEVERAL[format]
    write_images(tmp_path, PLAIN)
    section = write_annotations(tmp_path, PLAIN, format)
    for name, old, new, _ in changes:
        path = tmp_path / format / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    config = settings(section)
    config.data.val.annotations = "nowhere"
    report(config, tmp_path / "out")
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())
    texts = [problem["text"] for problem in problems if problem["kind"] == ENTRIES]
    assert len(texts) >= len(changes)
    for *_, message in changes:
        assert any(message in text for text in texts), (message, texts)
    dataset = read_annotations(section, CLASSES, errors=[])
    assert sum(len(sample.labels) for sample in dataset.samples) == left
    with pytest.raises(ValueError) as error:
        read(section)
    assert str(error.value) in texts

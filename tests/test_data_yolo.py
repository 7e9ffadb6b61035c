"""YOLO labels: what is read, where names are looked for, and what every broken file says."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastrcnn.config import TrainDataConfig
from fastrcnn.data.coco import read_coco
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.data.yolo import read_yolo

CAT, DOG = "0 0.5 0.25 0.5 0.5", "1 0.1 0.2 0.5 0.2 0.5 0.6 0.3 0.9"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """images/train and labels/train: a has a cat and a dog (a polygon), b an empty label file, c none at all."""
    for folder in ("images/train/deep", "labels/train/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for name, (width, height) in {"a.png": (80, 40), "b.JPG": (64, 48), "deep/c.png": (50, 60)}.items():
        cv2.imwrite(str(tmp_path / "images/train" / name), np.zeros((height, width, 3), np.uint8))
    write(tmp_path, "a", f"{CAT}\n\n{DOG}\n")
    write(tmp_path, "b", "")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> Path:
    path = root / "labels" / "train" / f"{name}.txt"
    path.write_text(text)
    return path


def read(root: Path, *classes: str, **rename: str):
    return read_yolo(root / "labels" / "train", root / "images" / "train", classes, rename)


def test_reads_boxes_polygons_and_images_without_objects(root: Path) -> None:
    dataset = read(root)
    assert dataset.classes == ["cat", "dog"] and dataset.category_ids == [0, 1] and dataset.dropped == {}
    a, b, c = dataset.samples
    assert [sample.path.name for sample in dataset.samples] == ["a.png", "b.JPG", "c.png"]
    assert (a.image_id, a.width, a.height, c.image_id, c.width, c.height) == (1, 80, 40, 3, 50, 60)
    np.testing.assert_allclose(a.boxes, [[20, 0, 60, 20], [8, 8, 40, 36]], atol=1e-12)
    np.testing.assert_allclose(a.areas, [800, 896])
    assert a.labels.tolist() == [0, 1] and not a.crowd.any() and not a.difficult.any()
    assert b.boxes.shape == c.boxes.shape == (0, 4)
    assert read_dataset(TrainDataConfig("yolo", str(root / "labels/train"), str(root / "images/train"))).classes == [
        "cat",
        "dog",
    ]


def test_data_yaml_as_the_annotations(root: Path) -> None:
    """The labels are then where the images' path has "labels" for "images"."""
    (root / "data.yaml").rename(root / "pets.yml")
    dataset = read_yolo(root / "pets.yml", root / "images" / "train")
    assert dataset.classes == ["cat", "dog"] and dataset.samples[0].labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="has no part 'images': give their folder as annotations"):
        (root / "images").rename(root / "pictures")
        read_yolo(root / "pets.yml", root / "pictures" / "train")


def test_where_names_come_from(root: Path) -> None:
    assert read(root, "dog", "cat").samples[0].labels.tolist() == [1, 0]  # they are known: chosen by name
    (root / "data.yaml").write_bytes(b"\xef\xbb\xbfnames: [Katze, 'Hund ']\n")
    assert read(root).classes == ["Katze", "Hund "]
    (root / "data.yaml").write_text("nc: 2\nnames: {'1': 7, '0': katt}\n")
    assert read(root).classes == ["katt", "7"]
    (root / "data.yaml").unlink()
    (root / "labels" / "train" / "classes.txt").write_text("chat\n\nchien\n")
    with pytest.raises(ValueError, match=r"classes.txt, line 2: expected the name of a class, got an empty line"):
        read(root)
    (root / "labels" / "train" / "classes.txt").write_bytes("\ufeffchat\r\nchien\r\n".encode())
    assert read(root).classes == ["chat", "chien"] and read(root).dropped == {}
    (root / "labels" / "train" / "classes.txt").unlink()
    assert read(root, "dog", "cat").samples[0].labels.tolist() == [0, 1]  # they are not: data.classes names numbers
    assert read(root).classes == ["class_0", "class_1"]


def test_classes_select_and_rename(root: Path) -> None:
    dogs = read(root, "dog")
    assert dogs.samples[0].labels.tolist() == [0] and len(dogs.samples) == 3 and dogs.category_ids == [1]
    assert dogs.dropped == {"objects of class 'cat', which is not in data.classes": 1}
    assert read(root, cat="animal", dog="animal").samples[0].labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"data.classes: .*labels/train has no class 'dgo'. Did you mean 'dog'\?"):
        read(root, "dgo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1", r"line 2: expected 4 values after the class number \(a box\) or 6, 8, .*, got 3"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"got 5 \(a prediction with its score\?\)"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.2 0.3", "got 7"),
        ("0", "got 0"),
        (
            "cat 0.5 0.5 0.1 0.1",
            "line 2: expected a class number below 10000 and coordinates, got 'cat 0.5 0.5 0.1 0.1'",
        ),
        ("0,0.5,0.5,0.1,0.1", "line 2: expected a class number below 10000 and"),
        ("-1 0.5 0.5 0.1 0.1", "line 2: expected a class number"),
        ("0.5 0.5 0.5 0.1 0.1", "line 2: expected a class number"),
        ("1e9 0.5 0.5 0.1 0.1", "line 2: expected a class number below 10000"),
        ("inf 0.5 0.5 0.1 0.1", "line 2: expected a class number"),
        ("0 320 240 100 80", "line 2: coordinates are shares of the image's sides, from 0 to 1, got 320"),
        ("0 0.5 0.5 -0.1 0.1", "got -0.1"),
        ("0 0.5 0.5 nan 0.1", "got nan"),
        ("0 0.1 0.1 0.5 0.1 0.5 1.2", "got 1.2"),
        ("2 0.5 0.5 0.1 0.1", r"class number 2, but .*data.yaml has 2 names: cat, dog"),
    ],
)
def test_broken_lines_are_named(root: Path, text: str, message: str) -> None:
    path = write(root, "a", f"\ufeff{CAT}\n{text}\n")  # a byte order mark is no error
    with pytest.raises(ValueError, match=message) as error:
        read(root)
    assert str(path) in str(error.value)


def test_rounding_beyond_the_image_is_kept(root: Path) -> None:
    write(root, "a", "0.0 1.0000004 0.5 0.5 1\n")
    assert read(root).samples[0].boxes[0, 2] > 80
    write(root, "a", "0 0.5 0.5 -0.0005 0.2\n")
    x1, _, x2, _ = read(root).samples[0].boxes[0]
    assert x1 == x2 == 40


def test_the_last_images_of_a_path_becomes_labels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    deep = tmp_path_factory.mktemp("deep") / "images" / "set"
    shutil.copytree(root, deep)
    assert len(read_yolo(deep / "data.yaml", deep / "images" / "train").samples[0].labels) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat, dog", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("train: x", "expected 'names', a list of the classes .* got None"),
        ("- cat", "expected 'names'"),
        ("names: []", r"expected 'names'.* got \[\]"),
        ("names: [yes, no]", "the name of class number 0 must be a text, in quotes, got True"),
        ("names: [cat, [dog]]", r"the name of class number 1 must be a text, in quotes, got \['dog'\]"),
        ("nc: 3\nnames: [cat, dog]", "'nc' says 3 classes, but 'names' has 2"),
        ("names: {1: cat, 2: dog}", "keys of 'names' must be 0, 1, 2, ..., got 1, 2"),
        ("names: [cat, cat]", "names 'cat' twice"),
    ],
)
def test_a_broken_data_yaml(root: Path, text: str, message: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(root)
    assert "data.yaml" in str(error.value)


def test_missing_and_empty_places(root: Path) -> None:
    labels, images, other = root / "labels" / "train", root / "images" / "train", root / "other"
    other.mkdir()
    with pytest.raises(FileNotFoundError, match=r"No image folder .*nowhere"):
        read_yolo(labels, root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No label folder or data.yaml .*nowhere"):
        read_yolo(root / "nowhere", images)
    with pytest.raises(FileNotFoundError, match=r"No annotation file .*nowhere.yaml"):
        read_yolo(root / "nowhere.yaml", images)
    with pytest.raises(ValueError, match=r"dataset is empty: no image in .*other"):
        read_yolo(labels, other)
    with pytest.raises(ValueError, match=r"None of the 3 images of .* has a label file; expected e.g. .*other/a.txt"):
        read_yolo(other, images)


def test_label_files_without_an_image_are_counted(root: Path) -> None:
    write(root, "z", CAT)
    assert "left out: 1 label files without an image" in summary(read(root))


def test_a_broken_image_is_named(root: Path) -> None:
    (root / "images" / "train" / "a.png").write_bytes(b"")
    assert read(root).samples[0].width == 0
    with pytest.raises(ValueError, match=r"a.png is empty \(0 bytes\)"):
        read_dataset(TrainDataConfig("yolo", str(root / "labels/train"), str(root / "images/train")))


def test_real_boxes_survive_the_way_through_yolo(shared: Path, tmp_path: Path) -> None:
    """BCCD's validation photos, written as YOLO text with all digits."""
    folder = shared / "data" / "bccd"
    coco = read_coco(folder / "val.json", folder / "JPEGImages")
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for sample in coco.samples:
        (tmp_path / "images" / sample.path.name).symlink_to(sample.path)
        x1, y1, x2, y2 = (sample.boxes / [sample.width, sample.height, sample.width, sample.height]).T.clip(0, 1)
        columns = (sample.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines = [" ".join(map(repr, map(float, row))) for row in zip(*columns, strict=True)]
        (tmp_path / "labels" / f"{sample.path.stem}.txt").write_text("\n".join(lines))
    yolo = read_yolo(tmp_path / "labels", tmp_path / "images", coco.classes)
    by_name = {sample.path.name: sample for sample in yolo.samples}
    assert len(by_name) == len(coco.samples) > 50
    for sample in coco.samples:
        twin = by_name[sample.path.name]
        limits = np.array([sample.width, sample.height] * 2)
        np.testing.assert_allclose(twin.boxes, sample.boxes.clip(0, limits), atol=1e-9)
        assert twin.labels.tolist() == sample.labels.tolist() and (twin.width, twin.height) == (640, 480)

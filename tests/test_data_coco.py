"""COCO JSON: what is read, what is left out and counted, and what every broken file says."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fastrcnn.config import TrainDataConfig
from fastrcnn.data.coco import read_coco
from fastrcnn.data.loader import training_dataset
from fastrcnn.data.read import read_dataset, summary


def content() -> dict[str, Any]:
    """Two images; categories out of order. Image 7 has two objects and a crowd, image 3 has none."""
    return {
        "images": [
            {"id": 7, "file_name": "seven.png", "width": 64, "height": 48},
            {"id": 3, "file_name": "three.png", "width": 40, "height": 50},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 20, "bbox": [1.5, 2, 10, 20.25], "area": 77.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [30, 10, 20, 30]},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [0, 0, 60, 40], "area": 900, "iscrowd": 1},
        ],
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for entry in content()["images"]:
        cv2.imwrite(str(folder / entry["file_name"]), np.zeros((entry["height"], entry["width"], 3), np.uint8))
    return folder


def written(folder: Path, value: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_reads_boxes_labels_areas_and_flags(tmp_path: Path, images: Path) -> None:
    dataset = read_coco(written(tmp_path, content()), images)
    assert dataset.classes == ["cat", "dog"] and dataset.category_ids == [4, 20]  # by id, not in the file's order
    seven, three = dataset.samples
    assert (seven.image_id, seven.path, seven.width, seven.height) == (7, images / "seven.png", 64, 48)
    np.testing.assert_array_equal(seven.boxes, [[1.5, 2, 11.5, 22.25], [30, 10, 50, 40], [0, 0, 60, 40]])
    np.testing.assert_array_equal(seven.labels, [1, 0, 0])
    np.testing.assert_array_equal(seven.areas, [77.5, 600, 900])
    np.testing.assert_array_equal(seven.crowd, [False, False, True])
    assert not seven.difficult.any()
    assert three.image_id == 3 and three.boxes.shape == (0, 4) and three.labels.shape == (0,)
    assert three.boxes.dtype == np.float64 and three.labels.dtype == np.int64 and three.crowd.dtype == bool
    assert dataset.dropped == {}


def test_objects_to_ignore_are_difficult(tmp_path: Path, images: Path) -> None:
    """As mmdetection's converters write VOC's flag."""
    value = content()
    value["annotations"][0]["ignore"], value["annotations"][1]["ignore"] = 1, 0
    dataset = read_coco(written(tmp_path, value), images)
    assert dataset.samples[0].difficult.tolist() == [True, False, False]
    assert training_dataset(dataset).dropped["objects that are marked difficult"] == 1


def test_classes_select_and_order(tmp_path: Path, images: Path) -> None:
    file = written(tmp_path, content())
    both = read_coco(file, images, ["dog", "cat"])
    assert both.category_ids == [20, 4] and both.samples[0].labels.tolist() == [0, 1, 1]
    dogs = read_coco(file, images, ["dog"])
    assert dogs.samples[0].labels.tolist() == [0] and len(dogs.samples) == 2
    assert dogs.dropped == {"objects of class 'cat', which is not in data.classes": 2}


def test_unknown_class_names_the_nearest(tmp_path: Path, images: Path) -> None:
    with pytest.raises(ValueError, match=r"annotations.json has no class 'dgo'. Did you mean 'dog'\? Known: cat, dog"):
        read_coco(written(tmp_path, content()), images, ["cat", "dgo"])


@pytest.mark.parametrize(("classes", "message"), [("cat", "single string 'cat'"), (["cat", "cat"], "'cat' more than")])
def test_bad_class_lists(tmp_path: Path, images: Path, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_coco(written(tmp_path, content()), images, classes)


def test_negative_sides_are_left_out_and_counted(tmp_path: Path, images: Path) -> None:
    broken = content()
    broken["annotations"][0]["bbox"] = [10, 10, -3, 5]
    dataset = read_coco(written(tmp_path, broken), images)
    assert dataset.dropped == {"objects whose box has a negative width or height": 1}
    assert dataset.inverted == [(images / "seven.png", [10, 10, 7, 15])]
    assert len(dataset.samples[0].boxes) == 2


NOT_COCO = [
    ("{", "annotations.json is not a JSON file: Expecting property name"),
    ("[]", "must hold a list 'images', found a list"),
    ('{"images": [], "annotations": {}, "categories": []}', r"must hold a list 'annotations', found \['annotations'"),
    ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "the dataset is empty"),
]


@pytest.mark.parametrize(("text", "message"), NOT_COCO)
def test_not_coco(tmp_path: Path, images: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_coco(written(tmp_path, text), images)
    assert "annotations.json" in str(error.value)


NAN = float("nan")
BROKEN_ENTRIES = [
    ("annotations", {"image_id": 99}, r"number 1 \(id 2\) belongs to image 99, which is not in 'images'"),
    ("annotations", {"category_id": 5}, r"number 1 \(id 2\) has category 5, which is not in 'categories'"),
    ("annotations", {"category_id": [4]}, "category_id must be a whole number"),
    ("annotations", {"bbox": [0, 0, NAN, 5]}, r"\(id 2\): bbox must be .* four finite numbers, got \[0, 0, nan, 5\]"),
    ("annotations", {"bbox": [0, 0, 5]}, "four finite numbers"),
    ("annotations", {"bbox": "0 0 5 5"}, "four finite numbers"),
    ("annotations", {"bbox": None}, r"\(id 2\) has no 'bbox'"),
    ("annotations", {"area": NAN}, "area must be a finite number"),
    ("annotations", {"iscrowd": "no"}, "iscrowd and ignore must be 0 or 1, got 'no' and 0"),
    ("annotations", {"ignore": 2}, "iscrowd and ignore must be 0 or 1, got 0 and 2"),
    ("images", {"id": 7}, r"image 7 \(three.png\): the id 7 stands twice"),
    ("images", {"id": "7"}, "id must be a whole number, got '7'"),
    ("images", {"width": 0}, r"image 3 \(three.png\): width and height must be above 0, got 0 x 50"),
    ("images", {"height": None}, r"image 3 \(three.png\) has no 'height'"),
    ("images", {"file_name": None}, "image number 1 has no 'file_name'"),
    ("categories", {"name": 5}, "category number 1: name must be a text, got 5"),
    ("categories", {"name": "\ud800"}, r"category number 1: name must be a text, got '\\ud800'"),
    ("categories", {"id": 20}, "the name 'cat' or the id 20 stands twice"),
    ("categories", {"name": "dog"}, "the name 'dog' or the id 4 stands twice"),
    ("categories", {"name": None}, "category number 1 has no 'name'"),
]


@pytest.mark.parametrize(("part", "change", "message"), BROKEN_ENTRIES)
def test_broken_entries_are_named(tmp_path: Path, images: Path, part: str, change: dict, message: str) -> None:
    """The second entry of a list is changed; None removes a key."""
    broken = content()
    entry = {**broken[part][1], **change}
    broken[part][1] = {key: value for key, value in entry.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        read_coco(written(tmp_path, broken), images)
    assert str(error.value).startswith(str(tmp_path / "annotations.json"))


def test_missing_files(tmp_path: Path, images: Path) -> None:
    file = written(tmp_path, content())
    with pytest.raises(FileNotFoundError, match=r"No annotation file .*nothing.json"):
        read_coco(tmp_path / "nothing.json", images)
    with pytest.raises(FileNotFoundError, match=r"No image folder .*nowhere"):
        read_coco(file, tmp_path / "nowhere")
    (images / "three.png").rename(images / "three.PNG")
    section = TrainDataConfig("coco", str(file), str(images))
    message = r"1 of the 2 images of .* are missing, the first is .*three.png \(there is three.PNG\)"
    with pytest.raises(FileNotFoundError, match=message):
        read_dataset(section)


def test_training_rules_are_counted(tmp_path: Path, images: Path) -> None:
    value = content()
    boxes = [[70, 5, 10, 10], [5, 48, 10, 10], [5, 5, 0.5, 10], [5, 5, 10, 0], [60, 40, 30, 30], [-5, 5, 5, 5]]
    value["annotations"] += [
        {"id": 10 + i, "image_id": 7, "category_id": 4, "bbox": box} for i, box in enumerate(boxes)
    ]
    value["annotations"].append({"id": 30, "image_id": 7, "category_id": 4, "bbox": [1, 1, 9, 9], "area": 0})
    value["images"].append({"id": 8, "file_name": "seven.png", "width": 64, "height": 31})
    dataset = read_coco(written(tmp_path, value), images)
    training = training_dataset(dataset)
    assert training.dropped == {
        "objects that are crowds": 1,
        "objects outside the image": 3,
        "objects below one pixel or without area": 3,
        "images without objects to train on": 1,
        "images with a side below 32 pixels": 1,
    }
    (sample,) = training.samples
    np.testing.assert_array_equal(sample.boxes, [[1.5, 2, 11.5, 22.25], [30, 10, 50, 40], [60, 40, 90, 70]])
    assert sample.labels.tolist() == [1, 0, 0] and len(sample.areas) == len(sample.crowd) == len(sample.difficult) == 3
    assert dataset.dropped == {} and len(dataset.samples[0].boxes) == 10  # the original is as it was

    text = summary(training)
    assert "1 images (0 without objects), 3 objects" in text and "cat 2, dog 1" in text
    for rule, count in training.dropped.items():
        assert f"left out: {count} {rule}" in text


def test_nothing_left_to_train_on(tmp_path: Path, images: Path) -> None:
    value = content()
    value["annotations"] = []
    with pytest.raises(ValueError, match=r"no image is left to train on. Left out: 2 images without objects"):
        training_dataset(read_coco(written(tmp_path, value), images))
    with pytest.raises(ValueError, match=r"no object is left to train on. Left out: nothing"):
        training_dataset(read_coco(written(tmp_path, value), images), keep_empty=True)


def test_images_of_other_classes_are_dropped_or_kept_by_choice(tmp_path: Path, images: Path) -> None:
    """Image 7 has one dog, image 3 only a cat: background for who looks for dogs."""
    value = content()
    value["annotations"].append({"id": 9, "image_id": 3, "category_id": 4, "bbox": [5, 5, 20, 20]})
    dogs = read_coco(written(tmp_path, value), images, ["dog"])
    dropped = training_dataset(dogs)
    assert [sample.image_id for sample in dropped.samples] == [7]
    assert dropped.dropped["images without objects to train on"] == 1
    kept = training_dataset(dogs, keep_empty=True)
    assert [sample.image_id for sample in kept.samples] == [7, 3] and len(kept.samples[1].boxes) == 0
    assert "images without objects to train on" not in kept.dropped


def test_paths_that_were_written_on_windows(tmp_path: Path, images: Path) -> None:
    value = content()
    (images / "sub" / "deep").mkdir(parents=True)
    (images / "seven.png").rename(images / "sub" / "deep" / "seven.png")
    value["images"][0]["file_name"] = "sub\\deep\\seven.png"
    file = written(tmp_path, value)
    section = TrainDataConfig("coco", str(file), str(images))
    assert read_dataset(section).samples[0].path == images / "sub" / "deep" / "seven.png"
    odd = images / "sub\\deep\\seven.png"  # here a backslash is a letter
    odd.write_bytes((images / "three.png").read_bytes())
    assert read_dataset(section).samples[0].path == odd


def test_a_byte_order_mark_is_no_error(tmp_path: Path, images: Path) -> None:
    path = written(tmp_path, content())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path, images).samples) == 2


def test_read_dataset_looks_at_the_format(tmp_path: Path, images: Path) -> None:
    file = written(tmp_path, content())
    assert read_dataset(TrainDataConfig("coco", str(file), str(images)), ["dog"]).classes == ["dog"]
    with pytest.raises(ValueError, match="must be one of coco, voc, yolo, got 'xml'"):
        read_dataset(TrainDataConfig("xml", str(file), str(images)))


def test_real_coco(shared: Path) -> None:
    """Counts of the files themselves: 1098 annotations, 14 crowds."""
    folder = shared / "data" / "coco_photos"
    dataset = read_coco(folder / "instances.json", folder / "images")
    assert len(dataset.samples) == 129 and len(dataset.classes) == 80
    assert dataset.classes[0] == "person" and dataset.category_ids[79] == 90
    assert sum(len(sample.boxes) for sample in dataset.samples) == 1098
    training = training_dataset(dataset)
    assert training.dropped["objects that are crowds"] == 14
    used = sum(len(sample.boxes) for sample in training.samples)
    assert used + sum(count for rule, count in training.dropped.items() if rule.startswith("objects")) == 1098

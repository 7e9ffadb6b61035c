"""`fastrcnn data`: every planted error is reported, and a clean dataset is not slandered."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from inspected_split import Split, inspected, photo

from fastrcnn.cli import main
from fastrcnn.config import Config, TrainDataConfig, ValDataConfig
from fastrcnn.data.inspection.contact_sheet import contact_sheet, problem_sheet
from fastrcnn.data.inspection.files import inspect_file
from fastrcnn.data.inspection.histograms import as_picture, as_text, histograms
from fastrcnn.data.inspection.problems import Problem, object_problems
from fastrcnn.data.inspection.report import report
from fastrcnn.data.sample import Dataset, make_sample


def test_a_clean_dataset(train: Split, val: Split, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert inspected(train, val, out) == {}
    assert sorted(path.name for path in out.iterdir()) == [
        "histograms.png", "problems.json", "report.txt", "training.jpg", "validation.jpg",
    ]  # fmt: skip
    text = (out / "report.txt").read_text()
    assert text.count(" data: nothing") == 2 and "3 images (0 without objects), 6 objects" in text
    assert [line.split() for line in text.splitlines() if line.startswith("cat ")] == [["cat", "3", "3", "3", "3"]]


BOXES = [
    ("negative width or height", [[50, 50, -5, 5]], "(50 50 45 55)"),
    ("below one pixel", [[50, 50, 0.5, 8]], "cat (50 50 50.5 58) in 128 x 96"),
    ("below one pixel", [[50, 50, 0, 0]], "cat (50 50 50 50)"),
    ("outside the image", [[200, 50, 20, 20]], "cat (200 50 220 70)"),
    ("outside the image", [[-30, 50, 20, 20]], "cat (-30 50 -10 70)"),
    ("more than a pixel beyond", [[110, 50, 20, 20]], "cat (110 50 130 70)"),
    ("more than a pixel beyond", [[50, -2, 20, 20]], "cat (50 -2 70 18)"),
    ("side below 4 pixels", [[50, 50, 3, 20]], "cat (50 50 53 70)"),
    ("nearly the whole image", [[1, 1, 126, 95]], "cat (1 1 127 96)"),
    ("20 times longer", [[5, 60, 110, 5]], "cat (5 60 115 65)"),
    ("stand twice", [[70, 70, 20, 20], [70.5, 70, 20, 20]], "cat (70 70 90 90) and cat (70.5 70 90.5 90)"),
    ("two classes", [[60.5, 20, 30, 50]], "dog (60 20 90 70) and cat (60.5 20 90.5 70)"),
]


@pytest.mark.parametrize(("kind", "boxes", "text"), BOXES)
def test_planted_boxes(
    train: Split, val: Split, tmp_path: Path, kind: str, boxes: list[list[float]], text: str
) -> None:
    """Each alone: it is found, and nothing else."""
    for box in boxes:
        train.box(2, 1, box)
    out = tmp_path / "out"
    found = inspected(train, val, out)
    ((found_kind, (problem,)),) = found.items()
    assert kind in found_kind and text in problem["text"]
    assert problem["image"] == str(train.folder / "train1.png") and "train1.png" in problem["text"]
    assert (problem["box"] is None) == ("negative" in kind)
    printed = (out / "report.txt").read_text()
    assert f"1 x {found_kind}" in printed and problem["text"] in printed
    assert (out / "training_problems.jpg").is_file() and not (out / "validation_problems.jpg").exists()


def test_boxes_that_are_right(train: Split, val: Split, tmp_path: Path) -> None:
    """Crowds may cover anything; a box may touch the border, lie on another, or reach a rounding beyond."""
    train.box(1, 1, [0, 0, 128, 96], iscrowd=1)
    train.box(1, 1, [10, 10, 40, 30], iscrowd=1)
    train.box(2, 1, [108, 76, 20.9, 20])
    train.box(2, 1, [12, 12, 30, 20])
    assert inspected(train, val, tmp_path / "out") == {}


def orientation(value: int) -> bytes:
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + value.to_bytes(2, "little") + b"\x00\x00"
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + b"\x00\x00\x00\x00"
    return b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif


def test_planted_files(train: Split, val: Split, tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", photo(7))[1].tobytes()
    planted = {
        "images that are missing": ("gone.png", None, "No image file"),
        "images that cannot be read": ("cut.jpg", jpeg[:200], "cut.jpg is truncated"),
        "images of another size": ("wrong.png", photo(8, 100, 90), "is 100 x 90 pixels, its annotation says 128 x 96"),
        "turned or mirrored": ("upside.jpg", jpeg[:2] + orientation(3) + jpeg[2:], "boxes for the upright image"),
        "below 32 pixels": ("small.png", photo(9, 31, 40), "31 x 40"),
        "single colour": ("blank.png", np.full((96, 128, 3), 77, np.uint8), "every value is 77"),
        "nearly black": ("deep.png", photo(10).astype(np.uint16) * 16, "brighter than 15 of 255"),
        "same pixels": ("copy.bmp", photo(1), "train1.png, "),
    }
    for name, content, _ in planted.values():
        train.image(name, content, (128, 96) if name == "wrong.png" else None)
    found = inspected(train, val, tmp_path / "out")
    assert len(found) == len(planted)
    for kind, (name, _, text) in planted.items():
        ((problem,),) = [problems for found_kind, problems in found.items() if kind in found_kind]
        assert text in problem["text"] and name in problem["text"], kind


def test_an_image_annotated_before_it_was_turned(train: Split, val: Split, tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", photo(7))[1].tobytes()
    train.image("turned.jpg", jpeg[:2] + orientation(6) + jpeg[2:], (128, 96))
    train.image("upright.jpg", jpeg[:2] + orientation(1) + jpeg[2:], (128, 96))
    found = inspected(train, val, tmp_path / "out")
    (problem,) = found["images of another size than annotated"]
    assert "turned.jpg is 96 x 128 pixels, its annotation says 128 x 96 (exchanged: was it annotated" in problem["text"]
    (problem,) = found["images that are turned or mirrored by their EXIF orientation"]
    assert problem["image"] == str(train.folder / "turned.jpg")
    assert inspect_file(train.folder / "upright.jpg").turned is False


def test_planted_entries_classes_and_splits(train: Split, val: Split, tmp_path: Path) -> None:
    train.categories.append({"id": 3, "name": "hippogriff"})
    val.categories.append({"id": 3, "name": "hippogriff"})
    val.box(1, 3, [80, 60, 20, 20])
    train.images.append(train.images[0] | {"id": 50})
    for _ in range(4):
        for i in range(4):
            train.box(3, 1 + i % 2, [5 + 9 * len(train.annotations) % 90, 70, 8 + len(train.annotations), 20])
    for i in range(16):
        train.box(3, 1, [7 * i, 2, 6, 8])
    copied = photo(2)
    val.image("another name.bmp", copied)
    val.image("train1.png", photo(300))
    found = inspected(train, val, tmp_path / "out")

    def texts(kind: str) -> list[str]:
        return [problem["text"] for problem in found.get(kind, [])]

    assert texts("classes without an object") == ["hippogriff"]
    assert {problem["data"] for problem in found["classes without an object"]} == {"training"}
    assert texts("images that stand twice in the annotations") == [str(train.folder / "train0.png")]
    (text,) = texts("images with more objects than can be detected")
    assert "train2.png: 34, and model.box_head.max_detections is 20" in text
    (text,) = texts("validation images that are training images, too")
    assert text == f"{val.folder}/another name.bmp has the pixels of {train.folder}/train2.png"
    (text,) = texts("validation images named as a training image")
    assert text == f"{val.folder}/train1.png and {train.folder}/train1.png, with different pixels"


def test_one_class_written_in_two_ways(train: Split, val: Split, tmp_path: Path) -> None:
    for id, name in enumerate(["Hot Dog", "hot_dog", "hot-dog ", "+", "-"], start=3):
        train.categories.append({"id": id, "name": name})
        val.categories.append({"id": id, "name": name})
        train.box(3, id, [8 * id, 70, 7, 20])
        val.box(2, id, [8 * id, 70, 7, 20])
    (problem, _) = inspected(train, val, tmp_path / "out").pop(
        "classes whose names differ only in capitals, spaces or signs"
    )
    assert problem["text"] == "'Hot Dog' (1) and 'hot_dog' (1) and 'hot-dog ' (1): data.rename makes them one"


def test_one_dataset_that_cannot_be_read_does_not_hide_the_other(train: Split, val: Split, tmp_path: Path) -> None:
    train.categories.append(train.categories[0])
    val.box(1, 1, [200, 5, 9, 9])
    found = inspected(train, val, tmp_path / "out")
    (problem,) = found["data that cannot be read"]
    assert problem["data"] == "training" and "the name 'cat' or the id 1 stands twice" in problem["text"]
    (problem,) = found["boxes outside the image (left out of training)"]
    assert problem["data"] == "validation"
    val.categories.append(val.categories[0])
    with pytest.raises(ValueError, match=r"train.json: category number 2: the name 'cat'"):
        inspected(train, val, tmp_path / "out")


def test_warnings_of_the_readers_are_problems(train: Split, val: Split, tmp_path: Path) -> None:
    """Validation data in VOC format without a dog."""
    folder = tmp_path / "voc"
    folder.mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>50</ymax></bndbox>"
    (folder / "a.xml").write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")
    cv2.imwrite(str(folder / "a.png"), photo(500))
    train.write()
    config = Config()
    config.data.train = TrainDataConfig("coco", str(train.file), str(train.folder))
    config.data.val = ValDataConfig("voc", str(folder), str(folder))
    text = report(config, tmp_path / "out")
    assert "1 x warnings on reading" in text and "no object of class 'dog'" in text
    assert "1 x classes without an object\n      dog\n" in text


def test_yolo_data_with_broken_images(train: Split, val: Split, tmp_path: Path) -> None:
    """Their size, which the boxes need, is nowhere: they are reported, and only as that."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "good.png"), photo(1))
    (tmp_path / "images" / "bad.png").write_bytes(b"nothing")
    for name in ("good", "bad"):
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    config = Config()
    config.data.train = TrainDataConfig("yolo", str(tmp_path / "labels"), str(tmp_path / "images"))
    config.data.val = ValDataConfig("yolo", str(tmp_path / "labels"), str(tmp_path / "images"))
    report(config, tmp_path / "out")
    kinds = [problem["kind"] for problem in json.loads((tmp_path / "out" / "problems.json").read_text())]
    assert kinds == ["images that cannot be read"] * 2 + ["validation images that are training images, too"]


def test_file_names_in_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an archive from elsewhere: bytes that are no UTF-8. OpenCV's putText would crash."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in (b"k\xe4fer", b"fein"):
        Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name + b".png")).write_bytes(
            cv2.imencode(".png", photo(len(name)))[1].tobytes()
        )
        label = Path(os.fsdecode(os.fsencode(tmp_path / "labels") + b"/" + name + b".txt"))
        label.write_text("0 0.5 0.5 1 1\n")
    settings = [f"data.{split}.{key}" for split in ("train", "val") for key in ("format", "annotations", "images")]
    values = ["yolo", tmp_path / "labels", tmp_path / "images"] * 2
    overrides = [f"{key}={value}" for key, value in zip(settings, values, strict=True)]
    assert main(["data", "faster_rcnn_r50_fpn_1x_coco", "--out", str(tmp_path / "out"), *overrides]) == 0
    assert "k\\udce4fer.png: class_0 (0 0 128 96)" in capsys.readouterr().out
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())
    assert Path(problems[1]["image"]).is_file() and problems[1]["image"].endswith("/k\udce4fer.png")


def test_the_command(train: Split, val: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.box(1, 1, [200, 5, 9, 9])
    train.write()
    val.write()
    settings = [f"data.train.annotations={train.file}", f"data.train.images={train.folder}"]
    settings += [f"data.val.annotations={val.file}", f"data.val.images={val.folder}", "data.rename={cat: Katze}"]
    out = tmp_path / "deep" / "out"
    assert main(["data", "faster_rcnn_r50_fpn_1x_coco", "--out", str(out), *settings]) == 0
    printed = capsys.readouterr().out
    assert (out / "report.txt").read_text().strip() in printed and f"Also in {out}" in printed
    assert "1 x boxes outside the image" in printed and "Katze (200 5 209 14)" in printed
    for name in ("training.jpg", "validation.jpg", "training_problems.jpg", "histograms.png"):
        assert cv2.imread(str(out / name)) is not None
    # The contact sheet of an earlier report goes, when there is nothing to show any more.
    train.annotations.pop()
    train.write()
    assert main(["data", "faster_rcnn_r50_fpn_1x_coco", *settings, "--out", str(out)]) == 0
    assert not (out / "training_problems.jpg").exists()
    assert main(["data", "faster_rcnn_r50_fpn_1x_coco", "--out", str(out)]) == 2
    assert "No annotation file data/coco" in capsys.readouterr().err


# --- pictures and numbers ---------------------------------------------------------------------------------------------


def test_histograms_count_in_pixels_of_the_network(tmp_path: Path) -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 40, 10], [0, 0, 64, 64], [0, 0, 100, 90]]
    crowd = [False] * 4 + [True]
    samples = [
        make_sample(1, tmp_path / "a", (100, 100), boxes, [0] * 5, [1] * 5, crowd),
        make_sample(2, tmp_path / "b", (100, 100), [], [], []),
        make_sample(3, tmp_path / "c", (0, 0), [[0, 0, 0, 0]], [0], [0]),
    ]
    data = Dataset("name", ["thing"], [1], samples)
    sides, ratios, numbers = histograms({"training": data}, [200, 200])  # twice as large
    assert dict(zip(sides.bins, sides.counts["training"].tolist(), strict=True)) == {
        "0 - 4": 0, "4 - 8": 0, "8 - 16": 0, "16 - 32": 2, "32 - 64": 1, "64 - 128": 0, "128 - 256": 1,
        "256 - 512": 0, "512 ..": 0,
    }  # fmt: skip
    assert ratios.counts["training"].tolist() == [0, 0, 1, 0, 2, 0, 1, 0, 0]
    assert numbers.counts["training"].tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert len(ratios.bins) == len(ratios.counts["training"]) and len(numbers.bins) == len(numbers.counts["training"])
    lines = as_text(sides).splitlines()
    assert "200 x 200" in lines[0] and lines[4].split() == ["16", "-", "32", "2", "50.0%", "##########"]
    empty = Dataset("name", ["thing"], [1], [])
    picture = as_picture(histograms({"training": data, "validation": empty}, [200, 200]))
    assert picture.dtype == np.uint8 and (picture != 255).any()


def test_a_contact_sheet_shows_every_class(tmp_path: Path) -> None:
    """60 grey images of class 0, and in one image each class 1 and 2."""
    samples = []
    for i in range(62):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((40, 60, 3), 100, np.uint8))
        label = max(0, i - 59)
        samples.append(make_sample(i, path, (60, 40), [[10, 10, 50, 30]], [label], [800]))
    data = Dataset("name", ["a", "b", "c"], [1, 2, 3], samples)
    readable = {sample.path for sample in samples}
    sheet = contact_sheet(data, readable)
    assert sheet is not None and np.array_equal(sheet, contact_sheet(data, readable))
    from fastrcnn.drawing import class_colour

    for label in range(3):
        assert (sheet == class_colour(label)).all(2).any()
    rare = contact_sheet(data, {samples[61].path})
    assert rare is not None and rare.shape[1] < sheet.shape[1]
    assert contact_sheet(data, set()) is None
    assert problem_sheet(data, [Problem("kind", "text")], readable) is None
    only = problem_sheet(data, [Problem("kind", "text", samples[0].path, (10.0, 10.0, 50.0, 30.0))], readable)
    assert only is not None and (only == class_colour(0)).all(2).any() and not (only == class_colour(1)).all(2).any()


def test_equal_boxes_are_found_as_by_comparing_all() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 60, (150, 2)).round(0)
    boxes = np.hstack([corners, corners + random.uniform(1, 40, (150, 2))])
    boxes = np.vstack([boxes, boxes[:40] + random.uniform(-1, 1, (40, 4)), boxes[:5]])
    sample = make_sample(1, Path("a"), (128, 96), boxes.tolist(), [0] * len(boxes), [100] * len(boxes))
    found = [p for p in object_problems(Dataset("n", ["x"], [1], [sample]), [128, 96]) if "twice" in p.kind]
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = (high - low).clip(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    expected = int(np.triu(overlap > 0.9 * (area[:, None] + area - overlap), 1).sum())
    assert len(found) == expected > 10


def test_real_photos(shared: Path, tmp_path: Path) -> None:
    """BCCD's own files have cells that were marked twice, boxes of a point, and two photos of one slide; no photo is
    broken."""
    folder = shared / "data" / "bccd"
    config = Config()
    config.data.train = TrainDataConfig("voc", str(folder / "Annotations"), str(folder / "JPEGImages"))
    photos = shared / "data" / "coco_photos"
    config.data.val = ValDataConfig("coco", str(photos / "instances.json"), str(photos / "images"))
    text = report(config, tmp_path)
    assert "6 x boxes that stand twice" in text and "2 x boxes below one pixel" in text and "5 x" not in text
    assert "1 x data that cannot be read" in text and "has no class 'Platelets'" in text
    assert "1 x images that are nearly the same" in text and "BloodImage_00038.jpg and " in text
    kinds = [line.split(" x ")[1].split()[0] for line in text.splitlines() if " x " in line[:8]]
    assert kinds.count("images") == 1 and set(kinds) == {"boxes", "data", "images"}

"""data.train.more: one training set from several annotations, the same for every format."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_training import small_resnet, tiny_config, write_formats

from fastrcnn.config import Config, load_config, to_yaml
from fastrcnn.data.inspection.report import report
from fastrcnn.data.loader import train_loader, training_dataset
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.data.sample import Dataset
from fastrcnn.training.train import train

PLACES = {"coco": "images/boxes.json", "voc": "ImageSets/Main/trainval.txt", "yolo": "labels"}
FORMATS = list(PLACES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """2007 and 2012, each with pictures 1 to 6 in the three formats; 1 of 2007, and 1 and 2 of 2012, have no objects.

    VOC's lists stand where the development kit has them, and are in another order than the files."""
    for year, without_objects in (("2007", 1), ("2012", 2)):
        write_formats(tmp_path / year, without_objects)
        names = tmp_path / year / "ImageSets" / "Main" / "trainval.txt"
        names.parent.mkdir(parents=True)
        names.write_text("".join(f"{name}\n" for name in (6, 5, 1, 2, 3, 4)))
    return tmp_path


def source(root: Path, year: str, format: str) -> dict[str, Path]:
    return {"annotations": root / year / PLACES[format], "images": root / year / "images"}


def config(root: Path, format: str, *overrides: str, years: tuple[str, ...] = ("2007", "2012")) -> Config:
    first, *others = (source(root, year, format) for year in years)
    more = ", ".join(f"{{annotations: {other['annotations']}, images: {other['images']}}}" for other in others)
    settings = [f"data.train.{key}={value}" for key, value in first.items()]
    settings += [f"data.val.{key}={value}" for key, value in first.items()]
    settings += [f"data.train.format={format}", f"data.val.format={format}", f"data.train.more=[{more}]"]
    return tiny_config(root, root / "run", *settings, *overrides)


def read(settings: Config) -> Dataset:
    return read_dataset(settings.data.train, settings.data.classes, settings.data.rename)


@pytest.mark.parametrize("format", FORMATS)
def test_the_images_of_one_after_those_of_the_other(root: Path, format: str) -> None:
    joined = read(config(root, format, "data.classes=[wide, tall]"))
    parts = [read(config(root, format, "data.classes=[wide, tall]", years=(year,))) for year in ("2007", "2012")]
    samples = [sample for part in parts for sample in part.samples]
    assert len(joined.samples) == 12 and joined.classes == ["wide", "tall"]
    assert joined.category_ids == parts[0].category_ids
    for sample, expected in zip(joined.samples, samples, strict=True):
        assert sample.path == expected.path
        assert (sample.boxes == expected.boxes).all() and (sample.labels == expected.labels).all()
    assert [sample.image_id for sample in joined.samples] == list(range(1, 13))
    assert [sample.image_id for sample in parts[1].samples] == list(range(1, 7))  # the parts are as they were
    assert all(str(root / year / PLACES[format]) in joined.name for year in ("2007", "2012"))
    assert "12 images (3 without objects)" in summary(joined)


@pytest.mark.parametrize("format", FORMATS)
def test_an_epoch_has_the_images_of_all(root: Path, format: str) -> None:
    settings = config(root, format, "data.classes=[wide, tall]")
    dataset = training_dataset(read(settings))
    assert dataset.dropped["images without objects to train on"] == 3
    batches = list(train_loader(dataset, settings, epoch=0))
    paths = {sample.image_id: sample.path for sample in dataset.samples}
    seen = {paths[image_id].relative_to(root).as_posix() for batch in batches for image_id in batch.image_ids}
    assert seen == {f"2007/images/{i}.png" for i in range(2, 7)} | {f"2012/images/{i}.png" for i in range(3, 7)}


def test_three_sources_whose_ids_are_anything(root: Path) -> None:
    """COCO's ids are the files' own: those of a later file move behind the largest before it, gaps and signs kept."""
    write_formats(root / "2020")
    for year, change in (("2007", lambda i: 100 * i), ("2012", lambda i: i - 4)):
        file = root / year / PLACES["coco"]
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["id"] = change(image["id"])
        for entry in content["annotations"]:
            entry["image_id"] = change(entry["image_id"])
        file.write_text(json.dumps(content))
    ids = [sample.image_id for sample in read(config(root, "coco", years=("2007", "2012", "2020"))).samples]
    assert ids == [100, 200, 300, 400, 500, 600, *range(601, 607), *range(607, 613)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_rules_leave_out_is_added_up(root: Path, format: str) -> None:
    parts = [read(config(root, format, "data.classes=[tall]", years=(year,))) for year in ("2007", "2012")]
    (rule,) = parts[0].dropped
    joined = read(config(root, format, "data.classes=[tall]"))
    assert joined.dropped == {rule: parts[0].dropped[rule] + parts[1].dropped[rule]}
    assert parts[0].dropped[rule] != parts[1].dropped[rule] > 0


def test_inverted_boxes_of_all_are_noted(root: Path) -> None:
    for year in ("2007", "2012"):
        file = root / year / PLACES["coco"]
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"][2] = -3
        file.write_text(json.dumps(content))
    joined = read(config(root, "coco"))
    assert joined.dropped == {"objects whose box has a negative width or height": 2}
    assert [path.parent.parent.name for path, _ in joined.inverted] == ["2007", "2012"]


def test_all_have_the_classes_of_the_first(root: Path) -> None:
    """Without data.classes; the categories of the second file stand in another order, and it has one more."""
    file = root / "2012" / PLACES["coco"]
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "tall"}, {"id": 2, "name": "wide"}, {"id": 3, "name": "round"}]
    content["annotations"][0]["category_id"] = 3
    file.write_text(json.dumps(content))
    alone, joined = read(config(root, "coco", years=("2012",))), read(config(root, "coco"))
    assert alone.classes == ["tall", "wide", "round"] and joined.classes == ["wide", "tall"]
    assert joined.dropped == {"objects of class 'round', which is not in data.classes": 1}
    for sample, single in zip(joined.samples[6:], alone.samples, strict=True):
        names = [alone.classes[label] for label in single.labels if alone.classes[label] != "round"]
        assert [joined.classes[label] for label in sample.labels] == names
    content["categories"][0]["name"] = "high"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"data.classes: .*2012.* has no class 'tall'"):
        read(config(root, "coco"))
    assert read(config(root, "coco", "data.rename={high: tall}")).classes == ["wide", "tall"]


def test_a_source_of_images_without_objects(root: Path) -> None:
    """Backgrounds: VOC's files do not list the classes, so that no object of one of them is a warning."""
    for file in (root / "2012" / "Annotations").iterdir():
        file.write_text("<annotation></annotation>")
    with pytest.warns(UserWarning, match=r"2012.* has no object of class"):
        joined = read(config(root, "voc", "data.classes=[wide, tall]"))
    assert len(joined.samples) == 12
    assert len(training_dataset(joined, keep_empty=True).samples) == 12


def test_an_image_in_two_sources(root: Path) -> None:
    with pytest.raises(ValueError, match=r"The image .*2007/images/6.png is in .*trainval.txt and again in .*trainval"):
        read(config(root, "voc", "data.classes=[wide, tall]", years=("2007", "2007")))
    # the same file by another way
    name = f"{root}/2012/../2007"
    more = f"data.train.more=[{{annotations: {name}/images/boxes.json, images: {name}/images}}]"
    with pytest.raises(ValueError, match=r"The image .*1.png is in"):
        read(config(root, "coco", more))


def test_missing_files_of_a_later_source(root: Path) -> None:
    (root / "2012" / "images" / "4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 12 images of .*2007.* \+ .*2012.*, the first is .*2012.*4"):
        read(config(root, "coco"))
    (root / "2012" / PLACES["coco"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"No annotation file .*2012"):
        read(config(root, "coco"))


# --- in a config ------------------------------------------------------------------------------------------------------


def test_in_a_file_and_in_overrides(tmp_path: Path) -> None:
    name = "faster_rcnn_r50_fpn_1x_coco"
    assert load_config(name).data.train.more == []
    settings = load_config(name, ["data.train.more=[{annotations: a.json, images: b}, {annotations: c, images: d}]"])
    assert [(more.annotations, more.images) for more in settings.data.train.more] == [("a.json", "b"), ("c", "d")]
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(settings))
    assert load_config(path) == settings
    assert load_config(path, ["data.train.more=[]"]).data.train.more == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{annotation: a, images: b}]", r"unknown key data.train.more\[0\].annotation. Nearest valid key: .*annotat"),
        ("[{annotations: a, images: b}, {annotations: a}]", r"missing mandatory value: images.*"),
        ("[a.json]", r"more\[0\]"),
        ("{annotations: a, images: b}", "data.train.more={annotations: a, images: b}"),
    ],
)
def test_wrong_sources_are_named(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("faster_rcnn_r50_fpn_1x_coco", [f"data.train.more={value}"])


# --- from end to end --------------------------------------------------------------------------------------------------


def test_fastrcnn_data_sees_all(root: Path) -> None:
    (root / "2012" / "images" / "5.png").write_bytes(b"no image")
    text = report(config(root, "voc", "data.classes=[wide, tall]"), root / "report")
    assert "12 images (3 without objects)" in text
    problems = json.loads((root / "report" / "problems.json").read_text())
    assert any(entry["data"] == "training" and "2012/images/5.png" in (entry["image"] or "") for entry in problems)


def test_training(root: Path) -> None:
    settings = config(root, "voc", "data.classes=[wide, tall]", "schedule.epochs=1")
    with small_resnet():
        metrics = train(settings)
    saved = torch.load(root / "run" / "last.pth", weights_only=True)
    assert saved["step"] == 5  # nine images with objects, two a step
    assert saved["config"]["data"]["train"]["more"][0]["images"] == str(root / "2012" / "images")
    assert math.isfinite(metrics["VOC07_mAP"]) and set(metrics["VOC07_per_class"]) == {"wide", "tall"}

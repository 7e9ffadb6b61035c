"""Fine-tuning from a detector of COCO's 80 classes: the published configs, class subsets, another dataset."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import small_resnet, write_formats, write_pictures
from torch import Tensor

from fastrcnn.class_names import COCO_CATEGORY_IDS, COCO_CLASSES
from fastrcnn.cli import main
from fastrcnn.config import load_config
from fastrcnn.models import build_model
from fastrcnn.models.convert import convert

PUBLISHED = {
    "faster_rcnn_r50_caffe_fpn_mstrain_1x_coco-person": ["person"],
    "faster_rcnn_r50_caffe_fpn_mstrain_1x_coco-person-bicycle-car": ["person", "bicycle", "car"],
}
SMALL = ["model.backbone.depth=18", "model.fpn.channels=16", "model.rpn.channels=16", "model.box_head.channels=32"]
SMALL += ["data.train.scales=[[128, 80], [128, 96]]", "data.test.scale=[128, 96]", "train.workers=0"]
HEAD = ("box_head.logits", "box_head.deltas")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_resnet():
        yield


@pytest.fixture(scope="module")
def detector_of_80(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A small detector of COCO's classes in mmdetection's layout, and its weights under our names."""
    folder = tmp_path_factory.mktemp("detector")
    settings = ["model.backbone.style=caffe", "model.backbone.norm=frozen", *SMALL[:4]]
    torch.manual_seed(5)
    model = build_model(load_config("faster_rcnn_r50_fpn_1x_coco", settings).model)
    torch.save({"model": model.state_dict(), "classes": COCO_CLASSES}, folder / "ours.pth")
    convert(folder / "ours.pth", folder / "mmdet.pth")
    assert "rpn_head.rpn_conv.weight" in torch.load(folder / "mmdet.pth", weights_only=True)["state_dict"]
    return folder / "mmdet.pth", model.state_dict()


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The six pictures as COCO's, all 80 categories declared, and how many objects of each class they have."""
    folder = tmp_path_factory.mktemp("coco")
    write_pictures(folder)
    content = json.loads((folder / "boxes.json").read_text())
    ids = dict(zip(COCO_CLASSES, COCO_CATEGORY_IDS, strict=True))
    content["categories"] = [{"id": id, "name": name} for name, id in ids.items()]
    names = ["person", "dog", "bicycle", "car", "person", "dog", "toothbrush", "car", "person"]
    assert len(content["annotations"]) == len(names)
    for entry, name in zip(content["annotations"], names, strict=True):
        entry["category_id"] = ids[name]
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder, {name: names.count(name) for name in names}


def overrides(coco: Path, checkpoint: Path, out: Path) -> list[str]:
    data = [f"data.{split}.annotations={coco / 'boxes.json'}" for split in ("train", "val")]
    data += [f"data.{split}.images={coco}" for split in ("train", "val")]
    return [*SMALL, *data, f"load_from={checkpoint}", f"output_dir={out}", "schedule.epochs=1"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_start_from_all_but_the_last_layers(
    name: str, coco: tuple, detector_of_80: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of zero, the weights after training are those that it started from."""
    classes, (folder, counts), (checkpoint, weights) = PUBLISHED[name], coco, detector_of_80
    arguments = [*overrides(folder, checkpoint, tmp_path / "run"), "optimizer.lr=0"]
    assert main(["train", name, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "4 mismatched" in printed
    for unused in set(counts) - set(classes):
        assert f"left out: {counts[unused]} objects of class '{unused}', which is not in data.classes" in printed

    saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert saved["classes"] == classes
    assert saved["model"]["box_head.logits.weight"].shape[0] == len(classes) + 1
    assert saved["model"]["box_head.deltas.weight"].shape[0] == 4 * len(classes)
    for entry, value in saved["model"].items():
        if not entry.startswith(HEAD):
            assert torch.equal(value, weights[entry]), entry
    (metrics,) = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["per_class"]) == classes and metrics["AP"] >= 0


def test_a_published_config_trains_and_evaluates(
    coco: tuple, detector_of_80: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, (checkpoint, weights), run = next(iter(PUBLISHED)), detector_of_80, tmp_path / "run"
    arguments = overrides(coco[0], checkpoint, run)
    assert main(["train", name, *arguments, "schedule.warmup_steps=0"]) == 0
    saved = torch.load(run / "last.pth", weights_only=True)["model"]
    assert torch.equal(saved["backbone.conv1.weight"], weights["backbone.conv1.weight"])  # frozen
    for moved in ("backbone.layer4.0.conv1.weight", "fpn.lateral.0.weight", "rpn_head.conv.weight"):
        assert not torch.equal(saved[moved], weights[moved])
    capsys.readouterr()
    assert main(["eval", name, *arguments, "--checkpoint", str(run / "last.pth")]) == 0
    results = json.loads((run / "eval_results.json").read_text())
    (history,) = json.loads((run / "metrics.json").read_text())
    assert results["metrics"]["AP"] == pytest.approx(history["AP"])
    assert list(results["metrics"]["per_class"]) == ["person"]


def test_a_new_head_on_another_dataset(
    detector_of_80: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VOC's XML with two classes that COCO has not."""
    checkpoint, weights = detector_of_80
    write_formats(tmp_path / "data")
    arguments = [*SMALL, "model.backbone.style=caffe", "model.backbone.norm=frozen", "model.box_head.num_classes=2"]
    arguments += ["data.train.scale_mode=value", f"output_dir={tmp_path / 'run'}", "schedule.epochs=1"]
    for split in ("train", "val"):
        arguments += [f"data.{split}.format=voc", f"data.{split}.annotations={tmp_path / 'data' / 'Annotations'}"]
        arguments.append(f"data.{split}.images={tmp_path / 'data' / 'images'}")
    name = "faster_rcnn_r50_fpn_1x_coco"
    assert main(["train", name, *arguments, f"load_from={checkpoint}", "optimizer.lr=0"]) == 0
    printed = capsys.readouterr().out
    assert "4 mismatched" in printed and "VOC AP of each class" in printed
    saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert saved["classes"] == ["tall", "wide"]
    assert torch.equal(saved["model"]["box_head.fc2.weight"], weights["box_head.fc2.weight"])

    # As many classes, by chance others: the last layers are the file's, and it is said whose they were.
    again = [*arguments, f"load_from={tmp_path / 'run' / 'last.pth'}", f"output_dir={tmp_path / 'again'}"]
    assert main(["train", name, *again, "data.rename={tall: tower}", "optimizer.lr=0"]) == 0
    assert "its classes were ['tall', 'wide']" in capsys.readouterr().out
    assert torch.equal(
        torch.load(tmp_path / "again" / "last.pth", weights_only=True)["model"]["box_head.logits.weight"],
        saved["model"]["box_head.logits.weight"],
    )


def test_a_subset_whose_number_the_head_does_not_have(
    coco: tuple, detector_of_80: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run = next(iter(PUBLISHED)), tmp_path / "run"
    arguments = overrides(coco[0], detector_of_80[0], run)
    assert main(["train", name, *arguments, "data.classes=[person, car]"]) == 2
    assert "model.box_head.num_classes=2" in capsys.readouterr().err
    assert main(["train", name, *arguments, "data.classes=[persn]"]) == 2
    assert "Did you mean 'person'?" in capsys.readouterr().err

"""A whole training run: that it learns, what it writes, and how it fails."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import STEPS_PER_EPOCH, tiny_config, write_pictures

from fastrcnn.config import load_config
from fastrcnn.models.build import build_model
from fastrcnn.training import train as loop
from fastrcnn.training import validation
from fastrcnn.training.curves import can_draw
from fastrcnn.training.log import COLUMNS, LOSSES, peak_memory_mb
from fastrcnn.training.train import train
from fastrcnn.training.weights import load_initial_weights

pytestmark = pytest.mark.usefixtures("small_backbone")


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of a finished run of two epochs, and what train() returned."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(tiny_config(pictures, folder))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_overfits_a_handful_of_images(pictures: Path, tmp_path: Path) -> None:
    epochs = ["schedule.epochs=40", "schedule.milestones=[30]", "train.eval_every=40"]
    metrics = train(tiny_config(pictures, tmp_path, *epochs, "data.train.flip=0", "optimizer.clip_norm=10"))
    losses = [float(row["loss"]) for row in rows_of(tmp_path)]
    assert losses[-1] < 0.25 * losses[0]
    assert metrics["AP50"] > 0.9


def test_writes_what_the_contract_says(finished: tuple[Path, dict]) -> None:
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    checkpoints = {"last.pth", "best.pth", "epoch_1.pth", "epoch_2.pth"}
    rest = {"config.yaml", "log.csv", "log.jsonl", "metrics.json", "predictions"} | (
        {"curves.png"} if can_draw() else set()
    )
    assert names - {"tiny.yaml", ".lock"} == checkpoints | rest


def test_log_rows(finished: tuple[Path, dict]) -> None:
    rows = rows_of(finished[0])
    assert tuple(rows[0]) == COLUMNS
    # every two steps, and at the end of an epoch of three
    assert [(row["step"], row["epoch"]) for row in rows] == [("2", "1"), ("3", "1"), ("4", "2"), ("6", "2")]
    # warm-up over 4 steps from a tenth (the row after 2 steps names the rate of the second), a tenth from epoch 2 on
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.0065, 0.011, 0.00155, 0.002])
    for row in rows:
        assert sum(float(row[name]) for name in LOSSES) == pytest.approx(float(row["loss"]), rel=1e-4)
        assert float(row["images_per_second"]) > 0
        assert 0 < float(row["data_wait"]) < 1
        assert 0 < float(row["grad_norm"]) < 1000
        assert int(row["memory_mb"]) <= peak_memory_mb(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def test_metrics_have_one_entry_per_evaluation(finished: tuple[Path, dict]) -> None:
    folder, returned = finished
    history = json.loads((folder / "metrics.json").read_text())
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(1, STEPS_PER_EPOCH), (2, 2 * STEPS_PER_EPOCH)]
    assert history[-1] == {"epoch": 2, "step": 2 * STEPS_PER_EPOCH, **returned}
    assert {"AP", "AP50", "per_class"} <= returned.keys()


def test_saved_config_is_the_runs(pictures: Path, finished: tuple[Path, dict]) -> None:
    folder, _ = finished
    assert load_config(folder / "config.yaml") == tiny_config(pictures, folder)


def test_log_lines(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    printed = capsys.readouterr().out
    assert "6 images" in printed  # the summary of the data
    (line,) = [line for line in printed.splitlines() if line.startswith("epoch 1  step 3/3")]
    for part in ("lr 0.011", "loss ", "rpn_cls", "gradient ", "images/s", "waiting for data", "MB", "0:00:00 left"):
        assert part in line
    assert "After epoch 1" in printed


def test_without_matplotlib(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastrcnn.training.curves.find_spec", lambda _: None)
    train(tiny_config(pictures, tmp_path))
    assert capsys.readouterr().out.count("no curves.png: matplotlib is not installed") == 1
    assert not (tmp_path / "curves.png").exists()


def test_evaluates_every_so_many_epochs_and_the_last(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = {1: 0.3, 2: 0.5, 3: 0.4}
    results = iter(evaluated.values())
    monkeypatch.setattr(
        validation, "evaluate", lambda *_: SimpleNamespace(metrics={"AP": next(results), "AP50": 0.5}, detections={})
    )
    for module in (loop, validation):
        monkeypatch.setattr(module, "metrics_table", str)
    settings = ["schedule.epochs=5", "train.eval_every=2", "train.keep_checkpoints=2", "train.predictions=0"]
    train(tiny_config(pictures, tmp_path, *settings))
    history = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["epoch"] for entry in history] == [2, 4, 5]
    assert torch.load(tmp_path / "best.pth", weights_only=True)["epoch"] == 4  # of the highest AP
    assert sorted(path.name for path in tmp_path.glob("epoch_*")) == ["epoch_4.pth", "epoch_5.pth"]


def test_same_seed_same_weights_whatever_the_workers(
    pictures: Path, finished: tuple[Path, dict], tmp_path: Path
) -> None:
    train(tiny_config(pictures, tmp_path / "a", "train.workers=2"))
    train(tiny_config(pictures, tmp_path / "b", "schedule.epochs=1", "train.seed=1"))
    weights = [
        torch.load(path, weights_only=True)["model"]
        for path in (finished[0] / "last.pth", tmp_path / "a" / "last.pth", tmp_path / "b" / "last.pth")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["box_head.fc1.weight"], weights[2]["box_head.fc1.weight"])


def test_batch_of_images_without_objects(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader drops such images, but a crop or another loader may give them: the step must not fail."""

    def without_objects(*arguments: object, **options: object) -> list:
        batches = list(original(*arguments, **options))
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return [replace(batch, targets=[empty] * len(batch.images)) for batch in batches]

    original = loop.train_loader
    monkeypatch.setattr(loop, "train_loader", without_objects)
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    row = rows_of(tmp_path)[-1]
    assert float(row["loss_rpn_bbox"]) == float(row["loss_bbox"]) == 0 < float(row["loss"])


def test_images_without_objects_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, without_objects=2)
    train(tiny_config(tmp_path, tmp_path / "run", "schedule.epochs=1"))
    assert "left out: 2 images without objects" in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] == 2


def test_gradient_clipping(pictures: Path, tmp_path: Path) -> None:
    """With the gradient clipped to almost nothing, and no weight decay, the weights stay where they were."""
    settings = ["schedule.epochs=1", "optimizer.clip_norm=1e-9", "optimizer.weight_decay=0"]
    config = tiny_config(pictures, tmp_path, *settings)
    train(config)
    loop.seed_everything(config.train.seed)
    before = build_model(config.model).state_dict()
    after = torch.load(tmp_path / "last.pth", weights_only=True)["model"]
    for name in ("backbone.conv1.weight", "fpn.lateral.0.weight", "box_head.logits.weight"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_stops_before_a_loss_that_is_not_finite_reaches_the_weights(pictures: Path, tmp_path: Path) -> None:
    # The first step is finite, and its weights make the second overflow.
    settings = ["optimizer.lr=1e30", "schedule.warmup_steps=0", "train.checkpoint_minutes=0"]
    with pytest.raises(FloatingPointError) as caught:
        train(tiny_config(pictures, tmp_path, *settings))
    message = str(caught.value)
    for part in ("step 1 (epoch 1)", *LOSSES, "nan", "learning rate 1e+30", "image ids [", "optimizer.lr=1e+29"):
        assert part in message
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert saved["step"] == 1


def test_number_of_classes_must_fit(pictures: Path, tmp_path: Path) -> None:
    config = tiny_config(pictures, tmp_path, "model.box_head.num_classes=80")
    with pytest.raises(ValueError, match=r"num_classes=80.* 2 classes: wide, tall\..*model\.box_head\.num_classes=2"):
        train(config)
    config = tiny_config(pictures, tmp_path, "data.classes=[tall]")
    with pytest.raises(ValueError, match=r"num_classes=2.* has 1 classes: tall"):
        train(config)


# --- initial weights --------------------------------------------------------------------------------------------------


def test_load_from_the_same_classes_loads_everything(
    pictures: Path, finished: tuple[Path, dict], tmp_path: Path
) -> None:
    file = finished[0] / "last.pth"
    config = tiny_config(pictures, tmp_path, f"load_from={file}")
    model = build_model(config.model)
    load_initial_weights(model, config, ["wide", "tall"])
    saved = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_load_from_other_classes(
    pictures: Path, finished: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = finished[0] / "last.pth"
    saved = torch.load(file, weights_only=True)["model"]
    config = tiny_config(pictures, tmp_path, f"load_from={file}", "model.box_head.num_classes=3")
    model = build_model(config.model)
    head = model.box_head.logits.weight.clone()
    load_initial_weights(model, config, ["wide", "tall", "round"])
    assert torch.equal(model.box_head.logits.weight, head)
    assert torch.equal(model.box_head.fc1.weight, saved["box_head.fc1.weight"])
    assert torch.equal(model.backbone.layer4[0].bn2.running_var, saved["backbone.layer4.0.bn2.running_var"])
    assert "mismatched" in capsys.readouterr().out

    model = build_model(tiny_config(pictures, tmp_path).model)
    load_initial_weights(model, config, ["red", "green"])
    assert torch.equal(model.box_head.logits.weight, saved["box_head.logits.weight"])
    assert "its classes were ['wide', 'tall']" in capsys.readouterr().out


def test_pretrained_backbone(pictures: Path, tmp_path: Path) -> None:
    config = tiny_config(pictures, tmp_path, f"model.backbone.pretrained={tmp_path / 'resnet18.pth'}")
    with pytest.raises(FileNotFoundError, match=r"resnet18\.pth"):
        load_initial_weights(build_model(config.model), config, [])
    other = build_model(config.model).backbone.state_dict()
    torch.save({**other, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet18.pth")
    model = build_model(config.model)
    load_initial_weights(model, config, [])
    assert all(torch.equal(value, other[name]) for name, value in model.backbone.state_dict().items())


def test_weights_that_cannot_be_downloaded(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    config = tiny_config(pictures, tmp_path, "model.backbone.pretrained=http://127.0.0.1:9/resnet18-f37072fd.pth")
    with pytest.raises(ConnectionError) as caught:
        load_initial_weights(build_model(config.model), config, [])
    message = str(caught.value)
    assert message.startswith("model.backbone.pretrained: ")
    assert str(tmp_path / "checkpoints" / "resnet18-f37072fd.pth") in message

"""`fastrcnn eval`: its files, read back by other programs; several checkpoints in a table."""

import contextlib
import csv
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_evaluation import dataset, found, image, imperfect
from tiny_training import small_resnet, tiny_config, write_pictures

from fastrcnn.cli import main
from fastrcnn.config import to_yaml
from fastrcnn.data.coco import read_coco
from fastrcnn.evaluate_checkpoints import find_checkpoints
from fastrcnn.evaluation.coco import RECALLS, evaluate_coco
from fastrcnn.evaluation.precision_recall import draw_precision_recall, write_precision_recall
from fastrcnn.models import build_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a config and of two checkpoints: "sees" finds "tall" everywhere, "blind" nothing."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pictures").mkdir()
    write_pictures(folder / "pictures")
    config = tiny_config(folder / "pictures", folder)
    config.model.rpn.test_proposals.post_nms = 200
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "checkpoints").mkdir()
    with small_resnet():
        torch.manual_seed(0)
        model = build_model(config.model)
        for name, bias in (("sees", 4), ("blind", -30)):
            with torch.no_grad():
                model.box_head.logits.bias[:2] = torch.tensor([-30.0, bias])
            content = {"model": model.state_dict(), "classes": ["wide", "tall"]}
            torch.save(content, folder / "checkpoints" / f"{name}.pth")
        yield folder


def evaluate(run: Path, out: Path, *arguments: str) -> int:
    return main(["eval", str(run / "config.yaml"), *arguments, f"output_dir={out}"])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_detections_are_read_back_by_pycocotools_with_the_same_ap(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, tmp_path, "--checkpoint", str(run / "checkpoints/sees.pth")) == 0
    metrics = json.loads((tmp_path / "eval_results.json").read_text())["metrics"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(run / "pictures/boxes.json"))
        evaluator = COCOeval(truth, truth.loadRes(str(tmp_path / "detections.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert metrics["AP50"] > 0
    assert [metrics["AP"], metrics["AP50"], metrics["AR100"]] == pytest.approx(evaluator.stats[[0, 1, 8]].tolist())

    printed = capsys.readouterr().out
    assert "6 images in " in printed and "metrics in " in printed and "images/s" in printed
    confusion = rows_of(tmp_path / "confusion.csv")
    objects = sum(int(row[column]) for row in confusion[:2] for column in ("wide", "tall", "background"))
    assert f"Of {objects} objects, at IoU 0.5 and score 0.3" in printed and objects == len(truth.anns)
    assert {row["class"] for row in rows_of(tmp_path / "precision_recall.csv")} == {"wide", "tall"}


def test_several_checkpoints_in_a_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The overrides that follow --checkpoint are not taken for checkpoints."""
    blind, sees = (str(run / f"checkpoints/{name}.pth") for name in ("blind", "sees"))
    assert evaluate(run, tmp_path, "--checkpoint", blind, sees, "data.test.scale=[120,90]") == 0
    rows = rows_of(tmp_path / "checkpoints.csv")
    assert [(row["checkpoint"], row["best"]) for row in rows] == [(blind, "0"), (sees, "1")]
    assert float(rows[0]["AP"]) == 0 < float(rows[1]["AP"])
    for row, name in zip(rows, ("blind", "sees"), strict=True):
        content = json.loads((tmp_path / name / "eval_results.json").read_text())
        assert content["checkpoint"] == row["checkpoint"]
        assert content["metrics"]["AP50"] == pytest.approx(float(row["AP50"]), rel=1e-4)
    assert json.loads((tmp_path / "blind" / "detections.json").read_text()) == []
    table = capsys.readouterr().out
    assert f"* the best: {sees}" in table and f"\n* {sees}" in table and f"\n  {blind}" in table


def test_a_folder_of_checkpoints_and_proposals(run: Path, tmp_path: Path) -> None:
    assert evaluate(run, tmp_path, "--proposals", "--checkpoint", str(run / "checkpoints")) == 0
    rows = rows_of(tmp_path / "checkpoints.csv")
    assert [Path(row["checkpoint"]).name for row in rows] == ["blind.pth", "sees.pth"]
    assert float(rows[0]["AR@1000"]) == float(rows[1]["AR@1000"]) > 0  # they differ in the box head alone
    assert [row["best"] for row in rows] == ["1", "0"]  # the first of equals
    assert (tmp_path / "sees" / "proposal_recall.json").is_file()


def test_a_folder_gives_its_files_once_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("epoch_10.pth", "epoch_9.pth", "notes.txt", ".last.1.tmp.pth"):
        (tmp_path / name).write_text(name)
    os.link(tmp_path / "epoch_10.pth", tmp_path / "last.pth")
    found = [Path(path).name for path in find_checkpoints([str(tmp_path)])]
    assert found == ["epoch_9.pth", "epoch_10.pth"]
    other = str(tmp_path / "epoch_9.pth")
    assert find_checkpoints([other, str(tmp_path), "a_config"])[0::2] == [other, "a_config"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no checkpoints \(\*\.pth\)"):
        find_checkpoints([str(tmp_path / "empty")])


def test_a_broken_checkpoint_leaves_the_table_of_those_before_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pth").write_text("no checkpoint")
    assert evaluate(run, tmp_path, "--checkpoint", str(run / "checkpoints/sees.pth"), str(tmp_path / "broken.pth")) == 2
    assert "broken.pth" in capsys.readouterr().err
    assert [Path(row["checkpoint"]).name for row in rows_of(tmp_path / "checkpoints.csv")] == ["sees.pth"]


# --- precision-recall curves ------------------------------------------------------------------------------------------


def test_a_curve_by_hand(tmp_path: Path) -> None:
    """Of two cats one is found, after a false one: precision 1/2 up to recall 1/2. There is no dog."""
    a, b, far = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [90.0, 90, 99, 99]
    result = evaluate_coco(dataset(image(1, [(a, 0), (b, 0)])), {1: found((far, 0.9, 0), (a, 0.75, 0))})
    write_precision_recall(tmp_path / "curves.csv", result)
    rows = [row for row in rows_of(tmp_path / "curves.csv") if row["iou"] == "0.50"]
    assert [float(row["recall"]) for row in rows] == RECALLS and {row["class"] for row in rows} == {"cat"}
    assert [float(row["precision"]) for row in rows] == [0.5] * 51 + [0.0] * 50
    assert [row["score"] for row in rows] == ["0.9000"] + ["0.7500"] * 50 + [""] * 50


def test_curves_are_in_label_order_and_their_mean_is_the_ap(shared: Path, tmp_path: Path) -> None:
    data = read_coco(shared / "data/bccd/val.json", shared / "data/bccd/JPEGImages", ["Platelets", "RBC", "WBC"])
    assert data.category_ids != sorted(data.category_ids)
    result = evaluate_coco(data, imperfect(data))
    write_precision_recall(tmp_path / "curves.csv", result)
    rows = rows_of(tmp_path / "curves.csv")
    assert len(set(result.per_class.values())) == 3
    for name, ap in result.per_class.items():
        assert np.mean([float(row["precision"]) for row in rows if row["class"] == name]) == pytest.approx(ap, abs=1e-4)


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    box = [0.0, 0, 10, 10]
    result = evaluate_coco(dataset(image(1, [(box, 0)])), {1: found((box, 0.9, 0))})
    draw_precision_recall(tmp_path / "good.png", result)
    draw_precision_recall(tmp_path / "nothing.png", evaluate_coco(dataset(image(1, [])), {}))
    good, nothing = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("good", "nothing"))
    assert good.shape == nothing.shape and good.shape[1] > 1000
    assert (good != nothing).any()


def test_the_mean_is_of_the_classes_that_have_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed").Figure
    drawn = []
    original = figure.savefig
    monkeypatch.setattr(
        figure, "savefig", lambda self, *args, **more: drawn.append(self) or original(self, *args, **more)
    )
    box = [0.0, 0, 10, 10]
    for count in (2, 20, 21):
        data = dataset(image(1, [(box, 0)]), classes=tuple(f"c{i}" for i in range(count)))
        draw_precision_recall(tmp_path / "curves.png", evaluate_coco(data, {1: found((box, 0.9, 0))}))
    two, _, many = (figure.axes[0].get_lines() for figure in drawn)
    assert [line.get_label() for line in two] == ["c0 1.00", "mean 1.00"]
    for line in two:
        assert line.get_ydata().tolist() == pytest.approx([1.0] * 101)
    assert [text.get_text() for text in drawn[2].axes[0].get_legend().get_texts()] == ["mean 1.00"]  # too many to name
    assert len(many) == 2

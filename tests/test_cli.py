"""The command line, from arguments to files, exit status and what is printed."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_training import tiny_config, write_pictures

from fastrcnn.cli import main
from fastrcnn.config import to_yaml
from fastrcnn.models import build_model

COMMANDS = ("detect", "train", "eval", "data", "benchmark", "convert", "zoo", "info")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_pictures(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, pictures: Path) -> tuple[str, str]:
    """The paths of a config and of a checkpoint. Its weights are random, but it is sure to see "tall" everywhere."""
    config = tiny_config(pictures, tmp_path / "run")
    file = tmp_path / "run" / "sure.yaml"
    file.write_text(to_yaml(config))
    torch.manual_seed(0)
    model = build_model(config.model)
    with torch.no_grad():
        model.box_head.logits.bias[1] += 4
    torch.save({"model": model.state_dict(), "classes": ["wide", "tall"]}, tmp_path / "run" / "sure.pth")
    return str(file), str(tmp_path / "run" / "sure.pth")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail as a user's error does: status 2 and one line; returns the line."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.startswith("fastrcnn: error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


# --- help and errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"  fastrcnn {command}")


def test_python_m_fastrcnn_lists_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "fastrcnn", "--help"], capture_output=True, text=True, check=True)
    assert all(re.search(rf"^    {command}\s", done.stdout, re.MULTILINE) for command in COMMANDS)
    assert done.stdout.splitlines()[-1].startswith("  fastrcnn detect")


def test_importing_fastrcnn_leaves_evaluation_and_plotting_alone() -> None:
    program = "import sys, fastrcnn; print({'pycocotools', 'matplotlib', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_errors_of_usage_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: COMMAND" in error_of(capsys)
    assert "invalid choice: 'detct'" in error_of(capsys, "detct")
    assert "IMAGES" in error_of(capsys, "detect", "some_config")
    assert "unrecognized arguments: --chekpoint" in error_of(capsys, "eval", "some_config", "--chekpoint", "x.pth")
    assert "unrecognized arguments: a=b" in error_of(capsys, "info", "a=b")


def test_errors_of_settings_and_files_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config, photo = "faster_rcnn_r50_fpn_1x_coco", str(tmp_path / "photo.jpg")
    assert "Near: faster_rcnn_r50_fpn_1x_coco" in error_of(capsys, "train", "faster_rcnn_r50_fpn_1x")
    assert "Nearest valid key: optimizer.lr" in error_of(capsys, "train", config, "optimizer.lrate=1")
    assert "nowhere.pth" in error_of(capsys, "detect", config, photo, "--checkpoint", str(tmp_path / "nowhere.pth"))
    assert "has no images" in error_of(capsys, "detect", config, str(tmp_path))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    assert "broken.pth" in error_of(capsys, "eval", config, "--checkpoint", str(tmp_path / "broken.pth"))


def test_errors_of_the_program_itself_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastrcnn.info

    monkeypatch.setattr(fastrcnn.info, "report", lambda: {}["a bug"])
    with pytest.raises(KeyError):
        main(["info"])


# --- detect -----------------------------------------------------------------------------------------------------------


def test_detect_writes_pictures_and_coco_results(
    run: tuple[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = run
    out = tmp_path / "deep" / "found"
    assert main(["detect", config, str(pictures), "--checkpoint", checkpoint, "--out", str(out)]) == 0
    assert "pictures of 6 of 6 images" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i}.jpg" for i in range(1, 7)), "results.json"]
    results = json.loads((out / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == set(range(1, 7))  # from the file names
    for entry in results:
        assert entry["file_name"] == f"{entry['image_id']}.png"
        assert entry["category"] == ["wide", "tall"][entry["category_id"] - 1]
        x, y, width, height = entry["bbox"]
        assert 0 <= x <= x + width <= 128.01 and 0 <= y <= y + height <= 128.01 and 0.05 < entry["score"] <= 1
    original, drawn = cv2.imread(str(pictures / "5.png")), cv2.imread(str(out / "5.jpg"))
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 150  # more than what JPEG changes


def test_detect_goes_on_after_broken_images_and_reports_them(
    run: tuple[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = run
    (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:-30])
    out = tmp_path / "found"
    images = [str(pictures / "2.png"), str(tmp_path / "missing.jpg"), str(pictures / "3.png"), "no/match/*.png"]
    assert main(["detect", config, *images, "--checkpoint", checkpoint, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "pictures of 1 of 4 images" in printed.out
    errors = printed.err.splitlines()
    assert len(errors) == 3 and all(line.startswith("fastrcnn: error: ") for line in errors)
    assert "2.png is truncated" in errors[0] and "missing.jpg" in errors[1] and "no/match/*.png" in errors[2]
    assert [path.name for path in out.glob("*.jpg")] == ["3.jpg"]
    assert {entry["file_name"] for entry in json.loads((out / "results.json").read_text())} == {"3.png"}


def test_detect_takes_files_folders_and_patterns_once_each(
    run: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    config, checkpoint = run
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("not an image")
    for name in ("1.png", "b.JPG"):
        cv2.imwrite(str(other / name), cv2.imread(str(pictures / "1.png")))
    out = tmp_path / "found"
    images = [str(pictures / "4.png"), str(pictures / "[14].png"), str(other)]
    assert main(["detect", config, "--checkpoint", checkpoint, "--out", str(out), *images]) == 0
    assert sorted(path.name for path in out.glob("*.jpg")) == ["1.jpg", "1_2.jpg", "4.jpg", "b.jpg"]
    ids = {entry["image_id"]: entry["file_name"] for entry in json.loads((out / "results.json").read_text())}
    assert ids == {1: "4.png", 2: "1.png", 3: "1.png", 4: "b.JPG"}  # not all names are numbers: counted


def test_detect_never_writes_among_its_images(
    run: tuple[str, str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pictures.iterdir())
    config, checkpoint = run
    arguments = ("detect", config, str(pictures), "--checkpoint", checkpoint, "--out", str(pictures))
    assert "is the folder of the images" in error_of(capsys, *arguments)
    assert sorted(pictures.iterdir()) == before


def test_detect_with_coco_classes_uses_coco_ids(run: tuple[str, str], pictures: Path, tmp_path: Path) -> None:
    config = tiny_config(pictures, tmp_path / "coco", "model.box_head.num_classes=80", "model.box_head.channels=8")
    (tmp_path / "coco.yaml").write_text(to_yaml(config))
    model = build_model(config.model)
    with torch.no_grad():
        model.box_head.logits.bias[79] += 9
    torch.save(model.state_dict(), tmp_path / "coco.pth")
    out = tmp_path / "found"
    arguments = [str(tmp_path / "coco.yaml"), str(pictures / "4.png"), "--checkpoint", str(tmp_path / "coco.pth")]
    assert main(["detect", *arguments, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {(entry["category"], entry["category_id"]) for entry in results} == {("toothbrush", 90)}
    assert {entry["image_id"] for entry in results} == {4}  # COCO's files are named by their ids


# --- train, eval ------------------------------------------------------------------------------------------------------


def test_train_eval_and_detect_follow_each_other(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_config(pictures, tmp_path / "run")
    config, out = str(tmp_path / "run" / "tiny.yaml"), tmp_path / "run" / "out"
    assert main(["train", config, "schedule.epochs=1", f"output_dir={out}"]) == 0
    history = json.loads((out / "metrics.json").read_text())
    capsys.readouterr()

    best = str(out / "best.pth")
    assert main(["eval", config, "--checkpoint", best, f"output_dir={out}"]) == 0
    printed = capsys.readouterr().out
    assert "AP50" in printed and "wide" in printed and "images/s" in printed
    results = json.loads((out / "eval_results.json").read_text())
    assert results["checkpoint"] == best
    assert results["metrics"]["AP"] == pytest.approx(history[-1]["AP"])
    assert set(results["metrics"]["per_class"]) == {"wide", "tall"}

    settings = ("pre_nms=9999", "post_nms=900", "iou_threshold=0.95")
    every = [f"model.rpn.test_proposals.{setting}" for setting in settings]
    assert main(["eval", config, "--proposals", "--checkpoint", best, f"output_dir={out}", *every]) == 0
    printed = capsys.readouterr().out
    recall = json.loads((out / "proposal_recall.json").read_text())["metrics"]
    assert f"AR@100 {recall['AR@100']:.3f}" in printed and "AP50" not in printed
    assert 0 <= recall["AR@100"] <= recall["AR@300"] <= recall["AR@1000"] <= 1
    assert recall["AR@1000"] > 0.1  # so many boxes of about the objects' size must hit some

    assert "--resume" in error_of(capsys, "train", config, f"output_dir={out}")  # the folder holds a run
    assert main(["detect", config, str(pictures / "1.png"), "--checkpoint", best, "--out", str(tmp_path / "d")]) == 0


def test_train_passes_on_its_options(run: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    training = importlib.import_module("fastrcnn.training.train")
    monkeypatch.setattr(training, "train", lambda config, resume: calls.append((config.optimizer.lr, resume)))
    for arguments in ([], ["--resume", "optimizer.lr=0.5"], ["optimizer.lr=0.25", "--resume"]):
        assert main(["train", run[0], *arguments]) == 0
    assert calls == [(0.02, False), (0.5, True), (0.25, True)]


def test_eval_keeps_the_checkpoints_order_of_classes(
    run: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's category 1 is "wide"; it must be label 1 for a checkpoint that lists "tall" first."""
    config, checkpoint = run
    measured = []
    evaluation = importlib.import_module("fastrcnn.evaluate_checkpoints")
    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: measured.append(args[1]) or real(*args))
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"classes": ["tall", "wide"]}, checkpoint)
    assert main(["eval", config, f"output_dir={tmp_path}", "--checkpoint", checkpoint]) == 0
    assert (measured[0].classes, measured[0].category_ids) == (["tall", "wide"], [2, 1])


def test_eval_errors_name_the_data(
    run: tuple[str, str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = run
    arguments = ("eval", config, "--checkpoint", checkpoint, f"output_dir={tmp_path}")
    assert "nowhere.json" in error_of(capsys, *arguments, "data.val.annotations=nowhere.json")
    (pictures / "4.png").write_bytes(b"")
    assert "4.png" in error_of(capsys, *arguments)
    assert not (tmp_path / "eval_results.json").exists()
    unnamed = tmp_path / "unnamed.pth"
    wrong = torch.load(checkpoint, weights_only=True)
    torch.save(wrong["model"], unnamed)
    boxes = json.loads((pictures / "boxes.json").read_text())
    boxes["categories"].append({"id": 3, "name": "round"})
    (pictures / "boxes.json").write_text(json.dumps(boxes))
    arguments = ("eval", config, "--checkpoint", str(unnamed), f"output_dir={tmp_path}")
    assert "model has 2 classes" in error_of(capsys, *arguments)


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_reports_versions_build_devices_and_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for part in (f"torch: {torch.__version__}", "compiler ", "abi_target 2.", "cpu: ", "simd "):
        assert part in printed
    assert "\n  faster_rcnn_r50_fpn_1x_coco\n" in printed + "\n"

"""The scripts of benchmarks/: what their figures mean, and that one side's failure does not stop the others."""

import json
import os
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torchvision")
    if not (BENCHMARKS / "ops.py").is_file():
        pytest.skip("needs the source tree")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ops as script

    return script


def test_one_case_is_measured(script, tmp_path: Path):
    """Of 2000 x 100 IoUs the result, 0.76 MB, is all that we need; torchvision needs several times that."""
    command = [sys.executable, BENCHMARKS / "ops.py", "--device", "cpu", "--only", "iou, 2000", "--repeats", "1"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(
        [*command, "--json", tmp_path / "results.json"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| IoU, 2000 x 100 |" in done.stdout
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert result["ratio"] == pytest.approx(result["torchvision"] / result["ours"])
    assert result["gb_per_s"] == pytest.approx((2100 * 16 + 200_000 * 4) / result["ours"] / 1e6)
    if sys.platform == "linux":
        assert 0.6 < result["ours_memory"] < 2.5
        assert result["torchvision_memory"] > 3
    assert result["notes"] == []


def test_a_side_that_cannot_run_is_named_and_the_others_are_measured(script, monkeypatch: pytest.MonkeyPatch):
    import op_cases

    def broken():
        raise RuntimeError("no kernel for this\nand a long trace")

    run = partial(torch.add, torch.zeros(3), 1)
    peers = {"NCHW": lambda: broken, "channels-last": lambda: run}
    sides = op_cases.Sides(lambda: run, peers, broken, moved=24)
    monkeypatch.setattr(script, "peak_memory", lambda *_: 1.0)
    result = script.measure(op_cases.Case("sum", lambda _: sides, goal=1e9), CPU, repeats=1)
    assert result.notes == [
        "torchvision NCHW: cannot run here, no kernel for this",
        "reference: cannot run here, no kernel for this",
    ]
    assert result.torchvision_layout == "channels-last"
    assert result.ratio is not None
    assert "| 1e+09x: **not met** |" in script.row(result)
    result.goal = result.ratio
    assert script.row(result).endswith("x: met |")


def test_every_case_is_named_once_and_has_inputs_of_the_size_it_says(script):
    from op_cases import cases, grid_anchors

    names = [case.name for case in cases(CPU)]
    assert len(set(names)) == len(names)
    assert sum(len(level) for level in grid_anchors(CPU)) == 268_569


def test_a_stage_is_timed_without_the_stages_inside_it(script, monkeypatch: pytest.MonkeyPatch):
    from fastrcnn import stages

    clock = count()
    monkeypatch.setattr(stages.time, "perf_counter", lambda: float(next(clock)))  # each reading is a second later
    inner, outer = SimpleNamespace(call=lambda: None), SimpleNamespace(call=lambda: inner.call())
    before = inner.call
    with stages.Stopwatch(CPU) as watch:
        watch.watch(inner, "call", "inner")
        watch.watch(outer, "call", "outer")
        # Readings: rest 0, outer 1, inner 2 to 3, outer to 4, rest to 5.
        assert watch.medians(lambda: outer.call(), 1) == {"inner": 1e3, "outer": 2e3, "the rest": 2e3, "all": 5e3}
    assert inner.call is before


def test_winograd_is_measured_next_to_torch(script):
    command = [sys.executable, BENCHMARKS / "winograd.py", "--only", "stride 64", "--repeats", "1"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "stride 64" in line)
    _, _, shape, ours, theirs, ratio, *_ = (cell.strip() for cell in row.split("|"))
    assert shape == "256, 13 x 21"
    assert float(ratio) == pytest.approx(float(theirs) / float(ours), rel=0.05)


# --- training.py, scaling.py, serving.py, zoo.py ----------------------------------------------------------------------


@pytest.fixture
def tiny_config(script, tmp_path: Path) -> Path:
    """A ResNet-18 of few channels in the other layers. The programs under test start processes of their own."""
    from tiny_training import SETTINGS

    path = tmp_path / "tiny.yaml"
    path.write_text(SETTINGS.replace("norm: train, frozen_stages: -1", "frozen_stages: 1"))
    return path


def run_script(name: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(text: str) -> list[list[str]]:
    """The rows of the Markdown tables, without heads."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[1][:1].isdigit() or row[1] == "-"]


def test_training_measures_both_sides(tiny_config: Path):
    text = run_script("training.py", tiny_config, "--size", 128, 96, "--repeats", 1, "--threads", 1, "--device", "cpu")
    ours, theirs = cells(text)
    assert (ours[0], theirs[0]) == ("fastrcnn", "torchvision")
    for row in (ours, theirs):
        assert float(row[1]) > 0 and float(row[3]) > 0
        if sys.platform == "linux":
            assert 20 < float(row[4]) < 1500
    assert "2 pictures of 128 x 96, 20 objects each" in text and "times as fast" in text


def test_both_sides_train_the_same_layers_and_stay_finite(script, tiny_config: Path):
    from training_step import Work, _ours, _theirs, build_step

    from fastrcnn.config import load_config

    overrides = ["model.backbone.norm=frozen"]
    (_, ours, our_optimizer), (_, theirs, their_optimizer) = (
        build(load_config(tiny_config, overrides), torch.rand(1, 3, 96, 128), [], CPU) for build in (_ours, _theirs)
    )

    def trained(module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    # torchvision's FPN is a part of its backbone
    assert trained(ours.backbone) + trained(ours.fpn) == trained(theirs.backbone)
    for model, optimizer in ((ours, our_optimizer), (theirs, their_optimizer)):
        assert trained(model) == sum(p.numel() for p in optimizer.param_groups[0]["params"])
    for side in ("fastrcnn", "torchvision"):
        step = build_step(side, Work(str(tiny_config), overrides, 1, (128, 96), 3))
        assert all(torch.tensor(list(step().values())).isfinite().all() for _ in range(3))


def test_scaling_has_a_row_per_value_and_says_what_fails(script, tiny_config: Path, monkeypatch: pytest.MonkeyPatch):
    import scaling

    monkeypatch.setitem(scaling.RANGES, "objects", (0, 7))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    base = scaling.Point(str(tiny_config), size=(128, 96), classes=2, threads=1, repeats=1)
    assert scaling.point_of("image size", 100, base).size == (100, 60)
    assert scaling.point_of("classes, training", 5, base).training and scaling.point_of("batch", 3, base).training
    assert not scaling.point_of("proposals", 5, base).training
    none, seven = cells(scaling.table("objects", base))
    assert none[0] == "0" and seven[0] == "7"
    assert all(float(figure) > 0 for figure in none[1:] + seven[1:])
    broken = scaling.Point("no_such_config", size=(128, 96))
    monkeypatch.setitem(scaling.RANGES, "objects", (1,))
    text = scaling.table("objects", broken)
    assert "| 1 | nan |" in text and "- torchvision, objects 1: FileNotFoundError: No config named" in text


def test_serving_gives_every_photo_the_detections_it_has_alone(script, tiny_config: Path, tmp_path: Path):
    import serving
    from tiny_training import small_resnet

    from fastrcnn.benchmark import realistic_detector
    from fastrcnn.config import load_config
    from fastrcnn.data.image import read_image

    photos = serving.draw_photos(tmp_path, 4, 96, 72)
    with small_resnet():
        detector = realistic_detector(load_config(tiny_config), read_image(photos[0]), "cpu")
        expected = [detector.detect(photo) for photo in photos]
        assert sum(map(len, expected)) > 0
        for workers in (0, 2):
            out = tmp_path / str(workers)
            out.mkdir()
            assert serving.serve(detector, photos, out, workers) == sum(map(len, expected))
            for photo, found in zip(photos, expected, strict=True):
                scores = [entry["score"] for entry in json.loads((out / f"{photo.stem}.json").read_text())]
                assert scores == found.scores.tolist()
                assert read_image(out / f"{photo.stem}.jpg").shape == (72, 96, 3)


def test_ahead_keeps_the_order_and_begins_no_more_than_asked(script):
    import serving

    begun = []
    results = serving.ahead(serving.Inline(), lambda item: begun.append(item) or 2 * item, range(6), 3)
    assert next(results) == 0 and begun == [0, 1, 2]
    assert list(results) == [2, 4, 6, 8, 10] and begun == list(range(6))
    with pytest.raises(ZeroDivisionError):
        list(serving.ahead(serving.Inline(), lambda item: 1 / item, [1, 0], 1))


def test_serving_prints_a_row_per_number_of_workers(tiny_config: Path):
    text = run_script("serving.py", tiny_config, "--number", 3, "--workers", 0, 2, "--threads", 1, "--device", "cpu")
    assert [row[0] for row in cells(text)] == ["0", "2"]
    assert len({row[3] for row in cells(text)}) == 1


def test_zoo_measures_a_row_and_does_not_repeat_it(script, tmp_path: Path):
    results = tmp_path / "zoo.json"
    name = "faster_rcnn_r50_fpn_giou_1x_coco"
    options = ("--quick", "--only", name, "--json", results, "--device", "cpu", "--threads", 1)
    (row,) = cells(run_script("zoo.py", *options))
    assert row[0] == name and float(row[1]) == 37.6
    (kept,) = json.loads(results.read_text()).values()
    assert set(kept["fps"]) == {"float32", "bfloat16"} and min(kept["fps"].values()) > 0 and kept["failed"] == {}
    if sys.platform == "linux":
        assert kept["memory"] > 300
    kept["fps"]["float32"] = 12345.6
    results.write_text(json.dumps({name: kept}))
    assert "| 12345.6 |" in run_script("zoo.py", *options)


def test_a_row_of_the_zoo_that_fails_says_why_and_leaves_the_others(script, monkeypatch: pytest.MonkeyPatch):
    import zoo

    assert len(zoo.rows()) == 27 and "faster_rcnn_x101_64x4d_fpn_1x_coco" in zoo.rows()
    monkeypatch.setattr(zoo, "fps", lambda *_: 1 / 0)
    monkeypatch.setattr(zoo, "training_memory", lambda *_: 512.0)
    row = zoo.measure_row("faster_rcnn_r50_fpn_1x_coco", (64, 64), 1, "cpu", 1)
    assert row["failed"]["float32"] == "ZeroDivisionError: division by zero" and row["memory"] == 512
    killed = zoo.measure_in_process("no_such_row", ["--quick", "--device", "cpu"])
    assert "No config named 'no_such_row'" in killed["failed"]["row"]
    text = zoo.table({"faster_rcnn_r50_fpn_1x_coco": row, "faster_rcnn_r101_fpn_1x_coco": killed})
    assert "| faster_rcnn_r50_fpn_1x_coco | 37.4 | 4.0 | 0.5 | 21.4 | - | - |" in text
    assert "- faster_rcnn_r101_fpn_1x_coco, row: exit status 1:" in text

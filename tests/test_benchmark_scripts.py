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
    lines = scaling.table("objects", base)
    assert next(lines).startswith("| objects | fastrcnn ms | torchvision ms | ratio | fastrcnn MB |")
    none, seven = cells("\n".join(lines))
    assert none[0] == "0" and seven[0] == "7"
    assert all(float(figure) > 0 for figure in none[1:] + seven[1:])
    broken = scaling.Point("no_such_config", size=(128, 96))
    monkeypatch.setitem(scaling.RANGES, "objects", (1,))
    text = "\n".join(scaling.table("objects", broken))
    assert "| 1 | nan |" in text and "- torchvision, objects 1: FileNotFoundError: No config named" in text


def test_scaling_covers_what_it_says_and_chooses_axes(script, monkeypatch: pytest.MonkeyPatch, capsys):
    import scaling

    ends = {axis: (min(values), max(values)) for axis, values in scaling.RANGES.items()}
    classes = {"classes, detection": (1, 1200), "classes, training": (1, 1200)}
    assert (
        ends == {"image size": (320, 2000), "proposals": (100, 2000), "objects": (0, 1000), "batch": (1, 8)} | classes
    )
    asked = []
    monkeypatch.setattr(scaling, "measure_in_process", lambda side, point: asked.append(point) or (2.0, 4.0))
    monkeypatch.setattr(sys, "argv", ["scaling.py", "any", "--only", "classes", "batch", "--device", "cpu"])
    scaling.main()
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "20", "80", "300", "1200"] * 2 + ["1", "2", "4", "8"]
    assert rows[0][1:] == ["2", "2", "1.00", "4", "4", "1.00"]
    assert (asked[8].classes, asked[8].training, asked[-1].batch, asked[-1].training) == (1200, False, 8, True)
    monkeypatch.setattr(sys, "argv", ["scaling.py", "any", "--only", "colours"])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "expected parts of 'image size', 'proposals'" in capsys.readouterr().err


def test_resizing_shows_no_difference(tiny_config: Path):
    text = run_script("resizing.py", tiny_config, "--sizes", "64x48", "300x200", "--repeats", 1, "--device", "cpu")
    small, large = cells(text.replace("| 64 x 48", "| 64").replace("| 300 x 200", "| 300"))
    for row in (small, large):
        assert float(row[1]) > 0 and float(row[2]) > 0 and row[4] == "0"


def test_inference_has_a_row_per_way(script, tiny_config: Path, monkeypatch: pytest.MonkeyPatch):
    """The compiled detector is the eager one here: compiling takes a minute, and has tests of its own."""
    import inference
    from tiny_training import small_resnet

    from fastrcnn import benchmark as measuring
    from fastrcnn.data.image import read_image
    from fastrcnn.detector import Detector

    monkeypatch.setattr(Detector, "compiled", lambda detector: detector)
    monkeypatch.setattr(measuring, "peak_memory", lambda *_: 12.0)
    ways = [measuring.OPTIMIZED, measuring.BFLOAT16, measuring.COMPILED]
    with small_resnet():
        config = measuring.load_config(tiny_config)
        table = measuring.benchmark(tiny_config, inference.PHOTO, "cpu", 1, (measuring.OURS, *ways))
        detector = measuring.realistic_detector(config, read_image(inference.PHOTO), "cpu")
        moved = cells(inference.differences(detector, inference.PHOTO, ways))
        with pytest.raises(ValueError, match="needs a detector on a CUDA device"):
            measuring.make_subject(measuring.CAPTURED, config, read_image(inference.PHOTO), "cpu")
    assert [row[0] for row in cells(table)] == [measuring.OURS, *ways]
    assert [row[0] for row in moved] == ways
    assert moved[2][2:] == ["0", "0", "0", "0", "0"]  # the same detector: none alone, none moved


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
    kinds = zoo.fps_kinds("cpu")
    assert zoo.line("faster_rcnn_r50_fpn_1x_coco", row, kinds).endswith("| 37.4 | 4.0 | 0.5 | 21.4 | - | - |")
    assert zoo.line("faster_rcnn_r101_fpn_1x_coco", killed, kinds).endswith("| 39.4 | 6.0 | - | 15.6 | - | - |")
    text = zoo.failures({"faster_rcnn_r50_fpn_1x_coco": row, "faster_rcnn_r101_fpn_1x_coco": killed})
    assert "- faster_rcnn_r101_fpn_1x_coco, row: exit status 1:" in text
    assert zoo.fps_kinds("cuda")[:3] == ["float32", "float32 graph", "float16"] and len(zoo.fps_kinds("cuda")) == 6


def test_rows_of_the_zoo_are_printed_as_they_are_measured(script, tmp_path: Path, monkeypatch, capsys):
    import zoo

    printed = []

    def measure(name: str, options: list[str]) -> dict:
        printed.append(capsys.readouterr().out)
        return {"fps": {"float32": 2.0}, "memory": 1024.0, "failed": {"bfloat16": "why"}}

    monkeypatch.setattr(zoo, "measure_in_process", measure)
    monkeypatch.setattr(
        sys, "argv", ["zoo.py", "--only", "caffe_dc5", "--device", "cpu", "--json", f"{tmp_path}/zoo.json"]
    )
    zoo.main()
    assert len(printed) == 3
    assert "| config | box AP |" in printed[0] and "| 1.0 | - | 2.0 | - |" in printed[1]
    assert capsys.readouterr().out.count(", bfloat16: why") == 3


# --- gpu.sh -----------------------------------------------------------------------------------------------------------

PRETENDED = """#!/usr/bin/env bash
# In the place of python3: a GPU that is not there, and programs that print two lines.
case "$*" in
  *get_device_name*) echo "A GPU" ;;
  *get_device_capability*) echo 9.0 ;;
  *benchmarks/ops.py*) printf '| op |\n|---|\n| half a table |\n'; echo "out of memory" >&2; exit 3 ;;
  *tests/test_capture.py) echo "1 failed, 8 passed in 2s"; exit 1 ;;
  *pytest*) echo "9 passed in 1s" ;;
  *benchmarks/resizing.py*) echo "| resized |"; $RESIZING ;;
  *benchmarks/*) echo "| row of $1 |" ;;
esac
"""
# The parent of `timeout`, which is the parent of the program.
KILL_THE_SCRIPT = "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)"


def run_gpu_script(folder: Path, resizing: str = "true", **environment: str) -> tuple[int, str, str]:
    """(exit status, what it printed, results.md) of gpu.sh, with programs that only pretend."""
    if not (BENCHMARKS / "gpu.sh").is_file() or sys.platform != "linux":
        pytest.skip("needs the source tree, and Linux")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python3").write_text(PRETENDED.replace("$RESIZING", resizing))
    (programs / "compute-sanitizer").write_text("#!/bin/sh\necho '========= ERROR SUMMARY: 0 errors'\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    paths = {"PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["bash", str(BENCHMARKS / "gpu.sh"), str(folder / "out")]
    done = subprocess.run(command, env=os.environ | paths | environment, capture_output=True, text=True)
    return done.returncode, done.stdout, (folder / "out" / "results.md").read_text()


def test_a_failed_step_on_the_gpu_is_noted_and_the_others_run(tmp_path: Path):
    status, printed, results = run_gpu_script(tmp_path)
    assert status == 1 and printed.rstrip().endswith("failed: capture ops")
    assert results.startswith("# A GPU, 2") and "- tests: 9 passed in 1s" in results
    assert "- capture: 1 failed, 8 passed in 2s" in results and "capture FAILED (exit status 1)" in results
    steps = ["ops", "stages", "detection", "resizing", "training", "serving", "zoo", "scaling"]
    assert [line[3:] for line in results.splitlines() if line.startswith("## ")] == steps
    ops = results.split("## ops")[1].split("## stages")[0]
    assert "| half a table |" in ops and "ops FAILED (exit status 3)" in ops and "out of memory" in ops
    assert results.count("FAILED") == 2 and "| row of benchmarks/scaling.py |" in results
    for tool in ("memcheck", "racecheck"):
        assert f"- {tool}: ========= ERROR SUMMARY: 0 errors" in results


def test_a_run_on_the_gpu_that_is_cut_short_leaves_what_it_had(tmp_path: Path):
    status, _, results = run_gpu_script(tmp_path, resizing=KILL_THE_SCRIPT)
    assert status == -9
    assert "| row of benchmarks/stages.py |" in results and "ops FAILED" in results
    assert results.rstrip().endswith("| resized |") and "## training" not in results


def test_chosen_steps_on_the_gpu_alone(tmp_path: Path):
    status, printed, results = run_gpu_script(tmp_path, ONLY="stages zoo")
    assert status == 0 and printed.rstrip().endswith("failed:")
    assert [line for line in results.splitlines() if line[:2] in ("##", "- ")] == ["## stages", "## zoo"]

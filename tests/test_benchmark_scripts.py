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
    import stages

    clock = count()
    monkeypatch.setattr(stages.time, "perf_counter", lambda: float(next(clock)))  # each reading is a second later
    watch = stages.Stopwatch(CPU)
    inner, outer = SimpleNamespace(call=lambda: None), SimpleNamespace(call=lambda: inner.call())
    watch.watch(inner, "call", "inner")
    watch.watch(outer, "call", "outer")
    # Readings: rest 0, outer 1, inner 2 to 3, outer to 4, rest to 5.
    assert watch.medians(lambda: outer.call(), 1) == {"inner": 1e3, "outer": 2e3, "the rest": 2e3, "all": 5e3}


def test_winograd_is_measured_next_to_torch(script):
    command = [sys.executable, BENCHMARKS / "winograd.py", "--only", "stride 64", "--repeats", "1"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "stride 64" in line)
    _, _, shape, ours, theirs, ratio, *_ = (cell.strip() for cell in row.split("|"))
    assert shape == "256, 13 x 21"
    assert float(ratio) == pytest.approx(float(theirs) / float(ours), rel=0.05)

"""Settings of a training that are out of range: an error that names them, before data, downloads or folders."""

from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest

from fastrcnn.cli import main
from fastrcnn.config import Config, OptimizerConfig, ScheduleConfig, TrainConfig, load_config
from fastrcnn.training.checks import RANGES, check_settings
from fastrcnn.training.train import train

# setting: values that are wrong; values at the limits that are right
NUMBERS = {
    "data.train.flip": (["-0.1", "1.1", ".nan"], ["0", "1"]),
    "data.train.repeat": (["0", "-1"], ["1"]),
    "optimizer.base_batch_size": (["0"], ["1"]),
    "optimizer.clip_norm": (["0", "-1", ".nan", ".inf"], ["1e-9", "null"]),
    "optimizer.lr": (["-0.1", ".nan", ".inf"], ["0"]),
    "optimizer.momentum": (["-0.1", "1", ".nan"], ["0", "0.999"]),
    "optimizer.weight_decay": (["-0.1", ".nan", ".inf"], ["0"]),
    "schedule.epochs": (["0", "-1"], ["1"]),
    "schedule.gamma": (["-0.1", "1.1", ".nan"], ["0", "1"]),
    "schedule.milestones": (["[0]", "[-1,3]", "[8,8]", "[11,8]"], ["[]", "[1]", "[1,2,30]"]),
    "schedule.warmup_ratio": (["-0.1", "1.1", ".nan"], ["0", "1"]),
    "schedule.warmup_steps": (["-1"], ["0"]),
    "train.accumulation": (["0"], ["1"]),
    "train.batch_size": (["0"], ["1"]),
    "train.checkpoint_minutes": (["-1", ".nan", ".inf"], ["0"]),
    "train.ema_decay": (["0", "1", "-0.5", ".nan"], ["0.999", "null"]),
    "train.eval_every": (["0"], ["1"]),
    "train.keep_checkpoints": (["-2"], ["-1", "0"]),
    "train.log_every": (["0"], ["1"]),
    "train.loss_scale": (["0", "-1", ".nan", ".inf"], ["null"]),
    "train.predictions": (["-1"], ["0"]),
    "train.seed": (["-1"], ["0"]),
    "train.workers": (["-1"], ["0"]),
}
CHOICES = {
    "optimizer.kind=adam": r"one of sgd, adamw, got 'adam'",
    "schedule.decay=poly": r"one of steps, cosine, got 'poly'",
    "train.precision=half": r"one of float32, bfloat16, float16, got 'half'",
    "train.loss_scale=512": r"belongs to train\.precision=float16, got 512\.0 with float32",
    "data.test.scale=[0,800]": r"must be \[long side, short side\]",
    "data.train.scales=[[1333,800],[900,600]]": r"must have one",
    "data.cache=decoded": r"needs data\.cache_folder",
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in NUMBERS for value in NUMBERS[name][0]])
def test_numbers_out_of_range(name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data, no file of weights and no folder exist: the setting is looked at before them."""
    monkeypatch.chdir(tmp_path)
    config = load_config("faster_rcnn_r50_fpn_1x_coco", [f"{name}={value}", "load_from=missing.pth"])
    with pytest.raises(ValueError, match=rf"{name} must be .*got "):
        train(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in NUMBERS for value in NUMBERS[name][1]])
def test_numbers_at_the_limits(name: str, value: str) -> None:
    check_settings(load_config("faster_rcnn_r50_fpn_1x_coco", [f"{name}={value}"]), resume=False)


@pytest.mark.parametrize("override", CHOICES)
def test_choices(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = override.split("=")[0]
    with pytest.raises(ValueError, match=rf"{name}.*{CHOICES[override]}"):
        train(load_config("faster_rcnn_r50_fpn_1x_coco", [override]))
    assert not list(tmp_path.iterdir())


def test_no_number_is_forgotten() -> None:
    """A new setting of training that is a number needs a range here and in checks.py."""
    numbers = {
        f"{section}.{field.name}"
        for section, kind in (("optimizer", OptimizerConfig), ("schedule", ScheduleConfig), ("train", TrainConfig))
        for field in fields(kind)
        if field.type in (int, float, "int", "float", "int | None", "float | None", int | None, float | None)
    }
    ranges = [name for _, names in RANGES.values() for name in names]
    assert len(numbers) > 15 and numbers <= set(ranges) and len(ranges) == len(set(ranges))
    assert {*ranges, "schedule.milestones"} == set(NUMBERS)
    for name in ranges:
        attrgetter(name)(Config())


def test_on_the_command_line_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "faster_rcnn_r50_fpn_1x_coco", "optimizer.lr=-1"]) == 2
    assert capsys.readouterr().err == "fastrcnn: error: optimizer.lr must be at least 0, got -1.0\n"

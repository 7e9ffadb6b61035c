"""Checkpoints: a run that was interrupted and resumed ends like an undisturbed one; no file is ever half there."""

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import small_resnet, tiny_config, write_pictures
from torch import nn

from fastrcnn.atomic import atomic_copy, atomic_write
from fastrcnn.config import Config, OptimizerConfig
from fastrcnn.training import train as loop
from fastrcnn.training.checkpoint import (
    KEYS,
    TrainingState,
    changed_settings,
    load_training,
    name_epoch,
    prepare_folder,
    random_state,
    save_training,
    seed_everything,
    set_random_state,
)
from fastrcnn.training.interruption import StopRequest
from fastrcnn.training.schedule import build_optimizer
from fastrcnn.training.train import train

TIMES = ("images_per_second", "data_wait", "memory_mb")  # columns and entries that differ between equal runs


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_resnet():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(pictures, folder))
    return folder


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Runs `action` in the middle of step `step` (from 0) of the loop."""
    original = loop.check_finite

    def check(losses: dict[str, float], current: int, *rest: object) -> None:
        original(losses, current, *rest)
        if current == step:
            action()

    monkeypatch.setattr(loop, "check_finite", check)


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equality to the last bit of nested dicts, lists and tensors."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(folder: Path, expected: Path) -> None:
    """The checkpoints, the rows of the log and the metrics of two runs are equal, times aside."""
    for name in ("last.pth", "best.pth", "epoch_1.pth", "epoch_2.pth"):
        one, two = (torch.load(run / name, weights_only=True) for run in (folder, expected))
        for state in (one, two):
            state["config"]["output_dir"] = ""
            for key in TIMES:
                state["schedule"]["unlogged"].pop(key, None)
        assert_same(one, two, name)
    logs = []
    for run in (folder, expected):
        with open(run / "log.csv", newline="") as file:
            logs.append([{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    histories = [json.loads((run / "metrics.json").read_text()) for run in (folder, expected)]
    for entry in histories[0] + histories[1]:
        del entry["images_per_second"]
    assert histories[0] == histories[1]


# --- interruption and resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 4])  # within an epoch and a row of the log, at the end of one, in the second
def test_a_signal_ends_the_step_and_the_resumed_run_is_the_same(
    step: int,
    pictures: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(pictures, tmp_path)
    number = signal.SIGTERM if step else signal.SIGINT
    before = signal.getsignal(number)  # ignored, where the suite runs in the background
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as caught:
            train(config)
    assert caught.value.code == 128 + number
    assert f"Stopped by {number.name} after step {step + 1}" in capsys.readouterr().out
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert (saved["step"], saved["epoch"], saved["schedule"]["epoch_step"]) == (step + 1, step // 3, step % 3 + 1)
    assert signal.getsignal(number) is before  # ours is gone

    train(config, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_resuming_at_the_end_of_an_epoch(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    train(tiny_config(pictures, tmp_path), resume=True)
    # epoch_1.pth remembers the setting that it was written with
    first = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    first["config"]["schedule"]["epochs"] = 2
    torch.save(first, tmp_path / "epoch_1.pth")
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    best["config"]["schedule"]["epochs"] = 2
    torch.save(best, tmp_path / "best.pth")
    assert_same_run(tmp_path, undisturbed)


def test_rows_and_files_after_the_last_checkpoint_are_redone(
    pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the second epoch, after rows that no checkpoint covers, one of them cut short."""

    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    config = tiny_config(pictures, tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(Crash):
            train(config)
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 3
    with open(tmp_path / "log.csv", "a") as file:
        file.write("6,2,0.0")
    train(config, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_checkpoints_by_the_clock(
    pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise MemoryError

    config = tiny_config(pictures, tmp_path, "train.checkpoint_minutes=0")
    with monkeypatch.context() as patch:
        at_step(patch, 1, crash)
        with pytest.raises(MemoryError):
            train(config)
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 1
    config.train.checkpoint_minutes = 30.0
    train(config, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_evaluation_that_was_stopped_is_made_up_for(
    pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    config = tiny_config(pictures, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_resuming_a_finished_run_returns_its_metrics(pictures: Path, undisturbed: Path) -> None:
    before = (undisturbed / "last.pth").stat().st_mtime_ns
    metrics = train(tiny_config(pictures, undisturbed), resume=True)
    history = json.loads((undisturbed / "metrics.json").read_text())
    assert {"epoch": 2, "step": 6, **metrics} == history[-1] and len(history) == 2
    assert (undisturbed / "last.pth").stat().st_mtime_ns == before


def test_resuming_says_which_settings_changed(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1", "train.log_every=7"), resume=True)
    printed = capsys.readouterr().out
    changes = [line for line in printed.splitlines() if "changed since" in line]
    assert changes == ["  changed since: train.log_every: 2 -> 7"]


def test_resume_without_a_run_starts_one(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"), resume=True)
    assert "starting from the beginning" in capsys.readouterr().out
    assert (tmp_path / "last.pth").is_file()


def test_a_run_is_not_overwritten(pictures: Path, undisturbed: Path) -> None:
    with pytest.raises(FileExistsError) as caught:
        train(tiny_config(pictures, undisturbed))
    for part in (str(undisturbed), "last.pth", "--resume", "output_dir="):
        assert part in str(caught.value)


def test_resuming_with_another_model_or_other_classes(pictures: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match=r"last\.pth does not fit the config \(.*model\.fpn\.channels: 32 -> 16"):
        train(tiny_config(pictures, undisturbed, "model.fpn.channels=16"), resume=True)
    with pytest.raises(ValueError, match=r"classes \['wide', 'tall'\], the data has \['tall', 'wide'\]"):
        train(tiny_config(pictures, undisturbed, "data.classes=[tall,wide]"), resume=True)


# --- the files --------------------------------------------------------------------------------------------------------


def small_state(**position: int) -> TrainingState:
    model = nn.Linear(3, 2)
    return TrainingState(model, build_optimizer(model, OptimizerConfig()), Config(), ["a", "b"], **position)


def test_checkpoint_keys(undisturbed: Path) -> None:
    saved = torch.load(undisturbed / "last.pth", weights_only=True)
    assert tuple(saved) == KEYS
    assert set(saved["random_state"]) >= {"torch", "numpy", "python"}
    assert (saved["step"], saved["epoch"], saved["classes"]) == (6, 2, ["wide", "tall"])
    assert saved["config"]["model"]["backbone"]["depth"] == 18


def test_a_kill_while_writing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_training(path, small_state(step=1))
    before = path.read_bytes()
    killed = (  # at the last moment: everything is written, the rename has not happened
        "import os, sys\nfrom fastrcnn.atomic import atomic_write\nos.replace = lambda *_: os._exit(9)\n"
        "with atomic_write(sys.argv[1]) as temporary: temporary.write_bytes(b'half a checkpoint')"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(path)], timeout=60).returncode == 9
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2  # with the unfinished file
    assert prepare_folder(tmp_path, resume=True)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]  # swept up


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_training(path, small_state(step=1))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, does not kill
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match=r"last\.pth"):
            save_training(path, small_state(step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.txt"
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent and temporary.suffix == ".txt" and not path.exists()
    assert path.read_text() == "whole"


def test_atomic_copy_survives_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("this file system has no hard links")

    for name in ("linked", "copied"):
        (tmp_path / "source").write_text(name)
        atomic_copy(tmp_path / "source", tmp_path / name)
        with atomic_write(tmp_path / "source") as temporary:
            temporary.write_text("newer")
        assert (tmp_path / name).read_text() == name
        monkeypatch.setattr(os, "link", no_links)


def test_epoch_files_are_kept_by_number(tmp_path: Path) -> None:
    (tmp_path / "last.pth").write_text("state")
    for epoch in (8, 9, 10, 11):
        name_epoch(tmp_path, epoch, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth", "epoch_10.pth", "epoch_11.pth"}
    name_epoch(tmp_path, 12, keep=-1)
    assert len(list(tmp_path.glob("epoch_*"))) == 3
    name_epoch(tmp_path, 13, keep=0)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth"}


def test_what_is_no_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    with pytest.raises(FileNotFoundError):
        load_training(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"last\.pth"):
        load_training(path)
    torch.save({"model": {}, "classes": []}, path)
    with pytest.raises(ValueError, match=r"no optimizer, schedule.*load_from"):
        load_training(path)


def test_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        of_numpy, of_python = np.random.randn(), random.gauss(0, 1)
        return torch.rand(()).item(), of_numpy, np.random.rand(), of_python, random.random()

    seed_everything(3, 1)
    draw()  # leaves numpy's and python's second normal numbers in store
    torch.save(random_state(), tmp_path / "state.pth")
    expected = draw()
    seed_everything(3, 2)
    assert draw() != expected
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == expected


def test_changed_settings() -> None:
    config = Config(optimizer=OptimizerConfig(lr=0.01))
    before = {"optimizer": {"lr": 0.02, "momentum": 0.9}}
    changes = changed_settings(before, config)
    assert "optimizer.lr: 0.02 -> 0.01" in changes
    assert not any("momentum" in change for change in changes)


def test_second_interrupt_acts_at_once_and_other_threads_are_left_alone() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    handlers: list[object] = []

    def elsewhere() -> None:
        with StopRequest():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]

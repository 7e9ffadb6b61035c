"""A run that was interrupted and resumed ends like an undisturbed one, bit for bit."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_config
from train_tiny import run as train_tiny

from fastrcnn.atomic import TEMPORARY, atomic_write
from fastrcnn.config import load_config
from fastrcnn.training import train as loop
from fastrcnn.training import validation
from fastrcnn.training.checkpoint import KEYS, load_training
from fastrcnn.training.interruption import StopRequest
from fastrcnn.training.train import train

pytestmark = pytest.mark.usefixtures("small_backbone")

TIMES = ("images_per_second", "data_wait", "memory_mb")  # columns and entries that differ between equal runs


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(pictures, folder))
    return folder


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Runs `action` within step `step` (from 0) of the loop."""
    original = loop.learning_rate

    def rate(current: int, *rest: object) -> float:
        if current == step:
            action()
        return original(current, *rest)

    monkeypatch.setattr(loop, "learning_rate", rate)


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
    """Two runs have left the same files with the same content: to the last bit, but for times and the folder's name."""
    runs = [
        {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()} for run in (folder, expected)
    ]
    assert sorted(runs[0]) == sorted(runs[1])
    for name in runs[0]:
        assert_same(*(content_of(files[name]) for files in runs), name)


def content_of(file: Path) -> object:
    """What a file of a run holds, without what differs between equal runs."""
    if file.suffix == ".yaml":
        return replace(load_config(file), output_dir="")
    if file.suffix == ".pth":
        state = torch.load(file, weights_only=True)
        state["config"]["output_dir"] = ""
        return state
    rows: list[dict[str, object]] | None = None
    if file.name == "log.csv":
        with open(file, newline="") as stream:
            rows = list(csv.DictReader(stream))
    elif file.name == "log.jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    elif file.name == "metrics.json":
        rows = json.loads(file.read_text())
    if rows is None:
        return file.read_bytes()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


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
    assert (saved["step"], saved["epoch"], saved["schedule"]["epoch_batches"]) == (step + 1, step // 3, step % 3 + 1)
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
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "ep')
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_evaluation_that_was_stopped_is_made_up_for(
    number: signal.Signals, pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal while a file is written: an exception, so that nothing unfinished stays behind."""

    def stop(path: Path, *_: object) -> None:
        with atomic_write(path):
            os.kill(os.getpid(), number)
            pytest.fail("the signal is to act at once")

    config = tiny_config(pictures, tmp_path)
    handler = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(validation, "write_metrics", stop)
            with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
                train(config)
        assert number == signal.SIGINT or caught.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # ours is gone
    finally:
        signal.signal(number, handler)
    assert not list(tmp_path.glob(TEMPORARY))
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


def test_resuming_from_one_of_its_checkpoints(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Without last.pth the others are not overwritten; one that is copied to it is where the run goes on."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "last.pth").unlink()
    with pytest.raises(FileExistsError, match=r"best\.pth, epoch_1\.pth, epoch_2\.pth, .* no last\.pth .*Copy one"):
        train(tiny_config(pictures, tmp_path), resume=True)
    (tmp_path / "epoch_2.pth").unlink()
    shutil.copyfile(tmp_path / "epoch_1.pth", tmp_path / "last.pth")
    train(tiny_config(pictures, tmp_path), resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_resuming_with_another_model_or_other_classes(pictures: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match=r"last\.pth does not fit the config \(.*model\.fpn\.channels: 32 -> 16"):
        train(tiny_config(pictures, undisturbed, "model.fpn.channels=16"), resume=True)
    with pytest.raises(ValueError, match=r"classes \['wide', 'tall'\], the data has \['tall', 'wide'\]"):
        train(tiny_config(pictures, undisturbed, "data.classes=[tall,wide]"), resume=True)


def test_checkpoint_keys(undisturbed: Path) -> None:
    saved = torch.load(undisturbed / "last.pth", weights_only=True)
    assert tuple(saved) == KEYS
    assert set(saved["random_state"]) >= {"torch", "numpy", "python"}
    assert (saved["step"], saved["epoch"], saved["classes"]) == (6, 2, ["wide", "tall"])
    assert saved["config"]["model"]["backbone"]["depth"] == 18


def test_a_signal_that_comes_while_the_epoch_is_saved_acts_afterwards(
    pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.save_training

    def save(*arguments: object) -> None:
        original(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    config = tiny_config(pictures, tmp_path)
    # A program that was started in the background of a shell ignores SIGINT.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_training", save)
            with pytest.raises(KeyboardInterrupt):
                train(config)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "epoch_1.pth").is_file()
    train(config, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_killed_at_random_moments(pictures: Path, tmp_path: Path) -> None:
    """kill -9, twice, while a checkpoint is written after every step: the files can be read, and the end is right."""
    settings = {
        "output": str(tmp_path / "killed"),
        "overrides": ["schedule.epochs=4", "train.checkpoint_minutes=0"],
        "resume": True,
        "slow": 0.02,
    }
    command = [sys.executable, str(Path(__file__).with_name("train_tiny.py")), str(pictures), json.dumps([settings])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        before = sorted((tmp_path / "killed").glob("[!.]*.pth"))
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while sorted((tmp_path / "killed").glob("[!.]*.pth")) == before and time.monotonic() < deadline:
            time.sleep(0.01)  # a new file: the run is under way
        time.sleep(random.random() * 0.1)
        process.kill()
        process.wait()
        for file in (tmp_path / "killed").glob("[!.]*.pth"):
            assert load_training(file)["step"] > 0
    assert load_training(tmp_path / "killed" / "last.pth")["step"] < 12
    train_tiny(pictures, settings)
    train_tiny(pictures, settings | {"output": str(tmp_path / "alone")})
    killed, alone = (load_training(tmp_path / name / "last.pth") for name in ("killed", "alone"))
    assert_same(killed["model"], alone["model"])
    assert_same(killed["optimizer"], alone["optimizer"])
    assert not list((tmp_path / "killed").glob(TEMPORARY))


def test_second_interrupt_acts_at_once_and_other_threads_are_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one is to act at once")
    handlers: list[object] = []

    def elsewhere() -> None:
        with StopRequest():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]

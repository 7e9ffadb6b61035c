"""The files of a run: never half there, kept by number, refused if they are something else; and random states."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn.atomic import TEMPORARY, atomic_copy, atomic_write
from fastrcnn.config import Config, OptimizerConfig
from fastrcnn.training import checkpoint
from fastrcnn.training.checkpoint import (
    TrainingState,
    changed_settings,
    load_training,
    name_epoch,
    own_folder,
    prepare_folder,
    random_state,
    save_training,
    seed_everything,
    set_random_state,
)
from fastrcnn.training.log import COLUMNS, HEADER, LOSSES, RunLog, read_metrics
from fastrcnn.training.schedule import build_optimizer


def small_state(**position: int) -> TrainingState:
    model = nn.Linear(3, 2)
    return TrainingState(model, build_optimizer(model, OptimizerConfig()), Config(), ["a", "b"], **position)


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
        for _ in range(2):  # the second time, the target is the source already
            atomic_copy(tmp_path / "source", tmp_path / name)
        assert (tmp_path / name).read_text() == "newer" and not list(tmp_path.glob(TEMPORARY))
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


# --- the log and the metrics of a run that is continued ---------------------------------------------------------------


def continued(folder: Path, step: int) -> tuple[str, str]:
    """What log.csv and log.jsonl hold after a run was resumed at `step` and has written the row of the step after."""
    log = RunLog(folder, 1, step, 9, torch.device("cpu"), {})
    log.add(step + 1, 1, 0.1, dict.fromkeys(LOSSES, 0.5), torch.tensor(1.0), images=2, epoch_ends=True)
    log.close()
    return (folder / "log.csv").read_text(), (folder / "log.jsonl").read_text()


@pytest.mark.parametrize("size", [0, 1, len(HEADER) - 1, len(HEADER), len(HEADER) + 1, -1])
def test_a_log_that_was_cut_has_its_header_and_whole_rows(size: int, tmp_path: Path) -> None:
    """By a kill or a full disk, at any byte: also within the first line, and before it."""
    for step in range(2):
        table, lines = continued(tmp_path, step)
    (tmp_path / "log.csv").write_text(table[:size])
    (tmp_path / "log.jsonl").write_text(lines[:size])
    table, lines = continued(tmp_path, 1)
    rows = [line.split(",") for line in table.splitlines()]
    assert rows[0] == list(COLUMNS) and all(len(row) == len(COLUMNS) for row in rows)
    expected = [1, 2] if size == -1 else [2]  # the last row was cut, and is redone
    assert [int(row[0]) for row in rows[1:]] == expected
    assert [json.loads(line)["step"] for line in lines.splitlines()] == expected


def test_rows_that_cannot_be_read_are_dropped(tmp_path: Path) -> None:
    """A machine that loses its power may leave zeros, or half of a letter, in a file."""
    continued(tmp_path, 0)
    for name in ("log.csv", "log.jsonl"):
        with open(tmp_path / name, "ab") as file:
            file.write(b"\0\0\0\n\xc3\n\n")
    table, lines = continued(tmp_path, 1)
    assert [line.split(",")[0] for line in table.splitlines()] == ["step", "1", "2"]
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2]


def test_a_log_with_other_columns_is_not_mixed_with_ours(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n")
    with pytest.raises(
        ValueError, match=r"log\.csv has the columns step,loss, but this .* writes step,epoch,lr,.*Move"
    ):
        continued(tmp_path, 1)
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n"


def test_a_full_disk_while_logging_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """capsys keeps what is printed in memory: the limit is for pytest's files, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    (tmp_path / "log.csv").write_text(HEADER)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(HEADER) + 5, hard))
    try:
        with pytest.raises(OSError, match=r"log\.csv"):
            continued(tmp_path, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len((tmp_path / "log.csv").read_text()) == len(HEADER) + 5  # a part of the row
    table, _ = continued(tmp_path, 0)
    assert [line.split(",")[0] for line in table.splitlines()] == ["step", "1"]


@pytest.mark.parametrize("content", ["", '[{"step": 1', '{"step": 1}', "[1]", '[{"epoch": 1}]'])
def test_metrics_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json does not hold the evaluations of a run.*Delete it"):
        read_metrics(tmp_path / "metrics.json", 3)


HOLD = """
import sys, multiprocessing, time
from pathlib import Path
from fastrcnn.training.checkpoint import own_folder
with own_folder(Path(sys.argv[1])):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_one_run_at_a_time_writes_to_a_folder(
    end: signal.Signals | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the other one ends: the lock is not its workers', who may live on."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        worker = int(other.stdout.readline())
        try:
            monkeypatch.setattr(checkpoint, "LOCK_SECONDS", 0.0)
            with (
                pytest.raises(BlockingIOError, match=f"Another run is writing to {tmp_path}"),
                own_folder(tmp_path / "run"),
            ):
                pass
            if end is not None:
                other.send_signal(end)
                other.wait()
                with own_folder(tmp_path / "run"):
                    os.kill(worker, 0)  # is alive
        finally:
            os.kill(worker, signal.SIGKILL)
            other.stdin.close()
    with own_folder(tmp_path / "run"), own_folder(tmp_path / "another"):
        pass

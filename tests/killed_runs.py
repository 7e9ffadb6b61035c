"""Training runs that are killed and resumed, in FOLDER/<name>: `python tests/killed_runs.py PICTURES FOLDER KIND`.

KIND "files": for every moment just before and just after a file gets its name, a run that dies there, and is resumed.
KIND "calls": a few runs that die again and again, at the next call of a function after a random number of calls.
FOLDER/undisturbed is a run that is not killed. Every process is a fork of this one, which has imported everything and
computed nothing: a start costs no import. Death is os._exit: as by kill -9, nothing is cleaned up or written any more.
"""

import importlib
import itertools
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tiny_training import small_resnet, tiny_config

from fastrcnn.atomic import atomic_write
from fastrcnn.training import validation
from fastrcnn.training.log import read_log
from fastrcnn.training.train import train

KILLED = 9
# One picture and one kept checkpoint: every kind of file, some that are removed, and few moments.
OVERRIDES = ("train.predictions=1", "train.keep_checkpoints=1", "train.log_every=1")


def status_of_fork(action: Callable[[], Any]) -> int:
    """The exit status of a process that does `action`: 0, KILLED, or 1 after an error, which it prints."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@contextmanager
def quick() -> Iterator[None]:
    """A small model, and curves.png as JSON of what is drawn: matplotlib would take most of the time and the calls."""

    def write_curves(folder: Path, history: list[dict[str, Any]]) -> None:
        drawn = [(row["step"], row["loss"]) for row in read_log(folder / "log.csv")]
        with atomic_write(folder / "curves.png") as temporary:
            temporary.write_text(json.dumps([drawn, [entry["AP"] for entry in history]]))

    with small_resnet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "draw_curves", write_curves)
        patch.setattr(validation, "can_draw", lambda: True)
        yield


def run(pictures: Path, folder: Path) -> None:
    with quick():
        train(tiny_config(pictures, folder, *OVERRIDES), resume=True)


def run_until_file(pictures: Path, folder: Path, moment: int) -> None:
    """Dies at the given moment, from 1: the odd ones are before a rename, the even ones after it."""
    moments = itertools.count(1)
    replace = os.replace

    def replace_or_die(source: Any, target: Any) -> None:
        if next(moments) == moment:
            os._exit(KILLED)
        replace(source, target)
        if next(moments) == moment:
            os._exit(KILLED)

    config = tiny_config(pictures, folder, *OVERRIDES)
    with quick(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        train(config, resume=True)


def run_until_call(pictures: Path, folder: Path, last: int | None) -> int:
    """Dies before call `last`, from 1, of a function, of Python or of C. Returns how many there were."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls == last:
            os._exit(KILLED)

    sys.setprofile(count)
    run(pictures, folder)
    sys.setprofile(None)
    return calls


def kill_at_every_file(pictures: Path, folder: Path) -> None:
    for moment in itertools.count(1):
        killed = folder / f"{moment}"
        status = status_of_fork(partial(run_until_file, pictures, killed, moment))
        if status == 0:  # it has ended before that moment
            killed.rename(folder / "undisturbed")
            return
        assert status == KILLED, f"moment {moment}"
        assert status_of_fork(partial(run, pictures, killed)) == 0, f"resumed after moment {moment}"


def kill_at_random_calls(pictures: Path, folder: Path, runs: int = 3, deaths: int = 3) -> None:
    def undisturbed() -> None:
        calls = run_until_call(pictures, folder / "undisturbed", None)
        (folder / "calls").write_text(f"{calls}")

    assert status_of_fork(undisturbed) == 0
    calls = int((folder / "calls").read_text())
    draw = random.Random(0)
    for number in range(runs):
        killed = folder / f"{number}"
        for _ in range(deaths):
            status = status_of_fork(partial(run_until_call, pictures, killed, draw.randrange(1, calls)))
            assert status in (KILLED, 0), f"run {number}"
        assert status_of_fork(partial(run, pictures, killed)) == 0, f"run {number}"


if __name__ == "__main__":
    importlib.import_module("torch._dynamo")  # which the optimiser would import, for seconds
    kind = {"files": kill_at_every_file, "calls": kill_at_random_calls}[sys.argv[3]]
    kind(Path(sys.argv[1]), Path(sys.argv[2]))

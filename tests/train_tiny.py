"""Training runs for `torchrun tests/train_tiny.py PICTURES RUNS`, one after the other, with their accidents.

RUNS is a JSON list of runs:
    output, overrides   of the config
    resume              default false
    kill                in this step process 1 dies, as by kill -9, unless torchrun has started it again
    kill_in_evaluation  the main process dies so in its first evaluation after torchrun has started it again
    stop                in this step process 1, alone, gets SIGTERM
    without_objects     the batches of odd numbers, which are process 1's, have no objects
    slow                seconds that every step takes longer
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import small_resnet, tiny_config

from fastrcnn.distributed import process_group
from fastrcnn.evaluation.evaluate import Evaluation
from fastrcnn.training import train as loop
from fastrcnn.training import validation
from fastrcnn.training.steps import Step


def run(pictures: Path, settings: dict[str, Any]) -> dict:
    """One training; returns its metrics. In a process of its own (without torchrun) nothing is killed."""
    learning_rate, steps, evaluate = loop.learning_rate, loop.steps, validation.evaluate
    rank, starts = os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT")

    def rate(step: int, *rest: Any) -> float:
        if step == settings.get("kill") and (rank, starts) == ("1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == settings.get("stop") and rank == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(settings.get("slow", 0))
        return learning_rate(step, *rest)

    def evaluate_or_die(*arguments: Any) -> Evaluation:
        evaluation = evaluate(*arguments)
        if settings.get("kill_in_evaluation") and (rank, starts) == ("0", "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluation

    def without_objects(*arguments: Any) -> Iterator[Step]:
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        for step in steps(*arguments):
            emptied = [(n, replace(b, targets=[empty] * len(b.images)) if n % 2 else b) for n, b in step.batches]
            yield replace(step, batches=emptied)

    with small_resnet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rate", rate)
        patch.setattr(validation, "evaluate", evaluate_or_die)
        if settings.get("without_objects"):
            patch.setattr(loop, "steps", without_objects)
        config = tiny_config(pictures, Path(settings["output"]), *settings.get("overrides", []))
        return loop.train(config, settings.get("resume", False))


if __name__ == "__main__":
    with process_group():
        for settings in json.loads(sys.argv[2]):
            run(Path(sys.argv[1]), settings)

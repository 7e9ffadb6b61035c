"""Nothing grows with the number of steps and evaluations: memory, objects, tensors, files, threads, processes."""

import gc
import multiprocessing
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_training import STEPS_PER_EPOCH, tiny_config

from fastrcnn.training import train as loop
from fastrcnn.training.train import train

pytestmark = pytest.mark.usefixtures("small_backbone")

REPEAT = 8  # of each picture in an epoch
STEPS = STEPS_PER_EPOCH * REPEAT
EPOCHS = 8
WARM = 3  # epochs after which caches are full and pools of memory have their size


@dataclass
class Held:
    """What this process holds, once what is garbage is gone."""

    objects: int
    tensors: int
    elements: int  # of the tensors
    files: int
    threads: int
    processes: int
    megabytes: float  # of memory


def held() -> Held:
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), torch.Tensor)]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        objects=len(objects),
        tensors=len(tensors),
        elements=sum(tensor.numel() for tensor in tensors),
        files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")) + threading.active_count(),
        processes=len(multiprocessing.active_children()),
        megabytes=pages * os.sysconf("SC_PAGESIZE") / 2**20,
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux tells in /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_grows(workers: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps at the same place of their epochs, with an evaluation in every second epoch."""
    moments: dict[int, Held] = {}
    learning_rate = loop.learning_rate

    def rate(step: int, *rest: object) -> float:
        if step % STEPS == STEPS // 2:
            moments[step // STEPS] = held()
        return learning_rate(step, *rest)

    monkeypatch.setattr(loop, "learning_rate", rate)
    settings = [f"schedule.epochs={EPOCHS}", f"data.train.repeat={REPEAT}", "train.eval_every=2", "train.log_every=1"]
    train(tiny_config(pictures, tmp_path, *settings, f"train.workers={workers}", "train.ema_decay=0.9"))
    before, after = moments[WARM], moments[EPOCHS - 1]
    steps = (EPOCHS - 1 - WARM) * STEPS
    assert (after.tensors, after.files) == (before.tensors, before.files)
    assert (after.threads, after.processes) == (before.threads, workers)
    assert after.elements - before.elements < steps  # boxes of the batches that are held
    assert after.objects - before.objects < steps / 2  # an entry of metrics.json for each evaluation
    assert after.megabytes - before.megabytes < 16  # one batch of images a step would be 28

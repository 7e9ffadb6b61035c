"""What a training run holds in memory while it goes: `python tests/long_run.py PICTURES FOLDER WORKERS`.

Prints, as JSON, what the process holds in the middle of each epoch; an evaluation follows every second one. A process
of its own, in which nothing else comes and goes.
"""

import gc
import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import torch
from tiny_training import STEPS_PER_EPOCH, small_resnet, tiny_config

from fastrcnn.training import train as loop
from fastrcnn.training.train import train

REPEAT = 8  # of each picture in an epoch
STEPS = STEPS_PER_EPOCH * REPEAT
EPOCHS = 8


def held() -> dict[str, float]:
    """What there is once garbage is gone. elements: of the tensors; megabytes: of memory."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), torch.Tensor)]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "objects": len(objects),
        "tensors": len(tensors),
        "elements": sum(tensor.numel() for tensor in tensors),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")) + threading.active_count(),
        "processes": len(multiprocessing.active_children()),
        "megabytes": pages * os.sysconf("SC_PAGESIZE") / 2**20,
    }


def main(pictures: Path, folder: Path, workers: int) -> None:
    moments = []
    learning_rate = loop.learning_rate

    def rate(step: int, *rest: object) -> float:
        if step % STEPS == STEPS // 2:
            moments.append(held())
        return learning_rate(step, *rest)

    loop.learning_rate = rate
    settings = [f"schedule.epochs={EPOCHS}", f"data.train.repeat={REPEAT}", "train.eval_every=2", "train.log_every=1"]
    with small_resnet():
        train(tiny_config(pictures, folder, *settings, f"train.workers={workers}", "train.ema_decay=0.9"))
    print(json.dumps(moments))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

"""A training run for `torchrun tests/train_tiny.py PICTURES OUTPUT [key=value ...] [--resume]`, with its accidents.

--kill STEP: process 1 dies in step STEP, as by kill -9, unless torchrun has restarted it.
--without-objects: the batches of process 1 have no objects.
--slow: every step takes a tenth of a second more.
"""

import argparse
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_training import small_resnet, tiny_config

from fastrcnn.training import train as loop


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill", type=int, default=-1)
    parser.add_argument("--without-objects", action="store_true")
    parser.add_argument("--slow", action="store_true")
    arguments = parser.parse_intermixed_args()
    second = os.environ.get("RANK") == "1"
    learning_rate, to_device = loop.learning_rate, loop.to_device

    def rate(step: int, *rest: Any) -> float:
        if step == arguments.kill and second and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if arguments.slow:
            time.sleep(0.1)
        return learning_rate(step, *rest)

    def emptied(batch: Any, device: torch.device) -> Any:
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        if arguments.without_objects and second:
            batch = replace(batch, targets=[empty] * len(batch.images))
        return to_device(batch, device)

    loop.learning_rate, loop.to_device = rate, emptied
    with small_resnet():
        config = tiny_config(arguments.pictures, arguments.output, *arguments.overrides)
        loop.train(config, arguments.resume)


if __name__ == "__main__":
    main()

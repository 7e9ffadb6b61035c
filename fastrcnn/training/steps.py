"""How the batches of an epoch are dealt to steps and processes, and what the processes tell each other of a step.

Batches are numbered over the epoch. A step takes the next accumulation x processes of them, in turn one for each
process; the last step of an epoch may have fewer, so that some processes have none. The gradient of a step is the mean
over its batches, however many processes they were dealt to.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastrcnn.data.loader import Batch
from fastrcnn.distributed import all_gather, rank, world_size
from fastrcnn.training.log import LOSSES


@dataclass
class Step:
    """One step of this process, and what came of it."""

    count: int  # batches of the step, over all processes
    batches: list[tuple[int, Batch]]  # this process's own, with their numbers in the epoch
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))  # of own losses

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] += value

    @property
    def image_ids(self) -> list[int]:
        return [image_id for _, batch in self.batches for image_id in batch.image_ids]


@dataclass
class StepSummary:
    """The same in every process."""

    losses: dict[str, float]  # means over the batches of the step
    images: int
    signal: signal.Signals | None  # that one of the processes has received
    checkpoint_due: bool


def steps(batches: Iterator[Batch], start: int, stop: int, size: int) -> Iterator[Step]:
    """The batches start .. stop - 1 of an epoch in steps of `size`, of which `batches` holds this process's."""
    for first in range(start, stop, size):
        numbers = range(first, min(first + size, stop))
        yield Step(len(numbers), [(number, next(batches)) for number in numbers[rank() :: world_size()]])
    next(batches, None)  # there is none: the loader sees its end, and its worker processes end now


def summarize(step: Step, stop: signal.Signals | None, checkpoint_due: bool) -> StepSummary:
    """What all processes know after a step, and so decide alike: go on, save, or stop."""
    own = [*step.sums.values(), float(len(step.image_ids)), float(stop or 0), float(checkpoint_due)]
    columns = list(zip(*all_gather(own), strict=True))
    images, stops, due = columns[len(step.sums) :]
    return StepSummary(
        losses={name: sum(column) / step.count for name, column in zip(step.sums, columns, strict=False)},
        images=int(sum(images)),
        signal=signal.Signals(int(max(stops))) if any(stops) else None,
        checkpoint_due=any(due),
    )

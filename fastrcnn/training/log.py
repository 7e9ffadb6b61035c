"""What a run says and records while it goes: the progress bar, lines, rows of log.csv and log.jsonl, metrics.json."""

import csv
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from fastrcnn.atomic import atomic_write
from fastrcnn.distributed import from_main, is_main
from fastrcnn.training.tensorboard import TensorBoard

LOSSES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")
COLUMNS = ("step", "epoch", "lr", *LOSSES, "loss", "grad_norm", "images_per_second", "data_wait", "memory_mb")
HEADER = ",".join(COLUMNS) + "\n"
Item = TypeVar("Item")


def say(line: str) -> None:
    """Prints a line on standard output, above the progress bar if there is one; of several processes, only the main."""
    if is_main():
        tqdm.write(line)
        sys.stdout.flush()  # a log file is read while the run goes on


class RunLog:
    """The log of the steps. A row is written every `every` steps of the run and at the end of an epoch.

    Of several processes the main one writes; images are counted over all, waiting and memory are its own.

    log.csv has one row for each such moment: the steps done, the number of the epoch (from 1), the learning rate of
    the last step, the means of the losses and of their sum since the row before, the norm of the last step's gradient
    before clipping (inf where float16 overflowed and the step was left out), images per second, the share of the time
    that the step waited for the loader, and the peak memory of the process (on CUDA: of the tensors on the GPU).
    log.jsonl has the same rows, each a line of JSON (null for inf).

    Args:
        folder: of both. Files that are there are continued; rows beyond `step` are dropped, those steps are redone.
        step, total_steps: where the run starts and ends.
        unlogged: sums since the last row, updated in place; not empty if the run continues from within a row.
        board: takes the rows, too, if there is one.
    Raises:
        ValueError: log.csv has other columns, as that of another version. OSError: the files cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        step: int,
        total_steps: int,
        device: torch.device,
        unlogged: dict[str, float],
        board: TensorBoard | None = None,
    ) -> None:
        self.every = every
        self.total_steps = total_steps
        self.device = device
        self._unlogged = unlogged
        self._board = board
        self._csv, self._jsonl = folder / "log.csv", folder / "log.jsonl"
        from_main(lambda: _drop_rows_beyond(self._csv, step, lambda line: int(line.split(",", 1)[0]), HEADER))
        from_main(lambda: _drop_rows_beyond(self._jsonl, step, lambda line: json.loads(line)["step"]))
        disable = None if is_main() else True  # None: where standard error is no terminal
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=disable, dynamic_ncols=True)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Times the next row from now on: evaluations between two epochs do not count as training."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._steps = 0

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time until each is there counts as waiting for data."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - before
            yield batch

    def add(
        self,
        step: int,
        epoch: int,
        rate: float,
        losses: dict[str, float],
        grad_norm: Tensor,
        images: int,
        epoch_ends: bool,
    ) -> None:
        """Records step `step` (from 1) of epoch `epoch` (from 1), which trained on `images` images.

        grad_norm, a tensor of one number, is read for a row only: reading it waits for the GPU.
        """
        total = sum(losses.values())
        for name, value in {**losses, "loss": total, "steps": 1.0}.items():
            self._unlogged[name] = self._unlogged.get(name, 0.0) + value
        self._images += images
        self._steps += 1
        seconds = time.perf_counter() - self._started
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix_str(f"loss {total:.3f}, {self._images / seconds:.1f} images/s", refresh=False)
        self._bar.update()
        if step % self.every == 0 or epoch_ends:
            self._write(step, epoch, rate, grad_norm.item(), seconds)

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _write(self, step: int, epoch: int, rate: float, grad_norm: float, seconds: float) -> None:
        steps = self._unlogged.pop("steps")
        means = {name: total / steps for name, total in self._unlogged.items()}
        row = {
            "step": step,
            "epoch": epoch,
            "lr": _rounded(rate),
            **{name: _rounded(mean) for name, mean in means.items()},
            "grad_norm": _rounded(grad_norm),
            "images_per_second": _rounded(self._images / seconds, 4),
            "data_wait": round(self._waited / seconds, 3),
            "memory_mb": peak_memory_mb(self.device),
        }
        left = timedelta(seconds=round(seconds / self._steps * (self.total_steps - step)))
        parts = ", ".join(f"{name.removeprefix('loss_')} {means[name]:.4f}" for name in LOSSES)
        say(
            f"epoch {epoch}  step {step}/{self.total_steps}  lr {rate:.6g}  loss {means['loss']:.4f} ({parts})  "
            f"gradient {grad_norm:.3g}  {self._images / seconds:.4g} images/s, {self._waited / seconds:.0%} waiting "
            f"for data  {row['memory_mb']} MB  {left} left"
        )
        if is_main():
            # JSON knows no infinity
            finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
            _append(self._csv, ",".join(str(row[name]) for name in COLUMNS), HEADER)
            _append(self._jsonl, json.dumps(finite))
        if self._board is not None:
            self._board.row(row)
        self._unlogged.clear()
        self.restart_clock()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of log.csv; a last row that a kill cut short is left out. Empty if there is no such file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items()} for row in rows if all(row.get(column) for column in COLUMNS)]


def _append(path: Path, line: str, header: str = "") -> None:
    """Adds a line to the file, and the header before the first one."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(("" if file.tell() else header) + line + "\n")
    except OSError as error:  # a failed write does not say of what
        raise OSError(error.errno, error.strerror, str(path)) from error


def _rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def _drop_rows_beyond(path: Path, step: int, step_of: Callable[[str], int], header: str = "") -> None:
    """Keeps the header and the rows up to `step`, without what a kill or a full disk cut short."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if header and lines and lines[0].endswith("\n") and lines[0] != header:
        raise ValueError(
            f"{path} has the columns {lines[0].strip()}, but this version of fastrcnn writes {header.strip()}. Move it "
            "elsewhere, and the run continues with a new one"
        )
    kept = [header]
    for line in lines:
        with suppress(ValueError):  # the header, which is there, or rubbish that a crash of the machine left
            if line.endswith("\n") and step_of(line) <= step:
                kept.append(line)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8", newline="")


def read_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """The entries of metrics.json, one per evaluation, up to step `step`. Empty if there is no such file."""
    if not path.is_file():
        return []
    try:
        return [entry for entry in json.loads(path.read_text(encoding="utf-8")) if entry["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the evaluations of a run ({error!r}). Delete it to continue without them"
        ) from error


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def peak_memory_mb(device: torch.device) -> int:
    """Most memory in use so far, in units of 2^20 bytes: of tensors on a CUDA device; of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, units of 1024 bytes elsewhere
    return peak >> (20 if sys.platform == "darwin" else 10)

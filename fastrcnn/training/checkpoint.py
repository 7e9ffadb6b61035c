"""What a run writes so that it can be continued: the whole state of training in one file, read without executing it."""

import fcntl
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import torch
from torch import amp, optim
from torch.optim.swa_utils import AveragedModel

from fastrcnn.atomic import TEMPORARY, atomic_copy, atomic_write
from fastrcnn.config import Config
from fastrcnn.models.checkpoint_files import read_checkpoint
from fastrcnn.models.faster_rcnn import FasterRCNN

LOCK_SECONDS = 10.0  # how long a run waits for the end of one that has just been killed
KEYS = ("model", "optimizer", "schedule", "step", "epoch", "random_state", "config", "classes")


@dataclass
class TrainingState:
    """A run in progress: what is trained, and how far it is."""

    model: FasterRCNN
    optimizer: optim.Optimizer
    config: Config
    classes: list[str]  # names, in label order
    scaler: amp.GradScaler = field(default_factory=lambda: amp.GradScaler("cpu", enabled=False))
    average: AveragedModel | None = None  # of the weights over the steps, if train.ema_decay asks for it
    step: int = 0  # optimiser steps done, over all epochs
    epoch: int = 0  # epochs finished
    epoch_batches: int = 0  # batches done of the epoch that is under way, by all processes
    unlogged: dict[str, float] = field(default_factory=dict)  # sums of the losses since the last row of log.csv

    @property
    def evaluated(self) -> FasterRCNN:
        """The model to detect with: the averaged one, or else the one that is trained."""
        return self.model if self.average is None else cast(FasterRCNN, self.average.module)


def save_training(path: str | Path, state: TrainingState) -> None:
    """Writes a run atomically: a kill or a full disk leaves the file that was there before.

    The file is a dict of tensors, numbers, strings, lists and dicts, so torch.load(path, weights_only=True) reads it:
        model, optimizer    state dicts; the model is the one to detect with, TrainingState.evaluated
        schedule            where in its epoch the run is: {"epoch_batches", "unlogged"} of TrainingState. The learning
                            rate follows from step and epoch alone
        step, epoch         steps and epochs finished
        random_state        of torch, numpy and python
        config              the resolved config as nested dicts
        classes             names, in label order
        scaler              state dict; only with float16
        average             {"trained_model": state dict, "updates": number}; only with train.ema_decay
    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "model": state.evaluated.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": {"epoch_batches": state.epoch_batches, "unlogged": dict(state.unlogged)},
        "step": state.step,
        "epoch": state.epoch,
        "random_state": random_state(),
        "config": asdict(state.config),
        "classes": list(state.classes),
    }
    if state.scaler.is_enabled():
        content["scaler"] = state.scaler.state_dict()
    if state.average is not None:
        updates = int(state.average.n_averaged)
        content["average"] = {"trained_model": state.model.state_dict(), "updates": updates}
    with atomic_write(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's word for a failed write
            raise OSError(f"{path} could not be written: is the disk full? The file before it is whole") from error


def restore(state: TrainingState, saved: dict[str, Any], path: Path) -> None:
    """Puts what load_training read from `path` into `state`, and the random states into their generators.

    What the file has no state of, because a setting was changed since, starts anew: the loss scale, the average (from
    the file's weights).

    Raises:
        ValueError: another model, optimiser or set of classes; the message names the settings that differ.
    """
    if saved["classes"] != state.classes:
        raise ValueError(f"{path} was trained for the classes {saved['classes']}, the data has {state.classes}")
    before, kind = saved["config"]["optimizer"].get("kind", "sgd"), state.config.optimizer.kind
    if before != kind:
        raise ValueError(f"{path} was trained with optimizer.kind={before}, whose state is of no use to {kind}")
    try:
        state.model.load_state_dict(saved["average"]["trained_model"] if "average" in saved else saved["model"])
        if state.average is not None:
            state.average.module.load_state_dict(saved["model"])
            state.average.n_averaged.fill_(saved["average"]["updates"] if "average" in saved else 0)
        if state.scaler.is_enabled() and "scaler" in saved:
            state.scaler.load_state_dict(saved["scaler"])
        _load_optimizer(state.optimizer, saved["optimizer"])
    except (RuntimeError, ValueError) as error:
        changes = "; ".join(changed_settings(saved["config"], state.config)) or "no setting differs"
        raise ValueError(f"{path} does not fit the config ({changes}): {str(error)[:500]}") from error
    state.step, state.epoch = saved["step"], saved["epoch"]
    state.epoch_batches, state.unlogged = saved["schedule"]["epoch_batches"], dict(saved["schedule"]["unlogged"])
    set_random_state(saved["random_state"])


def _load_optimizer(optimizer: optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes the momenta; momentum, weight decay and so on stay the config's, which may have been changed."""
    of_file = ("params", "lr")  # lr is set anew in every step
    settings = [{k: value for k, value in group.items() if k not in of_file} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, now in zip(optimizer.param_groups, settings, strict=True):
        group.update(now)


def load_training(path: str | Path) -> dict[str, Any]:
    """Reads what save_training wrote, with every tensor on the CPU.

    Raises:
        FileNotFoundError: no such file. ValueError: it is damaged, or holds weights but no training state.
    """
    state = read_checkpoint(path)
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ValueError(
            f"{path} is not a training checkpoint of fastrcnn: it has no {', '.join(missing)}. "
            "To start from its weights, use load_from=FILE without --resume"
        )
    return state


def name_epoch(folder: Path, epoch: int, keep: int) -> None:
    """Gives folder/last.pth the second name epoch_<epoch>.pth, and keeps only the newest `keep` of those (-1: all)."""
    if keep != 0:
        atomic_copy(folder / "last.pth", folder / f"epoch_{epoch}.pth")
    numbered = [(re.fullmatch(r"epoch_(\d+)\.pth", path.name), path) for path in folder.glob("epoch_*.pth")]
    newest_first = sorted(((int(match[1]), path) for match, path in numbered if match), reverse=True)
    for _, path in newest_first[keep:] if keep >= 0 else []:
        path.unlink()


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a run and keeps the runs of other processes out of it.

    The lock of the file .lock ends with this process, however it ends, and does not pass to its loader's workers.

    Raises:
        BlockingIOError: another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(file):
            if time.monotonic() >= deadline:
                raise BlockingIOError(
                    f"Another run is writing to {folder}. Wait for its end or stop it, or write elsewhere with "
                    "output_dir=FOLDER"
                )
            time.sleep(0.1)
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        return False
    except OSError:  # some network file systems have no locks: then nobody else is kept out
        pass
    return True


def prepare_folder(folder: Path, resume: bool) -> dict[str, Any] | None:
    """Finds the run that is in a folder, and removes what it left unfinished.

    Returns:
        The state of folder/last.pth if `resume` and there is one; None if the run starts from the beginning.
    Raises:
        FileExistsError: the folder holds checkpoints that would be overwritten: not `resume`, or there is no last.pth.
    """
    for unfinished in [*folder.glob(TEMPORARY), *folder.glob(f"predictions/{TEMPORARY}")]:
        unfinished.unlink()  # of a run that was killed while it wrote
    last = folder / "last.pth"
    if resume and last.is_file():
        return load_training(last)
    found = sorted(path.name for path in folder.glob("*.pth"))
    ours = [name for name in found if re.fullmatch(r"best\.pth|epoch_\d+\.pth", name)]
    if resume and ours:
        raise FileExistsError(
            f"{folder} holds {', '.join(ours)}, which are not overwritten, but no last.pth to continue from. Copy one "
            "of them to last.pth, write elsewhere with output_dir=FOLDER, or delete them"
        )
    if found and not resume:
        raise FileExistsError(
            f"{folder} already holds a run ({', '.join(found)}), which is not overwritten. Continue it with --resume, "
            "write elsewhere with output_dir=FOLDER, or delete it"
        )
    return None


def changed_settings(before: dict[str, Any], config: Config) -> list[str]:
    """The settings in which `config` differs from a checkpoint's, as "dotted.key: before -> now"."""
    old, new = _flat(before), _flat(asdict(config))
    keys = [*old, *(key for key in new if key not in old)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# --- random states ----------------------------------------------------------------------------------------------------


def seed_everything(*key: int) -> None:
    """Seeds torch, numpy and python with a number that is well mixed from `key`: non-negative integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    torch.manual_seed(seed)  # of the GPUs too
    np.random.seed(seed)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch, numpy and python, as tensors, numbers and lists."""
    of_numpy = np.random.get_state(legacy=False)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {**of_numpy, "state": {name: np.array(value).tolist() for name, value in of_numpy["state"].items()}},
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what random_state gave. States of GPUs are restored where as many GPUs are present."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))

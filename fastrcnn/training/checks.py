"""What must hold before and while a run trains: every message names the setting and what came."""

import math
from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter

from fastrcnn.config import Config
from fastrcnn.data.cache import check_cache
from fastrcnn.data.sample import Dataset
from fastrcnn.data.transforms import check_scale, check_scales
from fastrcnn.distributed import max_restarts, world_size
from fastrcnn.training.precision import PRECISIONS
from fastrcnn.training.tensorboard import check_tensorboard

# Expected values -> the settings that must have them, where they are not null. Infinity and NaN are never right.
RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        (
            "data.train.repeat",
            "optimizer.base_batch_size",
            "schedule.epochs",
            "train.batch_size",
            "train.accumulation",
            "train.log_every",
            "train.eval_every",
        ),
    ),
    "at least 0": (
        lambda value: value >= 0,
        (
            "optimizer.lr",
            "optimizer.weight_decay",
            "schedule.warmup_steps",
            "train.seed",
            "train.workers",
            "train.predictions",
            "train.checkpoint_minutes",
        ),
    ),
    "at least 0, or -1 for all": (lambda value: value >= -1, ("train.keep_checkpoints",)),
    "above 0": (lambda value: value > 0, ("optimizer.clip_norm", "train.loss_scale")),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, ("optimizer.momentum",)),
    "above 0 and below 1": (lambda value: 0 < value < 1, ("train.ema_decay",)),
    "between 0 and 1": (
        lambda value: 0 <= value <= 1,
        ("data.train.flip", "schedule.gamma", "schedule.warmup_ratio"),
    ),
}


def check_settings(config: Config, resume: bool) -> None:
    """Raises ValueError for a setting out of its range, by its name; ImportError for a package that it needs.

    Looks at nothing but the config: no data, no files. The model's settings are build_model's.
    """
    for expected, (fits, names) in RANGES.items():
        for name in names:
            value = attrgetter(name)(config)
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise ValueError(f"{name} must be {expected}, got {value}")
    milestones = config.schedule.milestones
    if any(later <= earlier for earlier, later in pairwise([0, *milestones])):
        raise ValueError(f"schedule.milestones must be at least 1, each larger than the one before, got {milestones}")
    choices = {
        "optimizer.kind": (config.optimizer.kind, ("sgd", "adamw")),
        "schedule.decay": (config.schedule.decay, ("steps", "cosine")),
        "train.precision": (config.train.precision, tuple(PRECISIONS)),
    }
    for name, (chosen, known) in choices.items():
        if chosen not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {chosen!r}")
    if config.train.loss_scale is not None and config.train.precision != "float16":
        raise ValueError(
            f"train.loss_scale belongs to train.precision=float16, got {config.train.loss_scale} with "
            f"{config.train.precision}"
        )
    check_scales(config.data.train)
    check_scale(config.data.test.scale, "data.test.scale")
    check_cache(config.data)
    if config.train.tensorboard:
        check_tensorboard()
    if max_restarts() > 0 and not resume:
        raise ValueError(
            f"torchrun may start this run again (--max-restarts={max_restarts()}), and then it has to continue: add "
            "--resume (where there is no last.pth, it starts from the beginning)"
        )


def check_classes(dataset: Dataset, config: Config) -> None:
    """Raises ValueError unless the model has as many classes as the data."""
    expected, found = config.model.box_head.num_classes, len(dataset.classes)
    if expected != found:
        listed = ", ".join(dataset.classes[:20]) + (", ..." if found > 20 else "")
        raise ValueError(
            f"The model has model.box_head.num_classes={expected}, but {dataset.name} has {found} classes: {listed}. "
            f"Add model.box_head.num_classes={found}, or choose {expected} of them with data.classes=[...]"
        )


def check_finite(losses: dict[str, float], step: int, epoch: int, rate: float, image_ids: list[int]) -> None:
    """Raises FloatingPointError if a loss is infinite or not a number, before it reaches the weights."""
    if not all(math.isfinite(value) for value in losses.values()):
        parts = ", ".join(f"{name} {value:.6g}" for name, value in losses.items())
        others = f" and those of {world_size() - 1} other processes" if world_size() > 1 else ""
        raise FloatingPointError(
            f"The loss is not finite at step {step} (epoch {epoch + 1}): {parts}; learning rate {rate:.6g}, image ids "
            f"{image_ids}{others}. Usual causes: too high a learning rate (try a tenth, optimizer.lr={rate / 10:.1g}, "
            "a longer schedule.warmup_steps, or optimizer.clip_norm=35), or wrong boxes in these images"
        )

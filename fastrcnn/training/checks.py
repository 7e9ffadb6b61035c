"""What must hold before and while a run trains: every message names the setting and what came."""

import math

from fastrcnn.config import Config
from fastrcnn.data.sample import Dataset
from fastrcnn.distributed import max_restarts, world_size
from fastrcnn.training.precision import PRECISIONS
from fastrcnn.training.tensorboard import check_tensorboard


def check_settings(config: Config, resume: bool) -> None:
    """Raises ValueError for a setting out of its range, by its name; ImportError for a package that it needs."""
    counts = {
        "schedule.epochs": config.schedule.epochs,
        "optimizer.base_batch_size": config.optimizer.base_batch_size,
        "train.batch_size": config.train.batch_size,
        "train.accumulation": config.train.accumulation,
        "train.log_every": config.train.log_every,
        "train.eval_every": config.train.eval_every,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    choices = {
        "optimizer.kind": (config.optimizer.kind, ("sgd", "adamw")),
        "schedule.decay": (config.schedule.decay, ("steps", "cosine")),
        "train.precision": (config.train.precision, tuple(PRECISIONS)),
    }
    for name, (chosen, known) in choices.items():
        if chosen not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {chosen!r}")
    decay, scale = config.train.ema_decay, config.train.loss_scale
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"train.ema_decay must be between 0 and 1, or null for no average, got {decay}")
    if scale is not None and not (scale > 0 and config.train.precision == "float16"):
        raise ValueError(
            f"train.loss_scale must be positive and belongs to train.precision=float16, got {scale} with "
            f"{config.train.precision}"
        )
    if config.train.predictions < 0:
        raise ValueError(f"train.predictions must be at least 0, got {config.train.predictions}")
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

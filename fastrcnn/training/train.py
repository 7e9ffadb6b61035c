"""Training, from a config to a trained detector: one loop that reads from top to bottom."""

import math
import time
from pathlib import Path

import torch
from torch import nn

from fastrcnn.atomic import atomic_copy, atomic_write
from fastrcnn.config import Config, to_yaml
from fastrcnn.data.loader import Batch, train_loader, training_dataset
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.data.sample import Dataset
from fastrcnn.device import choose_device
from fastrcnn.evaluation.evaluate import evaluate, metrics_table
from fastrcnn.models.build import build_model
from fastrcnn.models.inputs import Target
from fastrcnn.training.checkpoint import (
    TrainingState,
    changed_settings,
    name_epoch,
    prepare_folder,
    restore,
    save_training,
    seed_everything,
    set_random_state,
)
from fastrcnn.training.curves import can_draw, draw_curves
from fastrcnn.training.interruption import StopRequest
from fastrcnn.training.log import RunLog, read_metrics, say, write_metrics
from fastrcnn.training.schedule import build_optimizer, learning_rate, set_learning_rate
from fastrcnn.training.weights import load_initial_weights


def train(config: Config, resume: bool = False) -> dict:
    """Trains the detector that `config` describes, on the GPU if there is one.

    Writes to config.output_dir: last.pth (after every epoch, every train.checkpoint_minutes, and when SIGINT or SIGTERM
    stops the run), best.pth (highest validation AP), epoch_<k>.pth (the newest train.keep_checkpoints), config.yaml,
    log.csv, metrics.json (one entry per evaluation) and curves.png.

    The same seed gives the same weights, bit for bit on the CPU with the same number of threads: whatever the number
    of loader workers, and whether or not the run was stopped and resumed in between.

    Args:
        config: the experiment.
        resume: continue from output_dir/last.pth; without such a file, start from the beginning.
    Returns:
        The metrics of the last evaluation, as fastrcnn.evaluation.evaluate.
    Raises:
        FileExistsError: output_dir holds a run, and not `resume`. ValueError: the data and the model do not fit, or
        last.pth does not fit the config. FloatingPointError: a loss that is not finite. FileNotFoundError,
        ConnectionError: data or initial weights are missing. SystemExit: stopped by a signal; last.pth was written.
    """
    check_settings(config)
    folder = Path(config.output_dir)
    last = folder / "last.pth"
    saved = prepare_folder(folder, resume)
    device = choose_device()
    epochs = config.schedule.epochs

    # Data
    annotated = read_dataset(config.data.train, config.data.classes, config.data.rename)
    train_set = training_dataset(annotated, config.data.train.keep_empty)
    val_set = read_dataset(config.data.val, train_set.classes, config.data.rename)
    check_classes(train_set, config)
    say(f"Training:   {summary(train_set)}\nValidation: {summary(val_set)}")

    # Model and optimiser
    seed_everything(config.train.seed)
    model = build_model(config.model)
    if saved is None:
        load_initial_weights(model, config, train_set.classes)
    model.to(device).to(memory_format=torch.channels_last)
    state = TrainingState(model, build_optimizer(model, config.optimizer), config, train_set.classes)

    # What an earlier run left
    if saved is not None:
        restore(state, saved, last)
        say(f"Resuming {last}: {state.epoch} of {epochs} epochs and {state.epoch_step} steps of the next are done")
        for change in changed_settings(saved["config"], config):
            say(f"  changed since: {change}")
    elif resume:
        say(f"There is no {last} to resume from: starting from the beginning")
    history = read_metrics(folder / "metrics.json", state.step)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")

    steps_per_epoch = len(train_loader(train_set, config, epoch=0))
    total_steps = state.step - state.epoch_step + (epochs - state.epoch) * steps_per_epoch
    log = RunLog(folder, config.train.log_every, state.step, total_steps, device, state.unlogged)
    saved_at = time.monotonic()
    if not can_draw():
        say("There will be no curves.png: matplotlib is not installed (pip install matplotlib)")
    if evaluation_due(state, history):  # an earlier run was stopped in its evaluation
        validate(state, val_set, device, folder, history)

    for epoch in range(state.epoch, epochs):
        model.train()
        batches = iter(train_loader(train_set, config, epoch, start=state.epoch_step))
        if saved is not None and state.epoch_step > 0:
            set_random_state(saved["random_state"])
        else:
            seed_everything(config.train.seed, epoch + 1)
        saved = None

        log.restart_clock()
        with StopRequest() as stop:
            for batch in log.waiting_for(batches):
                rate = learning_rate(state.step, epoch, config)
                set_learning_rate(state.optimizer, rate)

                images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
                targets = [
                    Target(
                        boxes=target["boxes"].to(device, non_blocking=True),
                        labels=target["labels"].to(device, non_blocking=True),
                    )
                    for target in batch.targets
                ]
                losses = model.losses(images, batch.image_sizes, targets)
                state.optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                values = loss_values(losses)
                check_finite(values, state.step, epoch, rate, batch)
                if config.optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
                state.optimizer.step()

                state.step += 1
                state.epoch_step += 1
                log.add(state.step, epoch + 1, rate, values, len(images), state.epoch_step == steps_per_epoch)
                if stop.signal is not None or time.monotonic() - saved_at >= 60 * config.train.checkpoint_minutes:
                    save_training(last, state)
                    saved_at = time.monotonic()
                if stop.signal is not None:
                    log.close()
                    say(
                        f"Stopped by {stop.signal.name} after step {state.step}; everything is in {last}. "
                        "To continue: the same command with --resume"
                    )
                    raise SystemExit(128 + stop.signal)

        state.epoch, state.epoch_step = epoch + 1, 0
        save_training(last, state)
        saved_at = time.monotonic()
        name_epoch(folder, state.epoch, config.train.keep_checkpoints)
        if evaluation_due(state, history):
            validate(state, val_set, device, folder, history)

    log.close()
    best = max(history, key=lambda entry: entry["AP"])
    say(f"Finished {state.epoch} epochs. Best AP {best['AP']:.3f} after epoch {best['epoch']}: {folder / 'best.pth'}")
    return {name: value for name, value in history[-1].items() if name not in ("epoch", "step")}


def check_settings(config: Config) -> None:
    """Raises ValueError for a count that must be at least 1 and is not."""
    counts = {
        "schedule.epochs": config.schedule.epochs,
        "train.batch_size": config.train.batch_size,
        "train.log_every": config.train.log_every,
        "train.eval_every": config.train.eval_every,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_classes(dataset: Dataset, config: Config) -> None:
    """Raises ValueError unless the model has as many classes as the data."""
    expected, found = config.model.box_head.num_classes, len(dataset.classes)
    if expected != found:
        listed = ", ".join(dataset.classes[:20]) + (", ..." if found > 20 else "")
        raise ValueError(
            f"The model has model.box_head.num_classes={expected}, but {dataset.name} has {found} classes: {listed}. "
            f"Add model.box_head.num_classes={found}, or choose {expected} of them with data.classes=[...]"
        )


def check_finite(losses: dict[str, float], step: int, epoch: int, rate: float, batch: Batch) -> None:
    """Raises FloatingPointError if a loss is infinite or not a number, before it reaches the weights."""
    if not all(math.isfinite(value) for value in losses.values()):
        parts = ", ".join(f"{name} {value:.6g}" for name, value in losses.items())
        raise FloatingPointError(
            f"The loss is not finite at step {step} (epoch {epoch + 1}): {parts}; learning rate {rate:.6g}, image ids "
            f"{batch.image_ids}. Usual causes: too high a learning rate (try a tenth, optimizer.lr={rate / 10:.1g}, a "
            "longer schedule.warmup_steps, or optimizer.clip_norm=35), or wrong boxes in these images"
        )


def loss_values(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses as numbers; waits for the GPU once, not once per loss."""
    return dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))


def evaluation_due(state: TrainingState, history: list[dict]) -> bool:
    """Whether an epoch has just ended that is to be evaluated (every train.eval_every-th, the last) and is not yet."""
    chosen = state.epoch % state.config.train.eval_every == 0 or state.epoch >= state.config.schedule.epochs
    done = any(entry["step"] == state.step for entry in history)
    return state.epoch > 0 and state.epoch_step == 0 and chosen and not done


def validate(state: TrainingState, dataset: Dataset, device: torch.device, folder: Path, history: list[dict]) -> None:
    """Evaluates, and updates `history`, metrics.json, best.pth (a copy of last.pth) and curves.png."""
    metrics = evaluate(state.model, dataset, state.config, device)
    say(f"After epoch {state.epoch}:\n{metrics_table(metrics)}")
    if all(metrics["AP"] > entry["AP"] for entry in history):
        atomic_copy(folder / "last.pth", folder / "best.pth")
    history.append({"epoch": state.epoch, "step": state.step, **metrics})
    write_metrics(folder / "metrics.json", history)
    if can_draw():
        draw_curves(folder, history)

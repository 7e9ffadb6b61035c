"""Training, from a config to a trained detector: one loop that reads from top to bottom."""

import math
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastrcnn.atomic import atomic_write
from fastrcnn.config import Config, to_yaml
from fastrcnn.data.loader import Batch, train_loader, training_dataset
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.device import choose_device
from fastrcnn.distributed import from_main, is_main, process_group, rank, world_size
from fastrcnn.evaluation.evaluate import metrics_table
from fastrcnn.models.build import build_model
from fastrcnn.models.inputs import Target
from fastrcnn.training.checkpoint import (
    TrainingState,
    changed_settings,
    name_epoch,
    own_folder,
    prepare_folder,
    restore,
    save_training,
    seed_everything,
)
from fastrcnn.training.checks import check_classes, check_finite, check_settings
from fastrcnn.training.curves import can_draw
from fastrcnn.training.gradients import Gradients, average_running_statistics
from fastrcnn.training.interruption import StopRequest, sigterm_as_exception
from fastrcnn.training.log import RunLog, read_metrics, say
from fastrcnn.training.precision import autocast, build_scaler
from fastrcnn.training.schedule import (
    base_learning_rate,
    build_optimizer,
    learning_rate,
    set_learning_rate,
    unscaled_warning,
)
from fastrcnn.training.steps import steps, summarize
from fastrcnn.training.tensorboard import TensorBoard
from fastrcnn.training.validation import evaluation_due, validate
from fastrcnn.training.weights import initial_weights


@process_group()
@sigterm_as_exception()
def train(config: Config, resume: bool = False) -> dict:
    """Trains the detector that `config` describes, on the GPU if there is one; under torchrun, on one per process.

    Writes to config.output_dir: last.pth (after every epoch, every train.checkpoint_minutes, and when SIGINT or SIGTERM
    stops the run), best.pth (highest validation AP), epoch_<k>.pth (the newest train.keep_checkpoints), config.yaml,
    log.csv and log.jsonl, metrics.json (one entry per evaluation), curves.png, predictions/ (pictures of each
    evaluation) and, with train.tensorboard, tensorboard/.

    A step takes train.accumulation batches in each process; its gradient is the mean of theirs, each loss normalised
    within its batch, so n processes are the same as one with n times the accumulation. The same seed gives the same
    weights, bit for bit on the CPU with the same number of threads: whatever the number of loader workers, and whether
    or not the run was stopped and resumed in between.

    Args:
        config: the experiment.
        resume: continue from output_dir/last.pth; without any checkpoint there, start from the beginning.
    Returns:
        The metrics of the last evaluation, as Evaluation.metrics of fastrcnn.evaluation.evaluate.
    Raises:
        FileExistsError: output_dir holds a run, and not `resume`, or no last.pth. ValueError: the data and the model do
        not fit, or last.pth does not fit the config. FloatingPointError: a loss that is not finite. FileNotFoundError,
        ConnectionError: data or initial weights are missing. BlockingIOError: another process trains in output_dir.
        OSError: the disk is full; last.pth is as it was.
        SystemExit: stopped by a signal; within an epoch last.pth was written. KeyboardInterrupt: SIGINT elsewhere.
    """
    from_main(lambda: check_settings(config, resume))
    folder = Path(config.output_dir)
    with ExitStack() as held:
        from_main(lambda: held.enter_context(own_folder(folder)))
        return _train(config, folder, resume)


def _train(config: Config, folder: Path, resume: bool) -> dict:
    last = folder / "last.pth"
    saved = from_main(lambda: prepare_folder(folder, resume))
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
    if config.train.activation_checkpointing:
        model.backbone.activation_checkpointing = True
    if saved is None:
        model.load_state_dict(from_main(lambda: initial_weights(model, config, train_set.classes)))
    model.to(device).to(memory_format=torch.channels_last)
    optimizer, scaler = build_optimizer(model, config.optimizer), build_scaler(config.train, device)
    state = TrainingState(model, optimizer, config, train_set.classes, scaler, moving_average(model, config))

    # What an earlier run left
    if saved is not None:
        restore(state, saved, last)
        say(f"Resuming {last}: {state.epoch} of {epochs} epochs and {state.epoch_batches} batches of the next are done")
        for change in changed_settings(saved["config"], config):
            say(f"  changed since: {change}")
        if state.epoch > 0 and state.epoch_batches == 0:  # perhaps killed between the names of the file
            from_main(lambda: name_epoch(folder, state.epoch, config.train.keep_checkpoints))
    elif resume:
        say(f"There is no {last} to resume from: starting from the beginning")
    history = from_main(lambda: read_metrics(folder / "metrics.json", state.step))
    from_main(lambda: write_config(folder, config))

    # Steps
    step_batches = config.train.accumulation * world_size()
    step_images = config.train.batch_size * step_batches
    base_rate = base_learning_rate(config, step_images)
    epoch_batches = len(train_loader(train_set, config, epoch=0))
    total_steps = state.step + steps_left(state, epoch_batches, step_batches)
    say(
        f"A step: {config.train.batch_size} images x {config.train.accumulation} batches x {world_size()} processes, "
        f"learning rate {base_rate:g}{unscaled_warning(config, step_images)}"
    )

    board = TensorBoard(folder, state.step) if config.train.tensorboard and is_main() else None
    log = RunLog(folder, config.train.log_every, state.step, total_steps, device, state.unlogged, board)
    saved_at = time.monotonic()
    if not can_draw():
        say("There will be no curves.png: matplotlib is not installed (pip install matplotlib)")
    gradients = Gradients(model.parameters())
    if evaluation_due(state, history):  # before the first step, or an earlier run was stopped in its evaluation
        if state.step == 0:
            from_main(lambda: save_training(last, state))
        validate(state, val_set, device, folder, board, history)

    for epoch in range(state.epoch, epochs):
        model.train()
        first_batch = state.epoch_batches
        batches = iter(train_loader(train_set, config, epoch, first_batch + rank(), stride=world_size()))
        log.restart_clock()
        with StopRequest() as stop:
            for step in steps(log.waiting_for(batches), first_batch, epoch_batches, step_batches):
                rate = learning_rate(state.step, epoch, config.schedule, base_rate, total_steps)
                set_learning_rate(state.optimizer, rate)

                gradients.start(passes=len(step.batches))
                for number, batch in step.batches:
                    seed_everything(config.train.seed, epoch + 1, number)  # the same in whichever process
                    images, targets = to_device(batch, device)
                    with autocast(config.train, device):
                        losses = model.losses(images, batch.image_sizes, targets)
                    loss = torch.stack(list(losses.values())).sum()
                    state.scaler.scale(loss / step.count).backward()
                    step.add(loss_values(losses))
                gradients.finish()

                checkpoint_due = time.monotonic() - saved_at >= 60 * config.train.checkpoint_minutes
                done = summarize(step, stop.signal, checkpoint_due)
                check_finite(done.losses, state.step, epoch, rate, step.image_ids)
                state.scaler.unscale_(state.optimizer)
                grad_norm = clip_gradients(model, config.optimizer.clip_norm)
                state.scaler.step(state.optimizer)
                state.scaler.update(config.train.loss_scale)
                average_running_statistics(model, len(step.batches))
                if state.average is not None:
                    state.average.update_parameters(model)

                state.step += 1
                state.epoch_batches += step.count
                epoch_ends = state.epoch_batches == epoch_batches
                log.add(state.step, epoch + 1, rate, done.losses, grad_norm, done.images, epoch_ends)
                if done.signal is not None or done.checkpoint_due:
                    from_main(lambda: save_training(last, state))
                    saved_at = time.monotonic()
                if done.signal is not None:
                    log.close()
                    say(
                        f"Stopped by {done.signal.name} after step {state.step}; everything is in {last}. "
                        "To continue: the same command with --resume"
                    )
                    raise SystemExit(128 + done.signal)

            state.epoch, state.epoch_batches = epoch + 1, 0
            from_main(lambda: save_epoch(folder, state))
            saved_at = time.monotonic()
        if evaluation_due(state, history):
            validate(state, val_set, device, folder, board, history)

    log.close()
    best = max(history, key=lambda entry: entry["AP"])
    say(f"Finished {state.epoch} epochs. Best AP {best['AP']:.3f} after epoch {best['epoch']}: {folder / 'best.pth'}")
    if best is not history[-1]:  # whose table stands above
        say(metrics_table(best))
    return {name: value for name, value in history[-1].items() if name not in ("epoch", "step")}


def clip_gradients(model: nn.Module, largest: float | None) -> torch.Tensor:
    """The norm of all gradients as one vector; where it exceeds `largest`, they are scaled down to that norm."""
    norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    if largest is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


def moving_average(model: nn.Module, config: Config) -> AveragedModel | None:
    """A copy of the model that follows it: after each step, copy = decay * copy + (1 - decay) * model; buffers too."""
    decay = config.train.ema_decay
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[Target]]:
    images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
    targets = [
        Target(
            boxes=target["boxes"].to(device, non_blocking=True), labels=target["labels"].to(device, non_blocking=True)
        )
        for target in batch.targets
    ]
    return images, targets


def loss_values(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses as numbers; waits for the GPU once, not once per loss."""
    return dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))


def write_config(folder: Path, config: Config) -> None:
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")


def save_epoch(folder: Path, state: TrainingState) -> None:
    save_training(folder / "last.pth", state)
    name_epoch(folder, state.epoch, state.config.train.keep_checkpoints)


def steps_left(state: TrainingState, epoch_batches: int, step_batches: int) -> int:
    """Steps from here to the end: the rest of the epoch that is under way, and the epochs after it."""
    epochs = state.config.schedule.epochs - state.epoch
    if epochs <= 0:
        return 0
    rest = math.ceil((epoch_batches - state.epoch_batches) / step_batches)
    return rest + (epochs - 1) * math.ceil(epoch_batches / step_batches)

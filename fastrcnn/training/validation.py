"""The evaluations of a run: when, and what they leave in its folder."""

from pathlib import Path

import torch

from fastrcnn.atomic import atomic_copy
from fastrcnn.data.sample import Dataset
from fastrcnn.distributed import from_main
from fastrcnn.evaluation.evaluate import Evaluation, evaluate, metrics_table
from fastrcnn.training.checkpoint import TrainingState
from fastrcnn.training.curves import can_draw, draw_curves
from fastrcnn.training.log import say, write_metrics
from fastrcnn.training.predictions import draw_predictions, write_pictures
from fastrcnn.training.tensorboard import TensorBoard


def evaluation_due(state: TrainingState, history: list[dict]) -> bool:
    """Whether the run is between two epochs and the one that has ended is to be evaluated, and is not yet.

    Due are every train.eval_every-th, the last, and with train.eval_first also the start of the run, epoch 0.
    """
    train = state.config.train
    if state.epoch == 0:
        chosen = train.eval_first
    else:
        chosen = state.epoch % train.eval_every == 0 or state.epoch >= state.config.schedule.epochs
    done = any(entry["step"] == state.step for entry in history)
    return state.epoch_batches == 0 and chosen and not done


def validate(
    state: TrainingState,
    dataset: Dataset,
    device: torch.device,
    folder: Path,
    board: TensorBoard | None,
    history: list[dict],
) -> None:
    """Evaluates, in all processes, updates `history`, and writes what the functions below say.

    metrics.json comes last: its new entry says that all the rest is there. A run that is killed before evaluates again.
    """
    evaluation = evaluate(state.evaluated, dataset, state.config, device)
    metrics = evaluation.metrics
    say(f"After epoch {state.epoch}:\n{metrics_table(metrics)}")
    is_best = all(metrics["AP"] > entry["AP"] for entry in history)
    history.append({"epoch": state.epoch, "step": state.step, **metrics})
    from_main(lambda: show_predictions(state, folder, dataset, evaluation, board))
    from_main(lambda: write_validation(state, folder, history, is_best))


def show_predictions(
    state: TrainingState, folder: Path, dataset: Dataset, evaluation: Evaluation, board: TensorBoard | None
) -> None:
    """Draws a few images into folder/predictions and, with the metrics, for TensorBoard."""
    pictures = draw_predictions(dataset, evaluation.detections, state.config.train.predictions)
    write_pictures(folder / "predictions", pictures, state.epoch)
    if board is not None:
        board.evaluation(state.step, evaluation.metrics, pictures)


def write_validation(state: TrainingState, folder: Path, history: list[dict], is_best: bool) -> None:
    """Writes best.pth (a copy of last.pth), curves.png and metrics.json."""
    if is_best:
        atomic_copy(folder / "last.pth", folder / "best.pth")
    if can_draw():
        draw_curves(folder, history)
    write_metrics(folder / "metrics.json", history)

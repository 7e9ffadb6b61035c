"""curves.png: losses, gradient norm, learning rate and validation AP of a run, from its log.csv and metrics.json."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastrcnn.atomic import atomic_write
from fastrcnn.training.log import LOSSES, read_log


def can_draw() -> bool:
    """Whether matplotlib, an optional dependency, is installed."""
    return find_spec("matplotlib") is not None


def draw_curves(folder: Path, history: list[dict[str, Any]]) -> None:
    """Draws folder/curves.png from folder/log.csv and the entries of metrics.json; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display needed, no global state as pyplot has
    from matplotlib.figure import Figure

    rows = read_log(folder / "log.csv")
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    losses, gradient, rate, quality = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1, 1, 2))
    for name in (*LOSSES, "loss"):
        losses.plot(steps, [row[name] for row in rows], label=name, color="black" if name == "loss" else None)
    losses.set_ylabel("loss")
    losses.set_ylim(bottom=0)
    losses.legend()
    gradient.plot(steps, [row["grad_norm"] for row in rows])
    gradient.set_ylabel("gradient norm")
    gradient.set_ylim(bottom=0)
    rate.plot(steps, [row["lr"] for row in rows])
    rate.set_ylabel("learning rate")
    for name in ("AP", "AP50"):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        quality.plot([step for step, _ in points], [value for _, value in points], marker="o", label=name)
    quality.set_ylim(-0.02, 1.02)
    quality.set_ylabel("validation AP")
    quality.set_xlabel("step")
    quality.legend()
    for axes in (losses, gradient, rate, quality):
        axes.grid(alpha=0.3)
    with atomic_write(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=100)

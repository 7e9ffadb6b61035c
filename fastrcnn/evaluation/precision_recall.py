"""Precision-recall curves: as a table for other programs, and drawn."""

import csv
from pathlib import Path

import numpy as np

from fastrcnn.atomic import atomic_write
from fastrcnn.evaluation.coco import IOU_THRESHOLDS, RECALLS, CocoResult

DRAWN_IOUS = (0.5, 0.75)
NAMED_CLASSES = 20  # a legend with more of them hides the curves


def write_precision_recall(path: Path, result: CocoResult) -> None:
    """Writes the curves as CSV: class, iou, recall, precision, score.

    A row says which precision the class reaches at this recall or beyond, and the highest score threshold that reaches
    the recall; where none does, the precision is 0 and the score empty. Classes without objects have no rows.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "iou", "recall", "precision", "score"])
        for label, name in enumerate(result.per_class):
            for index, threshold in enumerate(IOU_THRESHOLDS):
                precision, scores = result.precision[index, :, label], result.scores[index, :, label]
                for recall, value, score in zip(RECALLS, precision.tolist(), scores.tolist(), strict=True):
                    if value >= 0:
                        reached = f"{score:.4f}" if value > 0 else ""
                        writer.writerow([name, f"{threshold:.2f}", f"{recall:.2f}", f"{value:.4f}", reached])


def draw_precision_recall(path: Path, result: CocoResult) -> None:
    """Draws the curve of each class and, in black, their mean, at IoU 0.5 and 0.75; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display needed, no global state as pyplot has
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(result.per_class)
    for axes, threshold in zip(figure.subplots(1, 2, sharey=True), DRAWN_IOUS, strict=True):
        curves = result.precision[IOU_THRESHOLDS.index(threshold)]  # [recall, class]
        defined = [label for label in range(len(names)) if curves[0, label] >= 0]
        for label in defined:
            text = f"{names[label]} {curves[:, label].mean():.2f}" if len(names) <= NAMED_CLASSES else None
            axes.plot(RECALLS, curves[:, label], linewidth=1, label=text)
        if defined:
            mean = curves[:, defined].mean(1)
            axes.plot(RECALLS, mean, color="black", linewidth=2, label=f"mean {np.mean(mean):.2f}")
            axes.legend(fontsize="small", title="AP")
        axes.set_title(f"IoU {threshold}")
        axes.set_xlabel("recall")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("precision")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)

"""The demo's results as one HTML page beside its pictures: the table, the curve, and truth next to detections."""

import html
from pathlib import Path

import cv2
import numpy as np
import torch

from fastrcnn.atomic import atomic_write
from fastrcnn.data.image import read_image
from fastrcnn.data.sample import Dataset, Sample
from fastrcnn.demo.figures import Figures
from fastrcnn.detector import Detector
from fastrcnn.drawing import class_colour, draw_detections
from fastrcnn.models.detections import Detections

SHOWN_SCORE = 0.5
_PICTURES = 12
_ZOOM = 2  # scenes are small; labels drawn at twice their size can be read

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: left; }
td { font-variant-numeric: tabular-nums; } img { max-width: 100%; border-radius: 4px; }
.pairs { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; } pre { background: #f3f3f3; padding: .8em; }
"""


def write_page(out: Path, detector: Detector, scenes: Dataset, metrics: dict, figures: Figures) -> Path:
    """Writes out/index.html and out/pictures/*.jpg, and links out/curves.png if training drew it.

    Args:
        scenes: what was evaluated on; the first few are shown. metrics: of fastrcnn.evaluation.evaluate.
    Returns:
        The path of the page.
    """
    pictures = []
    for sample in scenes.samples[:_PICTURES]:
        name = f"pictures/{sample.path.stem}"
        image = read_image(sample.path)
        found = detector.detect(image, score_threshold=SHOWN_SCORE)
        _write_picture(out / f"{name}_truth.jpg", draw_truth(_zoomed(image), sample, scenes.classes))
        large = Detections(found.boxes * _ZOOM, found.scores, found.labels, found.names)
        _write_picture(out / f"{name}_found.jpg", draw_detections(_zoomed(image), large, detector.classes))
        pictures.append(name)
    page = out / "index.html"
    with atomic_write(page) as temporary:
        temporary.write_text(_page(out, metrics, figures, pictures), encoding="utf-8")
    return page


def draw_truth(image: np.ndarray, sample: Sample, classes: list[str]) -> np.ndarray:
    """Draws a sample's true boxes, zoomed as ``image`` (BGR uint8), with the names of their classes."""
    image = image.copy()
    zoom = image.shape[1] / sample.width
    for box, label in zip(sample.boxes * zoom, sample.labels, strict=True):
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), class_colour(int(label)), 2, cv2.LINE_AA)
        where = (max(x1 + 5, 5), max(y1 + 20, 20))
        for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            cv2.putText(image, classes[label], where, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, thickness, cv2.LINE_AA)
    return image


def _zoomed(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_CUBIC)


def _write_picture(path: Path, image: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        cv2.imwrite(str(temporary), image, [cv2.IMWRITE_JPEG_QUALITY, 88])


def _page(out: Path, metrics: dict, figures: Figures, pictures: list[str]) -> str:
    pairs = "\n".join(
        f'<img src="{name}_truth.jpg" alt="truth"><img src="{name}_found.jpg" alt="found">' for name in pictures
    )
    curve = '<h2>Learning curve</h2>\n<img src="curves.png" alt="losses, learning rate and AP over the steps">'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>fastrcnn demo</title><style>{_STYLE}</style></head><body>
<h1>fastrcnn demo</h1>
<p>A Faster R-CNN trained from random weights on drawn scenes, measured on scenes that it has not seen.</p>
{_table(_rows(metrics, figures))}
<h2>AP of each class</h2>
{_table([(name, f"{ap:.3f}") for name, ap in metrics["per_class"].items()])}
{curve if (out / "curves.png").is_file() else ""}
<h2>Held-out scenes: truth on the left, detections with a score above {SHOWN_SCORE} on the right</h2>
<div class="pairs">{pairs}</div>
<h2>Your own picture</h2>
<pre>fastrcnn detect {out / "config.yaml"} YOUR_IMAGE.jpg --checkpoint {out / "best.pth"} --out detections</pre>
</body></html>
"""


def _table(rows: list[tuple[str, str]]) -> str:
    lines = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _rows(metrics: dict, figures: Figures) -> list[tuple[str, str]]:
    """The table: (what, value)."""
    rows = [
        ("AP (IoU 0.50 to 0.95)", f"{metrics['AP']:.3f}"),
        ("AP50", f"{metrics['AP50']:.3f}"),
        ("Training", f"{figures.training_seconds / 60:.1f} minutes, {torch.get_num_threads()} threads"),
        ("Peak memory of training", f"{figures.training_memory:.0f} MB, the whole process"),
        ("Detection", f"{figures.fps:.0f} fps, one picture at a time"),
    ]
    if figures.detection_memory is not None:
        rows.append(("Peak memory of detection", f"{figures.detection_memory:.0f} MB above that of `import torch`"))
    return rows

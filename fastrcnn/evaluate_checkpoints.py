"""`fastrcnn eval`: measures one checkpoint or several, prints the numbers and writes them into output_dir.

| file                      | content                                                                              |
|---------------------------|--------------------------------------------------------------------------------------|
| eval_results.json         | the checkpoint, the dataset, every metric                                            |
| detections.json           | every detection in COCO's results format, which pycocotools' COCO.loadRes reads       |
| confusion.csv             | which classes are taken for which: fastrcnn.evaluation.confusion                     |
| precision_recall.csv/.png | the curve of each class; the picture needs matplotlib                                |
| proposal_recall.json      | instead of all these, with --proposals                                               |
| checkpoints.csv           | of several checkpoints: one row each; the files above are then in a folder of each   |
"""

import csv
import json
import re
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from fastrcnn.atomic import atomic_write
from fastrcnn.class_names import placeholder_names
from fastrcnn.config import Config
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.data.sample import Dataset
from fastrcnn.detector import Detector, load
from fastrcnn.distributed import from_main
from fastrcnn.evaluation.coco import METRICS, coco_results
from fastrcnn.evaluation.confusion import (
    IOU_THRESHOLD,
    SCORE_THRESHOLD,
    confusion_counts,
    worst_confusions,
    write_confusion,
)
from fastrcnn.evaluation.evaluate import Evaluation, evaluate, metrics_table
from fastrcnn.evaluation.precision_recall import draw_precision_recall, write_precision_recall
from fastrcnn.evaluation.proposals import LIMITS, proposal_recall, propose_dataset
from fastrcnn.training.log import say

TABLE = (*METRICS[:6], "AR100", "VOC_mAP", *(f"AR@{limit}" for limit in LIMITS), "images_per_second")


def evaluate_checkpoints(config: Config, sources: Sequence[str], proposals: bool = False) -> None:
    """Measures each checkpoint on config.data.val; of several processes, all share each one's images.

    Args:
        sources: as find_checkpoints takes them; empty: the published file of the config.
        proposals: measure the RPN alone.
    Raises:
        FileNotFoundError: a folder without checkpoints. What reading checkpoints and data raises.
    """
    checkpoints: list[str | None] = list(from_main(lambda: find_checkpoints(sources))) or [None]
    out = Path(config.output_dir)
    rows: dict[str, dict] = {}
    folders = [out] if len(checkpoints) == 1 else [out / name for name in _names(checkpoints)]
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        if len(checkpoints) > 1:
            say(f"\n{checkpoint} ({len(rows) + 1} of {len(checkpoints)})")
        metrics = evaluate_checkpoint(config, checkpoint, folder, proposals)
        if checkpoint is not None and len(checkpoints) > 1:
            rows[checkpoint] = metrics
            from_main(partial(write_table, out / "checkpoints.csv", rows))  # now: the next one may be a broken file
    if rows:
        say(f"\n{comparison(rows)}")
    say(f"Also in {out}: " + ", ".join(sorted(path.name for path in out.iterdir() if not path.name.startswith("."))))


def find_checkpoints(sources: Sequence[str]) -> list[str]:
    """The checkpoints that are named, and those of the folders that are named.

    In a folder these are all *.pth, epoch_2 before epoch_10. Files that are one file under several names, as best.pth
    and epoch_<k>.pth of a run often are, come once.

    Raises:
        FileNotFoundError: a folder without *.pth.
    """
    found: list[str] = []
    for source in sources:
        if not Path(source).is_dir():
            found.append(source)
            continue
        files = sorted(
            (path for path in Path(source).glob("*.pth") if not path.name.startswith(".")),  # unfinished ones
            key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)],
        )
        if not files:
            raise FileNotFoundError(f"The folder {source} has no checkpoints (*.pth)")
        found += [str(path) for path in {path.stat().st_ino: path for path in reversed(files)}.values()][::-1]
    return list(dict.fromkeys(found))


def evaluate_checkpoint(config: Config, checkpoint: str | None, folder: Path, proposals: bool) -> dict:
    """Measures one checkpoint, prints its metrics, writes its files into `folder`, and returns the metrics."""
    detector = load(config, checkpoint)
    dataset = validation_data(config, detector)
    say(summary(dataset))
    if proposals:
        metrics: dict = proposal_recall(dataset, propose_dataset(detector.model, dataset, config, detector.device))
        say("\n".join(f"{name:>8} {recall:.3f}" for name, recall in metrics.items() if recall >= 0))
    else:
        evaluation = evaluate(detector.model, dataset, config, detector.device)
        metrics = evaluation.metrics
        say(metrics_table(metrics))
        say(f"{len(dataset.samples)} images in {evaluation.detecting:.1f} s, metrics in {evaluation.measuring:.1f} s")
        from_main(lambda: write_evaluation(folder, dataset, evaluation))
    name = "proposal_recall.json" if proposals else "eval_results.json"
    content = {"checkpoint": checkpoint, "dataset": dataset.name, "metrics": metrics}
    from_main(lambda: _write_json(folder / name, content, indent=1))
    return metrics


def validation_data(config: Config, detector: Detector) -> Dataset:
    """config.data.val, its classes in the detector's order.

    Labels mean what they did in training: the checkpoint's names choose the classes, or else the data's order does.

    Raises:
        ValueError: another number of classes, or what reading raises.
    """
    count = len(detector.classes)
    known = [] if detector.classes == placeholder_names(count) else detector.classes
    dataset = read_dataset(config.data.val, known, config.data.rename)
    if len(dataset.classes) != count:
        raise ValueError(f"The model has {count} classes, {dataset.name} has {len(dataset.classes)}")
    return dataset


def write_evaluation(folder: Path, dataset: Dataset, evaluation: Evaluation) -> None:
    """Writes detections.json, confusion.csv, precision_recall.csv and .png."""
    _write_json(folder / "detections.json", coco_results(dataset, evaluation.detections))
    counts = confusion_counts(dataset, evaluation.detections)
    write_confusion(folder / "confusion.csv", counts, dataset.classes)
    objects, right, missed = counts[:-1].sum(), counts.diagonal().sum(), counts[:-1, -1].sum()
    say(
        f"Of {objects} objects, at IoU {IOU_THRESHOLD} and score {SCORE_THRESHOLD}: "
        f"{right} found, {missed} missed, "
        f"{objects - right - missed} taken for another class; {counts[-1].sum()} false detections"
    )
    confused = worst_confusions(counts, dataset.classes)
    if confused:
        say(f"Most often confused: {confused}")
    write_precision_recall(folder / "precision_recall.csv", evaluation.coco)
    if find_spec("matplotlib") is None:
        say("There is no precision_recall.png: matplotlib is not installed (pip install matplotlib)")
    else:
        draw_precision_recall(folder / "precision_recall.png", evaluation.coco)


def _write_json(path: Path, content: object, indent: int | None = None) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


# --- several checkpoints ----------------------------------------------------------------------------------------------


def best_of(rows: dict[str, dict]) -> str:
    """The checkpoint with the highest AP (of proposals: recall of the most boxes); the first of equals."""
    return max(rows, key=lambda checkpoint: rows[checkpoint].get("AP", rows[checkpoint].get(f"AR@{LIMITS[-1]}", -1.0)))


def comparison(rows: dict[str, dict]) -> str:
    """One line per checkpoint; the best is marked with *."""
    best, columns = best_of(rows), [name for name in TABLE if name in next(iter(rows.values()))]
    width = max(len(checkpoint) for checkpoint in rows) + 2
    titles = ["images/s" if name == "images_per_second" else name for name in columns]
    lines = [" " * (width + 2) + "".join(f"{title:>9}" for title in titles)]
    for checkpoint, metrics in rows.items():
        cells = "".join(f"{'-':>9}" if metrics[name] < 0 else f"{metrics[name]:9.3f}" for name in columns)
        lines.append(f"{'*' if checkpoint == best else ' '} {checkpoint:<{width}}{cells}")
    return "\n".join([*lines, f"* the best: {best}"])


def write_table(path: Path, rows: dict[str, dict]) -> None:
    """Writes one row per checkpoint: whether it is the best (1 or 0), and every metric but those of the classes."""
    best = best_of(rows)
    names = [name for name, value in next(iter(rows.values())).items() if not isinstance(value, dict)]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "best", *names])
        for checkpoint, metrics in rows.items():
            writer.writerow([checkpoint, int(checkpoint == best), *(f"{metrics[name]:.6g}" for name in names)])


def _names(checkpoints: Sequence[str | None]) -> list[str]:
    """A folder for each: named as the file, with a number where several files have the name."""
    names: dict[str, None] = {}
    for checkpoint in checkpoints:
        stem = Path(str(checkpoint)).stem
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names[name] = None
    return list(names)

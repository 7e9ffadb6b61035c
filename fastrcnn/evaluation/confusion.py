"""Which classes are taken for which: counts of objects and detections that belong together, or to nothing.

In each image, in descending score, each detection takes the free object that it overlaps most, of whatever class, if
their IoU reaches the threshold. The pair counts in the row of the object's class and the column of the detection's. An
object that no detection takes is missed: it counts in the last column. A detection that takes none is a false one: it
counts in the last row, "background", also where it repeats one that was better.

So the metrics' rule, but across classes: AP asks each class alone, and cannot tell a cat that is called a dog from a
missed cat and a false dog.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastrcnn.atomic import atomic_write
from fastrcnn.data.sample import Dataset, Sample
from fastrcnn.evaluation.check import check_detections
from fastrcnn.evaluation.overlap import covered, iou
from fastrcnn.models.detections import Detections

BACKGROUND = "background"
IOU_THRESHOLD, SCORE_THRESHOLD = 0.5, 0.3


def confusion_counts(
    dataset: Dataset,
    detections: Mapping[int, Detections],
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
) -> np.ndarray:
    """Counts of (object's class, detection's class), background last, as the module's text defines them.

    Crowds and difficult objects are neither missed nor confused: they count nowhere, and neither does a detection that
    takes no object but overlaps a difficult one, or lies in a crowd, by iou_threshold (of its own area).

    Args:
        dataset: the images and their objects, of C classes.
        detections: image id -> its detections in pixels of the original image; an image may be left out.
        iou_threshold: smallest IoU of a pair (at least this), above 0.
        score_threshold: detections with a lower score do not count.
    Returns:
        int64 [C + 1, C + 1]. Row c < C adds up to the objects of class c; column c < C to the detections of class c
        that count; [C, C] is 0.
    Raises:
        ValueError: an image id that the dataset lacks, a label beyond its classes, or an iou_threshold outside 0 .. 1.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be above 0 and at most 1, got {iou_threshold}")
    check_detections(dataset, detections)
    background = len(dataset.classes)
    counts = np.zeros((background + 1, background + 1), np.int64)
    for sample in dataset.samples:
        if sample.image_id in detections:
            found = detections[sample.image_id]
            scores = found.scores.double().numpy()
            order = np.argsort(-scores, kind="stable")
            order = order[scores[order] >= score_threshold]
            boxes, labels = found.boxes.double().numpy()[order], found.labels.numpy()[order]
        else:
            boxes, labels = np.zeros((0, 4)), np.zeros(0, np.int64)
        wanted = sample.keep(~(sample.crowd | sample.difficult))
        taken = _pairs(boxes, wanted.boxes, iou_threshold)
        missed = np.ones(len(wanted.labels), bool)
        missed[taken[taken >= 0]] = False
        false = (taken < 0) & ~_excused(boxes, sample, iou_threshold)
        np.add.at(counts, (wanted.labels[taken[taken >= 0]], labels[taken >= 0]), 1)
        counts[:-1, background] += np.bincount(wanted.labels[missed], minlength=background)
        counts[background, :-1] += np.bincount(labels[false], minlength=background)
    return counts


def _pairs(boxes: np.ndarray, objects: np.ndarray, iou_threshold: float) -> np.ndarray:
    """For boxes [n, 4] in descending score: the index of the object of each, or -1."""
    taken = np.full(len(boxes), -1)
    if len(objects) == 0:
        return taken
    overlaps = iou(boxes, objects)
    for index in np.flatnonzero(overlaps.max(1) >= iou_threshold):
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= iou_threshold:
            taken[index] = best
            overlaps[:, best] = -1  # no longer free
    return taken


def _excused(boxes: np.ndarray, sample: Sample, threshold: float) -> np.ndarray:
    """Whether each box lies where the metrics ask nothing, bool [n]."""
    difficult, crowd = sample.boxes[sample.difficult & ~sample.crowd], sample.boxes[sample.crowd]
    shares = np.hstack([iou(boxes, difficult), covered(boxes, crowd)])
    return shares.max(1, initial=0.0) >= threshold


def write_confusion(path: Path, counts: np.ndarray, classes: list[str]) -> None:
    """Writes confusion_counts as CSV: one row per class of objects, one column per class of detections."""
    names = [*classes, BACKGROUND]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["object \\ detection", *names])
        writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))


def worst_confusions(counts: np.ndarray, classes: list[str], limit: int = 5) -> str:
    """The most frequent pairs of two different classes in words, one line; empty if there is none."""
    between = counts[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(index), len(classes)) for index in order if between.flat[index] > 0]
    return ", ".join(f"{classes[row]} as {classes[column]} {between[row, column]}" for row, column in pairs)

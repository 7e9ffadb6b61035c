"""Counts of confused classes: by hand, and by their sums."""

import csv
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import dataset, found, image, imperfect

from fastrcnn.data.coco import read_coco
from fastrcnn.evaluation.confusion import confusion_counts, worst_confusions, write_confusion

A, B, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [100.0, 100, 110, 110]
CAT, DOG, NOTHING = 0, 1, 2


def counts_of(*rows, objects=((A, CAT), (B, DOG)), **flags) -> dict[tuple[int, int], int]:
    """{(row, column): count} of one image, zeros left out."""
    counts = confusion_counts(dataset(image(1, list(objects), **flags)), {1: found(*rows)})
    return {(int(row), int(column)): int(counts[row, column]) for row, column in np.argwhere(counts)}


def test_found_confused_missed_and_false() -> None:
    assert counts_of((A, 0.9, CAT), (B, 0.8, CAT)) == {(CAT, CAT): 1, (DOG, CAT): 1}
    assert counts_of((FAR, 0.9, DOG)) == {(CAT, NOTHING): 1, (DOG, NOTHING): 1, (NOTHING, DOG): 1}
    assert counts_of() == {(CAT, NOTHING): 1, (DOG, NOTHING): 1}


def test_the_higher_score_takes_the_object_and_a_repetition_is_false() -> None:
    nearly = [0.0, 0, 10, 9]
    assert counts_of((A, 0.6, DOG), (nearly, 0.9, CAT), objects=[(A, CAT)]) == {(CAT, CAT): 1, (NOTHING, DOG): 1}
    assert counts_of((A, 0.9, DOG), (nearly, 0.6, CAT), objects=[(A, CAT)]) == {(CAT, DOG): 1, (NOTHING, CAT): 1}


def test_of_equal_scores_the_first_takes_the_object() -> None:
    assert counts_of((A, 0.9, CAT), (A, 0.9, DOG), objects=[(A, CAT)]) == {(CAT, CAT): 1, (NOTHING, DOG): 1}
    assert counts_of((A, 0.9, DOG), (A, 0.9, CAT), objects=[(A, CAT)]) == {(CAT, DOG): 1, (NOTHING, CAT): 1}


def test_a_detection_takes_the_free_object_that_it_overlaps_most() -> None:
    lower = [0.0, 2, 10, 12]  # IoU with A: 2 / 3
    objects = [(A, CAT), (lower, DOG)]
    assert counts_of((lower, 0.9, DOG), ([0.0, 1, 10, 11], 0.8, CAT), objects=objects) == {(CAT, CAT): 1, (DOG, DOG): 1}


def test_both_thresholds_are_inclusive() -> None:
    half = [0.0, 0, 10, 5]  # IoU 0.5
    data = dataset(image(1, [(A, CAT)]))
    detections = {1: found((half, 0.25, CAT))}
    assert confusion_counts(data, detections, score_threshold=0.25)[CAT, CAT] == 1
    assert confusion_counts(data, detections, score_threshold=0.26).sum() == 1  # missed, and nothing false
    assert confusion_counts(data, detections, 0.51, 0.25)[[CAT, NOTHING], [NOTHING, CAT]].tolist() == [1, 1]


def test_crowds_and_difficult_objects_count_nowhere() -> None:
    inside_b, objects = [22.0, 2, 25, 5], [(A, CAT), (B, DOG)]
    rows = [(A, 0.9, CAT), (inside_b, 0.8, CAT)]
    assert counts_of(*rows, objects=objects, crowd=[False, True]) == {(CAT, CAT): 1}
    assert counts_of(*rows, objects=objects, difficult=[False, True]) == {(CAT, CAT): 1, (NOTHING, CAT): 1}
    rows[1] = (B, 0.8, CAT)
    assert counts_of(*rows, objects=objects, difficult=[False, True]) == {(CAT, CAT): 1}


def test_sums_are_the_objects_and_the_detections(shared: Path) -> None:
    data = read_coco(shared / "data/bccd/val.json", shared / "data/bccd/JPEGImages")
    detections = imperfect(data)
    counts = confusion_counts(data, detections, 0.5, 0.2)
    assert counts.shape == (4, 4) and counts[3, 3] == 0
    for label in range(3):
        assert counts[label].sum() == sum((sample.labels == label).sum() for sample in data.samples)
        above = [(d.labels == label) & (d.scores >= np.float32(0.2)) for d in detections.values()]
        assert counts[:, label].sum() == sum(int(mask.sum()) for mask in above)
    assert counts[:3, :3].sum() > counts[:3, :3].diagonal().sum() > 100


def test_images_without_objects_or_detections_and_wrong_input() -> None:
    data = dataset(image(1, []), image(2, [(A, DOG)]))
    counts = confusion_counts(data, {1: found((A, 0.9, CAT))})
    assert counts[NOTHING, CAT] == counts[DOG, NOTHING] == 1 and counts.sum() == 2
    with pytest.raises(ValueError, match="image id 7"):
        confusion_counts(data, {7: found()})
    with pytest.raises(ValueError, match="iou_threshold must be above 0 and at most 1, got 0"):
        confusion_counts(data, {}, iou_threshold=0)


def test_files_and_words(tmp_path: Path) -> None:
    counts = np.array([[5, 1, 2], [3, 4, 0], [0, 6, 0]])
    write_confusion(tmp_path / "confusion.csv", counts, ["cat, black", "dog"])
    with open(tmp_path / "confusion.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["cat, black", "dog", "background"]
    assert [row[0] for row in rows[1:]] == rows[0][1:]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == counts.tolist()
    assert worst_confusions(counts, ["cat", "dog"]) == "dog as cat 3, cat as dog 1"
    assert worst_confusions(np.diag([5, 4, 0]), ["cat", "dog"]) == ""

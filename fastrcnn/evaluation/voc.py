"""The average precision of Pascal VOC (the definition of the devkit's VOCevaldet.m and VOCap.m, 2007 and 2010).

One difference: boxes are continuous here, a side is x2 - x1, where the devkit counts the pixels of inclusive corners,
x2 - x1 + 1. The IoU of two boxes that are not equal comes out a little smaller: it tells for objects of a few pixels.
"""

from collections.abc import Mapping

import numpy as np

from fastrcnn.data.sample import Dataset
from fastrcnn.evaluation.check import check_detections
from fastrcnn.evaluation.overlap import iou
from fastrcnn.models.detections import Detections


def voc_ap(
    dataset: Dataset, detections: Mapping[int, Detections], iou_threshold: float = 0.5, eleven_point: bool = False
) -> dict:
    """Average precision per class and its mean.

    In descending score, over all images, each detection is compared with the object of its class and image that it
    overlaps most. Overlap below the threshold: false positive. An object marked difficult (or a crowd): the detection
    is ignored. An object that an earlier detection has found: false positive. Otherwise: true positive. Difficult
    objects need not be found.

    Args:
        dataset: the images and their objects.
        detections: image id -> its detections in pixels of the original image; an image may be left out.
        iou_threshold: smallest IoU of a match (at least this).
        eleven_point: False: the area under the precision-recall curve, precision made non-increasing (VOC 2010 on).
            True: the mean of the largest precision at recall >= 0, 0.1, ... 1 (VOC 2007).
    Returns:
        {"mAP": the mean over the classes that have objects, "per_class": {class name: AP}}, each 0 .. 1, or -1 where no
        object (difficult ones apart) exists. No detections: zeros.
    Raises:
        ValueError: an image id that the dataset lacks, or a label beyond its classes.
    """
    check_detections(dataset, detections)
    scores, labels, outcomes = _outcomes(dataset, detections, iou_threshold)
    order = np.argsort(-scores, kind="stable")
    labels, outcomes = labels[order], outcomes[order]
    wanted = np.zeros(len(dataset.classes), np.int64)
    for sample in dataset.samples:
        np.add.at(wanted, sample.labels[~(sample.difficult | sample.crowd)], 1)
    average = _eleven_point if eleven_point else _area
    per_class = {}
    for label, name in enumerate(dataset.classes):
        hits = outcomes[(labels == label) & (outcomes >= 0)] == 1
        found, count = np.cumsum(hits), int(wanted[label])
        per_class[name] = average(found, found / np.arange(1, len(found) + 1), count) if count else -1.0
    defined = [ap for ap in per_class.values() if ap >= 0]
    return {"mAP": float(np.mean(defined)) if defined else -1.0, "per_class": per_class}


def _outcomes(
    dataset: Dataset, detections: Mapping[int, Detections], iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and outcomes (1 true positive, 0 false positive, -1 ignored) of all detections."""
    scores, labels, outcomes = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for sample in dataset.samples:
        if sample.image_id not in detections:
            continue
        detected = detections[sample.image_id]
        image_labels = detected.labels.numpy()
        image_scores, boxes = detected.scores.double().numpy(), detected.boxes.double().numpy()
        overlaps = iou(boxes, sample.boxes)
        overlaps[image_labels[:, None] != sample.labels[None, :]] = -1.0
        ignored = sample.difficult | sample.crowd
        found = np.zeros(len(sample.labels), bool)
        image_outcomes = np.zeros(len(image_labels), np.int64)
        for index in np.argsort(-image_scores, kind="stable") if len(found) else ():
            best = int(overlaps[index].argmax())
            if overlaps[index, best] < iou_threshold:
                continue
            if ignored[best]:
                image_outcomes[index] = -1
            elif not found[best]:
                image_outcomes[index], found[best] = 1, True
        scores.append(image_scores)
        labels.append(image_labels)
        outcomes.append(image_outcomes)
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(outcomes)


def _area(found: np.ndarray, precision: np.ndarray, count: int) -> float:
    """found [n]: true positives among the first 1 .. n detections; precision [n]; count: objects to find."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(found, prepend=0) * envelope).sum() / count)


def _eleven_point(found: np.ndarray, precision: np.ndarray, count: int) -> float:
    # Recall >= k / 10 in whole numbers: 3 of 10 objects is a recall of 0.3, whatever 0.3 is in binary.
    return sum(float(precision[10 * found >= k * count].max(initial=0.0)) for k in range(11)) / 11

"""COCO metrics of a Dataset, through pycocotools.

The ground truth is built in memory from the Dataset, so that any format (COCO, VOC) is measured the same way and, for
a COCO file, the numbers equal those that pycocotools gives for the file itself.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastrcnn.data.sample import Dataset
from fastrcnn.evaluation.check import check_detections
from fastrcnn.models.detections import Detections

# In the order of COCOeval.stats. AP: the mean over IoU 0.50:0.05:0.95; s, m, l: area up to 32^2, up to 96^2, above, in
# pixels; ARk: recall with the k highest scored detections of each image, ARs, ARm, ARl with 100.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU_THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]
RECALLS = [round(0.01 * i, 2) for i in range(101)]  # at which the precision is sampled


@dataclass(frozen=True)
class CocoResult:
    metrics: dict[str, float]  # METRICS -> 0 .. 1; -1 where the dataset has no such object
    per_class: dict[str, float]  # class name -> AP, likewise; in label order
    # The precision-recall curves, float64 [10, 101, C]: IOU_THRESHOLDS, RECALLS, classes in label order; objects of any
    # size, 100 detections per image. -1 for a class without objects.
    precision: np.ndarray  # the highest precision at this recall or beyond; 0 if it is not reached
    scores: np.ndarray  # the score threshold at which the recall is reached, 0 if it is not


def coco_metrics(dataset: Dataset, detections: Mapping[int, Detections]) -> dict[str, float]:
    """The twelve COCO box metrics.

    Every image of the dataset counts, whether it has objects, detections, both or neither. A crowd is neither missed
    nor found: detections inside it are ignored (COCO's rule). Neither is a difficult object: detections that overlap it
    enough, and no other object, are ignored (VOC's rule).

    Args:
        dataset: the images and their objects.
        detections: image id -> its detections, boxes in pixels of the original image. An image may be left out, which
            is the same as empty detections.
    Returns:
        METRICS -> float in 0 .. 1, or -1 (pycocotools' mark) where the dataset has no object of that size, or none at
        all. No detections: zeros.
    Raises:
        ValueError: an image id that the dataset lacks, or a label beyond its classes.
    """
    return evaluate_coco(dataset, detections).metrics


def evaluate_coco(dataset: Dataset, detections: Mapping[int, Detections]) -> CocoResult:
    """coco_metrics, the AP of each class, and the precision-recall curves."""
    with quiet():
        evaluator = coco_evaluator(dataset, detections)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    # catIds are sorted, classes need not be
    columns = [evaluator.params.catIds.index(id) for id in dataset.category_ids]
    precision, scores = (evaluator.eval[name][:, :, columns, 0, -1] for name in ("precision", "scores"))
    per_class = {}
    for label, name in enumerate(dataset.classes):
        values = precision[:, :, label]
        per_class[name] = float(values.mean()) if values.min() > -1 else -1.0
    metrics = {name: float(value) for name, value in zip(METRICS, evaluator.stats, strict=True)}
    return CocoResult(metrics, per_class, precision, scores)


def quiet() -> contextlib.AbstractContextManager:
    """pycocotools prints its progress."""
    return contextlib.redirect_stdout(io.StringIO())


def coco_evaluator(dataset: Dataset, detections: Mapping[int, Detections]) -> COCOeval:
    """pycocotools' judge over the dataset's objects and the detections; its `params` may be changed before it runs."""
    return _Judge(_index(dataset, _ground_truth(dataset)), _index(dataset, _detected(dataset, detections)), "bbox")


class _Judge(COCOeval):
    """Ignores difficult objects, too: as crowds, however many detections match one, but with the IoU of an object.

    pycocotools has no such flag: it overwrites "ignore" with "iscrowd", which also replaces the IoU by the share of the
    detection that lies in the crowd, so that every small detection within a large difficult object would be excused.
    """

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        kinds = [catId] if self.params.useCats else self.params.catIds
        objects = [entry for kind in kinds for entry in self._gts[imgId, kind]]
        for entry in objects:
            entry["iscrowd"] = int(entry["crowd"])
        overlaps = super().computeIoU(imgId, catId)
        for entry in objects:  # what the matching goes by, which comes next
            entry["iscrowd"] = entry["ignore"] = int(entry["crowd"] or entry["difficult"])
        return overlaps


def coco_results(dataset: Dataset, detections: Mapping[int, Detections]) -> list[dict]:
    """The detections in COCO's results format, ready for json.dump and pycocotools' loadRes.

    Args: as coco_metrics.
    Returns:
        One dict per detection: image_id, category_id (the dataset file's own), bbox [x, y, width, height] in pixels,
        not rounded, and score. Images in the dataset's order, detections in theirs. Empty: [].
    Raises:
        ValueError: as coco_metrics.
    """
    check_detections(dataset, detections)
    results = []
    for sample in dataset.samples:
        if sample.image_id in detections:
            results += coco_boxes(sample.image_id, detections[sample.image_id], dataset.category_ids)
    return results


def coco_boxes(image_id: int, detections: Detections, category_ids: list[int]) -> list[dict]:
    """coco_results of one image. category_ids[label] is the category of a label."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in rows
    ]


def _ground_truth(dataset: Dataset) -> Iterable[dict]:
    for sample in dataset.samples:
        sizes = sample.boxes[:, 2:] - sample.boxes[:, :2]
        for box, label, area, crowd, difficult in zip(
            np.hstack([sample.boxes[:, :2], sizes]).tolist(),
            sample.labels.tolist(),
            sample.areas.tolist(),
            sample.crowd.tolist(),
            sample.difficult.tolist(),
            strict=True,
        ):
            yield {
                "image_id": sample.image_id,
                "category_id": dataset.category_ids[label],
                "bbox": box,
                "area": area,  # of the object's mask where the file has one: COCO's size classes go by it
                "crowd": crowd,
                "difficult": difficult,
            }


def _detected(dataset: Dataset, detections: Mapping[int, Detections]) -> Iterable[dict]:
    for result in coco_results(dataset, detections):
        yield result | {"area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}


def _index(dataset: Dataset, annotations: Iterable[dict]) -> COCO:
    """A COCO object in memory (COCO.loadRes would do for detections, but fails where there are none)."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": sample.image_id} for sample in dataset.samples],
        "categories": [
            {"id": id, "name": name} for id, name in zip(dataset.category_ids, dataset.classes, strict=True)
        ],
        # ids from 1: COCOeval takes a match with id 0 for no match
        "annotations": [annotation | {"id": id} for id, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco

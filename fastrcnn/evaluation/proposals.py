"""Recall of proposals: how many objects the RPN finds, whatever the box head makes of them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastrcnn.config import Config
from fastrcnn.data.loader import Batch
from fastrcnn.data.sample import Dataset
from fastrcnn.evaluation.coco import coco_evaluator, quiet
from fastrcnn.evaluation.evaluate import run_over_dataset
from fastrcnn.models.detections import Detections
from fastrcnn.models.faster_rcnn import FasterRCNN

LIMITS = (100, 300, 1000)  # proposals per image
AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}  # COCO's size classes


def propose_dataset(model: FasterRCNN, dataset: Dataset, config: Config, device: torch.device) -> dict[int, Detections]:
    """The model's proposals in every image of the dataset, with the settings for test; processes share the images.

    Returns:
        image id -> Detections on the CPU: boxes in pixels of the original image, scores (objectness, 0 .. 1)
        descending, labels all 0.
    Raises:
        what reading an image raises (a missing or broken file, by name).
    """

    def propose(images: Tensor, batch: Batch) -> list[Detections]:
        found = model.propose(model.features(images), batch.image_sizes)
        results = []
        for boxes, scores, count, factors in zip(
            found.boxes, found.scores, found.count.tolist(), batch.scale_factors, strict=True
        ):
            labels = torch.zeros(count, dtype=torch.int64)
            results.append(Detections(boxes[:count] / boxes.new_tensor(factors * 2), scores[:count], labels))
        return results

    return run_over_dataset(propose, model, dataset, config, device)


def proposal_recall(dataset: Dataset, proposals: Mapping[int, Detections]) -> dict[str, float]:
    """COCO's average recall (AR) of class-agnostic boxes, with the best 100, 300 and 1000 of each image.

    Recall is averaged over IoU 0.50:0.05:0.95 (Hosang et al. 2015, "What makes for effective detection proposals?").
    Crowds and difficult objects are neither missed nor found.

    Args:
        dataset: the images and their objects, whose classes do not matter.
        proposals: image id -> boxes in pixels of the original image and scores; labels are not looked at. An image may
            be left out, which is the same as no proposals.
    Returns:
        "AR@100", "AR@300", "AR@1000", and for objects of area up to 32^2, up to 96^2 and above with "s", "m", "l" after
        AR; 0 .. 1, or -1 (pycocotools' mark) where the dataset has no such object.
    Raises:
        ValueError: an image id that the dataset lacks.
    """
    one_class = {id: Detections(p.boxes, p.scores, torch.zeros_like(p.labels)) for id, p in proposals.items()}
    with quiet():
        evaluator = coco_evaluator(dataset, one_class)
        evaluator.params.useCats = 0
        evaluator.params.maxDets = list(LIMITS)
        evaluator.evaluate()
        evaluator.accumulate()
    recall = evaluator.eval["recall"][:, 0]  # [IoU, area, limit]
    areas = evaluator.params.areaRngLbl
    return {
        f"AR{suffix}@{limit}": float(np.mean(recall[:, areas.index(area), k]))
        for suffix, area in AREAS.items()
        for k, limit in enumerate(LIMITS)
    }

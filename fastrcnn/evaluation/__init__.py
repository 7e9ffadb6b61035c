"""Metrics: how well the detections of a dataset match its objects.

evaluate.py runs the model over a dataset; coco.py and voc.py turn its detections into numbers.
"""

from fastrcnn.evaluation.coco import coco_metrics, coco_results
from fastrcnn.evaluation.evaluate import detect_dataset, evaluate
from fastrcnn.evaluation.voc import voc_ap

__all__ = ["coco_metrics", "coco_results", "detect_dataset", "evaluate", "voc_ap"]

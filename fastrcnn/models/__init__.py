"""The detector: its parts in the order of the data flow, and how to build and load it."""

from fastrcnn.models.build import build_model
from fastrcnn.models.checkpoint import CheckpointReport, load_backbone, load_checkpoint
from fastrcnn.models.checkpoint_files import read_checkpoint
from fastrcnn.models.detections import Detections
from fastrcnn.models.faster_rcnn import FasterRCNN
from fastrcnn.models.proposals import Proposals

__all__ = [
    "CheckpointReport",
    "Detections",
    "FasterRCNN",
    "Proposals",
    "build_model",
    "load_backbone",
    "load_checkpoint",
    "read_checkpoint",
]

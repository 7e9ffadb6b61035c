"""fastrcnn: Faster R-CNN with a hand-written hot path.

    import fastrcnn
    detector = fastrcnn.load("faster_rcnn_r50_fpn_1x_coco")
    result = detector.detect("photo.jpg")  # result.boxes, .scores, .labels, .names

README.md shows the rest, DESIGN.md explains it.
"""

from importlib.metadata import PackageNotFoundError, version

from fastrcnn import ops
from fastrcnn.config import Config, config_names, load_config
from fastrcnn.detector import Detector, load
from fastrcnn.models.build import build_model
from fastrcnn.models.checkpoint import load_checkpoint
from fastrcnn.models.detections import Detections

try:
    __version__ = version("fastrcnn")
except PackageNotFoundError:  # a checkout that was built in place and not installed
    __version__ = ops.BUILD_INFO["version"]

__all__ = [
    "Config",
    "Detections",
    "Detector",
    "build_model",
    "config_names",
    "load",
    "load_checkpoint",
    "load_config",
    "ops",
]

"""The detector as its users see it: pictures in, named objects out.

    detector = load("faster_rcnn_r50_fpn_1x_coco")
    result = detector.detect("photo.jpg", score_threshold=0.5)

| stage           | in                                  | out                                            |
|-----------------|-------------------------------------|------------------------------------------------|
| read_image      | file or array                       | uint8 BGR [h, w, 3]                            |
| prepare_picture |                                     | float [1, 3, H, W]: resized to the longest fit |
|                 |                                     | in data.test.scale, normalised and padded; its |
|                 |                                     | true size, scale factors                       |
| model           |                                     | Detections in pixels of the original picture   |
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from fastrcnn.class_names import class_names
from fastrcnn.config import Config, load_config
from fastrcnn.data.image import prepare_picture, read_image
from fastrcnn.device import choose_device
from fastrcnn.models.build import build_model
from fastrcnn.models.checkpoint import load_checkpoint
from fastrcnn.models.checkpoint_files import published_checkpoint
from fastrcnn.models.detections import Detections
from fastrcnn.models.faster_rcnn import FasterRCNN
from fastrcnn.models.optimized import OptimizedFasterRCNN

Image = str | Path | np.ndarray
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Detector:
    """A model with everything around it: reads, resizes and normalises pictures, detects, names the classes.

    detect() changes nothing in the detector, so threads may share one; it can also be copied and pickled.

    Args:
        model: put into evaluation mode; its device and type are the detector's.
        config: what the model was built from; data.image and data.test say how pictures are prepared.
        classes: names in label order, as many as the model has classes.
    Raises:
        ValueError: another number of names.
    """

    def __init__(self, model: FasterRCNN, config: Config, classes: list[str]) -> None:
        self.model = model.eval()
        self.config = config
        self.classes = class_names(config.model.box_head.num_classes, classes)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def capture(self) -> "Detector":
        """A new Detector with the same results that runs the model as CUDA graphs, one per padded shape of an image.

        A graph starts its hundreds of kernels at once instead of one by one, which is most of the time of a small model
        on a fast GPU. The first picture of a shape takes longer: it captures the graph.

        Raises:
            ValueError: the detector is not on a CUDA device.
        """
        from fastrcnn.capture import CapturedDetector  # which is a Detector

        return CapturedDetector(self.model, self.config, self.classes)

    def compiled(self) -> "Detector":
        """A new Detector with the same results that runs the model through torch.compile, also after optimized().

        PyTorch joins the steps between convolutions into kernels of its own. The first picture of each padded shape
        can take a minute: its graph is compiled, with g++ on the CPU and Triton on a GPU. Results differ by rounding.
        Both detectors use the same weights.
        """
        from fastrcnn.compiled import CompiledDetector  # which is a Detector

        return CompiledDetector(self.model, self.config, self.classes)

    def optimized(self, dtype: torch.dtype | None = None) -> "Detector":
        """A new detector for inference: the same results, sooner, in less memory.

        Batch norm is folded into the convolutions, which do ReLU and residual addition as well; on the CPU 3x3
        convolutions run by Winograd's method. This detector is not changed; delete it if it is not needed any more, the
        new one has weights of its own. Results differ by rounding: in float32 by less than 0.05 pixels and 0.001 in
        score. The new detector stays on its device.

        Args:
            dtype: of weights and features; None: this detector's. From a float32 detector bfloat16 is more exact than
                from one that was loaded in bfloat16.
        Raises:
            ValueError: a dtype that is none of float32, float16 and bfloat16; a detector that is optimized already.
        """
        if isinstance(self.model, OptimizedFasterRCNN):
            raise ValueError("This detector is optimized already: optimize the one that it was made from")
        dtype = self.dtype if dtype is None else dtype
        _check_dtype(dtype)
        return Detector(OptimizedFasterRCNN(self.model, dtype), self.config, self.classes)

    @overload
    def detect(self, images: Image, score_threshold: float = ...) -> Detections: ...
    @overload
    def detect(self, images: list[Any] | tuple[Any, ...], score_threshold: float = ...) -> list[Detections]: ...
    @overload
    def detect(self, images: Iterator[Image], score_threshold: float = ...) -> Iterator[Detections]: ...

    def detect(
        self, images: Image | Iterable[Image], score_threshold: float = 0.05
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Finds the objects in one picture or several.

        Pictures go through the model one at a time, so each has the same result alone and among others.

        Args:
            images: the path of an image file, or uint8 pixels [h, w, 3] in BGR order (as cv2.imread gives) ->
                Detections; a list or tuple of these -> a list in the same order; an iterator or another iterable of
                these -> an iterator that reads and detects when asked for the next result.
            score_threshold: results have scores above it; it stands in for config.model.box_head.score_threshold.
        Returns:
            On the CPU: boxes float32 [K, 4], xyxy in pixels of the original picture; scores float32 [K], descending;
            labels int64 [K]; names, the K class names. Nothing found: K = 0.
        Raises:
            FileNotFoundError: no such file. ValueError: a file that is not an image or is cut short; an array of
            another type or shape, or without pixels; a threshold outside 0 .. 1. TypeError: something that is none of
            these. Of several pictures the message names the one, by its path or its number.
        """
        if not 0 <= score_threshold <= 1:  # NaN compares false
            raise ValueError(f"score_threshold must be between 0 and 1, got {score_threshold}")
        if isinstance(images, (str, Path, np.ndarray)):
            return self._detect_one(images, score_threshold)
        if isinstance(images, (list, tuple)):
            return list(self._detect_each(images, score_threshold))
        if isinstance(images, Iterable) and not isinstance(images, (torch.Tensor, Mapping, bytes)):
            return self._detect_each(images, score_threshold)
        raise TypeError(
            "detect takes the path of an image, a uint8 BGR array [h, w, 3], or a list or iterator of these, "
            f"got {type(images).__name__}"
        )

    def detect_prepared(
        self,
        batch: torch.Tensor,
        size: tuple[int, int],
        factors: tuple[float, float],
        score_threshold: float = 0.05,
    ) -> Detections:
        """As detect, for one picture that is resized, normalised, padded and on the device already (data.image).

        Args:
            batch: [1, 3, H, W] of the detector's type. size: (height, width) before padding. factors: (width factor,
                height factor), resized / original; (1, 1) gives boxes in pixels of the batch.
        """
        # Whatever the caller has switched on: autocast would change the results.
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            found = self._infer(batch, size, factors, score_threshold)
        # Tensors of inference mode cannot be changed in place or enter autograd outside it; their clones can.
        with torch.inference_mode(False):
            boxes, scores, labels = (value.cpu().clone() for value in (found.boxes, found.scores, found.labels))
        return Detections(boxes, scores, labels, [self.classes[label] for label in labels.tolist()])

    def _detect_each(self, images: Iterable[Image], score_threshold: float) -> Iterator[Detections]:
        for number, image in enumerate(images):
            try:
                pixels = read_image(image)
            except (TypeError, ValueError) as error:
                if isinstance(image, (str, Path)):  # which the message names
                    raise
                raise type(error)(f"Picture {number} (the first is 0): {error}") from error
            yield self._detect_one(pixels, score_threshold)

    def _detect_one(self, image: Image, score_threshold: float) -> Detections:
        pixels = read_image(image)
        batch, size, factors = prepare_picture(pixels, self.config.data, self.device, self.dtype)
        return self.detect_prepared(batch, size, factors, score_threshold)

    def _infer(
        self, batch: torch.Tensor, size: tuple[int, int], factors: tuple[float, float], score_threshold: float
    ) -> Detections:
        """The model on a batch of one image; CompiledDetector and CapturedDetector run it in other ways."""
        return self.model(batch, [size], [factors], score_threshold)[0]


def load(
    config: str | Path | Config,
    checkpoint: str | Path | dict[str, Any] | Literal[False] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Detector:
    """Builds the model of a config, loads its weights, and wraps both into a Detector.

    Args:
        config: a name, a path, or a Config.
        checkpoint: a file (fastrcnn's, mmdetection's v2 or v3 .pth, .safetensors), a URL, the name of a config (its
            published file), or such a dict; None: the file that this config's `published` block names. Downloads go
            into torch.hub's cache, once, and are checked against their hash. False: random initial weights, nothing is
            downloaded.
        device: "cpu", "cuda", "cuda:1", ...; None: cuda if there is one.
        dtype: of weights and features: torch.float32 (None), float16 or bfloat16.
    Returns:
        The Detector. Its class names: the checkpoint's; else config.data.classes; else COCO's, if there are 80 classes;
        else class_0, class_1, ...
    Raises:
        FileNotFoundError: no such config or checkpoint. ConnectionError: the download failed; the message says where
        to put the file. ValueError: the checkpoint does not fit the config, its hash is wrong, or the config has no
        published checkpoint; a device or dtype that cannot be used.
    """
    if not isinstance(config, (Config, str, Path)):
        raise TypeError(f"config must be a name, a path or a Config (not a part of one), got {type(config).__name__}")
    if not isinstance(config, Config):
        config = load_config(config)
    where = choose_device(device)
    if checkpoint is True:
        raise TypeError("checkpoint must be a path, a dict, None or False, got True")
    if dtype is not None:
        _check_dtype(dtype)
    with torch.device("cpu"):  # whatever the caller's default device and type are
        model = build_model(config.model).float()
    checkpoint_classes = None
    if checkpoint is not False:
        source = published_checkpoint(config) if checkpoint is None else checkpoint
        report = load_checkpoint(model, source)
        if report.missing:
            total = len(report.missing) + len(report.matched)
            raise ValueError(
                f"The checkpoint lacks {len(report.missing)} of the model's {total} entries, the first is "
                f"{report.missing[0]}: it is of another architecture than the config"
            )
        checkpoint_classes = report.classes
    classes = class_names(config.model.box_head.num_classes, checkpoint_classes, config.data.classes)
    model = model.to(where, dtype or torch.float32).to(memory_format=torch.channels_last)
    return Detector(model, config, classes)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")

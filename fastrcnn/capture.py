"""Detection as CUDA graphs: the kernels of model.detect_padded are recorded once per padded shape, then replayed.

    detector = load("faster_rcnn_r50_fpn_1x_coco", device="cuda").capture()

Possible because detect_padded never waits for the device and its outputs have shapes that do not depend on the picture.
"""

import threading
from typing import Any

import torch
from torch import Tensor

from fastrcnn.config import Config
from fastrcnn.detector import Detector
from fastrcnn.models.detections import Detections
from fastrcnn.models.faster_rcnn import FasterRCNN, PaddedDetections

_WARM_UP = 3  # runs before the recording, in which libraries choose algorithms and allocate what they keep


class CapturedDetector(Detector):
    """What Detector.capture() gives.

    A graph belongs to a shape of the batch and a score threshold: it holds its input and outputs; the memory in between
    is one pool for all graphs. It reads the weights where they lay when it was recorded: changed in place they take
    effect, replaced by others they do not. Threads may share the detector and take turns. A copy, or what is read back
    from a pickle, records graphs of its own.

    Raises:
        ValueError: the model is not on a CUDA device.
    """

    def __init__(self, model: FasterRCNN, config: Config, classes: list[str]) -> None:
        super().__init__(model, config, classes)
        if self.device.type != "cuda":
            raise ValueError(
                f"capture() records CUDA graphs and needs a detector on a CUDA device, this one is on {self.device}; "
                'fastrcnn.load(..., device="cuda") puts it there'
            )
        self._graphs: dict[tuple[torch.Size, float], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self.device)
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return CapturedDetector, (self.model, self.config, self.classes)

    def _infer(
        self, batch: Tensor, size: tuple[int, int], factors: tuple[float, float], score_threshold: float
    ) -> Detections:
        sizes, scales = (torch.tensor([pair], dtype=torch.float32, device="cpu") for pair in (size, factors))
        # All graphs on one stream: they share the pool, so one must have ended before the next begins.
        with self._turn, torch.cuda.device(self.device):
            callers = torch.cuda.current_stream()
            self._stream.wait_stream(callers)
            with torch.cuda.stream(self._stream):
                key = (batch.shape, score_threshold)
                if key not in self._graphs:
                    inputs = (batch.clone(), sizes.to(batch.device), scales.to(batch.device))
                    self._graphs[key] = _Graph(self.model, inputs, score_threshold, self._stream, self._pool)
                found = self._graphs[key].replay(batch, sizes, scales)
            callers.wait_stream(self._stream)
        batch.record_stream(self._stream)
        for output in found:
            output.record_stream(callers)
        return found.per_image()[0]


class _Graph:
    """The recorded kernels of model.detect_padded for inputs of one shape."""

    def __init__(
        self,
        model: FasterRCNN,
        inputs: tuple[Tensor, Tensor, Tensor],
        threshold: float,
        stream: torch.cuda.Stream,
        pool: Any,
    ) -> None:
        self._inputs = inputs
        for _ in range(_WARM_UP):
            model.detect_padded(*inputs, threshold)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do meanwhile, such as allocating memory, must not stop the recording
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = model.detect_padded(*inputs, threshold)

    def replay(self, *inputs: Tensor) -> PaddedDetections:
        """Copies of the outputs, because the next replay of any graph of the pool may write over them."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        self._graph.replay()
        return PaddedDetections(*(output.clone() for output in self._outputs))

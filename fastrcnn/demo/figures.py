"""What the demo's training and detection cost: time, frames per second, memory."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fastrcnn.benchmark import OURS, peak_memory, time_alternately, training_seconds
from fastrcnn.data.image import read_image
from fastrcnn.detector import Detector
from fastrcnn.training.log import read_log

_REPEATS = 40


@dataclass
class Figures:
    """Memory in units of 2^20 bytes."""

    training_seconds: float  # evaluations aside
    training_memory: float  # peak of the training process
    fps: float  # of detection in pictures that are already decoded, one at a time: 1 / median time
    detection_memory: float | None  # peak above that of `import torch`; None: cannot be measured on this system


def measure(out: Path, detector: Detector, image: Path) -> Figures:
    """Reads the log of the training that wrote to ``out``, and times the detector on an image."""
    pixels = read_image(image)
    (times,) = time_alternately([lambda: detector.detect(pixels)], _REPEATS, detector.device)
    memory = peak_memory(OURS, out / "config.yaml", detector.device, image, out / "best.pth")
    return Figures(
        training_seconds=training_seconds(out, detector.config.train.batch_size),
        training_memory=max(row["memory_mb"] for row in read_log(out / "log.csv")),
        fps=1 / median(times),
        detection_memory=memory,
    )

"""Speed and memory of a config's detector, next to torchvision's Faster R-CNN of the same shape in the same run.

    print(benchmark("faster_rcnn_r50_fpn_1x_coco"))

Weights are random, but the outputs of the heads are scaled to the spread that a trained detector's have, so that both
models carry about as many proposals and detections as in earnest. Both start from the pixels of a decoded picture and
end with boxes in that picture, and take turns, so that a busy machine slows both.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastrcnn import __version__
from fastrcnn.config import Config, load_config
from fastrcnn.data.image import prepare_picture, read_image
from fastrcnn.data.scenes import draw_scene
from fastrcnn.detector import Detector, load
from fastrcnn.info import cpu_name
from fastrcnn.training.log import read_log

OURS, THEIRS = "fastrcnn", "torchvision"
OPTIMIZED, BFLOAT16, BY_HAND = "fastrcnn optimized", "fastrcnn optimized, bfloat16", "torchvision by hand"
COMPILED, CAPTURED = "fastrcnn compiled", "fastrcnn captured"
_WARM_UP = 2  # runs of each model that are not timed
_MEMORY_RUNS = 3

# Runs in a process of its own: a peak cannot be measured twice in one. VmHWM, not ru_maxrss, which starts at the size
# of the process that this one was started from.
_MEMORY_PROGRAM = """
import re, sys, torch
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
from fastrcnn.benchmark import run_for_memory
run_for_memory(*sys.argv[1:])
print((peak() - before) / 1024)
"""


class Subject(Protocol):
    """A detector under measurement."""

    name: str
    device: torch.device

    def detect(self, pixels: np.ndarray) -> int:
        """Detects in BGR uint8 [h, w, 3]; the number of detections."""

    def count_proposals(self, pixels: np.ndarray) -> int:
        """How many proposals its first stage keeps of such a picture."""


@dataclass
class Head:
    """An output layer: the standard deviation that its outputs are scaled to, and its background channel, if any."""

    layer: nn.Linear | nn.Conv2d
    spread: float
    background: int | None = None


def benchmark(
    config_name: str | Path,
    image: str | Path | None = None,
    device: str | None = None,
    repeats: int = 7,
    names: Sequence[str] = (OURS, THEIRS),
) -> str:
    """Measures detection, one picture at a time, and returns the figures as Markdown.

    Args:
        config_name: a name or path. image: a picture; None: a drawn scene of 640 x 480.
        device: "cpu", "cuda", ...; None: cuda if there is one.
        repeats: timed runs of each model.
        names: the rows: OURS; THEIRS; OPTIMIZED or BFLOAT16, Detector.optimized in float32 or bfloat16; COMPILED,
            Detector.compiled; CAPTURED, Detector.capture, on CUDA; BY_HAND, torchvision's model in channels-last memory
            with its batch norms folded. The first is one of ours.
    Returns:
        A table: median time, frames per second, fastest and slowest run, peak memory, proposals and detections. Memory
        on the CPU is the peak of a fresh process above that of `import torch`; on CUDA the peak of the tensors. Without
        torchvision the table has fastrcnn's row alone.
    Raises:
        FileNotFoundError, ValueError: no such config or picture; repeats below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    config = load_config(config_name)
    pixels = picture(image)
    names = [name for name in names if name not in (THEIRS, BY_HAND) or find_spec("torchvision") is not None]
    subjects = [make_subject(names[0], config, pixels, device)]
    where = subjects[0].device
    subjects += [make_subject(name, config, pixels, str(where)) for name in names[1:]]
    seconds = time_alternately([partial(subject.detect, pixels) for subject in subjects], repeats, where)
    lines = [
        _heading(config_name, config, pixels, where, repeats),
        "| detector | median ms | fps | fastest - slowest ms | peak memory MB | proposals | detections |",
        "|---|---|---|---|---|---|---|",
    ]
    for subject, times in zip(subjects, seconds, strict=True):
        memory = peak_memory(subject.name, config_name, where, image)
        peak = "-" if memory is None else f"{memory:.0f}"
        counts = f"{subject.count_proposals(pixels)} | {subject.detect(pixels)}"
        lines.append(
            f"| {subject.name} | {1e3 * median(times):.1f} | {1 / median(times):.2f} "
            f"| {1e3 * min(times):.1f} - {1e3 * max(times):.1f} | {peak} | {counts} |"
        )
    if find_spec("torchvision") is None:
        lines.append("\ntorchvision is not installed: nothing to compare with (pip install torchvision)")
    return "\n".join(lines)


def time_alternately(
    runs: Sequence[Callable[[], object]], repeats: int, device: torch.device, warm_up: int = _WARM_UP
) -> list[list[float]]:
    """The seconds of every timed call, per function: A B A B ..., after a warm-up of so many calls of each."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repetition in range(-warm_up, repeats):
        for times, run in zip(seconds, runs, strict=True):
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repetition >= 0:
                times.append(time.perf_counter() - start)
    return seconds


def peak_memory(
    name: str,
    config: str | Path,
    device: torch.device,
    image: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> float | None:
    """Peak memory of detection, in units of 2^20 bytes; None where it cannot be measured (the CPU, outside Linux).

    Args:
        name: as benchmark's names. config: a name or path. image: as benchmark. checkpoint: None: random weights.
    Raises:
        RuntimeError: the measuring process failed; its last words are in the message.
    """
    if device.type == "cpu" and not os.path.exists("/proc/self/status"):
        return None
    arguments = [name, config, device, image or "", checkpoint or "", torch.get_num_threads()]
    command = [sys.executable, "-c", _MEMORY_PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Measuring the memory of {name} failed: {done.stderr[-1500:]}")
    return float(done.stdout.split()[-1])


def training_seconds(folder: Path, batch_size: int) -> float:
    """The time that a run's steps took, evaluations aside: from the images per second in folder/log.csv."""
    seconds, steps = 0.0, 0.0
    for row in read_log(folder / "log.csv"):
        seconds += (row["step"] - steps) * batch_size / row["images_per_second"]
        steps = row["step"]
    return seconds


def machine_name(device: torch.device) -> str:
    """The GPU, or the CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def run_for_memory(name: str, config: str, device: str, image: str, checkpoint: str, threads: str) -> None:
    """What the measuring process does: a few detections in one picture."""
    torch.set_num_threads(int(threads))
    pixels = picture(image or None)
    subject: Subject | Detector
    if name in (THEIRS, BY_HAND):
        subject = make_subject(name, load_config(config), pixels, device)
    else:  # outputs as they are: however many proposals there are, our tensors are as large
        subject = detector_of_row(name, load(config, checkpoint or False, device))
    for _ in range(_MEMORY_RUNS):
        subject.detect(pixels)


def detector_of_row(name: str, detector: Detector) -> Detector:
    """The detector that a row of ours measures."""
    return {
        OURS: lambda: detector,
        OPTIMIZED: lambda: detector.optimized(),
        BFLOAT16: lambda: detector.optimized(torch.bfloat16),
        COMPILED: lambda: detector.compiled(),
        CAPTURED: lambda: detector.capture(),
    }[name]()


def spread_outputs(heads: Sequence[Head], run: Callable[[], object], background: float = 6.0) -> None:
    """Scales random output layers so that, while `run` runs, every channel has mean 0 and the given standard deviation.

    A head's background channel then gets the mean `background`: with 80 classes, about one class in five hundred passes
    a score threshold of 0.05, as with a trained detector.
    """
    outputs: dict[nn.Module, list[Tensor]] = {head.layer: [] for head in heads}
    hooks = [head.layer.register_forward_hook(lambda layer, _, output: outputs[layer].append(output)) for head in heads]
    run()
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for head in heads:
            weight, bias = head.layer.weight, head.layer.bias
            assert bias is not None, "an output layer has a bias"
            channels = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs[head.layer]], 1).float()
            scale = head.spread / channels.std(1).clamp_min(1e-12)
            weight *= scale.view(-1, *[1] * (weight.dim() - 1))
            bias.copy_((bias - channels.mean(1)) * scale)
            if head.background is not None:
                bias[head.background] += background


def realistic_detector(config: Config, pixels: np.ndarray, device: str | None = None) -> Detector:
    """A detector with random weights that proposes and finds about as much in `pixels` as a trained one does."""
    torch.manual_seed(0)
    detector = load(config, checkpoint=False, device=device)
    rpn, head = detector.model.rpn_head, detector.model.box_head
    spread_outputs([Head(rpn.objectness, 1.0), Head(rpn.deltas, 0.1)], lambda: detector.detect(pixels))
    classes = Head(head.logits, 1.5, background=config.model.box_head.num_classes)
    spread_outputs([classes, Head(head.deltas, 0.5)], lambda: detector.detect(pixels))
    return detector


class Ours:
    """fastrcnn's detector with random weights, in the way that its row says."""

    def __init__(self, name: str, config: Config, pixels: np.ndarray, device: str | None) -> None:
        self.name, self.detector = name, detector_of_row(name, realistic_detector(config, pixels, device))
        self.device = self.detector.device

    def detect(self, pixels: np.ndarray) -> int:
        return len(self.detector.detect(pixels, self.detector.config.model.box_head.score_threshold).scores)

    @torch.inference_mode()
    def count_proposals(self, pixels: np.ndarray) -> int:
        model = self.detector.model
        batch, size, _ = prepare_picture(pixels, self.detector.config.data, self.device, self.detector.dtype)
        return int(model.propose(model.features(batch), [size]).count)


def make_subject(name: str, config: Config, pixels: np.ndarray, device: str | None) -> Subject:
    if name not in (THEIRS, BY_HAND):
        return Ours(name, config, pixels, device)
    from fastrcnn.peer import Peer  # torchvision: needed here and nowhere else in the package

    return Peer(config, pixels, device, by_hand=name == BY_HAND)


def picture(image: str | Path | None) -> np.ndarray:
    """BGR uint8 [h, w, 3]: the file's, or for None a drawn scene of 640 x 480."""
    return read_image(image) if image is not None else draw_scene(np.random.default_rng(0), 640, 480).image


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _heading(name: str | Path, config: Config, pixels: np.ndarray, device: torch.device, repeats: int) -> str:
    (height, width), (long, short) = pixels.shape[:2], config.data.test.scale
    others = [f"{package} {version(package)}" for package in ("torch", THEIRS) if find_spec(package)]
    return (
        f"{name}: one picture of {width} x {height}, resized to fit {long} x {short}; {machine_name(device)}; "
        f"{OURS} {__version__}, {', '.join(others)}; Python {platform.python_version()}; {repeats} runs each, in turn\n"
    )

"""Where a detector's time goes: named stages of detection and of a training step, each without the stages it calls.

times = detection_stages("faster_rcnn_r50_fpn_1x_coco")      # {"data": ms, "backbone": ms, ...}
print(stage_table("detection", times))
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastrcnn import detector as detecting
from fastrcnn import ops
from fastrcnn.benchmark import picture, realistic_detector
from fastrcnn.config import load_config
from fastrcnn.models import box_head, rpn
from fastrcnn.models.faster_rcnn import FasterRCNN

REST, WHOLE = "the rest", "all"
_WARM_UP = 2  # runs that are not counted


class Stopwatch:
    """The time of named stages, each without that of stages inside it. After a with block the functions that it watched
    are as before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)  # per stage, of the present run
        self._inside: list[float] = []  # per open stage, the seconds of the stages inside it
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *_: object) -> None:
        for owner, function, call in reversed(self._replaced):
            setattr(owner, function, call)
        self._replaced.clear()

    def medians(self, call: Callable[[], object], repeats: int) -> dict[str, float]:
        """ms per stage of a call, in the order of their ends; "all": of the whole call."""
        runs: list[dict[str, float]] = []
        for _ in range(_WARM_UP + repeats):
            self._seconds.clear()
            with self.stage(REST):
                call()
            runs.append({**self._seconds, WHOLE: sum(self._seconds.values())})
        return {name: 1e3 * median(run.get(name, 0.0) for run in runs[_WARM_UP:]) for name in runs[-1]}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        elapsed = time.perf_counter() - start
        self._seconds[name] += elapsed - self._inside.pop()
        if self._inside:
            self._inside[-1] += elapsed

    def watch(self, owner: Any, function: str, stage: str) -> None:
        """From now on the calls of owner.function are timed as that stage."""
        call = getattr(owner, function)

        def timed(*args, **kwargs):
            with self.stage(stage):
                return call(*args, **kwargs)

        self._replaced.append((owner, function, call))
        setattr(owner, function, timed)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def watch_detection(watch: Stopwatch, model: FasterRCNN) -> None:
    watch.watch(detecting, "prepare_picture", "data")
    watch.watch(model.backbone, "forward", "backbone")
    if model.fpn is not None:
        watch.watch(model.fpn, "forward", "FPN")
    watch.watch(model.rpn_head, "forward", "RPN head")
    watch.watch(model.anchors, "forward", "proposals")
    watch.watch(ops, "generate_proposals", "proposals")
    watch.watch(model, "pool", "RoIAlign" if model.pool_settings.kind == "roi_align" else "RoIPool")
    watch.watch(model.box_head, "forward", "box head")
    watch.watch(ops, "select_detections", "selection")


def watch_training(watch: Stopwatch, model: FasterRCNN) -> None:
    """Besides the stages that training shares with detection."""
    watch.watch(model.anchors, "valid", "assignment")
    watch.watch(ops, "assign_max_iou", "assignment")
    watch.watch(rpn, "sample", "sampling")
    watch.watch(box_head, "sample", "sampling")
    watch.watch(model.box_head, "sample", "sampling")
    watch.watch(model.rpn_head, "losses", "losses")
    watch.watch(model.box_head, "losses", "losses")
    watch.watch(torch.ops.fastrcnn, "_multilevel_roi_align_backward", "RoIAlign backward")


def detection_stages(
    config_name: str | Path, image: str | Path | None = None, device: str | None = None, repeats: int = 5
) -> dict[str, float]:
    """Median milliseconds of the stages of detect(), from the pixels of a decoded picture to the detections.

    Args:
        config_name: a name or path. image: a picture; None: the drawn scene of fastrcnn.benchmark.
        device: "cpu", "cuda", ...; None: cuda if there is one. On CUDA every stage waits for the one before, which
            detection otherwise does not: the sum is longer than a detection takes.
        repeats: timed runs.
    """
    pixels, config = picture(image), load_config(config_name)
    detector = realistic_detector(config, pixels, device)
    with Stopwatch(detector.device) as watch:
        watch_detection(watch, detector.model)
        return watch.medians(lambda: detector.detect(pixels), repeats)


def stage_table(title: str, times: dict[str, float]) -> str:
    lines = [f"\n| {title} | ms | share |", "|---|---|---|"]
    lines += [f"| {stage} | {ms:.2f} | {ms / times[WHOLE]:.1%} |" for stage, ms in times.items()]
    return "\n".join(lines)


def draw_stages(title: str, times: dict[str, float], file: Path) -> None:
    """The stages as bars, in the order of the data's flow, to a picture (needs matplotlib).

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--profile needs matplotlib (pip install matplotlib)") from error
    from fastrcnn.atomic import atomic_write

    stages = [stage for stage in times if stage != WHOLE]
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(stages)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = axes.barh(stages, [times[stage] for stage in stages])
    axes.bar_label(bars, [f" {times[stage]:.1f} ms, {times[stage] / times[WHOLE]:.1%}" for stage in stages])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set(title=f"{title}: {times[WHOLE]:.1f} ms", xlabel="ms")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, dpi=120)

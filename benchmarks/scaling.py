"""How time and memory grow with image size, proposals, objects, classes and batch, next to torchvision's.

    python benchmarks/scaling.py faster_rcnn_r50_fpn_1x_coco [--only objects classes]

One table per axis, a row as soon as it is measured. Every point and side runs in a process of its own, which measures
the median of a few calls and its peak memory above `import torch` (CPU: resident; CUDA: of the tensors). What an axis
does not vary is as Point says.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np
import torch
from training_step import Work, build_step, resident_peak

from fastrcnn import __version__
from fastrcnn.benchmark import OURS, THEIRS, machine_name, make_subject
from fastrcnn.config import load_config
from fastrcnn.data.scenes import draw_scene

RANGES = {
    "image size": (320, 640, 1000, 1333, 2000),  # the long side of a 5:3 picture
    "proposals": (100, 300, 1000, 2000),
    "classes, detection": (1, 20, 80, 300, 1200),
    "classes, training": (1, 20, 80, 300, 1200),
    "objects": (0, 10, 100, 300, 1000),  # per picture, in training
    "batch": (1, 2, 4, 8),  # in training
}


@dataclass
class Point:
    """What a process measures. size: (width, height)."""

    config: str
    training: bool = False
    size: tuple[int, int] = (640, 384)
    proposals: int = 1000
    classes: int = 80
    objects: int = 20
    batch: int = 1
    device: str = "cpu"
    threads: int = 2
    repeats: int = 3


def point_of(axis: str, value: int, base: Point) -> Point:
    if axis == "image size":
        return replace(base, size=(value, value * 3 // 5))
    name, _, mode = axis.partition(", ")
    return replace(base, training=mode == "training" or name in ("objects", "batch"), **{name: value})


def measure(side: str, point: Point) -> tuple[float, float]:
    """(median ms, peak MB) of this process, which must have done nothing before."""
    before = resident_peak() if point.device == "cpu" else 0.0
    torch.set_num_threads(point.threads)
    call = (training if point.training else detection)(side, point)
    seconds = []
    for _ in range(1 + point.repeats):
        start = time.perf_counter()
        call()  # its results are numbers on the host, so it has ended
        seconds.append(time.perf_counter() - start)
    peak = resident_peak() - before if point.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return 1e3 * median(seconds[1:]), peak


def overrides(point: Point) -> list[str]:
    settings = [f"{name}_proposals.post_nms={point.proposals}" for name in ("test", "train")]
    settings += [f"test_proposals.pre_nms={max(1000, point.proposals)}"]
    return ["model.backbone.pretrained=null", f"model.box_head.num_classes={point.classes}", "data.classes=[]"] + [
        f"model.rpn.{setting}" for setting in settings
    ]


def training(side: str, point: Point) -> Callable[[], object]:
    p = point
    return build_step(side, Work(p.config, overrides(p), p.batch, tuple(p.size), p.objects, p.device))


def detection(side: str, point: Point) -> Callable[[], object]:
    pixels = draw_scene(np.random.default_rng(0), *point.size).image
    config = load_config(point.config, [*overrides(point), f"data.test.scale={list(point.size)}"])
    measured = make_subject(side, config, pixels, point.device)
    return lambda: measured.detect(pixels)


def measure_in_process(side: str, point: Point) -> tuple[float, float] | str:
    """(median ms, peak MB), or what went wrong."""
    command = [sys.executable, __file__, point.config, "--point", side, json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
    ms, peak = json.loads(done.stdout.splitlines()[-1])
    return ms, peak


def table(axis: str, base: Point) -> Iterator[str]:
    """The lines of an axis, each when it is known; below them, what could not be measured and why."""
    heads = [axis, f"{OURS} ms", f"{THEIRS} ms", "ratio", f"{OURS} MB", f"{THEIRS} MB", "ratio"]
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    notes = []
    for value in RANGES[axis]:
        figures = []
        for side in (OURS, THEIRS):
            found = measure_in_process(side, point_of(axis, value, base))
            if isinstance(found, str):
                notes.append(f"- {side}, {axis} {value}: {found}")
                found = (float("nan"), float("nan"))
            figures.append(found)
        (ms, mb), (their_ms, their_mb) = figures
        cells = [f"{ms:.0f}", f"{their_ms:.0f}", f"{their_ms / ms:.2f}", f"{mb:.0f}", f"{their_mb:.0f}"]
        yield f"| {' | '.join([str(value), *cells, f'{mb / their_mb:.2f}'])} |"
    yield from ["", *notes] if notes else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING", help="of the names of the axes")
    parser.add_argument("--size", type=int, nargs=2, default=Point.size, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)  # what this program asks of its own processes
    arguments = parser.parse_args()
    if arguments.point:
        side, point = arguments.point
        print(json.dumps(measure(side, Point(**json.loads(point)))))
        return
    a = arguments
    base = Point(a.config, size=tuple(a.size), device=a.device, threads=a.threads, repeats=a.repeats)
    torch.set_num_threads(a.threads)
    print(
        f"{a.config}; unless varied: {base.size[0]} x {base.size[1]}, {base.proposals} proposals, {base.classes} "
        f"classes, {base.objects} objects, batch {base.batch}; {machine_name(torch.device(a.device))}; fastrcnn "
        f"{__version__}, torch {torch.__version__}; medians of {a.repeats}"
    )
    axes = [axis for axis in RANGES if any(word in axis for word in a.only)]
    if not axes:
        parser.error(f"--only: expected parts of {', '.join(map(repr, RANGES))}, got {a.only}")
    for axis in axes:
        print()
        for line in table(axis, base):
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""The zoo table's two columns, memory in training and frames per second, of every row on this machine, as Markdown.

    python benchmarks/zoo.py --json build/zoo.json           on a GPU; once more continues where it was stopped
    python benchmarks/zoo.py --quick --only r50_fpn          small pictures and few repeats, for two cores

fps as mmdetection counts it: one picture of 1333 x 800, prepared, in channels-last memory of the host; the time of its
copy to the device, the model and the copy of its detections back; no decoding. Weights are random, their heads scaled
to give as many proposals and detections as trained ones. Memory: the peak of training steps of two pictures, allocated
by tensors on a GPU, resident above `import torch` on the CPU. Every row runs in a process of its own and is printed
when it is measured; what a row could not do, and why, stands below the table, and the others go on.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from training_step import Work, build_step, peak_memory

from fastrcnn import __version__
from fastrcnn.atomic import atomic_write
from fastrcnn.benchmark import OURS, machine_name, realistic_detector
from fastrcnn.config import config_names, load_config
from fastrcnn.data.scenes import draw_scene
from fastrcnn.detector import Detector

WARM_UP = 3
FULL, QUICK = (1333, 800), (320, 192)  # width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of the names of the rows to measure")
    parser.add_argument("--quick", action="store_true", help=f"pictures of {QUICK[0]} x {QUICK[1]}, few repeats")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; rows that are in it are not measured again")
    parser.add_argument("--seconds", type=float, help="begin no row after so many (default: measure them all)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what this program asks of its own processes
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, repeats = (QUICK, 3) if arguments.quick else (FULL, 30 if arguments.device != "cpu" else 5)
    if arguments.row:
        print(json.dumps(measure_row(arguments.row, size, repeats, arguments.device, arguments.threads)))
        return
    results = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    end = time.monotonic() + (arguments.seconds or float("inf"))
    kinds, device = fps_kinds(arguments.device), torch.device(arguments.device)
    print(
        f"One picture of {size[0]} x {size[1]} (fps: median of {repeats}), two in training; {machine_name(device)}; "
        f"fastrcnn {__version__}, torch {torch.__version__}. Published: mmdetection on a V100.\n\n{head(kinds)}",
        flush=True,
    )
    chosen = [name for name in rows() if arguments.only in name]
    for name in chosen:
        if name not in results and time.monotonic() < end:
            results[name] = measure_in_process(name, sys.argv[1:])
            if arguments.json:
                with atomic_write(arguments.json) as temporary:
                    temporary.write_text(json.dumps(results, indent=1) + "\n")
        if name in results:
            print(line(name, results[name], kinds), flush=True)
    print(failures({name: results[name] for name in chosen if name in results}))


def fps_kinds(device: str) -> list[str]:
    """The columns of fps. CPUs have no fast float16, and no graphs."""
    if torch.device(device).type == "cpu":
        return ["float32", "bfloat16"]
    return [f"{dtype}{graph}" for dtype in ("float32", "float16", "bfloat16") for graph in ("", " graph")]


def rows() -> list[str]:
    """The configs with published figures."""
    return [name for name in config_names() if load_config(name).published.box_ap is not None]


def measure_in_process(name: str, options: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *options, "--row", name], capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"fps": {}, "memory": None, "failed": {"row": f"exit status {done.returncode}: {words[-1]}"}}


def measure_row(name: str, size: tuple[int, int], repeats: int, device: str, threads: int) -> dict[str, Any]:
    """{"fps": {"float32": ..., "float32 graph": ...}, "memory": MB or None, "failed": {what: why}}"""
    result: dict[str, Any] = {"fps": {}, "memory": None, "failed": {}}

    def attempt(what: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except Exception as error:  # one figure less, whatever the reason
            result["failed"][what] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
            return None

    config = load_config(name, ["model.backbone.pretrained=null", f"data.test.scale={list(size)}"])
    pixels = draw_scene(np.random.default_rng(0), *size).image
    detector = attempt("inference", lambda: realistic_detector(config, pixels, device))
    for kind in fps_kinds(device) if detector else ():
        result["fps"][kind] = attempt(kind, partial(fps_as, kind, detector, size, repeats))
    del detector
    dtype = "float16" if "fp16" in name and device != "cpu" else "float32"
    work = Work(name, ("model.backbone.pretrained=null",), 2, size, 20, device, dtype)
    result["memory"] = attempt("training", lambda: training_memory(work, threads))
    return result


def fps_as(kind: str, detector: Detector, size: tuple[int, int], repeats: int) -> float:
    """Of one of fps_kinds."""
    dtype, *graph = kind.split()
    model = copy.deepcopy(detector.model).to(getattr(torch, dtype))
    cast = Detector(model, detector.config, detector.classes)
    return fps(cast.capture() if graph else cast, size, repeats)


def fps(detector: Detector, size: tuple[int, int], repeats: int) -> float:
    width, height = size
    padded = [-(-side // 32) * 32 for side in (height, width)]
    batch = torch.zeros(1, 3, *padded)
    batch[:, :, :height, :width] = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    batch = batch.to(detector.dtype, memory_format=torch.channels_last)
    if detector.device.type == "cuda":
        batch = batch.pin_memory()
    seconds = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        detector.detect_prepared(batch.to(detector.device, non_blocking=True), (height, width), (1.0, 1.0))
        seconds.append(time.perf_counter() - start)
    return 1 / median(seconds[WARM_UP:])


def training_memory(work: Work, threads: int) -> float | None:
    """MB of 2^20 bytes."""
    if work.device == "cpu":
        return peak_memory(OURS, work, threads)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = build_step(OURS, work)
    for _ in range(2):  # the optimiser's momentum comes with the first
        step()
    return torch.cuda.max_memory_allocated() / 2**20


def head(kinds: list[str]) -> str:
    cells = ["config", "box AP", "memory GB, published", "here", "fps, published", *(f"{kind} here" for kind in kinds)]
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def line(name: str, result: dict[str, Any], kinds: list[str]) -> str:
    published = load_config(name).published
    memory = None if result["memory"] is None else result["memory"] / 1024
    figures = [published.box_ap, published.memory_gb, memory, published.fps]
    figures += [result["fps"].get(kind) for kind in kinds]
    return f"| {' | '.join([name, *('-' if figure is None else f'{figure:.1f}' for figure in figures)])} |"


def failures(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"- {name}, {what}: {why}" for name, row in results.items() for what, why in row["failed"].items()]
    return "\n".join(["", *lines] if lines else [])


if __name__ == "__main__":
    main()

"""A folder of photos through decoding, detection and writing, end to end: images per second.

    python benchmarks/serving.py faster_rcnn_r50_fpn_1x_coco --images photos/ --workers 0 1 2

Shaped as a service: `workers` threads decode photos ahead of the detector, which takes them one at a time, and as many
write pictures with boxes and the results' JSON behind it; 0 workers: one thread does one after the other. Decoding and
encoding are OpenCV's, which leave Python's lock to others. Without --images: drawn scenes, written as JPEG beforehand.
"""

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from fastrcnn import __version__
from fastrcnn.benchmark import machine_name, realistic_detector
from fastrcnn.class_names import category_ids
from fastrcnn.config import load_config
from fastrcnn.data.image import read_image
from fastrcnn.data.scenes import draw_scene
from fastrcnn.detect_files import find_images
from fastrcnn.detector import Detector, load
from fastrcnn.drawing import draw_detections
from fastrcnn.evaluation.coco import coco_boxes
from fastrcnn.models.detections import Detections

A, B = TypeVar("A"), TypeVar("B")
AHEAD = 2  # photos per worker that are decoded, or being decoded, before the detector asks for them


class Inline(Executor):
    """Runs what it is given at once, in the caller's thread."""

    def submit(self, call, /, *args, **kwargs) -> Future:
        future: Future = Future()
        future.set_result(call(*args, **kwargs))
        return future


def serve(detector: Detector, photos: list[Path], out: Path, workers: int) -> int:
    """Writes <stem>.jpg and <stem>.json of each photo into `out`; the number of detections."""
    count = 0
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(workers) if workers else Inline()) for _ in range(2)]
        written: list[Future] = []
        for path, pixels in zip(photos, ahead(pools[0], read_image, photos, AHEAD * max(workers, 1)), strict=True):
            found = detector.detect(pixels)
            count += len(found)
            written.append(pools[1].submit(write, detector, path, pixels, found, out))
        for future in written:
            future.result()  # raises what went wrong
    return count


def ahead(pool: Executor, call: Callable[[A], B], items: Iterable[A], depth: int) -> Iterator[B]:
    """call(item) of every item in order, with up to `depth` of them begun before they are asked for."""
    begun: deque[Future] = deque()
    for item in items:
        begun.append(pool.submit(call, item))
        if len(begun) >= depth:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def write(detector: Detector, path: Path, pixels: np.ndarray, found: Detections, out: Path) -> None:
    entries = coco_boxes(0, found, category_ids(detector.classes))
    (out / f"{path.stem}.json").write_text(json.dumps(entries))
    cv2.imwrite(str(out / f"{path.stem}.jpg"), draw_detections(pixels, found, detector.classes))


def draw_photos(folder: Path, number: int, width: int, height: int) -> list[Path]:
    for i in range(number):
        cv2.imwrite(str(folder / f"{i:04d}.jpg"), draw_scene(np.random.default_rng(i), width, height).image)
    return find_images([str(folder)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--checkpoint", help="weights (default: random, scaled to find as much as trained ones)")
    parser.add_argument("--images", type=Path, help="a folder of photos (default: drawn scenes of 640 x 480)")
    parser.add_argument("--number", type=int, default=16, help="of drawn scenes (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="(default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="the detector as loaded, neither optimized nor captured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    with tempfile.TemporaryDirectory() as folder:
        scenes, out = Path(folder, "in"), Path(folder, "out")
        scenes.mkdir(), out.mkdir()
        given = arguments.images
        photos = find_images([str(given)]) if given else draw_photos(scenes, arguments.number, 640, 480)
        if arguments.checkpoint:
            detector = load(config, arguments.checkpoint, arguments.device)
        else:
            detector = realistic_detector(config, read_image(photos[0]), arguments.device)
        if not arguments.eager:
            detector = detector.optimized() if arguments.device == "cpu" else detector.capture()
        serve(detector, photos[:2], out, 0)  # warm-up
        print(
            f"{arguments.config}, {len(photos)} photos: decoded, detected, drawn and written; "
            f"{machine_name(detector.device)}; fastrcnn {__version__}, torch {torch.__version__}\n\n"
            "| workers | seconds | images/s | detections |\n|---|---|---|---|"
        )
        for workers in arguments.workers:
            start = time.perf_counter()
            detections = serve(detector, photos, out, workers)
            seconds = time.perf_counter() - start
            print(f"| {workers} | {seconds:.2f} | {len(photos) / seconds:.2f} | {detections} |", flush=True)


if __name__ == "__main__":
    main()

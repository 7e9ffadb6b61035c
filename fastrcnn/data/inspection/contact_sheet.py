"""Many images with their boxes on one picture, to be looked through before training."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.data.image import box_factors, read_image, resize
from fastrcnn.data.inspection.problems import Problem
from fastrcnn.data.sample import Dataset, Sample
from fastrcnn.drawing import draw_boxes, drawable

COLUMNS, ROWS = 5, 5
TILE = 360  # pixels, the side of a tile without its caption
LINE = 16  # pixels, the height of a line of the caption


def contact_sheet(dataset: Dataset, readable: set[Path]) -> np.ndarray | None:
    """Images of every class, picked at random but always the same, with all their boxes. None: no readable image.

    Crowds are labelled "(crowd)", VOC's difficult objects "(difficult)".
    """
    samples = [sample for sample in dataset.samples if sample.path in readable]
    tiles = [_tile(sample, dataset, [sample.path.name]) for sample in _of_every_class(samples, COLUMNS * ROWS)]
    return _grid(tiles) if tiles else None


def problem_sheet(dataset: Dataset, problems: Sequence[Problem], readable: set[Path]) -> np.ndarray | None:
    """Images with a problem, each kind in turn; the caption is the kind. A problem of a box shows just that box, one of
    two images both, side by side.

    None: no problem of a readable image.
    """
    of_path = {sample.path: sample for sample in dataset.samples if sample.path in readable}
    of_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if problem.path in of_path:
            of_kind[problem.kind].append(problem)
    depth = max(map(len, of_kind.values()), default=0)
    in_turn = [of_kind[kind][i] for i in range(depth) for kind in of_kind if i < len(of_kind[kind])]
    tiles = []
    for problem in in_turn[: COLUMNS * ROWS]:
        assert problem.path is not None
        if problem.twin in readable:
            tiles.append(_pair(problem.path, problem.twin, problem.kind))
        else:
            tiles.append(_tile(of_path[problem.path], dataset, [problem.path.name, problem.kind], problem.box))
    return _grid(tiles) if tiles else None


def _of_every_class(samples: list[Sample], count: int) -> list[Sample]:
    """Up to count samples: each class in turn chooses the next of the shuffled images that have it; then any image."""
    random = np.random.default_rng(0)
    order = random.permutation(len(samples)).tolist()
    queues: dict[int, list[int]] = defaultdict(list)
    for index in order:
        for label in set(samples[index].labels.tolist()):
            queues[label].append(index)
    chosen: dict[int, None] = {}
    waiting = [iter(queues[label]) for label in sorted(queues)]
    while waiting and len(chosen) < count:
        for queue in list(waiting):
            index = next((i for i in queue if i not in chosen), None)
            if index is None:
                waiting.remove(queue)
            elif len(chosen) < count:
                chosen[index] = None
    chosen |= dict.fromkeys(order)
    return [samples[index] for index in list(chosen)[:count]]


def _tile(sample: Sample, dataset: Dataset, caption: list[str], box: tuple[float, ...] | None = None) -> np.ndarray:
    """An image, fitted into the tile, with its boxes (or the one given) and a caption below."""
    image = read_image(sample.path)
    small, _ = resize(image, (TILE, TILE))
    factors = np.array(box_factors(image.shape[:2], small.shape[:2]) * 2)
    boxes, labels = sample.boxes, sample.labels.tolist()
    names = [dataset.classes[label] for label in labels]
    for mark, flags in (("crowd", sample.crowd), ("difficult", sample.difficult)):
        names = [f"{name} ({mark})" if flag else name for name, flag in zip(names, flags, strict=True)]
    if box is not None:
        shown = [i for i in range(len(boxes)) if tuple(boxes[i].tolist()) == box]
        boxes, labels, names = boxes[shown], [labels[i] for i in shown], [names[i] for i in shown]
    return _captioned(draw_boxes(small, boxes * factors, labels, names), caption)


def _pair(first: Path, second: Path, kind: str) -> np.ndarray:
    """Two images, without boxes, on one tile."""
    both = np.full((TILE // 2, TILE, 3), 255, np.uint8)
    for path, half in ((first, both[:, : TILE // 2]), (second, both[:, TILE // 2 :])):
        small, _ = resize(read_image(path), (TILE // 2, TILE // 2))
        half[: small.shape[0], : small.shape[1]] = small
    return _captioned(both, [f"{first.name}, {second.name}", kind])


def _captioned(picture: np.ndarray, caption: list[str]) -> np.ndarray:
    tile = np.full((TILE + LINE * 2, TILE, 3), 255, np.uint8)
    tile[: picture.shape[0], : picture.shape[1]] = picture
    for row, text in enumerate(caption):
        at = (4, picture.shape[0] + LINE * (row + 1) - 4)
        cv2.putText(tile, drawable(text), at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def _grid(tiles: list[np.ndarray]) -> np.ndarray:
    gap = 8
    height, width = tiles[0].shape[0] + gap, tiles[0].shape[1] + gap
    columns = min(COLUMNS, len(tiles))
    sheet = np.full((-(-len(tiles) // columns) * height, columns * width, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * height, index % columns * width
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet

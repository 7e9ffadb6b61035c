"""What looks wrong in a dataset. Each finding may be right after all: a person decides."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrcnn.data.image import resized_size
from fastrcnn.data.inspection.copies import BYTES, nearest_copies
from fastrcnn.data.inspection.files import FileReport
from fastrcnn.data.loader import MIN_SIDE
from fastrcnn.data.read import class_counts
from fastrcnn.data.sample import Dataset, Sample
from fastrcnn.data.transforms import mismatch

TINY = 4  # pixels of the network input: the stride of the finest feature map
WHOLE = 0.95  # share of the image's area
SAME = 0.9  # IoU of two boxes that may be one object, annotated twice
LONG = 20  # ratio of the sides
DARK = 32  # of 255: nothing in the image is brighter


@dataclass(frozen=True)
class Problem:
    kind: str  # the heading under which it is listed
    text: str  # this one: where, and the numbers
    path: Path | None = None  # of the image
    box: tuple[float, ...] | None = None  # x1, y1, x2, y2 in its pixels


def object_problems(dataset: Dataset, scale: Sequence[int]) -> Iterator[Problem]:
    """What the annotations alone tell of boxes; scale: [long, short] of the network input."""
    for path, box in dataset.inverted:
        yield Problem("boxes with a negative width or height (left out)", f"{path}: {_numbers(box)}", path)
    for sample in dataset.samples:
        if sample.width == 0:  # no size, so no boxes either; the file is reported
            continue
        names = [dataset.classes[label] for label in sample.labels]
        for index, kind in _single_boxes(sample, scale):
            yield _of_boxes(kind, sample, names, index)
        for kind, first, second in _equal_boxes(sample):
            yield _of_boxes(kind, sample, names, first, second)


def _single_boxes(sample: Sample, scale: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(object, kind of problem); of several kinds, the first that applies."""
    x1, y1, x2, y2 = sample.boxes.T
    width, height = x2 - x1, y2 - y1
    seen_width = np.minimum(x2, sample.width) - np.maximum(x1, 0)
    seen_height = np.minimum(y2, sample.height) - np.maximum(y1, 0)
    new_height, new_width = resized_size(sample.height, sample.width, scale)
    short = np.minimum(width * new_width / sample.width, height * new_height / sample.height)
    beyond = np.maximum(-np.minimum(x1, y1), np.maximum(x2 - sample.width, y2 - sample.height))
    single = ~sample.crowd
    checks = {
        "boxes below one pixel or without area (left out of training)": (
            (width < 1) | (height < 1) | (sample.areas <= 0)
        ),
        "boxes outside the image (left out of training)": (seen_width <= 0) | (seen_height <= 0),
        "boxes that reach more than a pixel beyond the image (clipped)": beyond > 1,
        f"boxes with a side below {TINY} pixels in the network's input": short < TINY,
        "boxes that cover nearly the whole image": (
            single & (seen_width * seen_height >= WHOLE * sample.width * sample.height)
        ),
        f"boxes more than {LONG} times longer than wide": np.maximum(width, height) > LONG * np.minimum(width, height),
    }
    left = np.ones(len(width), bool)
    for kind, wrong in checks.items():
        for index in np.flatnonzero(wrong & left):
            yield int(index), kind
        left &= ~wrong


def _equal_boxes(sample: Sample) -> Iterator[tuple[str, int, int]]:
    """Pairs of boxes that overlap almost entirely."""
    order = np.argsort(sample.boxes[:, 0], kind="stable")
    boxes = sample.boxes[order]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for i in range(len(boxes)):
        # Only a box that starts within the other's first tenth can have that IoU: near it in this order.
        last = np.searchsorted(boxes[:, 0], boxes[i, 0] + (1 - SAME) * (boxes[i, 2] - boxes[i, 0]), side="right")
        near = boxes[i + 1 : last]
        low, high = np.maximum(near[:, :2], boxes[i, :2]), np.minimum(near[:, 2:], boxes[i, 2:])
        overlap = (high - low).clip(min=0).prod(axis=1)
        same = (near == boxes[i]).all(axis=1) | (overlap > SAME * (areas[i] + areas[i + 1 : last] - overlap))
        for j in i + 1 + np.flatnonzero(same):
            first, second = sorted((int(order[i]), int(order[j])))
            if sample.crowd[first] or sample.crowd[second]:
                continue
            if sample.labels[first] == sample.labels[second]:
                yield "boxes that stand twice", first, second
            else:
                yield "boxes with two classes", first, second


def _of_boxes(kind: str, sample: Sample, names: list[str], *indices: int) -> Problem:
    text = " and ".join(f"{names[index]} {_numbers(sample.boxes[index])}" for index in indices)
    size = f"in {sample.width} x {sample.height}"
    return Problem(kind, f"{sample.path}: {text} {size}", sample.path, tuple(sample.boxes[indices[0]].tolist()))


def image_problems(dataset: Dataset, files: Mapping[Path, FileReport], max_detections: int) -> Iterator[Problem]:
    """What the image files tell; max_detections: objects that a detector returns per image."""
    of_digest: dict[bytes, list[Path]] = defaultdict(list)
    seen: set[Path] = set()
    for sample in dataset.samples:
        path, file = sample.path, files[sample.path]
        if path in seen:
            yield Problem("images that stand twice in the annotations", str(path), path)
            continue
        seen.add(path)
        if len(sample.labels) > max_detections:
            text = f"{path}: {len(sample.labels)}, and model.box_head.max_detections is {max_detections}"
            yield Problem("images with more objects than can be detected", text, path)
        if file.error:
            missing = not path.is_file()
            yield Problem("images that are missing" if missing else "images that cannot be read", file.error, path)
            continue
        complaint = mismatch(sample, file.size)
        if complaint:
            yield Problem("images of another size than annotated", complaint, path)
        if file.turned:
            text = f"{path}: expected boxes for the upright image, as viewers show it, of {_size(file)}"
            yield Problem("images that are turned or mirrored by their EXIF orientation", text, path)
        if min(file.size) < MIN_SIDE:
            yield Problem(f"images with a side below {MIN_SIDE} pixels (left out)", f"{path}: {_size(file)}", path)
        if file.darkest == file.brightest:
            yield Problem("images of a single colour", f"{path}: every value is {file.darkest}", path)
        elif file.brightest < DARK:
            text = f"{path}: nothing is brighter than {file.brightest} of 255 (12 bits in a 16-bit file?)"
            yield Problem("images that are nearly black", text, path)
        of_digest[file.digest].append(path)
    for paths in of_digest.values():
        if len(paths) > 1:
            yield Problem("images with the same pixels", ", ".join(map(str, paths)), paths[0])
    firsts = [paths[0] for paths in of_digest.values()]
    for index, other, bits in nearest_copies([files[path].likeness for path in firsts]):
        text = f"{firsts[index]} and {firsts[other]} ({_difference(bits)})"
        yield Problem("images that are nearly the same", text, firsts[index])


def class_problems(dataset: Dataset) -> Iterator[Problem]:
    """Classes that nothing can be learnt or measured of, and those that may be one, written in two ways."""
    counts = class_counts(dataset).tolist()
    for name, count in zip(dataset.classes, counts, strict=True):
        if count == 0:
            yield Problem("classes without an object", name)
    alike: dict[str, list[str]] = defaultdict(list)
    for name, count in zip(dataset.classes, counts, strict=True):
        alike["".join(filter(str.isalnum, name.casefold())) or name].append(f"{name!r} ({count})")
    for names in alike.values():
        if len(names) > 1:
            text = " and ".join(names) + ": data.rename makes them one"
            yield Problem("classes whose names differ only in capitals, spaces or signs", text)


def split_problems(train: Dataset, val: Dataset, files: Mapping[Path, FileReport]) -> Iterator[Problem]:
    """Images that are trained on and measured with."""
    trained = [path for path in dict.fromkeys(sample.path for sample in train.samples) if not files[path].error]
    validated = list(dict.fromkeys(sample.path for sample in val.samples))
    of_digest = {files[path].digest: path for path in trained}
    of_name = {sample.path.name: sample.path for sample in train.samples}
    likenesses = ([files[path].likeness for path in paths] for paths in (validated, trained))
    near = {validated[index]: (trained[other], bits) for index, other, bits in nearest_copies(*likenesses)}
    for path in validated:
        twin = of_digest.get(files[path].digest)
        if twin is not None:
            text = str(path) if path == twin else f"{path} has the pixels of {twin}"
            yield Problem("validation images that are training images, too", text, path)
        elif path in near:
            other, bits = near[path]
            text = f"{path} and {other} ({_difference(bits)})"
            yield Problem("validation images that are nearly training images", text, path)
        elif path.name in of_name and of_name[path.name] != path and not files[path].error:
            text = f"{path} and {of_name[path.name]}, with different pixels"
            yield Problem("validation images named as a training image", text, path)


def _difference(bits: int) -> str:
    return f"{bits} of the {8 * BYTES} bits of their difference hashes differ"


def _numbers(box: Sequence[float] | np.ndarray) -> str:
    """x1 y1 x2 y2"""
    return "(" + " ".join(f"{value:.6g}" for value in box) + ")"


def _size(file: FileReport) -> str:
    return f"{file.size[1]} x {file.size[0]}"

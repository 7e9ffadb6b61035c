"""What every annotation format is read into: a Dataset of Samples."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its G objects; G may be 0. Boxes are as annotated: not clipped, not filtered."""

    image_id: int
    path: Path
    width: int  # pixels, as annotated; the file's own size counts once it is decoded
    height: int
    boxes: np.ndarray  # float64 [G, 4] xyxy, pixels of the image
    labels: np.ndarray  # int64 [G], index into Dataset.classes
    areas: np.ndarray  # float64 [G], pixels; of the object's mask where the annotations have it, else of the box
    crowd: np.ndarray  # bool [G]: a group of objects (COCO's iscrowd), no training target
    difficult: np.ndarray  # bool [G]: VOC's flag, an ordinary training target that VOC AP ignores


@dataclass
class Dataset:
    """The images of one annotation file (or folder), in its order."""

    name: str  # where it was read from
    classes: list[str]  # in label order
    category_ids: list[int]  # the annotations' own id of each class, for results
    samples: list[Sample]
    dropped: dict[str, int] = field(default_factory=dict)  # rule in words -> how many it left out
    mismatched: set[int] = field(default_factory=set)  # ids of images whose files had another size than annotated

    def drop(self, rule: str, count: int = 1) -> None:
        """Counts what a rule left out."""
        if count:
            self.dropped[rule] = self.dropped.get(rule, 0) + count


def make_sample(
    image_id: int,
    path: Path,
    size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    areas: Sequence[float],
    crowd: Sequence[bool] | None = None,
    difficult: Sequence[bool] | None = None,
) -> Sample:
    """A Sample from Python lists of length G; size is (width, height), flags left out are False."""
    no = [False] * len(boxes)
    return Sample(
        image_id,
        path,
        *size,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
        crowd=np.array(no if crowd is None else crowd, dtype=bool),
        difficult=np.array(no if difficult is None else difficult, dtype=bool),
    )


def check_classes(classes: Sequence[str]) -> list[str]:
    """The classes that a user asks for, as a list. ValueError: one string instead of a list, or a name given twice."""
    if isinstance(classes, str):
        raise ValueError(f"data.classes must be a list of names, got the single string {classes!r}")
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise ValueError(f"data.classes names {', '.join(map(repr, twice))} more than once")
    return list(classes)


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error names the alternatives: the nearest known name, if one is near, and the first 20 known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {listed or 'none'}"

"""What every annotation format is read into: a Dataset of Samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its G objects; G may be 0. Boxes are as annotated: not clipped, not filtered."""

    image_id: int
    path: Path
    width: int  # pixels, as annotated; the file's own size counts once it is decoded. 0 x 0: nowhere to be read
    height: int
    boxes: np.ndarray  # float64 [G, 4] xyxy, pixels of the upright image, as read_image gives it
    labels: np.ndarray  # int64 [G], index into Dataset.classes
    areas: np.ndarray  # float64 [G], pixels; of the object's mask where the annotations have it, else of the box
    crowd: np.ndarray  # bool [G]: a group of objects (COCO's iscrowd), no training target
    difficult: np.ndarray  # bool [G]: VOC's flag: no training target, and every metric ignores it

    def keep(self, kept: np.ndarray) -> "Sample":
        """The same image with the objects of the mask kept, bool [G]."""
        columns = ("boxes", "labels", "areas", "crowd", "difficult")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})


@dataclass
class Dataset:
    """The images of one annotation file (or folder), in its order; or of several, one after the other."""

    name: str  # where it was read from
    classes: list[str]  # in label order
    category_ids: list[int]  # the annotations' own id of each class, for results
    samples: list[Sample]
    dropped: dict[str, int] = field(default_factory=dict)  # rule in words -> how many it left out
    mismatched: set[int] = field(default_factory=set)  # ids of images whose files had another size than annotated
    inverted: list[tuple[Path, list[float]]] = field(default_factory=list)  # image and xyxy: x2 < x1 or y2 < y1

    def drop(self, rule: str, count: int = 1) -> None:
        """Counts what a rule left out."""
        if count:
            self.dropped[rule] = self.dropped.get(rule, 0) + count

    def drop_inverted(self, path: Path, box: list[float]) -> None:
        """Counts and notes a box that has a negative width or height."""
        self.drop("objects whose box has a negative width or height")
        self.inverted.append((path, box))


@contextmanager
def noting(errors: list[str] | None) -> Iterator[None]:
    """Around the reading of one entry: adds what is wrong with it to the list; without a list, it is raised."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if errors is None:
            raise
        errors.append(str(error))


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

"""The dataset that a config names, and a summary of it in words."""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastrcnn.config import TrainDataConfig, ValDataConfig
from fastrcnn.data.coco import read_coco
from fastrcnn.data.image_size import image_size
from fastrcnn.data.sample import Dataset
from fastrcnn.data.voc import read_voc
from fastrcnn.data.yolo import read_yolo

READERS = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}


def read_dataset(
    section: TrainDataConfig | ValDataConfig, classes: Sequence[str] = (), rename: Mapping[str, str] | None = None
) -> Dataset:
    """Reads the annotations of config.data.train or config.data.val, and looks that every image file is there.

    Args:
        section: format, annotations and images, as in read_coco, read_voc and read_yolo; of config.data.train also
            `more` of them. Their images follow those of the first; all have the classes of the first.
        classes, rename: as in select_classes: config.data.classes and config.data.rename.
    Raises:
        ValueError: an unknown format, an image that is in two of the sources, and what the readers raise.
        FileNotFoundError: images are missing.
    """
    dataset = read_annotations(section, classes, rename)
    missing = [sample.path for sample in dataset.samples if not sample.path.is_file()]
    if missing:
        first, total = missing[0], len(dataset.samples)
        folder = first.parent
        others = [path for path in folder.iterdir() if path.stem == first.stem] if folder.is_dir() else []
        near = f" (there is {others[0].name})" if others else ""
        raise FileNotFoundError(
            f"{len(missing)} of the {total} images of {dataset.name} are missing, the first is {first}{near}"
        )
    for sample in dataset.samples:
        if sample.width == 0:
            image_size(sample.path)  # raises what is wrong with the file
    return dataset


def read_annotations(
    section: TrainDataConfig | ValDataConfig,
    classes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    errors: list[str] | None = None,
) -> Dataset:
    """As read_dataset, but images may be missing or broken, and broken entries of the annotations are added to the list
    of errors, if there is one: for `fastrcnn data`, which reports every one of them."""
    if section.format not in READERS:
        raise ValueError(f"The format of a dataset must be one of {', '.join(READERS)}, got {section.format!r}")
    read = READERS[section.format]
    dataset = read(section.annotations, section.images, classes, rename, errors)
    for source in section.more if isinstance(section, TrainDataConfig) else ():
        dataset = _join(dataset, read(source.annotations, source.images, dataset.classes, rename, errors))
    return dataset


def _join(first: Dataset, second: Dataset) -> Dataset:
    """The images of the first, then those of the second, whose ids are moved behind the first's: each set counts its
    own. Both have the same classes."""
    places = {os.path.abspath(sample.path) for sample in first.samples}
    last = max((sample.image_id for sample in first.samples), default=0)
    shift = 1 + last - min((sample.image_id for sample in second.samples), default=0)
    result = replace(first, name=f"{first.name} + {second.name}", samples=list(first.samples))
    for sample in second.samples:
        if os.path.abspath(sample.path) in places:
            raise ValueError(f"The image {sample.path} is in {first.name} and again in {second.name}")
        result.samples.append(replace(sample, image_id=sample.image_id + shift))
    result.dropped, result.inverted = dict(first.dropped), first.inverted + second.inverted
    for rule, count in second.dropped.items():
        result.drop(rule, count)
    return result


def summary(dataset: Dataset) -> str:
    """Lines for the log: images, objects, objects per class, and everything that a rule left out."""
    objects = sum(len(sample.labels) for sample in dataset.samples)
    empty = sum(len(sample.labels) == 0 for sample in dataset.samples)
    counts = class_counts(dataset)
    lines = [f"{dataset.name}: {len(dataset.samples)} images ({empty} without objects), {objects} objects"]
    lines.append("  " + ", ".join(f"{name} {count}" for name, count in zip(dataset.classes, counts, strict=True)))
    lines += [f"  left out: {count} {rule}" for rule, count in dataset.dropped.items()]
    if dataset.mismatched:
        lines.append(f"  {len(dataset.mismatched)} images have another size than annotated; their own size is used")
    return "\n".join(lines)


def class_counts(dataset: Dataset) -> np.ndarray:
    """Objects of each class, int64 [classes]."""
    counts = np.zeros(len(dataset.classes), np.int64)
    for sample in dataset.samples:
        counts += np.bincount(sample.labels, minlength=len(dataset.classes))
    return counts

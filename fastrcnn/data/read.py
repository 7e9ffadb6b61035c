"""The dataset that a config names, and a summary of it in words."""

from collections.abc import Sequence

import numpy as np

from fastrcnn.config import TrainDataConfig, ValDataConfig
from fastrcnn.data.coco import read_coco
from fastrcnn.data.sample import Dataset
from fastrcnn.data.voc import read_voc

READERS = {"coco": read_coco, "voc": read_voc}


def read_dataset(section: TrainDataConfig | ValDataConfig, classes: Sequence[str] = ()) -> Dataset:
    """Reads the annotations of config.data.train or config.data.val; classes as in read_coco and read_voc.

    Raises ValueError for an unknown format, and what the readers raise.
    """
    if section.format not in READERS:
        raise ValueError(f"The format of a dataset must be one of {', '.join(READERS)}, got {section.format!r}")
    return READERS[section.format](section.annotations, section.images, classes)


def summary(dataset: Dataset) -> str:
    """Lines for the log: images, objects, objects per class, and everything that a rule left out."""
    objects = sum(len(sample.labels) for sample in dataset.samples)
    empty = sum(len(sample.labels) == 0 for sample in dataset.samples)
    counts = np.zeros(len(dataset.classes), np.int64)
    for sample in dataset.samples:
        counts += np.bincount(sample.labels, minlength=len(dataset.classes))
    lines = [f"{dataset.name}: {len(dataset.samples)} images ({empty} without objects), {objects} objects"]
    lines.append("  " + ", ".join(f"{name} {count}" for name, count in zip(dataset.classes, counts, strict=True)))
    lines += [f"  left out: {count} {rule}" for rule, count in dataset.dropped.items()]
    if dataset.mismatched:
        lines.append(f"  {len(dataset.mismatched)} images have another size than annotated; their own size is used")
    return "\n".join(lines)

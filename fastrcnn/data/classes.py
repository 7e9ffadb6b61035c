"""Which classes of the annotations are used, under which names and in which order."""

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastrcnn.data.sample import Dataset


def select_classes(dataset: Dataset, classes: Sequence[str], rename: Mapping[str, str], declared: bool) -> Dataset:
    """Renames the dataset's classes, then keeps those asked for.

    Args:
        dataset: with every class of the annotations. An old class that gets the name of another one joins it; the
            class then has the category id of the first.
        classes: the names to keep (after renaming), in label order; objects of other classes are left out and counted,
            their images stay. Empty: all, in the dataset's order.
        rename: old name -> new name. A dataset that has the new name already need not have the old one.
        declared: the annotations list their classes, so a name that is not there is an error. Else the classes are
            those of the objects: a name that is not there may just be rare. It is a warning, and an error if it is near
            to one that was not asked for, or if none of the names is there.
    Raises:
        ValueError: as said; one string instead of a list; a name given twice; no class at all.
    """
    wanted = check_classes(classes)
    for old in set(rename) - set(dataset.classes):
        if rename[old] not in dataset.classes:
            _complain("data.rename", old, dataset, set(dataset.classes) - set(rename), declared)
    new_names = [rename.get(name, name) for name in dataset.classes]
    names = wanted or list(dict.fromkeys(new_names))
    if not names:
        raise ValueError(
            f"{dataset.name}: the dataset has no object in its {len(dataset.samples)} images, so no classes"
        )
    for name in names:
        if name not in new_names:
            others = set(new_names) - set(names)
            all_absent = bool(others) and not set(names) & set(new_names)
            _complain("data.classes", name, replace(dataset, classes=new_names), others, declared or all_absent)
    if names == dataset.classes:
        return dataset

    label_of = np.array([names.index(name) if name in names else -1 for name in new_names], np.int64)
    # Classes that are not declared have no ids of their own.
    ids = [dataset.category_ids[new_names.index(name)] if declared else i for i, name in enumerate(names, 1)]
    result = replace(dataset, classes=names, category_ids=ids, samples=[], dropped=dict(dataset.dropped))
    left_out = np.zeros(len(dataset.classes), np.int64)
    for sample in dataset.samples:
        labels = label_of[sample.labels]
        left_out += np.bincount(sample.labels[labels < 0], minlength=len(left_out))
        result.samples.append(replace(sample, labels=labels).keep(labels >= 0))
    for name, count in zip(dataset.classes, left_out.tolist(), strict=True):
        result.drop(f"objects of class {name!r}, which is not in data.classes", count)
    return result


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


def _complain(setting: str, name: str, dataset: Dataset, others: set[str], certain: bool) -> None:
    """Raises, or warns of, a name that the dataset lacks; others: its names that no setting has asked for."""
    what = "class" if certain else "object of class"
    message = f"{setting}: {dataset.name} has no {what} {name!r}. {nearest(name, dict.fromkeys(dataset.classes))}"
    if certain or difflib.get_close_matches(name, others):
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)

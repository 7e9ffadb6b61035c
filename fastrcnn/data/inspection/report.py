"""Everything about the data of a config, as text and in a folder."""

import json
import warnings
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.atomic import atomic_write
from fastrcnn.config import Config, TrainDataConfig, ValDataConfig
from fastrcnn.data.inspection.contact_sheet import contact_sheet, problem_sheet
from fastrcnn.data.inspection.files import inspect_files
from fastrcnn.data.inspection.histograms import as_picture, as_text, histograms
from fastrcnn.data.inspection.problems import (
    Problem,
    class_problems,
    image_problems,
    object_problems,
    split_problems,
)
from fastrcnn.data.read import class_counts, read_annotations, summary
from fastrcnn.data.sample import Dataset

SHOWN = 5  # problems of a kind; problems.json has all


def report(config: Config, out: Path) -> str:
    """Inspects the training and the validation data; writes to the folder `out`, returns the text.

    Writes report.txt, problems.json (a list of {data, kind, text, image, box}), histograms.png, and for both datasets
    <name>.jpg, a contact sheet, and <name>_problems.jpg, one of suspicious images. Every image is decoded once, by
    config.train.workers threads.

    Raises:
        ValueError, OSError: neither dataset can be read at all (if one can, the error of the other is a problem).
    """
    datasets, problems = _read(config)
    train, val = datasets.get("training"), datasets.get("validation")
    files = inspect_files([s.path for dataset in datasets.values() for s in dataset.samples], config.train.workers)
    readable = {path for path, file in files.items() if not file.error}
    scale = config.data.test.scale

    for name, dataset in datasets.items():
        problems[name] += object_problems(dataset, scale)
        problems[name] += image_problems(dataset, files, config.model.box_head.max_detections)
        problems[name] += class_problems(dataset)
    if train is not None and val is not None:
        problems["validation"] += split_problems(train, val, files)
    sheets: dict[str, np.ndarray | None] = {}
    for name, dataset in datasets.items():
        sheets[f"{name}.jpg"] = contact_sheet(dataset, readable)
        sheets[f"{name}_problems.jpg"] = problem_sheet(dataset, problems[name], readable)

    shapes = histograms(datasets, scale)
    parts = [f"{name}: {summary(dataset)}" for name, dataset in datasets.items()]
    parts += [_class_table(datasets), *map(as_text, shapes)]
    parts += [f"Suspicious in the {name} data: {_listed(found)}" for name, found in problems.items()]
    text = "\n\n".join(parts) + "\n"
    entries = [
        {"data": name, "kind": p.kind, "text": p.text, "image": p.path and str(p.path), "box": p.box}
        for name, found in problems.items()
        for p in found
    ]
    _write(out / "report.txt", text.encode())
    _write(out / "problems.json", json.dumps(entries, indent=1).encode())
    _write(out / "histograms.png", _encoded(".png", as_picture(shapes)))
    for name, sheet in sheets.items():
        (out / name).unlink(missing_ok=True)  # of an earlier report, when there were problems
        if sheet is not None:
            _write(out / name, _encoded(".jpg", sheet))
    return text


def _read(config: Config) -> tuple[dict[str, Dataset], dict[str, list[Problem]]]:
    """The datasets that can be read, by name; and what is wrong with the others, and warnings, as problems."""
    datasets: dict[str, Dataset] = {}
    problems: dict[str, list[Problem]] = {}
    errors: list[Exception] = []
    sections: dict[str, TrainDataConfig | ValDataConfig] = {
        "training": config.data.train,
        "validation": config.data.val,
    }
    for name, section in sections.items():
        # As in training: the training data say what a label means.
        classes = datasets["training"].classes if "training" in datasets else config.data.classes
        problems[name] = []
        entries: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                datasets[name] = read_annotations(section, classes, config.data.rename, entries)
            except (ValueError, OSError) as error:
                errors.append(error)
                problems[name].append(Problem("data that cannot be read", str(error)))
        problems[name] += [Problem("entries that cannot be read (training refuses them)", text) for text in entries]
        problems[name] += [Problem("warnings on reading", str(warning.message)) for warning in caught]
    if not datasets:
        raise errors[0]
    return datasets, problems


def _class_table(datasets: dict[str, Dataset]) -> str:
    """Objects of each class, and images that have one."""
    width = max(8, *(len(name) for dataset in datasets.values() for name in dataset.classes))
    lines = [f"{'class':<{width}}" + "".join(f"{name + ' objects':>20}{'images':>9}" for name in datasets)]
    classes = next(iter(datasets.values())).classes
    columns = []
    for dataset in datasets.values():
        images = np.zeros(len(classes), np.int64)
        for sample in dataset.samples:
            images[np.unique(sample.labels)] += 1
        columns.append((class_counts(dataset), images))
    for label, name in enumerate(classes):
        lines.append(f"{name:<{width}}" + "".join(f"{c[label]:>20}{i[label]:>9}" for c, i in columns))
    return "\n".join(lines)


def _listed(problems: list[Problem]) -> str:
    """Each kind with its number and first cases."""
    of_kind: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        of_kind[problem.kind].append(problem.text)
    lines = ["(some may be right)" if problems else "nothing"]
    for kind, texts in of_kind.items():
        lines.append(f"  {len(texts)} x {kind}")
        lines += [f"      {text}" for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            lines.append(f"      ... {len(texts) - SHOWN} more in problems.json")
    return "\n".join(lines)


def _encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)

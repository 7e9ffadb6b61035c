"""YOLO label files, one text file per image -> Dataset. Format: https://docs.ultralytics.com/datasets/detect

A line is an object: its class number, then centre x, centre y, width, height as shares of the image's width and height;
or its class number, then the corners x1 y1 x2 y2 ... of a polygon, which becomes the box around it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fastrcnn.class_names import placeholder_names
from fastrcnn.data.classes import check_classes, select_classes
from fastrcnn.data.image import SUFFIXES
from fastrcnn.data.image_size import size_or_zero
from fastrcnn.data.sample import Dataset, make_sample, noting

MOST_CLASSES = 10_000  # a larger class number is a mistake
ROUNDING = 1e-3  # how far beyond 0 .. 1 a coordinate may be: exporters round; boxes are clipped in training

Box = list[float]  # x1, y1, x2, y2 as shares of the image


def read_yolo(
    annotations: str | Path,
    images: str | Path,
    classes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    errors: list[str] | None = None,
) -> Dataset:
    """Reads YOLO labels.

    Args:
        annotations: the folder of the label files; an image's labels are in the file of the same relative path and stem
            with the suffix .txt (images that share these share the labels). Or data.yaml (any *.yaml, *.yml): the
            labels are then in the folder beside `images` whose path has "labels" for the last "images".
        images: the folder of the images; sub-folders belong to it.
        classes, rename: as in select_classes. The names in order of the class numbers are those of data.yaml ("names",
            a list or {number: name}), or the lines of classes.txt; both are looked for in the folder of the labels and
            the two above it. Where there are none, `classes` itself names the numbers 0, 1, 2, ...; without it they
            are called class_0, class_1, ...
        errors: a list that takes what is wrong with lines, which are then left out; None: raised.
    Returns:
        A Dataset with one Sample per image, sorted by path; image ids count from 1, category ids are the class numbers,
        areas are those of the boxes, nothing is crowd. An image without a label file, or with an empty one, has no
        objects. Label files without an image are counted. A missing or broken image cannot give its size: 0 x 0.
    Raises:
        FileNotFoundError: a folder or file that was named is missing.
        ValueError: no images, no label file for any of them, a broken data.yaml; and, named with file and line: a line
            of another form, a number that is not finite or a coordinate outside 0 .. 1, a class number without a name.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"No image folder {folder} (for {annotations})")
    labels_folder, names_file = _places(Path(annotations), folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"The dataset is empty: no image in {folder}")
    texts = sorted(path for path in labels_folder.rglob("*") if path.suffix.lower() == ".txt")
    of_name = {path.relative_to(labels_folder).with_suffix(""): path for path in texts}
    image_names = [path.relative_to(folder).with_suffix("") for path in paths]
    label_files = [of_name.get(name) for name in image_names]
    if not any(label_files):
        expected = labels_folder / f"{image_names[0]}.txt"
        raise ValueError(f"None of the {len(paths)} images of {folder} has a label file; expected e.g. {expected}")

    names = _names(names_file) if names_file else check_classes(classes)
    source = f"{names_file or 'data.classes'} has {len(names)} names: {', '.join(names[:20])}" if names else ""
    limit = len(names) or MOST_CLASSES
    objects = [read_labels(file, limit, source, errors) if file else [] for file in label_files]
    if not names:
        names = placeholder_names(1 + max((label for items in objects for label, _ in items), default=-1))

    dataset = Dataset(str(annotations), names, list(range(len(names))), samples=[])
    # The file of the names may lie among the labels.
    known = {*label_files, *(labels_folder / name for name in ("classes.txt", "train.txt", "val.txt", "test.txt"))}
    dataset.drop("label files without an image", sum(file not in known for file in texts))
    for image_id, (path, items) in enumerate(zip(paths, objects, strict=True), start=1):
        width, height = size_or_zero(path)
        boxes = [[x1 * width, y1 * height, x2 * width, y2 * height] for _, (x1, y1, x2, y2) in items]
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
        labels = [label for label, _ in items]
        dataset.samples.append(make_sample(image_id, path, (width, height), boxes, labels, areas))
    return select_classes(dataset, classes, rename or {}, declared=True)


def read_labels(
    file: Path, limit: int = MOST_CLASSES, source: str = "", errors: list[str] | None = None
) -> list[tuple[int, Box]]:
    """(class number, box) of each line of a label file; class numbers from the limit on are errors, which say where the
    names come from. Raises ValueError, or adds to errors, as read_yolo."""
    objects = []
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            with noting(errors):
                label, box = _object(line.split(), f"{file}, line {number}")
                if label >= limit:
                    raise ValueError(f"{file}, line {number}: class number {label}, but {source}")
                objects.append((label, box))
    return objects


def _object(fields: list[str], where: str) -> tuple[int, Box]:
    try:
        label, *values = (float(field) for field in fields)
    except ValueError:
        label, values = math.nan, []
    if not label.is_integer() or not 0 <= label < MOST_CLASSES:
        expected = f"expected a class number below {MOST_CLASSES} and coordinates"
        raise ValueError(f"{where}: {expected}, got {' '.join(fields)[:80]!r}")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        found = f"{len(values)} (a prediction with its score?)" if len(values) == 5 else f"{len(values)}"
        raise ValueError(
            f"{where}: expected 4 values after the class number (a box) or 6, 8, ... (a polygon), got {found}"
        )
    for value in values:
        if not -ROUNDING <= value <= 1 + ROUNDING:  # NaN, too
            raise ValueError(f"{where}: coordinates are shares of the image's sides, from 0 to 1, got {value:g}")
    if len(values) == 4:
        x, y, width, height = values[0], values[1], max(0.0, values[2]), max(0.0, values[3])
        return int(label), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return int(label), [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]


def _places(annotations: Path, images: Path) -> tuple[Path, Path | None]:
    """The folder of the labels, and the file with the names of the classes, if there is one."""
    if annotations.suffix.lower() in (".yaml", ".yml"):
        if not annotations.is_file():
            raise FileNotFoundError(f"No annotation file {annotations}")
        parts = list(images.parts)
        if "images" not in parts:
            raise ValueError(f"Where are the labels? {images} has no part 'images': give their folder as annotations")
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        labels, names = Path(*parts), annotations
        if not labels.is_dir():
            raise FileNotFoundError(f"No label folder {labels} (for {annotations})")
        return labels, names
    if not annotations.is_dir():
        raise FileNotFoundError(f"No label folder or data.yaml {annotations}")
    above = annotations.resolve().parents
    places = [annotations, *above[:2]]
    candidates = [place / name for place in places for name in ("data.yaml", "classes.txt")]
    return annotations, next((file for file in candidates if file.is_file()), None)


def _names(file: Path) -> list[str]:
    """The names of the class numbers 0, 1, ..."""
    if file.suffix == ".txt":
        text = file.read_bytes().decode("utf-8-sig", errors="replace").rstrip()
        lines = [line.strip() for line in text.splitlines()]
        if "" in lines:
            raise ValueError(f"{file}, line {lines.index('') + 1}: expected the name of a class, got an empty line")
        return _distinct(lines, file)
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file))  # a safe loader: plain data only
    except Exception as error:  # the YAML library raises several unrelated types
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    content: dict[Any, Any] = loaded if isinstance(loaded, dict) else {}
    names = content.get("names")
    if isinstance(names, dict):
        of_number = {str(number): name for number, name in names.items()}  # some tools write '0': cat
        if set(of_number) != set(map(str, range(len(names)))):
            raise ValueError(f"{file}: the keys of 'names' must be 0, 1, 2, ..., got {', '.join(of_number)[:80]}")
        names = [of_number[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file}: expected 'names', a list of the classes or {{number: name}}, got {names!r}")
    for number, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):  # YAML reads no as false
            raise ValueError(f"{file}: the name of class number {number} must be a text, in quotes, got {name!r}")
    if content.get("nc", len(names)) != len(names):
        raise ValueError(f"{file}: 'nc' says {content['nc']} classes, but 'names' has {len(names)}")
    return _distinct([str(name) for name in names], file)


def _distinct(names: list[str], file: Path) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file} names {twice!r} twice")
    return names

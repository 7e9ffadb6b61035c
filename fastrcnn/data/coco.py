"""COCO JSON -> Dataset. The format: https://cocodataset.org/#format-data (object detection)."""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastrcnn.data.classes import select_classes
from fastrcnn.data.sample import Dataset, make_sample, noting


def read_coco(
    annotations: str | Path,
    images: str | Path,
    classes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    errors: list[str] | None = None,
) -> Dataset:
    """Reads a COCO detection file.

    Args:
        annotations: the JSON file, with the lists "images", "annotations" and "categories".
        images: the folder that the images' "file_name" is relative to. (read_dataset checks that they are there.)
        classes, rename: as in select_classes. No classes: every category, by ascending id (so that files which list
            them in another order agree).
        errors: a list that takes what is wrong with images and annotations, which are then left out; None: raised.
    Returns:
        A Dataset with one Sample per image, in the file's order. Boxes [x, y, w, h] become [x, y, x + w, y + h].
        A box with a negative width or height is left out and counted. "area" defaults to w * h, "iscrowd" to 0; a
        crowd is no training target, and detections within it are ignored in evaluation. "ignore": 1, which is how
        converters write VOC's difficult, makes an object difficult. Masks, and the annotations' own ids, are not looked
        at.
    Raises:
        FileNotFoundError: the JSON or the folder is missing.
        ValueError: not COCO, no images, a missing key, a duplicate id, a reference to an unknown image or category, a
            number that is not finite, an unknown name in classes. The message names the file and the entry.
    """
    file, folder = Path(annotations), Path(images)
    content = _load(file)
    category_ids, names = _categories(content["categories"], file)
    label_of = {category: label for label, category in enumerate(category_ids)}
    dataset = Dataset(str(file), names, category_ids, samples=[])

    if not content["images"]:
        raise ValueError(f"{file}: the dataset is empty, its list 'images' has no entry")
    if not folder.is_dir():
        raise FileNotFoundError(f"No image folder {folder} (for {file})")
    found = _images(content["images"], file, errors)
    objects: dict[int, list[tuple[list[float], int, float, bool, bool]]] = defaultdict(list)
    for index, entry in enumerate(content["annotations"]):
        with noting(errors):
            where = f"{file}: annotation number {index}"
            if isinstance(entry, dict) and "id" in entry:
                where += f" (id {entry['id']})"
            image_id = _integer(_get(entry, "image_id", where), f"{where}: image_id")
            if image_id not in found:
                raise ValueError(f"{where} belongs to image {image_id!r}, which is not in 'images'")
            item = _object(entry, where, label_of)
            x1, y1, x2, y2 = item[0]
            if x2 < x1 or y2 < y1:
                dataset.drop_inverted(folder / found[image_id][0], item[0])
            else:
                objects[image_id].append(item)

    for image_id, (name, size) in found.items():
        lists = zip(*objects[image_id], strict=True) if image_id in objects else ((),) * 5
        dataset.samples.append(make_sample(image_id, folder / name, size, *lists))
    return select_classes(dataset, classes, rename or {}, declared=True)


def _object(entry: Any, where: str, label_of: dict[int, int]) -> tuple[list[float], int, float, bool, bool]:
    """An annotation's box (xyxy), label, area, crowd, difficult."""
    category = _integer(_get(entry, "category_id", where), f"{where}: category_id")
    if category not in label_of:
        raise ValueError(f"{where} has category {category!r}, which is not in 'categories'")
    box = _get(entry, "bbox", where)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ValueError(f"{where}: bbox must be [x, y, width, height], four finite numbers, got {box!r}")
    x, y, width, height = box
    area, crowd, ignore = entry.get("area", abs(width * height)), entry.get("iscrowd", 0), entry.get("ignore", 0)
    if not _is_finite(area):
        raise ValueError(f"{where}: area must be a finite number, got {area!r}")
    if crowd not in (0, 1) or ignore not in (0, 1):
        raise ValueError(f"{where}: iscrowd and ignore must be 0 or 1, got {crowd!r} and {ignore!r}")
    return [x, y, x + width, y + height], label_of[category], area, bool(crowd), bool(ignore)


def _load(file: Path) -> dict[str, list[dict[str, Any]]]:
    if not file.is_file():
        raise FileNotFoundError(f"No annotation file {file}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nested too deeply
        raise ValueError(f"{file} is not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            found = sorted(content) if isinstance(content, dict) else f"a {type(content).__name__}"
            raise ValueError(f"{file} is not a COCO detection file: it must hold a list {key!r}, found {found}")
    return content


def _categories(entries: list[dict[str, Any]], file: Path) -> tuple[list[int], list[str]]:
    """The ids and names of the categories, by ascending id."""
    ids: dict[str, int] = {}
    for index, entry in enumerate(entries):
        where = f"{file}: category number {index}"
        name, category = _get(entry, "name", where), _integer(_get(entry, "id", where), f"{where}: id")
        if not isinstance(name, str):
            raise ValueError(f"{where}: name must be a text, got {name!r}")
        if name in ids or category in ids.values():
            raise ValueError(f"{where}: the name {name!r} or the id {category} stands twice in 'categories'")
        ids[name] = category
    if not ids:
        raise ValueError(f"{file}: 'categories' is empty")
    names = sorted(ids, key=lambda name: ids[name])
    return [ids[name] for name in names], names


def _images(
    entries: list[dict[str, Any]], file: Path, errors: list[str] | None
) -> dict[int, tuple[str, tuple[int, int]]]:
    """Image id -> file name, (width, height); checks every entry of 'images'."""
    found: dict[int, tuple[str, tuple[int, int]]] = {}
    for index, entry in enumerate(entries):
        with noting(errors):
            where = f"{file}: image number {index}"
            image_id = _integer(_get(entry, "id", where), f"{where}: id")
            name = _get(entry, "file_name", where)
            if not isinstance(name, str) or not name:
                raise ValueError(f"{where} (id {image_id}): file_name must be a text, got {name!r}")
            where = f"{file}: image {image_id} ({name})"
            if image_id in found:
                raise ValueError(f"{where}: the id {image_id} stands twice in 'images'")
            width, height = (_integer(_get(entry, key, where), f"{where}: {key}") for key in ("width", "height"))
            if width <= 0 or height <= 0:
                raise ValueError(f"{where}: width and height must be above 0, got {width} x {height}")
            found[image_id] = name, (width, height)
    return found


def _get(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{where} has no {key!r}, got {str(entry)[:200]}")
    return entry[key]


def _integer(value: Any, what: str) -> int:
    if isinstance(value, float) and value.is_integer():  # some exporters write 640.0
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # NaN compares false

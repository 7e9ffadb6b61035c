"""COCO JSON -> Dataset. The format: https://cocodataset.org/#format-data (object detection)."""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastrcnn.data.sample import Dataset, check_classes, make_sample, nearest


def read_coco(annotations: str | Path, images: str | Path, classes: Sequence[str] = ()) -> Dataset:
    """Reads a COCO detection file.

    Args:
        annotations: the JSON file, with the lists "images", "annotations" and "categories".
        images: the folder that the images' "file_name" is relative to. Every file must be there.
        classes: names to keep, in label order; objects of other categories are left out and counted, their images
            stay. Empty: every category, by ascending id (so that files which list them in another order agree).
    Returns:
        A Dataset with one Sample per image, in the file's order. Boxes [x, y, w, h] become [x, y, x + w, y + h].
        A box with a negative width or height is left out and counted. "area" defaults to w * h, "iscrowd" to 0.
    Raises:
        FileNotFoundError: the JSON, the folder or an image is missing.
        ValueError: not COCO, no images, a missing key, a duplicate id, a reference to an unknown image or category, a
            number that is not finite, an unknown name in classes. The message names the file and the entry.
    """
    file, folder, wanted = Path(annotations), Path(images), check_classes(classes)
    content = _load(file)
    category_ids, names = _categories(content["categories"], wanted, file)
    label_of = {category: label for label, category in enumerate(category_ids)}
    name_of = {entry["id"]: entry["name"] for entry in content["categories"]}
    dataset = Dataset(str(file), names, category_ids, samples=[])

    if not content["images"]:
        raise ValueError(f"{file}: the dataset is empty, its list 'images' has no entry")
    sizes = _image_sizes(content["images"], file)
    objects: dict[int, list[tuple[list[float], int, float, bool]]] = defaultdict(list)
    for index, entry in enumerate(content["annotations"]):
        where = f"{file}: annotation number {index}"
        if isinstance(entry, dict) and "id" in entry:
            where += f" (id {entry['id']})"
        image_id = _integer(_get(entry, "image_id", where), f"{where}: image_id")
        category = _integer(_get(entry, "category_id", where), f"{where}: category_id")
        if image_id not in sizes:
            raise ValueError(f"{where} belongs to image {image_id!r}, which is not in 'images'")
        if category not in name_of:
            raise ValueError(f"{where} has category {category!r}, which is not in 'categories'")
        box = _get(entry, "bbox", where)
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            raise ValueError(f"{where}: bbox must be [x, y, width, height], four finite numbers, got {box!r}")
        if category not in label_of:
            dataset.drop(f"objects of class {name_of[category]!r}, which is not in data.classes")
            continue
        x, y, width, height = box
        if width < 0 or height < 0:
            dataset.drop("objects whose box has a negative width or height")
            continue
        area, crowd = entry.get("area", width * height), entry.get("iscrowd", 0)
        if not _is_finite(area) or crowd not in (0, 1):
            raise ValueError(f"{where}: area must be a finite number and iscrowd 0 or 1, got {area!r} and {crowd!r}")
        objects[image_id].append(([x, y, x + width, y + height], label_of[category], area, bool(crowd)))

    if not folder.is_dir():
        raise FileNotFoundError(f"No image folder {folder} (for {file})")
    for entry in content["images"]:
        image_id, path = int(entry["id"]), folder / entry["file_name"]
        boxes, labels, areas, crowds = zip(*objects[image_id], strict=True) if image_id in objects else ((),) * 4
        dataset.samples.append(make_sample(image_id, path, sizes[image_id], boxes, labels, areas, crowds))
    missing = [sample.path for sample in dataset.samples if not sample.path.is_file()]
    if missing:
        total = len(dataset.samples)
        raise FileNotFoundError(
            f"{len(missing)} of the {total} images of {file} are missing, the first is {missing[0]}"
        )
    return dataset


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


def _categories(entries: list[dict[str, Any]], wanted: list[str], file: Path) -> tuple[list[int], list[str]]:
    """The ids and names of the classes, in label order."""
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
    for name in wanted:
        if name not in ids:
            raise ValueError(f"data.classes: {file} has no class {name!r}. {nearest(name, ids)}")
    names = wanted or sorted(ids, key=lambda name: ids[name])
    return [ids[name] for name in names], names


def _image_sizes(entries: list[dict[str, Any]], file: Path) -> dict[int, tuple[int, int]]:
    """Image id -> (width, height); checks every entry of 'images'."""
    sizes: dict[int, tuple[int, int]] = {}
    for index, entry in enumerate(entries):
        where = f"{file}: image number {index}"
        image_id = _integer(_get(entry, "id", where), f"{where}: id")
        name = _get(entry, "file_name", where)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where} (id {image_id}): file_name must be a text, got {name!r}")
        where = f"{file}: image {image_id} ({name})"
        if image_id in sizes:
            raise ValueError(f"{where}: the id {image_id} stands twice in 'images'")
        width, height = (_integer(_get(entry, key, where), f"{where}: {key}") for key in ("width", "height"))
        if width <= 0 or height <= 0:
            raise ValueError(f"{where}: width and height must be above 0, got {width} x {height}")
        sizes[image_id] = width, height
    return sizes


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

"""A small dataset with everything that real ones have, in COCO, VOC and YOLO format, for errors to be planted in.

Sides of images are powers of two and coordinates are quarters, so that every format holds the numbers exactly.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from fastrcnn.config import TrainDataConfig

CLASSES = ["cat", "big dog", "Käfer & Co"]
FORMATS = ["coco", "voc", "yolo"]
Box = tuple[float, float, float, float]


@dataclass
class Thing:
    label: int
    box: Box  # x1, y1, x2, y2
    difficult: bool = False  # in YOLO's files there is no place for it


@dataclass
class Picture:
    """An image file and what is written about it."""

    name: str  # relative to the folder of the images
    things: list[Thing] = field(default_factory=list)
    size: tuple[int, int] = (64, 32)  # width, height


def nasty_pictures(seed: int = 0) -> list[Picture]:
    """Sorted by path. Names of every kind; boxes of every kind that all three formats can hold, and random ones."""
    random = np.random.default_rng(seed)
    odd: list[Box] = [
        (8, 8, 20, 24),
        (8, 8, 20, 24),  # twice
        (40.25, 4.5, 60.75, 28),
        (40.25, 4.5, 60.75, 28),  # with two classes
        (0, 0, 128, 32),  # the whole image
        (10, 10, 10, 10),  # a point
        (30, 5, 31, 6),  # a pixel
        (30, 20, 30.5, 28),  # less
        (2, 24, 126, 29),  # long and thin
        (120, 20, 136, 40),  # beyond the border
        (100, 4, 103, 20),  # narrow
        (-8, -4, 12, 10),
    ]
    labels = [0, 0, 1, 2, *(i % 3 for i in range(8))]
    things = [Thing(label, box) for label, box in zip(labels, odd, strict=True)]
    pictures = [Picture("odd.png", things, (128, 32))]
    pictures += [Picture("nothing.png"), Picture("difficult.jpg", [Thing(1, (4, 4, 40, 20), True), Thing(0, odd[0])])]
    names = ["ünï çödé 照片.png", "UPPER.PNG", "v1.2 final (3).jpeg", "a/same.png", "b/same.png", "a/deep/same.JPG"]
    for name in names:
        size = [(64, 32), (32, 64), (128, 128)][random.integers(3)]
        count, limit = int(random.integers(1, 6)), np.array(size * 2) * 4
        corners = np.sort(random.integers(0, limit, (count, 4)).reshape(count, 2, 2), axis=1).reshape(count, 4) / 4
        things = [Thing(int(random.integers(3)), tuple(box)) for box in corners.tolist()]
        pictures.append(Picture(name, things, size))
    return sorted(pictures, key=lambda picture: Path(picture.name))


def write_images(root: Path, pictures: list[Picture]) -> None:
    for number, picture in enumerate(pictures):
        path = root / "images" / picture.name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
        path.write_bytes(cv2.imencode(path.suffix, cv2.resize(noise, picture.size))[1].tobytes())


def write_annotations(root: Path, pictures: list[Picture], format: str) -> TrainDataConfig:
    """Writes <root>/<format>; returns the section of a config that reads it."""
    files = {"coco": coco_files, "voc": voc_files, "yolo": yolo_files}[format](pictures)
    for name, content in files.items():
        path = root / format / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    annotations = root / format / {"coco": "boxes.json", "voc": "xml", "yolo": "labels"}[format]
    return TrainDataConfig(format, str(annotations), str(root / "images"))


def coco_files(pictures: list[Picture]) -> dict[str, str]:
    """Ids of categories and images have gaps, and categories stand in another order."""
    images = [
        {"id": 100 + 7 * i, "file_name": picture.name, "width": picture.size[0], "height": picture.size[1]}
        for i, picture in enumerate(pictures)
    ]
    annotations = [
        {
            "id": 5,  # all the same, which nothing depends on
            "image_id": image["id"],
            "category_id": 10 * thing.label + 4,
            "bbox": [thing.box[0], thing.box[1], thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]],
            "ignore": int(thing.difficult),
            "segmentation": {"counts": "PPYo0", "size": [32, 64]},
        }
        for image, picture in zip(images, pictures, strict=True)
        for thing in picture.things
    ]
    categories = [{"id": 10 * label + 4, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories[::-1]}
    return {"boxes.json": json.dumps(content, ensure_ascii=False)}


def voc_files(pictures: list[Picture]) -> dict[str, str]:
    """Every second file lacks <size>, every third has the <filename> of before the files were renamed."""
    files = {}
    for number, picture in enumerate(pictures):
        width, height = picture.size
        filename = escape(Path(picture.name).name) if number % 3 else "old.bmp"
        parts = [f"<folder>C:\\old</folder><filename>{filename}</filename>"]
        parts += [f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"] * (number % 2)
        for thing in picture.things:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
            box = "".join(f"<{key}>{value:g}</{key}>" for key, value in sides)
            parts.append(
                f"<object><name> {escape(CLASSES[thing.label])}\n</name><pose>Unspecified</pose>"
                f"<difficult>{int(thing.difficult)}</difficult><bndbox>{box}</bndbox></object>"
            )
        name = Path(picture.name).with_suffix(".xml").as_posix()
        files[f"xml/{name}"] = f"<annotation>{''.join(parts)}</annotation>"
    return files


def yolo_files(pictures: list[Picture]) -> dict[str, str]:
    """An image without objects has no file; data.yaml lies above the labels."""
    files = {"data.yaml": f"nc: 3\nnames: {json.dumps(CLASSES, ensure_ascii=False)}\ntrain: [images/a, images/b]\n"}
    for picture in pictures:
        width, height = picture.size
        lines = []
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box[0] / width, thing.box[1] / height, thing.box[2] / width, thing.box[3] / height
            values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            lines.append(" ".join([str(thing.label), *map(repr, values)]) + "\n")
        if lines:
            files[f"labels/{Path(picture.name).with_suffix('.txt').as_posix()}"] = "".join(lines)
    return files

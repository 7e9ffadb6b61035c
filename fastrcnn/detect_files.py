"""Detection in image files: finds them, draws the detections into pictures, gathers the results in one JSON file."""

import glob
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
from tqdm import tqdm

from fastrcnn.atomic import atomic_write
from fastrcnn.class_names import category_ids
from fastrcnn.data.image import SUFFIXES, read_image
from fastrcnn.detector import Detector
from fastrcnn.drawing import draw_detections
from fastrcnn.evaluation.coco import coco_boxes
from fastrcnn.models.detections import Detections

DRAWN_SCORE = 0.3  # results.json has every detection; in a picture the improbable ones hide the others


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Files as they are, the images of folders (not of their subfolders), what matches patterns such as "in/**/*.png".

    Each file once, in the order of the arguments, within a folder or pattern by name. A file that does not exist is
    kept for the reader to report.

    Raises:
        FileNotFoundError: a folder without images.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise FileNotFoundError(f"The folder {path} has no images ({', '.join(sorted(SUFFIXES))})")
        elif not path.exists() and glob.has_magic(argument):
            files = [Path(file) for file in sorted(glob.glob(argument, recursive=True))] or [path]
        else:
            files = [path]
        found |= dict.fromkeys(files)
    return list(found)


def detect_files(detector: Detector, images: Sequence[Path], out: Path) -> dict[Path, str]:
    """Detects in every image; writes one picture each, and results.json, into the folder `out`.

    results.json is a list in COCO's results format (image_id, category_id, bbox [x, y, width, height], score), each
    entry with file_name and category besides. The image ids are the file names where these are distinct numbers, as
    COCO's are; else 1, 2, ... in the order of the images. Pictures are JPEG files named as the image.

    Returns:
        The images that could not be read -> the reason. They do not stop the others.
    Raises:
        ValueError: `out` is a folder that images come from: a picture could replace an image.
    """
    if out.resolve() in {path.resolve().parent for path in images}:
        raise ValueError(f"--out {out} is the folder of the images: their pictures would lie among them. Name another")
    out.mkdir(parents=True, exist_ok=True)
    results, unreadable = [], {}
    ids, names = _image_ids(images), _picture_names(images)
    for path, image_id, name in zip(tqdm(images, unit="image", disable=None), ids, names, strict=True):
        try:
            image = read_image(path)
        except (OSError, ValueError) as error:
            unreadable[path] = str(error)
            continue
        found = detector.detect(image)
        for entry, category in zip(
            coco_boxes(image_id, found, category_ids(detector.classes)), found.names, strict=True
        ):
            results.append(entry | {"file_name": path.name, "category": category})
        probable = found.scores >= DRAWN_SCORE
        drawn = Detections(found.boxes[probable], found.scores[probable], found.labels[probable])
        _, jpeg = cv2.imencode(".jpg", draw_detections(image, drawn, detector.classes))
        with atomic_write(out / name) as temporary:
            temporary.write_bytes(jpeg.tobytes())
    with atomic_write(out / "results.json") as temporary:
        temporary.write_text(json.dumps(results), encoding="utf-8")
    return unreadable


def _image_ids(images: Sequence[Path]) -> list[int]:
    if all(path.stem.isdecimal() for path in images):
        ids = [int(path.stem) for path in images]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(images) + 1))


def _picture_names(images: Sequence[Path]) -> list[str]:
    """<stem>.jpg, with a number where images from several folders or of several types share a stem."""
    names: dict[str, None] = {}
    for path in images:
        name, number = f"{path.stem}.jpg", 1
        while name in names:
            number += 1
            name = f"{path.stem}_{number}.jpg"
        names[name] = None
    return list(names)

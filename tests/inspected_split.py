"""Datasets to plant errors in, and what `fastrcnn data` finds in them. The fixtures are in conftest.py."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrcnn.config import Config, DataConfig, TrainDataConfig, ValDataConfig
from fastrcnn.data.inspection.report import report

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def photo(seed: int, width: int = 128, height: int = 96) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height))


class Split:
    """A COCO dataset of 128 x 96 photos with a cat and a dog each, in its own folder, to plant errors in."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self.folder, self.file = folder / name, folder / f"{name}.json"
        self.folder.mkdir()
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = list(CATEGORIES)
        for i in range(3):
            image_id = self.image(f"{name}{i}.png", photo(seed + i))
            self.box(image_id, 1, [10, 10, 40, 30])
            self.box(image_id, 2, [60, 20, 30, 50])

    def image(self, name: str, content: np.ndarray | bytes | None, size: tuple[int, int] | None = None) -> int:
        """Adds an image (None: no file), annotated with its size or another (width, height); returns its id."""
        if isinstance(content, np.ndarray):
            cv2.imwrite(str(self.folder / name), content)
            size = size or content.shape[1::-1]
        elif content is not None:
            (self.folder / name).write_bytes(content)
        width, height = size or (128, 96)
        self.images.append({"id": len(self.images) + 1, "file_name": name, "width": width, "height": height})
        return len(self.images)

    def box(self, image_id: int, category: int, box: list[float], **more: Any) -> None:
        entry = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": category, "bbox": box}
        self.annotations.append(entry | more)

    def write(self) -> None:
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        self.file.write_text(json.dumps(content))


def inspected(train: Split, val: Split, out: Path) -> dict[str, list[dict[str, Any]]]:
    """kind -> its problems, as problems.json has them."""
    train.write()
    val.write()
    config = Config(
        data=DataConfig(
            train=TrainDataConfig("coco", str(train.file), str(train.folder)),
            val=ValDataConfig("coco", str(val.file), str(val.folder)),
        )
    )
    config.data.test.scale = [128, 96]
    config.model.box_head.max_detections = 20
    report(config, out)
    found: dict[str, list[dict[str, Any]]] = {}
    for problem in json.loads((out / "problems.json").read_text()):
        found.setdefault(problem["kind"], []).append(problem)
    return found

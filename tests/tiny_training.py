"""A training run of a second: a small model, six small pictures of rectangles, two classes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastrcnn.atomic import atomic_write
from fastrcnn.config import Config, load_config
from fastrcnn.models.backbone import BLOCKS

SETTINGS = """
model:
  backbone: {depth: 18, norm: train, frozen_stages: -1, pretrained: null}
  fpn: {channels: 32}
  rpn:
    channels: 32
    anchor_scales: [4]
    train_proposals: {pre_nms: 200, post_nms: 100}
    test_proposals: {pre_nms: 200, post_nms: 50}
  box_head: {channels: 64, num_classes: 2, sampler: {num: 64, positive_fraction: 0.25}}
data:
  train: {annotations: FOLDER/boxes.json, images: FOLDER, scales: [[128, 96]]}
  val: {annotations: FOLDER/boxes.json, images: FOLDER}
  test: {scale: [128, 96]}
optimizer: {lr: 0.02}
schedule: {epochs: 2, milestones: [1], warmup_steps: 4, warmup_ratio: 0.1}
train: {batch_size: 2, workers: 0, log_every: 2, eval_every: 1}
"""
STEPS_PER_EPOCH = 3


@contextmanager
def small_resnet() -> Iterator[None]:
    """Inside it, the config's ResNet-18 is built with one block per stage and few channels, and one thread computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrcnn.models.backbone.WIDTHS", (16, 32, 48, 64))
        patch.setitem(BLOCKS, 18, (1, 1, 1, 1))
        yield
    torch.set_num_threads(threads)


def write_pictures(folder: Path, without_objects: int = 0) -> None:
    """Six pictures, four of them landscape, with one or two bright rectangles: class "wide" or "tall"."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 7):
        width, height = (128, 96) if image_id <= 4 else (96, 128)
        picture = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for k in range(1 + image_id % 2 if image_id > without_objects else 0):
            wide = bool(random.integers(2))
            w, h = (36, 18) if wide else (18, 36)
            x, y = 6 + 50 * k + int(random.integers(4)), int(random.integers(4, height - h - 4))
            cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), (40, 220, 60) if wide else (60, 80, 230), -1)
            entry = {"image_id": image_id, "category_id": 1 if wide else 2, "bbox": [x, y, w, h], "area": w * h}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **entry})
        cv2.imwrite(str(folder / f"{image_id}.png"), picture)
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
    categories = [{"id": 1, "name": "wide"}, {"id": 2, "name": "tall"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))


def write_formats(root: Path, without_objects: int = 0) -> None:
    """The pictures in root/images, their objects in images/boxes.json, labels (with data.yaml) and Annotations."""
    images = root / "images"
    images.mkdir(parents=True)
    write_pictures(images, without_objects)
    content = json.loads((images / "boxes.json").read_text())
    for folder in ("labels", "Annotations"):
        (root / folder).mkdir()
    (root / "data.yaml").write_text("names: [wide, tall]\n")
    for image in content["images"]:
        lines, objects = [], []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = entry["bbox"]
                values = ((x + w / 2) / image["width"], (y + h / 2) / image["height"], w / image["width"])
                lines.append(" ".join(map(repr, (entry["category_id"] - 1, *values, h / image["height"]))))
                box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                name = ("wide", "tall")[entry["category_id"] - 1]
                objects.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
        if lines:  # no file: no objects
            (root / "labels" / f"{image['id']}.txt").write_text("\n".join(lines))
        (root / "Annotations" / f"{image['id']}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")


def tiny_config(data: Path, output: Path, *overrides: str) -> Config:
    """The config of a run over the pictures that write_pictures wrote into `data`."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "tiny.yaml"
    with atomic_write(file) as temporary:  # of several processes at the same time
        temporary.write_text(SETTINGS.replace("FOLDER", str(data)))
    return load_config(file, [f"output_dir={output}", *overrides])

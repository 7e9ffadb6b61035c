"""Drawn scenes with exact boxes: a data set that needs no download, for the demo and for tests.

A scene is a table top with a few objects of five classes (``scene_objects.OBJECTS``) among clutter that is no object.
Things overlap, cross the border of the picture, and vary in size, pose, colour and light. Everything follows from the
seed: scene k of a split looks the same whatever else is drawn.

    write_scenes("runs/demo/scenes", num_train=1500, num_val=120)   ->  train.json, train/*.jpg, val.json, val/*.jpg
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.atomic import atomic_write
from fastrcnn.data.scene_objects import CLUTTER, OBJECTS, Random, Sprite

CLASSES = sorted(OBJECTS)
MIN_VISIBLE = 0.75  # of an object's pixels: a placement that hides more of any object is not made
_CLUTTER = -1  # the label of what is no object
_TRIES = 12  # placements tried for one thing before it is left out


@dataclass
class Scene:
    """image uint8 [h, w, 3] BGR; boxes [G, 4] xyxy: the visible extent of each object; labels: indices into CLASSES."""

    image: np.ndarray
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)  # visible pixels


def draw_scene(rng: Random, width: int, height: int) -> Scene:
    """Draws one scene with up to five objects; a box is the exact extent of its object's visible pixels."""
    lamp = _lamp(rng)
    image = _table(rng, width, height)
    layout = _Layout(width, height)
    size = float(np.sqrt(width * height))
    objects, clutter = rng.integers(len(CLASSES), size=rng.integers(2, 6)), np.full(rng.integers(1, 6), _CLUTTER)
    for label in rng.permutation(np.concatenate([objects, clutter])):
        if label == _CLUTTER:
            radius = size * rng.uniform(0.04, 0.15)
            sprite = CLUTTER[rng.integers(len(CLUTTER))](rng, radius, lamp)
        else:
            radius = size * float(np.exp(rng.uniform(np.log(0.11), np.log(0.24))))
            sprite = OBJECTS[CLASSES[label]](rng, radius, lamp)
        corner = layout.put(rng, sprite.alpha > 0.5, int(label))
        if corner is not None:
            _paste(image, sprite, corner, lamp, radius)
    scene = Scene(_light(rng, image))
    for label, box, area in layout.objects():
        scene.labels.append(label)
        scene.boxes.append(box)
        scene.areas.append(area)
    return scene


def write_scenes(
    folder: str | Path, num_train: int, num_val: int, size: tuple[int, int] = (320, 256), seed: int = 0
) -> None:
    """Writes two splits of scenes as JPEG files with COCO JSON annotations.

    Args:
        folder: made if missing; ``train.json`` and ``val.json`` hold file names relative to ``train/`` and ``val/``.
        num_train, num_val: scenes in each split, at least one. size: (width, height) in pixels, at least 32 each.
        seed: the same seed gives the same scenes; the two splits never share one.
    Raises:
        ValueError: a count below 1, or a side below 32.
    A split's JSON is removed first and written last, atomically: where it exists, all its pictures do.
    """
    if min(num_train, num_val) < 1 or min(size) < 32:
        got = f"{num_train} and {num_val} scenes of {size}"
        raise ValueError(f"Expected at least 1 scene per split and sides of at least 32 pixels, got {got}")
    for split, (name, count) in enumerate((("train", num_train), ("val", num_val))):
        pictures, annotations = Path(folder) / name, Path(folder) / f"{name}.json"
        pictures.mkdir(parents=True, exist_ok=True)
        annotations.unlink(missing_ok=True)
        scenes = [_write_scene(pictures, [seed, split, index], *size) for index in range(count)]
        with atomic_write(annotations) as temporary:
            temporary.write_text(json.dumps(_coco(scenes, *size)))


def _write_scene(pictures: Path, key: list[int], width: int, height: int) -> Scene:
    """Draws the scene of that key, writes its picture and returns it without the picture."""
    scene = draw_scene(np.random.default_rng(key), width, height)
    _, encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    (pictures / _file_name(key[-1])).write_bytes(encoded.tobytes())
    return replace(scene, image=np.empty((0, 0, 3), np.uint8))


def _file_name(index: int) -> str:
    return f"{index:05d}.jpg"


def _coco(scenes: list[Scene], width: int, height: int) -> dict[str, list[dict]]:
    images: list[dict] = []
    annotations: list[dict] = []
    for index, scene in enumerate(scenes):
        images.append({"id": index + 1, "file_name": _file_name(index), "width": width, "height": height})
        for (x1, y1, x2, y2), label, area in zip(scene.boxes, scene.labels, scene.areas, strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "category_id": label + 1, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **box})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


# --- composition ------------------------------------------------------------------------------------------------------


class _Layout:
    """Which thing shows at each pixel, and how much of each thing does."""

    def __init__(self, width: int, height: int) -> None:
        self._owner = np.zeros((height, width), np.int64)  # 0: the table; k: the k-th thing put down
        self._labels = [_CLUTTER]
        self._visible = np.array([width * height])  # pixels of each thing that show ...
        self._needed = np.zeros(1)  # ... and that must go on showing

    def put(self, rng: Random, shape: np.ndarray, label: int) -> tuple[int, int] | None:
        """Puts a shape (bool [s, s]) on top where it leaves MIN_VISIBLE of every object, itself included, in sight.

        Returns its corner (x, y), which may lie outside the picture, or None where no try fits.
        """
        height, width = self._owner.shape
        pixels, side = int(shape.sum()), len(shape)
        for _ in range(_TRIES):
            x, y = int(rng.integers(width)) - side // 2, int(rng.integers(height)) - side // 2
            view, part = _overlap(self._owner, shape, x, y)
            inside = int(part.sum())
            visible = self._visible - np.bincount(view[part], minlength=len(self._labels))
            if inside >= MIN_VISIBLE * pixels and (visible >= self._needed).all():
                view[part] = len(self._labels)
                self._labels.append(label)
                self._visible = np.append(visible, inside)
                self._needed = np.append(self._needed, 0 if label == _CLUTTER else MIN_VISIBLE * pixels)
                return x, y
        return None

    def objects(self) -> Iterator[tuple[int, tuple[int, int, int, int], int]]:
        """(label, box xyxy, visible pixels) of every object, in the order they were put down."""
        for index, label in enumerate(self._labels):
            if label != _CLUTTER:
                shown = self._owner == index
                xs, ys = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
                yield label, (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1), int(self._visible[index])


def _overlap(under: np.ndarray, over: np.ndarray, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """The two views, of equal size, of what ``over`` covers when its corner lies at (x, y) of ``under``."""
    (h, w), (oh, ow) = under.shape[:2], over.shape[:2]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + ow, w), min(y + oh, h)
    return under[y1:y2, x1:x2], over[y1 - y : y2 - y, x1 - x : x2 - x]


def _paste(image: np.ndarray, sprite: Sprite, corner: tuple[int, int], lamp: np.ndarray, radius: float) -> None:
    """Draws the sprite's soft shadow, away from the lamp, then the sprite, into image (float32)."""
    x, y = corner
    blur = max(1.0, 0.09 * radius)
    margin = int(3 * blur)
    shadow = cv2.GaussianBlur(np.pad(sprite.alpha, margin), (0, 0), blur)
    away = x - margin - round(0.22 * radius * lamp[0]), y - margin - round(0.22 * radius * lamp[1])
    view, part = _overlap(image, shadow, *away)
    view *= 1 - 0.5 * part[..., None]
    view, alpha = _overlap(image, sprite.alpha, x, y)
    _, paint = _overlap(image, sprite.colour, x, y)
    view += (paint - view) * alpha[..., None]


# --- table and light --------------------------------------------------------------------------------------------------


def _lamp(rng: Random) -> np.ndarray:
    """A unit vector towards the light: from above, most often from the upper side of the picture."""
    angle, slant = rng.normal(-np.pi / 2, 0.8), rng.uniform(0.5, 0.75)
    return np.array([slant * np.cos(angle), slant * np.sin(angle), np.sqrt(1 - slant * slant)])


def _noise(rng: Random, width: int, height: int, cells_x: int, cells_y: int) -> np.ndarray:
    """Smooth noise [height, width], mean 0, about unit variance, with that many cells across the picture."""
    coarse = rng.standard_normal((cells_y, cells_x), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _table(rng: Random, width: int, height: int) -> np.ndarray:
    """What the things lie on, float32 [h, w, 3]: wood, cloth or stone."""
    style = rng.integers(3)
    if style == 0:  # planks: noise stretched along the grain
        base = np.array([rng.uniform(60, 110), rng.uniform(95, 150), rng.uniform(135, 200)], np.float32)
        grain = 0.6 * _noise(rng, width, height, 4, 60) + 0.5 * _noise(rng, width, height, 3, 14)
        plank = rng.normal(0, 0.5, 8).astype(np.float32)[(np.arange(height) * rng.integers(3, 6) // height)]
        pattern = 0.085 * (grain + plank[:, None])
    elif style == 1:  # woven stripes or checks
        base = rng.uniform(70, 220, 3).astype(np.float32)
        step = rng.uniform(14, 40)
        across = np.sign(np.sin(np.arange(width) * np.pi / step))[None, :]
        down = np.sign(np.sin(np.arange(height) * np.pi / step))[:, None] * rng.integers(2)
        pattern = rng.uniform(0.03, 0.12) * (across + down) + 0.03 * _noise(rng, width, height, width // 2, height // 2)
    else:  # stone or paper: noise of several scales
        base = rng.uniform(60, 235) + rng.uniform(-22, 22, 3).astype(np.float32)
        pattern = 0.05 * np.sum([_noise(rng, width, height, n, n) for n in (5, 16, 48, 120)], 0)
    if rng.random() < 0.5:  # the grain runs the other way
        pattern = np.asarray(cv2.resize(np.ascontiguousarray(pattern.T), (width, height)))
    return (base * (1 + pattern[..., None])).astype(np.float32)


def _light(rng: Random, image: np.ndarray) -> np.ndarray:
    """Uneven light, sometimes the shadow of something outside, colour cast, blur and noise: float32 -> uint8."""
    height, width = image.shape[:2]
    gain = cv2.resize(rng.uniform(0.72, 1.18, (2, 2)).astype(np.float32), (width, height))
    if rng.random() < 0.4:  # a half-plane in shadow, with a soft edge
        angle, softness = rng.uniform(0, 2 * np.pi), rng.uniform(3, 30)
        x = (np.arange(width) - rng.uniform(0.2, 0.8) * width) * (np.cos(angle) / softness)
        y = (np.arange(height) - rng.uniform(0.2, 0.8) * height) * (np.sin(angle) / softness)
        depth = np.clip(x[None, :] + y[:, None], -20, 20).astype(np.float32)
        gain *= 1 - np.float32(rng.uniform(0.2, 0.5)) / (1 + np.exp(-depth))
    tint = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    image *= gain[..., None] * tint
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.4))
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(0.5, 7))
    image += grain[..., None]
    return np.clip(image, 0, 255, out=image).astype(np.uint8)

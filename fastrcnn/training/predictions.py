"""What the detector sees: a few validation images with their objects and with its detections, at every evaluation."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.atomic import atomic_write
from fastrcnn.data.image import box_factors, read_image, resize
from fastrcnn.data.sample import Dataset, Sample
from fastrcnn.drawing import draw_boxes, draw_detections
from fastrcnn.models.detections import Detections

DRAWN_SCORE = 0.3  # as in the pictures of `fastrcnn detect`: the improbable detections hide the others
LARGEST = 800  # pixels: larger images are made smaller


def chosen_samples(dataset: Dataset, count: int) -> list[Sample]:
    """`count` images, or all if there are fewer, evenly spread over the dataset: the same at every evaluation."""
    spread = np.linspace(0, len(dataset.samples), min(count, len(dataset.samples)), endpoint=False)
    return [dataset.samples[int(index)] for index in spread]


def draw_predictions(dataset: Dataset, detections: Mapping[int, Detections], count: int) -> dict[str, np.ndarray]:
    """Draws chosen_samples.

    Args:
        dataset: images, objects, class names. detections: image id -> its detections in pixels of the original image.
        count: how many images.
    Returns:
        "<number>_<name of the file>" -> uint8 BGR [h, 2w, 3]: on the left what is annotated, on the right the
        detections with a score of 0.3 at least.
    Raises:
        What read_image raises.
    """
    pictures = {}
    for number, sample in enumerate(chosen_samples(dataset, count), start=1):
        image = read_image(sample.path)
        original = image.shape[:2]
        if max(original) > LARGEST:
            image, _ = resize(image, (LARGEST, LARGEST))
        factors = np.array(box_factors(original, image.shape[:2]) * 2, np.float32)
        names = [dataset.classes[label] for label in sample.labels]
        annotated = draw_boxes(image, sample.boxes * factors, sample.labels.tolist(), names)
        found = detections[sample.image_id]
        probable = found.scores >= DRAWN_SCORE
        boxes = found.boxes[probable] * found.boxes.new_tensor(factors)
        drawn = Detections(boxes, found.scores[probable], found.labels[probable])
        pictures[f"{number}_{sample.path.stem}"] = np.hstack(
            [annotated, draw_detections(image, drawn, dataset.classes)]
        )
    return pictures


def write_pictures(folder: Path, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
    """Writes <name>_epoch_<epoch>.jpg, so that by name an image's development lies side by side."""
    for name, picture in pictures.items():
        _, jpeg = cv2.imencode(".jpg", picture)
        with atomic_write(folder / f"{name}_epoch_{epoch:03}.jpg") as temporary:
            temporary.write_bytes(jpeg.tobytes())

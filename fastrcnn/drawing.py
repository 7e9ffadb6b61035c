"""Detections drawn into a picture."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from fastrcnn.models.detections import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(image: np.ndarray, detections: Detections, names: Sequence[str]) -> np.ndarray:
    """Draws each detection as a box in its class's colour, labelled with name and score.

    Lines have a dark rim and labels a filled ground, so that they can be read on any background; the highest score lies
    on top. Lines and letters grow with the image.

    Args:
        image: uint8 BGR [h, w, 3]; not changed.
        detections: boxes in the image's pixels; parts outside the image are not drawn.
        names: class names in label order. OpenCV's font is ASCII; other letters appear as "?".
    Returns:
        A new uint8 BGR image of the same size.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    unit = max(1, round(min(height, width) / 400))  # pixels: the line width of a small image
    order = detections.scores.argsort(stable=True).tolist()
    # Whole pixels on the image; a box that leaves it ends one line beyond, so that its open side is seen as open.
    limits = np.array([width, height, width, height]) + unit
    boxes = np.clip(detections.boxes.cpu().numpy(), -unit, limits).round().astype(int).tolist()
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    for index in order:
        low, high = tuple(boxes[index][:2]), tuple(boxes[index][2:])
        for colour, thickness in (((0, 0, 0), 3 * unit), (class_colour(labels[index]), 2 * unit)):
            cv2.rectangle(canvas, low, high, colour, thickness, cv2.LINE_AA)
    for index in order:  # after the boxes: no line crosses a label
        _draw_label(canvas, boxes[index], f"{names[labels[index]]} {scores[index]:.2f}", labels[index], unit)
    return canvas


def class_colour(label: int) -> tuple[int, int, int]:
    """BGR, the same for a label every time. Neighbouring labels lie far apart: hues step by the golden ratio."""
    hue, brightness = (0.02 + label * 0.618034) % 1.0, (1.0, 0.75)[label // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, brightness)
    return round(255 * blue), round(255 * green), round(255 * red)


def _draw_label(canvas: np.ndarray, box: list[int], text: str, label: int, unit: int) -> None:
    """Above the box's upper left corner; inside the box where there is no room above, and never outside the image."""
    height, width = canvas.shape[:2]
    scale = 0.4 * unit
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, unit)
    margin = 2 * unit
    label_width, label_height = text_width + 2 * margin, text_height + below + 2 * margin
    x = max(0, min(box[0] - unit, width - label_width))
    y = box[1] - label_height if box[1] >= label_height else max(0, min(box[1], height - label_height))
    blue, green, red = colour = class_colour(label)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140  # perceived brightness (ITU-R BT.601)
    cv2.rectangle(canvas, (x, y), (x + label_width, y + label_height), colour, cv2.FILLED)
    baseline = (x + margin, y + margin + text_height)
    cv2.putText(canvas, text, baseline, _FONT, scale, (255, 255, 255) if dark else (0, 0, 0), unit, cv2.LINE_AA)

"""Boxes drawn into a picture: detections, or what the annotations say."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from fastrcnn.models.detections import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(image: np.ndarray, detections: Detections, names: Sequence[str]) -> np.ndarray:
    """Draws each detection as a box in its class's colour, labelled with name and score; the highest lies on top.

    Args:
        image: uint8 BGR [h, w, 3]; not changed.
        detections: boxes in the image's pixels; parts outside the image are not drawn.
        names: class names in label order. OpenCV's font is ASCII; other letters appear as "?".
    Returns:
        A new uint8 BGR image of the same size.
    """
    order = detections.scores.argsort(stable=True).tolist()
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    texts = [f"{names[labels[index]]} {scores[index]:.2f}" for index in order]
    return draw_boxes(image, detections.boxes.cpu().numpy()[order], [labels[index] for index in order], texts)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Draws boxes in their classes' colours with their texts, the last on top.

    Lines have a dark rim and texts a filled ground, so that they can be read on any background. Lines and letters grow
    with the image.

    Args:
        image: uint8 BGR [h, w, 3]; not changed.
        boxes: [n, 4] xyxy in the image's pixels; parts outside the image are not drawn.
        labels: n classes.
        texts: n texts, as the names of draw_detections.
    Returns:
        A new uint8 BGR image of the same size.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    unit = max(1, round(min(height, width) / 400))  # pixels: the line width of a small image
    # Whole pixels on the image; a box that leaves it ends one line beyond, so that its open side is seen as open.
    limits = np.array([width, height, width, height]) + unit
    corners = np.clip(boxes, -unit, limits).round().astype(int).tolist()
    for corner, label in zip(corners, labels, strict=True):
        for colour, thickness in (((0, 0, 0), 3 * unit), (class_colour(label), 2 * unit)):
            cv2.rectangle(canvas, tuple(corner[:2]), tuple(corner[2:]), colour, thickness, cv2.LINE_AA)
    for corner, label, text in zip(corners, labels, texts, strict=True):  # after the boxes: no line crosses a label
        _draw_label(canvas, corner, text, label, unit)
    return canvas


def drawable(text: str) -> str:
    """The text without what is no character, such as the bytes of a file name in another encoding: OpenCV crashes."""
    return text.encode("utf-8", "replace").decode()


def class_colour(label: int) -> tuple[int, int, int]:
    """BGR, the same for a label every time. Neighbouring labels lie far apart: hues step by the golden ratio."""
    hue, brightness = (0.02 + label * 0.618034) % 1.0, (1.0, 0.75)[label // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, brightness)
    return round(255 * blue), round(255 * green), round(255 * red)


def _draw_label(canvas: np.ndarray, box: list[int], text: str, label: int, unit: int) -> None:
    """Above the box's upper left corner; inside the box where there is no room above, and never outside the image."""
    height, width = canvas.shape[:2]
    text, scale = drawable(text), 0.4 * unit
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

"""Labelled boxes on pictures."""

import numpy as np
import torch

from fastrcnn.drawing import class_colour, draw_boxes, draw_detections
from fastrcnn.models import Detections


def test_a_box_and_its_label_are_drawn_in_the_colour_of_the_class() -> None:
    for ground in (0, 255):
        image = np.full((200, 300, 3), ground, np.uint8)
        box = Detections(torch.tensor([[50.0, 60, 150, 160]]), torch.tensor([0.87]), torch.tensor([1]))
        drawn = draw_detections(image, box, ["cat", "dog"])
        assert (image == ground).all()  # the original is not changed
        assert drawn.shape == image.shape and drawn.dtype == np.uint8
        changed = (drawn != ground).any(2)
        assert changed[100, 50] and changed[160, 100]  # left and lower edge
        assert not changed[100, 100] and not changed[190, 200]  # inside and far away
        assert tuple(drawn[110, 50].tolist()) == class_colour(1)
        label = drawn[45:58, 52:90]  # above the box
        assert (label == class_colour(1)).all(2).mean() > 0.3


def test_labels_stay_inside_the_image_and_any_box_can_be_drawn() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    boxes = [[-20, -30, 200, 300], [78, 58, 90, 70], [5, 5, 5, 5], [0, 0, 3e9, 1]]
    strange = Detections(torch.tensor(boxes), torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 2, 0]))
    drawn = draw_detections(image, strange, ["a very long class name indeed", "b", "ç"])
    assert drawn.shape == image.shape
    corner = Detections(torch.tensor([[70.0, 2, 79, 30]]), torch.tensor([0.9]), torch.tensor([0]))
    drawn = draw_detections(image, corner, ["b"])
    assert (drawn[:, 40:60] == class_colour(0)).all(2).any()  # shifted to the left, where there is room
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert (draw_detections(image, empty, []) == image).all()


def test_neighbouring_classes_differ_in_colour() -> None:
    colours = np.array([class_colour(label) for label in range(80)], float)
    assert len(np.unique(colours, axis=0)) == 80
    assert (np.abs(np.diff(colours, axis=0)).max(1) > 60).all()


def test_texts_of_any_code_points() -> None:
    """Half of a surrogate pair would crash OpenCV."""
    image = np.zeros((60, 80, 3), np.uint8)
    boxes = np.array([[10.0, 20, 50, 50]])
    for text in ("\udce4", "a\ud800b", "Käfer 照片 🐞", "\n\t\r", ""):
        assert (draw_boxes(image, boxes, [0], [text]) != 0).any()

"""A small model, a batch of two images and their objects, for the tests of FasterRCNN."""

import torch
from conftest import seeded
from torch import Tensor, nn

from fastrcnn.config import load_config
from fastrcnn.models import FasterRCNN, build_model

SIZES = [(90, 120), (64, 100)]  # of the two images before padding to 96 x 128
FACTORS = [(0.5, 0.5), (2.0, 1.5)]
NO_OBJECTS = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def small(*overrides: str, confident: bool = True) -> FasterRCNN:
    """A small model; confident: with random last layers that make it detect something."""
    settings = ["backbone.depth=18", "backbone.frozen_stages=0", "fpn.channels=32", "rpn.channels=32"]
    settings += ["box_head.channels=64", "box_head.num_classes=3", "rpn.test_proposals.post_nms=50"]
    settings += ["rpn.train_proposals.post_nms=80", "rpn.sampler.num=32", "box_head.sampler.num=32"]
    settings += ["box_head.max_detections=20", *overrides]
    torch.manual_seed(0)
    model = build_model(load_config("faster_rcnn_r50_fpn_1x_coco", [f"model.{s}" for s in settings]).model)
    if confident:
        for layer in (model.rpn_head.objectness, model.rpn_head.deltas, model.box_head.logits, model.box_head.deltas):
            nn.init.normal_(layer.weight, std=0.1)
    return model


def images(*sizes: tuple[int, int], padded: tuple[int, int] = (96, 128)) -> Tensor:
    batch = torch.zeros(len(sizes), 3, *padded)
    for i, (height, width) in enumerate(sizes):
        batch[i, :, :height, :width] = torch.randn(3, height, width, generator=seeded(i))
    return batch


def targets() -> list[dict[str, Tensor]]:
    first = {"boxes": torch.tensor([[10.0, 10, 60, 80], [50, 20, 110, 50]]), "labels": torch.tensor([2, 0])}
    return [first, {"boxes": torch.tensor([[5.0, 5, 40, 60]]), "labels": torch.tensor([1])}]

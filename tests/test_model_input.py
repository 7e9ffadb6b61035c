"""What FasterRCNN and build_model say to wrong input: targets, batches, settings."""

import pytest
import torch
from tiny_model import FACTORS, SIZES, images, small, targets

BOX = [[1.0, 2, 30, 40]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": torch.zeros(1, 5), "labels": torch.zeros(1).long()}, r'targets\[0\]\["boxes"\].*\[G, 4\].*\[1, 5\]'),
        ({"boxes": torch.tensor(BOX), "labels": torch.zeros(2).long()}, r'\["labels"\] must be a tensor \[1\].*\[2\]'),
        ({"boxes": torch.tensor(BOX), "labels": torch.tensor([3])}, r"between 0 and 2 \(3 classes\), got 3"),
        ({"boxes": torch.tensor(BOX), "labels": torch.tensor([-1])}, r"between 0 and 2 \(3 classes\), got -1"),
        ({"boxes": torch.tensor([[1.0, 2, float("nan"), 4]]), "labels": torch.tensor([0])}, "finite.*nan"),
        ({"boxes": torch.tensor([[1.0, 2, 1, 4]]), "labels": torch.tensor([0])}, "x1 < x2 and y1 < y2"),
    ],
)
def test_wrong_targets(target: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().losses(images(SIZES[0]), SIZES[:1], [target])


def test_wrong_types_of_targets() -> None:
    for target, message in (
        ({"boxes": torch.zeros(0, 4)}, 'a dict with "boxes" and "labels"'),
        ({"boxes": torch.tensor(BOX).double(), "labels": torch.tensor([0])}, "float32 boxes and int64 labels"),
    ):
        with pytest.raises(TypeError, match=message):
            small().losses(images(SIZES[0]), SIZES[:1], [target])


def test_lists_that_disagree_with_the_batch() -> None:
    model, batch = small().eval(), images(*SIZES)
    with pytest.raises(ValueError, match=r"image_sizes must hold one .* per image, 2, got 1"):
        model(batch, SIZES[:1], FACTORS)
    with pytest.raises(ValueError, match=r"scale_factors must hold one .* per image, 2, got 3"):
        model(batch, SIZES, [*FACTORS, (1.0, 1.0)])
    with pytest.raises(ValueError, match=r"scale_factors\[0\] must be two positive numbers"):
        model(batch, SIZES, [(0.0, 1.0), (1.0, 1.0)])
    with pytest.raises(ValueError, match=r"image_sizes\[1\] must be .* at most \(96, 128\), got \(97, 100\)"):
        model(batch, [SIZES[0], (97, 100)], FACTORS)
    with pytest.raises(ValueError, match=r"targets must hold one dict per image, 2, got 1"):
        model.losses(batch, SIZES, targets()[:1])
    with pytest.raises(ValueError, match=r"images must have shape \[N, 3, H, W\].*\[3, 96, 128\]"):
        model(batch[0], SIZES[:1], FACTORS[:1])
    with pytest.raises(TypeError, match=r"normalised floating-point pixels, got torch\.uint8"):
        model(batch.to(torch.uint8), SIZES, FACTORS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init=xavier", 'model.init must be "mmdet" or "fan_in", got \'xavier\''),
        ("rpn.strides=[4, 8, 16, 32]", "rpn.strides must have one entry per level, 5"),
        ("pool.strides=[8, 16]", "pool.strides must be the first of rpn.strides"),
        ("pool.strides=[]", "pool.strides' length must be at least 1"),
        ("pool.output_size=0", "pool.output_size must be at least 1, got 0"),
        ("box_head.delta_stds=[0.1, 0.2]", "delta_stds must have 4 entries"),
        ("box_head.num_classes=0", "num_classes must be at least 1, got 0"),
        ("rpn.anchor_scales=[]", "rpn.anchor_scales' length must be at least 1"),
        ("rpn.sampler.positive_fraction=3", "rpn.sampler.positive_fraction must be between 0 and 1, got 3.0"),
        ("rpn.assigner.pos_iou=0.2", "rpn.assigner must have 0 <= neg_iou <= pos_iou <= 1, got 0.3 and 0.2"),
    ],
)
def test_settings_that_are_out_of_range_or_do_not_fit_together(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(override)

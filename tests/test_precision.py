"""Half precision: what stays float32, and how near a model in bfloat16 is to the same in float32."""

import copy

import golden_recipe
import pytest
import torch
from tiny_model import small
from torch import Tensor, nn

from fastrcnn.config import load_config
from fastrcnn.models import build_model, load_checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_anchors_and_batch_norm_stay_float32(dtype: torch.dtype) -> None:
    model = small()
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    model.to(dtype)
    for name, module in model.named_modules():
        exact = isinstance(module, nn.BatchNorm2d) or name == "anchors"
        for key, value in [*module.named_parameters(name, False), *module.named_buffers(name, False)]:
            if value.is_floating_point():
                assert value.dtype == (torch.float32 if exact else dtype), key
                assert torch.equal(value, before[key].to(value.dtype)), key
    model.double()
    assert model.anchors.base_anchors.dtype == model.backbone.bn1.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "name", ["faster_rcnn_r50_fpn_1x_coco", "faster_rcnn_x101_32x4d_fpn_1x_coco", "faster_rcnn_vgg16_voc0712"]
)
def test_bfloat16_stays_within_two_percent(name: str) -> None:
    model = build_model(load_config(name).model).eval()
    load_checkpoint(model, golden_recipe.checkpoint(name))
    half = copy.deepcopy(model).to(torch.bfloat16)
    images, sizes = golden_recipe.images()
    with torch.no_grad():
        features = model.features(images[:1])
        rois = model.propose(features, sizes[:1]).rois()[:50]
        expected = [*features, *model.box_head(model.pool(features, rois))]
        expected += [output for level in model.rpn_head(features) for output in level]
        features = half.features(images[:1].bfloat16())
        actual = [*features, *half.box_head(half.pool(features, rois))]
        actual += [output for level in half.rpn_head(features) for output in level]
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.dtype == torch.bfloat16 and distance(ours, exact) < 0.02
    # it is no float32 in disguise
    assert distance(actual[0], expected[0]) > 1e-3


def distance(ours: Tensor, exact: Tensor) -> float:
    """Relative, of whole tensors."""
    return ((ours.float() - exact).norm() / exact.norm()).item()

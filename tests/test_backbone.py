"""ResNet, ResNeXt, VGG-16, FPN: shapes, what is frozen in which mode, equality with torchvision's, initial weights."""

from typing import Any

import pytest
import torch
import torchvision
from conftest import seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor

from fastrcnn.config import BackboneConfig
from fastrcnn.models.backbone import ResNet
from fastrcnn.models.fpn import FPN
from fastrcnn.models.vgg import VGG16


def images(height: int = 64, width: int = 96, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=seeded(0))


def resnet(**settings: Any) -> ResNet:
    return ResNet(BackboneConfig(**settings))


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_gives_the_features_of_torchvision(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    ours = resnet(depth=depth).eval()
    incompatible = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not incompatible.missing_keys and incompatible.unexpected_keys == ["fc.weight", "fc.bias"]
    theirs, ours, batch = theirs.double(), ours.double(), images().double()  # ours folds batch norm: other rounding
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(batch))))
        for feature, channels, stage in zip(
            ours(batch),
            ours.out_channels,
            (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4),
            strict=True,
        ):
            x = stage(x)
            assert feature.shape[1] == channels
            assert_close(feature, x)


@pytest.mark.parametrize("groups, base_width", [(32, 8), (64, 4)])
def test_resnext_gives_the_features_of_torchvision(groups: int, base_width: int) -> None:
    theirs = getattr(torchvision.models, f"resnext101_{groups}x{base_width}d")().eval()
    ours = resnet(depth=101, groups=groups, base_width=base_width).eval()
    incompatible = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not incompatible.missing_keys and incompatible.unexpected_keys == ["fc.weight", "fc.bias"]
    stages = create_feature_extractor(theirs, PARTS[1:])
    with torch.no_grad():
        for feature, expected in zip(ours(images()), stages(images()).values(), strict=True):
            assert_close(feature, expected)


def test_dilated_c5_is_the_strided_one_at_every_cell() -> None:
    """Where a stage strides in its first 1x1 convolution, every second cell of the dilated map is the strided one's."""
    torch.manual_seed(0)
    strided, dilated = resnet(style="caffe").eval(), resnet(style="caffe", dilated_c5=True).eval()
    dilated.load_state_dict(strided.state_dict())
    for block in dilated.layer4:
        assert (block.conv2.dilation, block.conv2.padding, block.conv2.stride) == ((2, 2), (2, 2), (1, 1))
    assert dilated.layer4[0].downsample[0].stride == (1, 1)
    x = images(height=224, width=256)
    with torch.no_grad():
        theirs, ours = strided(x), dilated(x)
    assert_close(ours[:3], theirs[:3])
    assert ours[3].shape == (1, 2048, 14, 16)
    assert_close(ours[3][..., ::2, ::2], theirs[3], rtol=1e-4, atol=1e-3)  # values up to 100


def test_vgg16_is_torchvisions_up_to_conv5_3() -> None:
    theirs = torchvision.models.vgg16().features.eval()[:-1]  # all but the last pooling
    ours = VGG16()
    ours.features.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict())[:3] == ["features.0.weight", "features.0.bias", "features.2.weight"]
    with torch.no_grad():
        (feature,) = ours(images(height=70, width=100))
        assert feature.shape == (1, *ours.out_channels, 4, 6)
        assert_close(feature, theirs(images(height=70, width=100)))


@pytest.mark.parametrize("frozen_stages, frozen", [(-1, 0), (0, 0), (2, 4), (5, 13)])
def test_vgg16_freezes_whole_blocks(frozen_stages: int, frozen: int) -> None:
    convolutions = [layer for layer in VGG16(frozen_stages).features if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    for i, convolution in enumerate(convolutions):
        assert all(parameter.requires_grad == (i >= frozen) for parameter in convolution.parameters())
    with pytest.raises(ValueError, match="frozen_stages must be between -1 and 5, got 6"):
        VGG16(6)


def test_caffe_style_strides_in_the_first_convolution() -> None:
    pytorch, caffe = resnet(style="pytorch"), resnet(style="caffe")
    assert {n: p.shape for n, p in pytorch.named_parameters()} == {n: p.shape for n, p in caffe.named_parameters()}
    for model, strides in ((pytorch, (1, 2)), (caffe, (2, 1))):
        for stage in (model.layer2, model.layer3, model.layer4):
            assert (stage[0].conv1.stride[0], stage[0].conv2.stride[0]) == strides
            assert stage[0].downsample[0].stride[0] == 2
            assert stage[1].conv1.stride[0] == stage[1].conv2.stride[0] == 1
    caffe.load_state_dict(pytorch.state_dict())
    with torch.no_grad():
        for ours, other in zip(pytorch.eval()(images()), caffe.eval()(images()), strict=True):
            assert ours.shape == other.shape
    assert not torch.equal(ours, other)


def trained(model: ResNet, kind: type[nn.Module]) -> set[str]:
    """Which of conv1 and layer1 .. layer4 have a trainable parameter in a module of this kind."""
    return {
        name.split(".")[0].replace("bn1", "conv1")
        for name, module in model.named_modules()
        if isinstance(module, kind) and all(p.requires_grad for p in module.parameters())
    }


PARTS = ["conv1", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 4])
@pytest.mark.parametrize("norm", ["eval", "frozen", "train"])
def test_frozen_stages_and_norm(norm: str, frozen_stages: int) -> None:
    model = resnet(depth=18, norm=norm, frozen_stages=frozen_stages)
    free = set(PARTS[frozen_stages + 1 :])
    assert trained(model, nn.Conv2d) == free
    assert trained(model, nn.BatchNorm2d) == (set() if norm == "frozen" else free)

    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    features = model(images(count=2))  # in training mode from the start
    changed = {
        name.split(".")[0].replace("bn1", "conv1")
        for name, value in model.named_buffers()
        if "running" in name and not torch.equal(value, before[name])
    }
    assert changed == (free if norm == "train" else set())
    for part, feature in zip(PARTS[1:], features, strict=True):  # no graph where nothing is trained yet
        assert feature.requires_grad == (PARTS.index(part) > frozen_stages)

    model.eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(images(count=2))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_training_normalises_by_the_batch_only_where_asked() -> None:
    for norm, same in (("eval", True), ("train", False)):
        model = resnet(depth=18, norm=norm, frozen_stages=1)
        with torch.no_grad():
            in_training = model.train()(images(count=2))
            in_evaluation = model.eval()(images(count=2))
        assert torch.equal(in_training[0], in_evaluation[0])  # layer1 is frozen either way
        assert torch.equal(in_training[3], in_evaluation[3]) == same


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = resnet()
    weight = model.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)  # fan-out
    assert torch.equal(model.bn1.weight, torch.ones(64)) and torch.equal(model.bn1.bias, torch.zeros(64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "depth must be one of"),
        ({"style": "torch"}, "style must be"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"frozen_stages": 5}, "frozen_stages must be between -1 and 4, got 5"),
        ({"groups": 0}, "groups and base_width must be at least 1, got 0 and 64"),
        ({"depth": 18, "groups": 32}, "need bottlenecks, depth 50 or 101, got depth 18"),
        ({"depth": 34, "dilated_c5": True}, "need bottlenecks, depth 50 or 101, got depth 34"),
    ],
)
def test_wrong_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet(**arguments)


def test_fpn_is_its_definition() -> None:
    fpn = FPN([8, 16, 32], channels=4, num_levels=5)
    levels = [torch.randn(1, 8, 13, 18), torch.randn(1, 16, 7, 9), torch.randn(1, 32, 4, 5)]
    p2, p3, p4, p5, p6 = fpn(levels)
    top = fpn.lateral[2](levels[2])
    row, column = torch.arange(7) * 4 // 7, torch.arange(9) * 5 // 9  # nearest, to the exact size
    middle = fpn.lateral[1](levels[1]) + top[:, :, row][..., column]
    row, column = torch.arange(13) * 7 // 13, torch.arange(18) * 9 // 18
    bottom = fpn.lateral[0](levels[0]) + middle[:, :, row][..., column]
    assert_close(p4, fpn.output[2](top))
    assert_close(p3, fpn.output[1](middle))
    assert_close(p2, fpn.output[0](bottom))
    assert torch.equal(p5, p4[:, :, ::2, ::2]) and torch.equal(p6, p4[:, :, ::4, ::4])
    with pytest.raises(ValueError, match="num_levels must be at least 3"):
        FPN([8, 16, 32], num_levels=2)
    with pytest.raises(ValueError, match=r"above a level of \[7, 9\] cells one of \[4, 5\].*got \[7, 9\]"):
        fpn([levels[0], levels[1], torch.randn(1, 32, 7, 9)])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_fpn_has_the_gradients_of_its_definition(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    fpn = FPN([8, 16, 32], channels=4, num_levels=4)
    sizes = [(8, 13, 18), (16, 7, 9), (32, 4, 5)]
    levels = [torch.randn(2, *size).contiguous(memory_format=layout).requires_grad_() for size in sizes]
    merged = [lateral(level) for lateral, level in zip(fpn.lateral, levels, strict=True)]
    for finer, coarser in ((1, 2), (0, 1)):
        merged[finer] = merged[finer] + F.interpolate(merged[coarser], size=merged[finer].shape[2:])
    outputs = [F.conv2d(m, o.weight, o.bias, padding=1) for m, o in zip(merged, fpn.output, strict=True)]
    outputs.append(outputs[-1][:, :, ::2, ::2])
    grads = [torch.randn(output.shape) for output in outputs]
    inputs = [*levels, *fpn.parameters()]
    expected = torch.autograd.grad(outputs, inputs, grads)
    assert_close(torch.autograd.grad(fpn(levels), inputs, grads), expected, rtol=1e-4, atol=1e-4)

"""Detector.optimized: the results of the original, for every kind of model; what it is not for raises."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from conftest import seeded
from tiny_model import FACTORS, SIZES, images, small
from torch import Tensor, nn
from torch.testing import assert_close

from fastrcnn.config import load_config
from fastrcnn.detector import Detector, load
from fastrcnn.models import FasterRCNN, build_model, fused
from fastrcnn.models.backbone import BatchNorm2d
from fastrcnn.models.detections import Detections
from fastrcnn.models.fused import FusedConv2d, FusedLinear
from fastrcnn.models.optimized import OptimizedFasterRCNN

NARROW = ["rpn.channels=32", "box_head.channels=64", "box_head.num_classes=3", "rpn.test_proposals.post_nms=50"]
MODELS = {
    "r18": ("faster_rcnn_r50_fpn_1x_coco", ["backbone.depth=18", "fpn.channels=32"]),
    "r18, 5 channels": ("faster_rcnn_r50_fpn_1x_coco", ["backbone.depth=18", "fpn.channels=5", "rpn.channels=5"]),
    "r34": ("faster_rcnn_r50_fpn_1x_coco", ["backbone.depth=34", "fpn.channels=32"]),
    "r50": ("faster_rcnn_r50_fpn_1x_coco", ["fpn.channels=32"]),
    "caffe": ("faster_rcnn_r101_caffe_fpn_1x_coco", ["backbone.depth=50", "fpn.channels=32"]),
    "x101": ("faster_rcnn_x101_32x4d_fpn_1x_coco", ["backbone.depth=50", "fpn.channels=32"]),
    "dc5": ("faster_rcnn_r50_caffe_dc5_1x_coco", []),
    "vgg16": ("faster_rcnn_vgg16_voc0712", []),
}


def build(name: str) -> FasterRCNN:
    """A model whose batch norms have statistics and weights of their own, and which detects something."""
    config, overrides = MODELS[name]
    torch.manual_seed(0)
    model = build_model(load_config(config, [f"model.{s}" for s in (*NARROW, *overrides)]).model).eval()
    for layer in (model.rpn_head.objectness, model.rpn_head.deltas, model.box_head.logits, model.box_head.deltas):
        nn.init.normal_(layer.weight, std=0.01)
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.3, 0.8)
            nn.init.uniform_(norm.bias, -0.1, 0.1)
    return model


@pytest.fixture(params=["as it is", "without oneDNN's fusions"])
def fusions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of FusedConv2d and FusedLinear."""
    if request.param != "as it is":
        monkeypatch.setattr(fused, "ONEDNN_TYPES", ())


@pytest.fixture(scope="module")
def detector() -> Detector:
    overrides = [f"model.{s}" for s in (*NARROW, *MODELS["r18"][1])]
    config = load_config("faster_rcnn_r50_fpn_1x_coco", [*overrides, "data.test.scale=[160,120]"])
    return Detector(build("r18"), config, ["a", "b", "c"])


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the largest number."""
    assert a.shape == b.shape
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def assert_alike(found: Detections, expected: Detections, pixels: float = 0.05, score: float = 1e-3) -> None:
    assert len(found) == len(expected) > 0
    assert_close(found.scores, expected.scores, rtol=0, atol=score)
    near = (found.boxes[:, None] - expected.boxes).abs().amax(2) < pixels
    near &= found.labels[:, None] == expected.labels
    near &= (found.scores[:, None] - expected.scores).abs() < score
    assert near.any(0).all() and near.any(1).all()


# --- layers -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1x1": (nn.Conv2d(16, 24, 1, bias=False), False),
    "1x1, stride 2": (nn.Conv2d(16, 24, 1, 2), False),
    "3x3": (nn.Conv2d(16, 24, 3, padding=1, bias=False), True),
    "3x3, few channels": (nn.Conv2d(3, 8, 3, padding=1), False),
    "3x3, no padding": (nn.Conv2d(16, 24, 3), False),
    "3x3, stride 2": (nn.Conv2d(16, 24, 3, 2, 1), False),
    "3x3, dilated": (nn.Conv2d(16, 24, 3, 1, 2, 2), False),
    "3x3, grouped": (nn.Conv2d(16, 24, 3, 1, 1, groups=4), False),
    "7x7": (nn.Conv2d(3, 8, 7, 2, 3, bias=False), False),
}


@pytest.mark.usefixtures("fusions")
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fused_convolution(name: str, relu: bool, with_norm: bool) -> None:
    convolution, winograd = CONVOLUTIONS[name]
    norm = None
    if with_norm:
        norm = BatchNorm2d(convolution.out_channels).eval()
        for tensor, (low, high) in zip(norm.state_dict().values(), ((-2, 2), (-1, 1), (-1, 1), (0.1, 3)), strict=False):
            tensor.uniform_(low, high, generator=seeded(1))
    layer = FusedConv2d(convolution, norm, relu, dtype=torch.float32)
    assert layer.winograd == winograd
    x = torch.randn(2, convolution.in_channels, 13, 17, generator=seeded(0)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = convolution(x) if norm is None else norm(convolution(x))
        other = torch.randn(expected.shape, generator=seeded(2)).to(memory_format=torch.channels_last)
        sum_expected = expected + other
        if relu:
            expected, sum_expected = expected.relu(), sum_expected.relu()
        assert relative(layer(x), expected) < 1e-5
        assert relative(layer(x, other), sum_expected) < 1e-5
        assert_close(layer(x, sum_expected.clone()), layer(x, sum_expected.clone()), rtol=0, atol=0)
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("fusions")
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_fused_linear(rows: int, relu: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(12, 9), torch.randn(rows, 12, generator=seeded(0))
    layer = FusedLinear(linear, relu, dtype=torch.float32)
    with torch.inference_mode():
        expected = linear(x).relu() if relu else linear(x)
        assert_close(layer(x), expected)
        linear.weight.zero_()
        assert_close(layer(x), expected)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_features_and_detections_of_the_original(name: str) -> None:
    model = build(name)
    optimized = OptimizedFasterRCNN(model, torch.float32)
    batch = images(*SIZES)
    with torch.inference_mode():
        features = model.features(batch)
        for level, expected in zip(optimized.features(batch), features, strict=True):
            assert relative(level, expected) < 1e-4
        for ours, theirs in zip(optimized.rpn_head(features), model.rpn_head(features), strict=True):
            for level, expected in zip(ours, theirs, strict=True):
                assert relative(level, expected) < 1e-4
        pooled = model.pool(features, torch.tensor([[0.0, 5, 5, 60, 80], [1, 0, 0, 90, 40]]))
        for ours, theirs in zip(optimized.box_head(pooled), model.box_head(pooled), strict=True):
            assert relative(ours, theirs) < 1e-4
        for found, expected in zip(optimized(batch, SIZES, FACTORS), model(batch, SIZES, FACTORS), strict=True):
            assert_alike(found, expected)


def test_without_onednn_fusions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another device, or another PyTorch, does."""
    model, batch = build("r50"), images(*SIZES)
    monkeypatch.setattr(fused, "ONEDNN_TYPES", ())
    for found, expected in zip(
        OptimizedFasterRCNN(model, torch.float32)(batch, SIZES, FACTORS), model(batch, SIZES, FACTORS), strict=True
    ):
        assert_alike(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["r50", "vgg16", "dc5"])
def test_features_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """As near to float32 as the eager model in that type, or nearer."""
    model, batch = build(name), images(*SIZES)
    optimized, eager = OptimizedFasterRCNN(model, dtype), copy.deepcopy(model).to(dtype)
    with torch.inference_mode():
        for exact, ours, theirs in zip(
            model.features(batch), optimized.features(batch), eager.features(batch.to(dtype)), strict=True
        ):
            assert relative(ours, exact) < max(1.5 * relative(theirs, exact), 0.005)
        assert all(len(found) > 0 for found in optimized(batch, SIZES, FACTORS))


@pytest.mark.parametrize("has_tiles", [False, True])
def test_what_stays_float32_in_bfloat16(has_tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU 3x3 convolutions, which are faster by Winograd's method unless the processor has AMX; and logits."""
    monkeypatch.setattr(fused, "HAS_TILES", has_tiles)
    model, batch = build("r50"), images(*SIZES)
    optimized = OptimizedFasterRCNN(model, torch.bfloat16)
    with torch.inference_mode():
        levels = optimized.features(batch)
        outputs = [output for kind in optimized.rpn_head(levels) for output in kind]
        for level, expected in zip(levels, model.features(batch), strict=True):
            assert relative(level.float(), expected) < 0.03
    assert {level.dtype for level in levels} == {torch.bfloat16 if has_tiles else torch.float32}
    assert {output.dtype for output in outputs} == {torch.float32}
    convolutions = [m for m in optimized.modules() if isinstance(m, FusedConv2d)]
    assert any(convolution.winograd for convolution in convolutions) != has_tiles
    assert len(optimized(batch, SIZES, FACTORS)) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["r18", "r50", "x101", "dc5", "vgg16"])
def test_on_cuda(name: str) -> None:
    model, batch = build(name).cuda(), images(*SIZES).cuda()
    optimized = OptimizedFasterRCNN(model, torch.float32)
    with torch.inference_mode():
        for level, expected in zip(optimized.features(batch), model.features(batch), strict=True):
            assert relative(level, expected) < 5e-3  # TF32
        half = OptimizedFasterRCNN(model, torch.bfloat16)
        assert all(level.dtype == torch.bfloat16 for level in half.features(batch.bfloat16()))
        assert all(len(found) > 0 for found in half(batch.bfloat16(), SIZES, FACTORS))


def test_maps_of_the_backbone_are_freed() -> None:
    optimized, maps = OptimizedFasterRCNN(build("r18"), torch.float32), None
    with torch.inference_mode():
        maps = optimized.backbone(images(*SIZES))
        assert len(maps) == 4
        assert len(optimized.fpn(maps)) == 5
    assert maps == []


# --- detector ---------------------------------------------------------------------------------------------------------


def test_the_same_detections_and_the_original_as_before(detector: Detector, picture: np.ndarray) -> None:
    before, kept = detector.detect(picture), {name: x.clone() for name, x in detector.model.state_dict().items()}
    optimized = detector.optimized()
    assert isinstance(optimized, Detector) and optimized.dtype == torch.float32 and optimized.device == detector.device
    assert optimized.classes == detector.classes and not optimized.model.training
    assert_alike(optimized.detect(picture), before)
    assert optimized.detect(picture).names == before.names
    gaps = before.scores[:-1] - before.scores[1:]
    place = int(gaps[: len(gaps) // 2].argmax())  # a threshold that no rounding crosses
    high = float(before.scores[place : place + 2].mean())
    assert_alike(optimized.detect(picture, high), detector.detect(picture, high))
    after = detector.detect(picture)
    assert_close((after.boxes, after.scores), (before.boxes, before.scores), rtol=0, atol=0)
    assert_close(detector.model.state_dict(), kept, rtol=0, atol=0)
    assert type(detector.model) is FasterRCNN


def test_weights_are_its_own(picture: np.ndarray, detector: Detector) -> None:
    original = copy.deepcopy(detector)
    optimized = original.optimized()
    expected = optimized.detect(picture)
    with torch.no_grad():
        for tensor in original.model.state_dict().values():
            tensor.zero_()
    assert_close(optimized.detect(picture).scores, expected.scores, rtol=0, atol=0)
    theirs = {x.untyped_storage().data_ptr() for x in (*original.model.parameters(), *original.model.buffers())}
    assert not any(
        x.untyped_storage().data_ptr() in theirs for x in (*optimized.model.parameters(), *optimized.model.buffers())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_and_pickles(detector: Detector, picture: np.ndarray, dtype: torch.dtype) -> None:
    optimized = detector.optimized(dtype)
    expected = optimized.detect(picture)
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        found = other.detect(picture)
        assert other.dtype == dtype
        assert_close((found.boxes, found.scores), (expected.boxes, expected.scores), rtol=0, atol=0)


def test_threads_share_one(detector: Detector, picture: np.ndarray) -> None:
    optimized = detector.optimized()
    pictures = [picture, np.ascontiguousarray(picture[::-1, :140]), np.ascontiguousarray(picture[:77])]
    expected = [optimized.detect(each) for each in pictures]
    found: dict[int, Detections] = {}

    def run(thread: int) -> None:
        for _ in range(3):
            found[thread] = optimized.detect(pictures[thread % 3])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for thread, result in found.items():
        assert_alike(result, expected[thread % 3])


def test_bfloat16_from_either_type(detector: Detector, picture: np.ndarray) -> None:
    exact = detector.detect(picture)
    half = Detector(copy.deepcopy(detector.model).bfloat16(), detector.config, detector.classes)
    for optimized in (detector.optimized(torch.bfloat16), half.optimized()):
        assert optimized.dtype == torch.bfloat16
        found = optimized.detect(picture)
        assert_close(found.scores[:10], exact.scores[:10], rtol=0, atol=0.02)


def test_what_it_is_not_for(detector: Detector) -> None:
    optimized = detector.optimized()
    with pytest.raises(RuntimeError, match="only detects"):
        optimized.model.train()
    assert not optimized.model.training
    with pytest.raises(RuntimeError, match="only detects"):
        optimized.model.losses(images(*SIZES), SIZES, [])
    with pytest.raises(ValueError, match="optimized already"):
        optimized.optimized()
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got torch.float64"):
        detector.optimized(torch.float64)


def test_batch_norm_in_training_mode_is_folded_as_in_evaluation() -> None:
    model = small("backbone.norm=train").train()
    batch = images(*SIZES)
    optimized = OptimizedFasterRCNN(model, torch.float32)
    assert model.training
    with torch.inference_mode():
        for level, expected in zip(optimized.features(batch), model.eval().features(batch), strict=True):
            assert relative(level, expected) < 1e-4


def test_load_then_optimize() -> None:
    overrides = [f"model.{s}" for s in (*NARROW, *MODELS["r18"][1])]
    detector = load(load_config("faster_rcnn_r50_fpn_1x_coco", overrides), checkpoint=False, device="cpu")
    assert detector.optimized().config is detector.config

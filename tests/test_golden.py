"""The model gives the numbers of the reference implementation (mmdetection 2.28.2): see golden/README.md."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import golden_recipe
import numpy as np
import pytest
import torch
from cuda_emulator import emulated
from torch import Tensor
from torch.testing import assert_close

from fastrcnn.config import load_config
from fastrcnn.data.image import normalise, pad_and_batch, read_image, resize
from fastrcnn.models import Detections, build_model, load_checkpoint
from fastrcnn.models.checkpoint import MMDET_PREFIXES

NAME = "faster_rcnn_r50_fpn_1x_coco"
RELATIVE = 1e-4
SCALE = 0.5  # of the golden images, both axes


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(golden_recipe.GOLDEN / f"{NAME}.npz"))


@pytest.fixture(scope="module")
def checkpoint() -> dict:
    return golden_recipe.checkpoint(NAME)


@pytest.fixture(scope="module", params=["cpu", "emulated"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels of the CPU, then those of CUDA, executed on the CPU (cuda_emulator/README.md)."""
    with emulated() if request.param == "emulated" else nullcontext():
        yield


@pytest.fixture(scope="module")
def inference(kernels: None, checkpoint: dict) -> SimpleNamespace:
    """Every stage of the model on the first golden image."""
    model = build_model(load_config(NAME).model)
    report = load_checkpoint(model, checkpoint)
    assert len(report.matched) == 348 and not (report.missing or report.unexpected or report.mismatched)
    model.eval()
    images, sizes = golden_recipe.images()
    with torch.no_grad():
        features = model.features(images[:1])
        objectness, deltas = model.rpn_head(features)
        proposals = model.propose(features, sizes[:1])
        roi_features = model.pool(features, proposals.rois()[:50])
        logits, box_deltas = model.box_head(roi_features)
        detections = model(images[:1], sizes[:1], [(SCALE, SCALE)])[0]
    return SimpleNamespace(**locals())


def test_features(inference: SimpleNamespace, golden: dict) -> None:
    for level, feature in enumerate(inference.features):
        assert list(feature.shape) == golden[f"feature{level}_shape"].tolist()
        assert_close(feature.abs().double().mean().item(), golden[f"feature{level}_absmean"].item(), rtol=1e-5, atol=0)
        assert_relative(sample(feature, 500), golden[f"feature{level}_sample"])


def test_rpn_outputs(inference: SimpleNamespace, golden: dict) -> None:
    for level, (objectness, deltas) in enumerate(zip(inference.objectness, inference.deltas, strict=True)):
        assert_relative(sample(objectness, 300), golden[f"rpn_cls{level}_sample"])
        assert_relative(sample(deltas, 300), golden[f"rpn_reg{level}_sample"])


def test_proposals(inference: SimpleNamespace, golden: dict) -> None:
    proposals, expected = inference.proposals, torch.from_numpy(golden["proposals"])
    count = int(proposals.count)
    assert abs(count - len(expected)) <= 2
    scores = proposals.scores[0, :count]
    assert (scores[:-1] >= scores[1:]).all()
    assert matched_share(proposals.boxes[0, :count], scores, expected[:, :4], expected[:, 4]) > 0.995


def test_roi_features_and_box_head(inference: SimpleNamespace, golden: dict) -> None:
    # position by position: the first 50 proposals are not near the cut
    assert_close(inference.proposals.boxes[0, :50], torch.from_numpy(golden["proposals"][:50, :4]), rtol=0, atol=0.01)
    assert_relative(sample(inference.roi_features, 2000), golden["roi_feat_50_sample"])
    assert_relative(inference.logits, golden["cls_score_50"])
    assert_relative(sample(inference.box_deltas, 2000), golden["bbox_pred_50_sample"])


def test_detections(inference: SimpleNamespace, golden: dict) -> None:
    assert_same_detections(inference.detections, golden)


def test_pipeline_from_a_photo(inference: SimpleNamespace) -> None:
    golden = np.load(golden_recipe.GOLDEN / f"photo_coffee_{NAME}.npz")
    config = load_config(NAME)
    image, factor = resize(read_image(golden_recipe.GOLDEN / "coffee.png"), golden["scale"].tolist())
    images = pad_and_batch([normalise(image, config.data.image)])
    assert image.shape == tuple(golden["img_shape"])
    assert list(images.shape) == golden["input_shape"].tolist()
    assert_close(images.abs().double().mean().item(), golden["input_absmean"].item(), rtol=1e-6, atol=0)
    assert_close(sample(images, 3000), torch.from_numpy(golden["input_sample"]), rtol=0, atol=1e-6)
    assert_close(factor, tuple(golden["scale_factor"][:2].tolist()))

    model, size = inference.model, image.shape[:2]
    with torch.no_grad():
        assert int(model.propose(model.features(images), [size]).count) == golden["n_proposals"]
    assert_same_detections(model(images, [size], [factor])[0], golden)


def test_losses_and_gradients(kernels: None, checkpoint: dict, golden: dict) -> None:
    overrides = [
        f"model.{part}.sampler.{setting}"
        for part in ("rpn", "box_head")
        for setting in ("num=1000000", "positive_fraction=0.5")
    ]
    model = build_model(load_config(NAME, overrides).model)
    load_checkpoint(model, checkpoint)
    losses = model.losses(*golden_recipe.images(), golden_recipe.targets())
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
    for name, loss in losses.items():
        assert_close(loss.item(), golden[f"train_{name}"].item(), rtol=RELATIVE, atol=0)

    sum(losses.values()).backward()
    gradients = zip(golden["grad_names"].tolist(), golden["grad_norms"].tolist(), strict=True)
    expected = {our_name(name): norm for name, norm in gradients}
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(expected)
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) == (name in expected)
        if name in expected:
            norm = parameter.grad.double().norm().item()
            assert norm == pytest.approx(expected[name], rel=1e-3), name


def sample(x: Tensor, count: int) -> Tensor:
    return x.flatten()[:: max(1, x.numel() // count)][:count]


def assert_relative(actual: Tensor, expected: np.ndarray) -> None:
    """1e-4 of the value, or of the tensor's typical size for values near 0."""
    wanted = torch.from_numpy(expected).reshape(actual.shape)
    assert_close(actual, wanted, rtol=RELATIVE, atol=RELATIVE * wanted.abs().mean().item())


def matched_share(boxes: Tensor, scores: Tensor, expected_boxes: Tensor, expected_scores: Tensor) -> float:
    """The share of the expected boxes that have one within 0.05 px and 1e-4 of score."""
    near = (expected_boxes[:, None] - boxes).abs().amax(2) <= 0.05
    near &= (expected_scores[:, None] - scores).abs() <= 1e-4
    return near.any(1).float().mean().item()


def assert_same_detections(actual: Detections, golden: dict) -> None:
    """As sets: every detection has its own match; but a pair may swap at the cut where their scores tie."""
    boxes, scores, labels = (torch.from_numpy(golden[f"det_{key}"]) for key in ("boxes", "scores", "labels"))
    assert len(actual) == len(scores)
    near = (boxes[:, None] - actual.boxes).abs().amax(2) <= 0.05
    near &= ((scores[:, None] - actual.scores).abs() <= 1e-4) & (labels[:, None] == actual.labels)
    at_the_cut = scores <= scores.min() + 1e-4
    assert (near.any(1) | at_the_cut).all()
    assert (near.any(0) | (actual.scores <= scores.min() + 1e-4)).all()


def our_name(name: str) -> str:
    prefix = next((theirs for theirs in MMDET_PREFIXES if name.startswith(theirs)), "")
    return MMDET_PREFIXES.get(prefix, "") + name.removeprefix(prefix)

"""The models give the numbers of the reference implementation (mmdetection 2.28.2): see golden/README.md.

Every file of tests/golden and, where it exists, of ../shared/golden is a case.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
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

RELATIVE = 1e-4
SCALE = 0.5  # of the golden images, both axes
SHARED = Path(os.environ.get("FASTRCNN_SHARED", Path(__file__).parents[2] / "shared"))
FILES = {
    path.stem: path
    for folder in (SHARED / "golden", golden_recipe.GOLDEN)  # where both have a file, the repository's
    for path in sorted(folder.glob("*.npz"))
}
MODELS = [name for name in FILES if not name.startswith("photo_")]
PHOTOS = [name for name in FILES if name.startswith("photo_")]
# The kernels of the CPU for all; those of CUDA, executed on the CPU (cuda_emulator/README.md), for one of each kind.
EMULATED = ["faster_rcnn_r50_fpn_1x_coco", "faster_rcnn_r50_fpn_iou_1x_coco", "faster_rcnn_vgg16_voc0712"]
CASES = [(name, "cpu") for name in MODELS] + [(name, "emulated") for name in EMULATED]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def golden(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """The figures of one config; while it is in use, ops run on the case's kernels."""
    name, kernels = request.param
    with emulated() if kernels == "emulated" else nullcontext():
        yield SimpleNamespace(name=name, weights=golden_recipe.checkpoint(name), **np.load(FILES[name]))


@pytest.fixture(scope="module")
def inference(golden: SimpleNamespace) -> SimpleNamespace:
    """Every stage of the model on the first golden image."""
    model = build_model(load_config(golden.name).model)
    report = load_checkpoint(model, golden.weights)
    assert len(report.matched) == len(golden.weights["state_dict"])
    assert not (report.missing or report.unexpected or report.mismatched)
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


def test_every_committed_golden_is_there() -> None:
    assert {name for name, _ in CASES} >= set(EMULATED) and PHOTOS


def test_features(inference: SimpleNamespace, golden: SimpleNamespace) -> None:
    assert not hasattr(golden, f"feature{len(inference.features)}_shape")
    for level, feature in enumerate(inference.features):
        shape, mean, values = (getattr(golden, f"feature{level}_{key}") for key in ("shape", "absmean", "sample"))
        assert list(feature.shape) == shape.tolist()
        assert_close(feature.abs().double().mean().item(), mean.item(), rtol=1e-5, atol=0)
        assert_relative(sample(feature, 500), values)


def test_rpn_outputs(inference: SimpleNamespace, golden: SimpleNamespace) -> None:
    for level, (objectness, deltas) in enumerate(zip(inference.objectness, inference.deltas, strict=True)):
        assert_relative(sample(objectness, 300), getattr(golden, f"rpn_cls{level}_sample"))
        assert_relative(sample(deltas, 300), getattr(golden, f"rpn_reg{level}_sample"))


def test_proposals(inference: SimpleNamespace, golden: SimpleNamespace) -> None:
    proposals, expected = inference.proposals, torch.from_numpy(golden.proposals)
    count = int(proposals.count)
    assert abs(count - len(expected)) <= 2
    scores = proposals.scores[0, :count]
    assert (scores[:-1] >= scores[1:]).all()
    assert matched_share(proposals.boxes[0, :count], scores, expected[:, :4], expected[:, 4]) > 0.995


def test_roi_features_and_box_head(inference: SimpleNamespace, golden: SimpleNamespace) -> None:
    # position by position: the first 50 proposals are not near the cut
    expected = torch.from_numpy(golden.proposals[:50, :4])
    assert_close(inference.proposals.boxes[0, :50], expected, rtol=0, atol=0.01)
    assert_relative(sample(inference.roi_features, 2000), golden.roi_feat_50_sample)
    assert_relative(inference.logits, golden.cls_score_50)
    assert_relative(sample(inference.box_deltas, 2000), golden.bbox_pred_50_sample)


def test_detections(inference: SimpleNamespace, golden: SimpleNamespace) -> None:
    assert_same_detections(inference.detections, golden.det_boxes, golden.det_scores, golden.det_labels)


def test_losses_and_gradients(golden: SimpleNamespace) -> None:
    """With samplers that take every candidate and without dropout nothing is random."""
    overrides = ["model.box_head.dropout=0"]
    for part in ("rpn", "box_head"):
        overrides += [f"model.{part}.sampler.num=1000000", f"model.{part}.sampler.positive_fraction=0.5"]
    config = load_config(golden.name, overrides).model
    model = build_model(config)
    load_checkpoint(model, golden.weights)
    losses = model.losses(*golden_recipe.images(), golden_recipe.targets(config.box_head.num_classes))
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
    for name, loss in losses.items():
        assert_close(loss.item(), getattr(golden, f"train_{name}").item(), rtol=RELATIVE, atol=0)

    sum(losses.values()).backward()
    gradients = zip(golden.grad_names.tolist(), golden.grad_norms.tolist(), strict=True)
    expected = {our_name(name): norm for name, norm in gradients}
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(expected)
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) == (name in expected)
        if name in expected:
            norm = parameter.grad.double().norm().item()
            assert norm == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("case", PHOTOS)
def test_pipeline_from_a_photo(case: str) -> None:
    golden = np.load(FILES[case])
    photo, _, rest = case.removeprefix("photo_").partition("_")
    path = next(
        folder / str(golden["image"])
        for folder in (golden_recipe.GOLDEN, SHARED / "data" / "demo")
        if (folder / str(golden["image"])).is_file()
    )
    assert path.stem == photo
    config = load_config(rest)
    model = build_model(config.model).eval()
    load_checkpoint(model, golden_recipe.checkpoint(rest, photo=True))
    image, factor = resize(read_image(path), golden["scale"].tolist())
    images = pad_and_batch([normalise(image, config.data.image)])
    assert image.shape == tuple(golden["img_shape"])
    assert list(images.shape) == golden["input_shape"].tolist()
    assert_close(images.abs().double().mean().item(), golden["input_absmean"].item(), rtol=1e-6, atol=0)
    pixel = golden["input_sample"].max().item()  # 2.6 or, where no standard deviation divides, 150
    assert_close(sample(images, 3000), torch.from_numpy(golden["input_sample"]), rtol=0, atol=4e-7 * pixel)
    assert_close(factor, tuple(golden["scale_factor"][:2].tolist()))
    with torch.no_grad():
        assert int(model.propose(model.features(images), [image.shape[:2]]).count) == golden["n_proposals"]
    detections = model(images, [image.shape[:2]], [factor])[0]
    assert_same_detections(detections, golden["det_boxes"], golden["det_scores"], golden["det_labels"])


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


def assert_same_detections(actual: Detections, *expected: np.ndarray) -> None:
    """As sets: every detection has its own match; but a pair may swap at the cut where their scores tie."""
    boxes, scores, labels = map(torch.from_numpy, expected)
    assert len(actual) == len(scores)
    near = (boxes[:, None] - actual.boxes).abs().amax(2) <= 0.05
    near &= ((scores[:, None] - actual.scores).abs() <= 1e-4) & (labels[:, None] == actual.labels)
    at_the_cut = scores <= scores.min() + 1e-4
    assert (near.any(1) | at_the_cut).all()
    assert (near.any(0) | (actual.scores <= scores.min() + 1e-4)).all()


def our_name(name: str) -> str:
    prefix = next((theirs for theirs in MMDET_PREFIXES if name.startswith(theirs)), "")
    return MMDET_PREFIXES.get(prefix, "") + name.removeprefix(prefix)

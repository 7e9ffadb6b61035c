"""FasterRCNN in inference: batches, padding, pieces and whole, memory formats, precision, thresholds."""

from copy import deepcopy

import pytest
import torch
from tiny_model import FACTORS, SIZES, images, small
from torch import nn
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.models import Proposals


def test_a_batch_gives_each_image_its_own_detections() -> None:
    model, batch = small().eval(), images(*SIZES)
    together = model(batch, SIZES, FACTORS)
    assert all(len(found) > 5 for found in together)
    for i in range(2):
        alone = model(batch[i : i + 1], SIZES[i : i + 1], FACTORS[i : i + 1])[0]
        assert_close(together[i].boxes, alone.boxes, rtol=0, atol=1e-2)
        assert_close(together[i].scores, alone.scores, rtol=0, atol=1e-4)
        assert torch.equal(together[i].labels, alone.labels)


def test_detections_are_sorted_and_within_the_original_image() -> None:
    model = small().eval()
    for found, (height, width), (fx, fy) in zip(model(images(*SIZES), SIZES, FACTORS), SIZES, FACTORS, strict=True):
        assert found.boxes.dtype == found.scores.dtype == torch.float32 and found.labels.dtype == torch.int64
        assert found.names == [] and len(found) <= 20
        assert (found.scores[:-1] >= found.scores[1:]).all() and (found.scores > 0.05).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 0::2] <= width / fx + 1e-3).all() and (found.boxes[:, 1::2] <= height / fy + 1e-3).all()
        assert ((found.labels >= 0) & (found.labels < 3)).all()


def test_padded_form_is_the_list_form() -> None:
    model, batch = small().eval(), images(*SIZES)
    padded = model.detect_padded(batch, torch.tensor(SIZES), torch.tensor(FACTORS))
    assert padded.boxes.shape == (2, 20, 4) and padded.scores.shape == padded.labels.shape == (2, 20)
    for i, found in enumerate(model(batch, SIZES, FACTORS)):
        count = int(padded.count[i])
        assert count == len(found)
        assert torch.equal(padded.boxes[i, :count], found.boxes)
        assert torch.equal(padded.scores[i, :count], found.scores)
        assert torch.equal(padded.labels[i, :count], found.labels)


def test_a_threshold_of_ones_own() -> None:
    model, batch, sizes, factors = small().eval(), images(SIZES[0]), SIZES[:1], FACTORS[:1]
    (usual,) = model(batch, sizes, factors)
    middle = usual.scores.median().item()
    (high,) = model(batch, sizes, factors, middle)
    kept = usual.scores > middle
    assert 0 < len(high) < len(usual)
    assert torch.equal(high.boxes, usual.boxes[kept]) and torch.equal(high.scores, usual.scores[kept])
    padded = model.detect_padded(batch, torch.tensor(sizes), torch.tensor(factors), middle)
    assert padded.count.tolist() == [len(high)]
    model.score_threshold = 1.0
    assert len(model(batch, sizes, factors)[0]) == 0
    assert torch.equal(model(batch, sizes, factors, 0.0)[0].scores[: len(usual)], usual.scores)


def test_the_pieces_are_the_whole() -> None:
    """The methods of the contract, called one by one, with proposals cut to their count instead of padded."""
    model, batch = small().eval(), images(SIZES[0])
    with torch.no_grad():
        features = model.features(batch)
        proposals = model.propose(features, SIZES[:1])
        count = int(proposals.count)
        rois = torch.nn.functional.pad(proposals.boxes[0, :count], (1, 0))
        logits, deltas = model.box_head(model.pool(features, rois))
    sizes, factors, stds = torch.tensor(SIZES[:1]), torch.tensor(FACTORS[:1]), [0.1, 0.1, 0.2, 0.2]
    boxes, scores, labels, found = ops.select_detections(
        logits, deltas, rois, sizes, factors, 0.05, 0.5, 20, [0.0] * 4, stds
    )
    whole = model(batch, SIZES[:1], FACTORS[:1])[0]
    assert len(whole) == int(found)
    assert_close(boxes[0, : len(whole)], whole.boxes)
    assert_close(scores[0, : len(whole)], whole.scores)
    assert torch.equal(labels[0, : len(whole)], whole.labels)


def test_proposals_follow_the_mode() -> None:
    model, batch = small(), images(*SIZES)
    assert model.train().propose(model.features(batch), SIZES).boxes.shape == (2, 80, 4)
    proposals = model.eval().propose(model.features(batch), SIZES)
    assert proposals.boxes.shape == (2, 50, 4)
    assert not proposals.boxes.requires_grad
    for boxes, scores, count, (height, width) in zip(
        proposals.boxes, proposals.scores, proposals.count, SIZES, strict=True
    ):
        assert (scores[: count - 1] >= scores[1:count]).all()
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


def test_rois_mark_padding() -> None:
    proposals = Proposals(torch.arange(24.0).view(2, 3, 4), torch.zeros(2, 3), torch.tensor([3, 1]))
    rois = proposals.rois()
    assert rois[:, 0].tolist() == [0, 0, 0, 1, -1, -1]
    assert torch.equal(rois[:, 1:], proposals.boxes.view(6, 4))


def test_either_memory_format_and_any_size() -> None:
    model = small().eval()
    batch = images((75, 101), padded=(75, 101))  # no multiple of 32
    plain = model(batch, [(75, 101)], [(1.0, 1.0)])[0]
    model.to(memory_format=torch.contiguous_format)
    other = model(batch.contiguous(memory_format=torch.channels_last), [(75, 101)], [(1.0, 1.0)])[0]
    assert len(plain) > 5
    assert_close(plain.boxes, other.boxes, rtol=0, atol=1e-2)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in model.features(batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_boxes_in_float32(dtype: torch.dtype) -> None:
    model, batch = small().eval(), images(*SIZES)
    exact = model.anchors.base_anchors.clone()
    with torch.no_grad():
        wanted = model.features(batch)
    model = model.to(dtype)
    assert torch.equal(model.anchors.base_anchors, exact)
    found = model(batch.to(dtype), SIZES, FACTORS)[0]
    assert len(found) > 0
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    with torch.no_grad():
        for level, other in zip(model.features(batch.to(dtype)), wanted, strict=True):
            assert (level.float() - other).norm() < 0.05 * other.norm()


def test_state_dict_round_trip() -> None:
    model = small().eval()
    state = deepcopy(model.state_dict())
    assert not any("anchors" in name for name in state)
    other = small().eval()
    nn.init.normal_(other.box_head.logits.weight)
    other.load_state_dict(state)
    ours, theirs = (m(images(*SIZES), SIZES, FACTORS)[1] for m in (model, other))
    assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.scores, theirs.scores)


def test_initial_weights() -> None:
    """Bounds and deviations of the two settings; C4 has 256 channels here, the pooled features 32 * 7 * 7."""
    zoo, fan_in = (small(f"init={init}", confident=False) for init in ("mmdet", "fan_in"))
    lateral = zoo.fpn.lateral[2].weight.abs().max().item(), fan_in.fpn.lateral[2].weight.abs().max().item()
    assert lateral == pytest.approx(((6 / (256 + 32)) ** 0.5, (3 / 256) ** 0.5), rel=0.02)
    fc1 = zoo.box_head.fc1.weight.abs().max().item(), fan_in.box_head.fc1.weight.abs().max().item()
    assert fc1 == pytest.approx(((6 / (32 * 49 + 64)) ** 0.5, (32 * 49) ** -0.5), rel=0.02)
    assert zoo.box_head.logits.weight.std().item() == pytest.approx(0.01, rel=0.25)
    assert zoo.box_head.deltas.weight.std().item() == pytest.approx(0.001, rel=0.25)
    assert fan_in.box_head.deltas.weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.05)
    assert (zoo.box_head.fc1.bias == 0).all() and (fan_in.box_head.fc1.bias != 0).any()
    for model in (zoo, fan_in):
        assert (model.fpn.lateral[0].bias == 0).all() and (model.rpn_head.objectness.bias == 0).all()

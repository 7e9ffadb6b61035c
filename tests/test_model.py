"""FasterRCNN: batches, padding, losses with and without objects, sampling, anchors, errors, one graph."""

import re
from copy import deepcopy

import pytest
import torch
from conftest import seeded
from torch import Tensor, nn
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.config import SamplerConfig, load_config
from fastrcnn.models import FasterRCNN, Proposals, build_model
from fastrcnn.models.anchors import AnchorGenerator
from fastrcnn.models.box_head import BoxHead, SampledRois
from fastrcnn.models.rpn import RPNHead
from fastrcnn.models.sampler import sample

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


# --- inference --------------------------------------------------------------------------------------------------------


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


def test_one_graph() -> None:
    model = small().eval()
    arguments = (images(*SIZES), torch.tensor(SIZES, dtype=torch.float32), torch.tensor(FACTORS))
    expected = model.detect_padded(*arguments)
    compiled = torch.compile(model.detect_padded, fullgraph=True, backend="aot_eager")(*arguments)
    assert_close(tuple(compiled), tuple(expected), rtol=1e-4, atol=1e-2)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor, sizes: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.model.detect_padded(images, sizes, factors))

    with torch.no_grad():
        exported = torch.export.export(Padded().eval(), arguments).module()(*arguments)
    assert_close(exported, tuple(expected), rtol=1e-4, atol=1e-2)


def test_state_dict_round_trip() -> None:
    model = small().eval()
    state = deepcopy(model.state_dict())
    assert not any("anchors" in name for name in state)
    other = small().eval()
    nn.init.normal_(other.box_head.logits.weight)
    other.load_state_dict(state)
    ours, theirs = (m(images(*SIZES), SIZES, FACTORS)[1] for m in (model, other))
    assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.scores, theirs.scores)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objects",
    [targets(), [targets()[0], NO_OBJECTS], [NO_OBJECTS, NO_OBJECTS]],
    ids=["objects", "one image without", "none at all"],
)
def test_losses_are_finite_and_reach_every_trainable_parameter(objects: list) -> None:
    model = small()
    losses = model.losses(images(*SIZES), SIZES, objects)
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert losses["loss_rpn_cls"] > 0 and losses["loss_cls"] > 0
    if not any(len(target["boxes"]) for target in objects):
        assert losses["loss_rpn_bbox"] == 0 and losses["loss_bbox"] == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_without_a_single_roi_the_box_losses_are_zero() -> None:
    model = small("rpn.train_proposals.min_size=1000000")
    losses = model.losses(images(*SIZES), SIZES, [NO_OBJECTS, NO_OBJECTS])
    assert losses["loss_cls"] == 0 and losses["loss_bbox"] == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_each_loss_alone_has_a_gradient() -> None:
    model = small()
    for name, loss in model.losses(images(*SIZES), SIZES, [NO_OBJECTS, NO_OBJECTS]).items():
        assert loss.requires_grad, name


def test_training_lowers_the_loss() -> None:
    model = small("backbone.norm=train", "backbone.frozen_stages=-1", confident=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    history = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = sum(model.losses(images(*SIZES), SIZES, targets()).values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) / 3 < 0.65 * history[0], history


def test_losses_repeat_with_the_seed() -> None:
    model = small()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(torch.stack(list(model.losses(images(*SIZES), SIZES, targets()).values())))
    assert torch.equal(*results)


def test_padding_of_the_batch_does_not_change_the_rpn_losses() -> None:
    """An image's anchors beyond its own padded size are no negatives: alone or beside a larger one, it is the same."""
    head, anchors = RPNHead(4, 4, 3, sampler=SamplerConfig(10**6, 0.5)), AnchorGenerator([8], [0.5, 1, 2], [16])
    narrow, wide = [(4, 8)], [(6, 10)]  # cells of an image of 64 x 120 alone, and in a larger batch
    logits, deltas = torch.randn(1, 3, 6, 10), torch.randn(1, 12, 6, 10)
    results = []
    for sizes in (narrow, wide):
        (height, width), boxes = sizes[0], anchors(sizes)
        valid = [anchors.valid(boxes, sizes, (64, 120))]
        assert valid[0].sum() == 4 * 8 * 3
        maps = [logits[..., :height, :width]], [deltas[..., :height, :width]]
        results.append(head.losses(*maps, boxes, valid, [targets()[1]]))
    assert_close(results[0], results[1])


def test_rpn_losses_by_hand() -> None:
    """One level of 1 x 2 cells and one anchor: the first is the object's, the second a negative."""
    head = RPNHead(4, 4, 1, sampler=SamplerConfig(2, 0.5))
    anchors = [torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])]
    logits = torch.tensor([[[[0.5, -1.5]]]])
    deltas = torch.tensor([0.1, 0.2, 0.3, 0.4, 9, 9, 9, 9]).view(1, 2, 4).permute(0, 2, 1).view(1, 4, 1, 2)
    target = {"boxes": torch.tensor([[1.0, 0, 11, 10]]), "labels": torch.tensor([0])}
    losses = head.losses([logits], [deltas], anchors, [torch.tensor([True, True])], [target])
    softplus = nn.functional.softplus
    wanted = (softplus(torch.tensor(-0.5)) + softplus(torch.tensor(-1.5))) / 2
    assert_close(losses["loss_rpn_cls"], wanted)
    assert_close(losses["loss_rpn_bbox"], torch.tensor((0.0 + 0.2 + 0.3 + 0.4) / 2))  # dx is right: 1 / 10


def test_box_head_losses_by_hand() -> None:
    head = BoxHead(1, 1, 4, num_classes=2)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 9, 9]])
    gt_boxes = boxes.clone()
    gt_boxes[0, 0::2] += 1  # dx = 0.1, divided by its standard deviation: 1
    sampled = SampledRois(torch.nn.functional.pad(boxes, (1, 0)), torch.tensor([1, 2, 2]), gt_boxes)
    deltas = torch.full((3, 8), 9.0)
    deltas[0, 4:] = torch.tensor([0.25, 0, 0, 0.5])
    losses = head.losses(torch.zeros(3, 3), deltas, sampled)
    assert_close(losses["loss_cls"], torch.tensor(3.0).log())
    assert_close(losses["loss_bbox"], torch.tensor((0.75 + 0.5) / 3))  # by all three RoIs


def test_objects_come_before_proposals_and_positives_before_negatives() -> None:
    head = BoxHead(1, 1, 4, num_classes=3, sampler=SamplerConfig(6, 0.5))
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    found = torch.tensor([[60.0, 60, 70, 70], [20, 20, 40, 38], [80, 80, 90, 90], [1, 1, 2, 2]])
    proposals = Proposals(found[None], torch.zeros(1, 4), torch.tensor([3]))  # the last one is padding
    sampled = head.sample(proposals, [{"boxes": gt_boxes, "labels": torch.tensor([2, 1])}])
    assert torch.equal(sampled.rois[:, 1:], torch.cat([gt_boxes, found[[1, 0, 2]]]))
    assert sampled.rois[:, 0].tolist() == [0] * 5
    assert sampled.labels.tolist() == [2, 1, 1, 3, 3]
    assert torch.equal(sampled.gt_boxes[:3], gt_boxes[[0, 1, 1]])


def test_sampler_fills_with_negatives() -> None:
    gt_index = torch.tensor([0, 2, -1, 0, 1, 0, 3, 0, -1, 0])
    positive, negative = sample(gt_index, 100, 0.5)
    assert positive.tolist() == [1, 4, 6] and negative.tolist() == [0, 3, 5, 7, 9]
    torch.manual_seed(0)
    seen = set()
    for _ in range(50):
        positive, negative = sample(gt_index, 5, 0.5)
        assert len(positive) == 2 and len(negative) == 3
        assert positive.tolist() == sorted(set(positive.tolist()))
        assert negative.tolist() == sorted(set(negative.tolist()))
        assert (gt_index[positive] > 0).all() and (gt_index[negative] == 0).all()
        seen |= {*positive.tolist(), *negative.tolist()}
    assert seen == {0, 1, 3, 4, 5, 6, 7, 9}
    assert [len(indices) for indices in sample(torch.full((8,), -1), 5, 0.5)] == [0, 0]
    assert [len(indices) for indices in sample(torch.tensor([1, 1, 0]), 4, 0.25)] == [1, 1]


def test_allowed_border_asks_for_anchors_inside_the_true_image() -> None:
    sizes, image_size = [(8, 8)], (100, 90)
    anchors = AnchorGenerator([2], [1.0], [16], allowed_border=0)
    boxes = anchors(sizes)
    x1, y1, x2, y2 = boxes[0].unbind(1)
    inside = (x1 >= 0) & (y1 >= 0) & (x2 < 90) & (y2 < 100)
    assert torch.equal(anchors.valid(boxes, sizes, image_size), inside) and 0 < inside.sum() < 64
    # without that rule: the cells of the image padded to 128 x 96, six columns of eight
    cells = AnchorGenerator([2], [1.0], [16]).valid(boxes, sizes, image_size).view(8, 8)
    assert cells[:, :6].all() and not cells[:, 6:].any()


# --- errors -----------------------------------------------------------------------------------------------------------

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
        ("rpn.strides=[4, 8, 16, 32]", "rpn.strides must have one entry per level, 5"),
        ("pool.strides=[8, 16]", "pool.strides must be the first of rpn.strides"),
        ("box_head.delta_stds=[0.1, 0.2]", "delta_stds must have 4 entries"),
        ("box_head.num_classes=0", "num_classes must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_together(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pool.output_size=0", "pool.output_size must be at least 1, got 0"),
        ("model.pool.strides=[]", "pool.strides' length must be at least 1"),
        ("model.rpn.anchor_scales=[]", "rpn.anchor_scales' length must be at least 1"),
        ("model.rpn.sampler.positive_fraction=3", "rpn.sampler.positive_fraction must be between 0 and 1, got 3.0"),
        ("model.rpn.assigner.pos_iou=0.2", "rpn.assigner must have 0 <= neg_iou <= pos_iou <= 1, got 0.3 and 0.2"),
        ("model.rpn.strides=[4, 8]", "rpn.strides must have one entry per level"),
    ],
)
def test_settings_out_of_range_are_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_model(load_config("faster_rcnn_r50_fpn_1x_coco", [override]).model)

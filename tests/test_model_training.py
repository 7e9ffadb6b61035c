"""FasterRCNN in training: losses with and without objects, by hand, sampling, which anchors count."""

import pytest
import torch
from conftest import seeded
from tiny_model import NO_OBJECTS, SIZES, images, small, targets
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.testing import assert_close

from fastrcnn.config import BoxHeadConfig, BoxLossConfig, RpnConfig, SamplerConfig
from fastrcnn.models import Proposals, fpn
from fastrcnn.models.anchors import AnchorGenerator
from fastrcnn.models.box_head import BoxHead, SampledRois
from fastrcnn.models.box_loss import MEANS, OF_BOXES, OF_DELTAS, box_loss
from fastrcnn.models.rpn import RPNHead
from fastrcnn.models.sampler import sample
from fastrcnn.ops import reference


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


def test_what_a_training_step_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The levels of the pyramid, the finest merged map, the RPN's hidden maps, the largest map of a strided block."""
    maps: dict[str, list[StorageWeakRef]] = {}

    def note(owner: object, function: str) -> None:
        call = getattr(owner, function)

        def noted(*args, **kwargs):
            result = call(*args, **kwargs)
            made = result if isinstance(result, list) else [result]
            maps.setdefault(function, []).extend(StorageWeakRef(tensor.untyped_storage()) for tensor in made)
            return result

        monkeypatch.setattr(owner, function, noted)

    model = small("backbone.depth=50", "backbone.frozen_stages=1")
    note(model, "features")
    note(fpn, "_add_upsampled")
    note(model.rpn_head.conv, "forward")
    note(F, "relu_")
    losses = model.losses(images(*SIZES), SIZES, targets())
    expired = {function: [map_.expired() for map_ in made] for function, made in maps.items()}
    assert expired == {
        "features": [True] * 3 + [False, True],  # of P5, P6 is subsampled
        "_add_upsampled": [False] * 3 + [True],  # the coarser ones are small, and kept
        "forward": [True] * 5,
        "relu_": [True] * 16,
    }
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


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


def answering(head: RPNHead, objectness: list[torch.Tensor], deltas: list[torch.Tensor]) -> RPNHead:
    """A head that answers with these maps, whatever the features."""

    def flat(levels: list[torch.Tensor], size: int) -> torch.Tensor:
        return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in levels], 1)

    head.at_anchors = lambda _, image, index: (flat(objectness, 1)[image, index, 0], flat(deltas, 4)[image, index])
    return head


def test_padding_of_the_batch_does_not_change_the_rpn_losses() -> None:
    """An image's anchors beyond its own padded size are no negatives: alone or beside a larger one, it is the same."""
    head, anchors = RPNHead(4, RpnConfig(sampler=SamplerConfig(10**6, 0.5))), AnchorGenerator([8], [0.5, 1, 2], [16])
    narrow, wide = [(4, 8)], [(6, 10)]  # cells of an image of 64 x 120 alone, and in a larger batch
    logits, deltas = torch.randn(1, 3, 6, 10), torch.randn(1, 12, 6, 10)
    results = []
    for sizes in (narrow, wide):
        (height, width), boxes = sizes[0], anchors(sizes)
        valid = [anchors.valid(boxes, sizes, (64, 120))]
        assert valid[0].sum() == 4 * 8 * 3
        answering(head, [logits[..., :height, :width]], [deltas[..., :height, :width]])
        results.append(head.losses([], boxes, valid, [targets()[1]]))
    assert_close(results[0], results[1])


def test_rpn_losses_by_hand() -> None:
    """One level of 1 x 2 cells and one anchor: the first is the object's, the second a negative."""
    head = RPNHead(4, RpnConfig(anchor_ratios=[1.0], sampler=SamplerConfig(2, 0.5)))
    anchors = [torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])]
    logits = torch.tensor([[[[0.5, -1.5]]]])
    deltas = torch.tensor([0.1, 0.2, 0.3, 0.4, 9, 9, 9, 9]).view(1, 2, 4).permute(0, 2, 1).view(1, 4, 1, 2)
    target = {"boxes": torch.tensor([[1.0, 0, 11, 10]]), "labels": torch.tensor([0])}
    losses = answering(head, [logits], [deltas]).losses([], anchors, [torch.tensor([True, True])], [target])
    softplus = nn.functional.softplus
    wanted = (softplus(torch.tensor(-0.5)) + softplus(torch.tensor(-1.5))) / 2
    assert_close(losses["loss_rpn_cls"], wanted)
    assert_close(losses["loss_rpn_bbox"], torch.tensor((0.0 + 0.2 + 0.3 + 0.4) / 2))  # dx is right: 1 / 10


def test_box_head_losses_by_hand() -> None:
    head = BoxHead(1, 1, BoxHeadConfig(num_classes=2, channels=4))
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
    head = BoxHead(1, 1, BoxHeadConfig(num_classes=3, sampler=SamplerConfig(6, 0.5)))
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


def test_an_image_without_objects_counts_one_positive_in_the_rpn_average() -> None:
    head = RPNHead(4, RpnConfig(anchor_ratios=[1.0], sampler=SamplerConfig(num=10)))
    anchors = [torch.tensor([[0.0, 0, 8, 8]]).repeat(30, 1)]
    objectness, deltas = [torch.zeros(1, 1, 5, 6)], [torch.zeros(1, 4, 5, 6)]
    losses = answering(head, objectness, deltas).losses([], anchors, [torch.ones(30, dtype=torch.bool)], [NO_OBJECTS])
    assert_close(losses["loss_rpn_cls"], torch.tensor(2.0).log() * 10 / 11)


def test_dropout_is_active_in_training_only() -> None:
    head = BoxHead(4, 1, BoxHeadConfig(channels=64, dropout=0.5))
    x = torch.randn(3, 4, 1, 1, generator=seeded(0))
    assert not torch.equal(head(x)[0], head(x)[0])
    head.eval()
    assert torch.equal(head(x)[0], head(x)[0])


STDS = (0.1, 0.1, 0.2, 0.2)
POSITIVES = torch.tensor([[10.0, 10, 50, 60], [100, 40, 180, 90], [0, 0, 20, 20]])
OBJECTS = torch.tensor([[12.0, 8, 55, 62], [90, 30, 170, 95], [1, 2, 18, 25]])


def test_smooth_l1_by_hand() -> None:
    wanted = reference.encode_boxes(POSITIVES, OBJECTS, MEANS, STDS)
    deltas = wanted + torch.tensor([[0.05, -0.5, 0, 0.2], [0, 0, 0, 0], [1, 0, 0, -0.11]])
    beta = 1 / 9
    total = box_loss(deltas, POSITIVES, OBJECTS, STDS, BoxLossConfig("smooth_l1", beta, weight=2.0))
    square, linear = (0.05**2 + 0.11**2) / (2 * beta), (0.5 + 0.2 + 1) - 3 * beta / 2
    assert_close(total, torch.tensor(2 * (square + linear)))
    assert box_loss(deltas, POSITIVES, OBJECTS, STDS, BoxLossConfig()).item() == pytest.approx(0.05 + 0.5 + 0.2 + 1.11)


@pytest.mark.parametrize("kind", OF_BOXES)
def test_losses_of_decoded_boxes(kind: str) -> None:
    """The weight applies, boxes are not clipped to any image, and following the gradient leads to the object."""
    config = BoxLossConfig(kind, weight=10.0)
    perfect = reference.encode_boxes(POSITIVES, OBJECTS, MEANS, STDS)
    assert box_loss(perfect, POSITIVES, OBJECTS, STDS, config).item() == pytest.approx(0, abs=1e-4)
    deltas = torch.zeros(3, 4, requires_grad=True)
    value = box_loss(deltas, POSITIVES, OBJECTS, STDS, config)
    assert_close(value, 10 * reference.iou_loss(POSITIVES, OBJECTS, kind).sum())
    for _ in range(400):
        (gradient,) = torch.autograd.grad(box_loss(deltas, POSITIVES, OBJECTS, STDS, config), deltas)
        deltas = (deltas - 0.02 * gradient.clamp(-1, 1)).detach().requires_grad_()
    assert box_loss(deltas, POSITIVES, OBJECTS, STDS, config) < 0.1 * value
    outside = box_loss(deltas, POSITIVES - 1000, OBJECTS - 1000, STDS, config)
    assert_close(outside, box_loss(deltas, POSITIVES, OBJECTS, STDS, config), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", OF_DELTAS + OF_BOXES)
def test_no_positives_give_no_box_loss_but_a_gradient(kind: str) -> None:
    deltas = torch.zeros(0, 4, requires_grad=True)
    value = box_loss(deltas, torch.zeros(0, 4), torch.zeros(0, 4), STDS, BoxLossConfig(kind))
    value.backward()
    assert value == 0 and deltas.grad.shape == (0, 4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rpn.box_loss.kind=l2", "rpn.box_loss.kind must be one of .*'bounded_iou'.*, got 'l2'"),
        ("box_head.box_loss.weight=-1", "box_head.box_loss must have beta above 0 .* got 1.0 and -1.0"),
        ("box_head.box_loss.beta=0", "beta above 0"),
        ("box_head.dropout=1.5", "box_head.dropout must be between 0 and 1, got 1.5"),
        ("backbone.kind=vgg", 'backbone.kind must be "resnet" or "vgg16", got \'vgg\''),
        ("backbone.kind=vgg16", "set model.fpn to null"),
        ("fpn=null", "rpn.strides must have one entry per level, 1, got"),
        ("pool.kind=roi_pool", "roi_pool reads one level"),
        ("pool.kind=max", "pool.kind must be"),
    ],
)
def test_settings_that_do_not_fit(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(setting)

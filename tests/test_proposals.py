"""generate_proposals against its definition and torchvision: the same boxes in the same order."""

import pytest
import torch
from conftest import assert_compiles_and_exports, assert_same_for_any_number_of_threads, seeded
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")
SIZES, STRIDES = [(24, 40), (12, 20), (6, 10)], [4, 8, 16]
IMAGES = [(90.0, 150.0), (96.0, 131.0)]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = {
    "NCHW": lambda o, d: (o, d),
    "channels-last": lambda o, d: (channels_last(o), channels_last(d)),
    "columns first": lambda o, d: (o.mT.contiguous().mT, d.mT.contiguous().mT),
    "slices of one map": lambda o, d: channels_last(torch.cat([o, d], 1)).split([o.shape[1], d.shape[1]], 1),
    "every second column": lambda o, d: (o.repeat_interleave(2, 3)[..., ::2], d.repeat_interleave(2, 3)[..., ::2]),
    "one row for all": lambda o, d: (o[:, :, :1].expand_as(o), d),
}


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def random_levels(
    num_images: int = 2, num_anchors: int = 3, sizes=SIZES, dtype=torch.float32, seed: int = 0, device="cpu"
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = seeded(seed)
    bases = [ops.base_anchors(stride, [4], [0.5, 1, 2, 3, 4][:num_anchors]) for stride in STRIDES[: len(sizes)]]
    objectness = [torch.randn(num_images, num_anchors, *size, generator=generator) for size in sizes]
    deltas = [torch.randn(num_images, 4 * num_anchors, *size, generator=generator) * 0.4 for size in sizes]
    anchors = ops.grid_anchors(sizes, STRIDES[: len(sizes)], bases)
    return (
        [level.to(device, dtype) for level in objectness],
        [level.to(device, dtype) for level in deltas],
        [level.to(device) for level in anchors],
    )


def assert_equals_reference(levels, images, *settings) -> tuple[Tensor, Tensor, Tensor]:
    actual = ops.generate_proposals(*levels, images, *settings)
    expected = reference.generate_proposals(*levels, images, *settings)
    assert actual[2].tolist() == expected[2].tolist()
    assert_close(actual, expected, rtol=1e-5, atol=1e-4, equal_nan=True)
    return actual


def one_level(logits: Tensor, delta: float = 0.0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Logits [n] of n boxes of 4 pixels that do not touch, and whose x1 is 10 times their index."""
    n = len(logits)
    x = torch.arange(n, device=logits.device)[:, None] * 10.0
    anchors = torch.cat([x, x * 0, x + 4, x * 0 + 4], 1)
    return [logits.view(1, 1, 1, n)], [torch.full((1, 4, 1, n), delta, device=logits.device)], [anchors]


def chosen(levels, pre_nms: int, post_nms: int) -> list[int]:
    """The indices of the proposals of `one_level`."""
    boxes, _, count = ops.generate_proposals(*levels, [(10, 1e6)], pre_nms, post_nms, 0.5)
    return (boxes[0, : int(count), 0] / 10).round().long().tolist()


# --- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_reference_in_every_layout(device, layout, dtype):
    objectness, deltas, anchors = random_levels(dtype=dtype, device=device)
    pairs = [LAYOUTS[layout](o, d) for o, d in zip(objectness, deltas, strict=True)]
    levels = [pair[0] for pair in pairs], [pair[1] for pair in pairs], anchors
    assert_equals_reference(levels, IMAGES, 100, 150, 0.7)


@pytest.mark.parametrize("pre_nms", [0, 1, 7, 300, 100_000])
@pytest.mark.parametrize("post_nms", [0, 5, 10_000])
@pytest.mark.parametrize("num_anchors", [1, 3, 5])
def test_equals_reference_for_every_capacity(device, pre_nms, post_nms, num_anchors):
    sizes = [(17, 23), (1, 9), (0, 4)]
    levels = random_levels(1, num_anchors, sizes, device=device)
    boxes, scores, count = assert_equals_reference(levels, IMAGES[:1], pre_nms, post_nms, 0.5, 3.0)
    available = sum(min(pre_nms, h * w * num_anchors) for h, w in sizes)
    assert boxes.shape == (1, min(available, post_nms), 4) and scores.shape == boxes.shape[:2]
    assert boxes.dtype == scores.dtype == torch.float32 and count.dtype == torch.int64


@pytest.mark.parametrize("pre_nms", [5, 40, 500, 1100])
def test_top_k_of_maps_with_few_or_many_large_values(device, pre_nms):
    """One dense cluster, a ramp, a constant: the distributions for which a quick choice could go wrong.

    1100: more than the CUDA kernel that selects has threads.
    """
    size = (60, 70)
    cluster = torch.rand(1, 1, *size, generator=seeded(0))
    cluster[:, :, 20:45, 10:60] += 5
    ramp = torch.arange(4200.0).view(1, 1, *size)
    steps = (ramp / 700).floor()
    columns_first = [logits.mT.contiguous().mT for logits in (cluster, steps)]
    _, deltas, anchors = random_levels(1, 1, [size], device=device)
    periodic = steps.mT.reshape(1, 1, *size)
    for logits in (cluster, ramp, -ramp, steps, -steps, periodic, torch.zeros(1, 1, *size), *columns_first):
        levels = [logits.to(device)], deltas, anchors
        assert_equals_reference(levels, [(300.0, 300.0)], pre_nms, 1000, 0.9)


@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_equals_torchvision(layout):
    pytest.importorskip("torchvision")
    from torchvision.models.detection.rpn import (
        AnchorGenerator,
        RegionProposalNetwork,
        RPNHead,
        concat_box_prediction_layers,
    )

    levels = random_levels(2, 3, [(50, 84), (25, 42), (13, 21)], seed=3)
    pairs = [LAYOUTS[layout](o, d) for o, d in zip(*levels[:2], strict=True)]
    objectness, deltas, anchors = [p[0] for p in pairs], [p[1] for p in pairs], levels[2]
    limits = ({"training": 1000, "testing": 1000}, {"training": 300, "testing": 300})
    peer = RegionProposalNetwork(AnchorGenerator(), RPNHead(8, 3), 0.7, 0.3, 256, 0.5, *limits, 0.7).eval()
    counts = [o[0].numel() for o in objectness]
    flat_logits, flat_deltas = concat_box_prediction_layers(list(objectness), list(deltas))
    decoded = peer.box_coder.decode(flat_deltas, [torch.cat(anchors)] * 2).view(2, -1, 4)
    expected_boxes, expected_scores = peer.filter_proposals(decoded, flat_logits, [(200, 330), (180, 336)], counts)
    boxes, scores, count = ops.generate_proposals(
        objectness, deltas, anchors, [(200, 330), (180, 336)], 1000, 300, 0.7, 1e-3
    )
    for i in range(2):
        assert int(count[i]) == len(expected_boxes[i])
        assert_close(boxes[i, : count[i]], expected_boxes[i], rtol=1e-5, atol=1e-3)
        assert_close(scores[i, : count[i]], expected_scores[i])


def test_images_more_than_2_to_the_31_numbers_apart(device):
    (logits,), (deltas,), anchors = random_levels(2, 3, [(6, 10)], dtype=torch.float16, device=device)
    try:
        storage = torch.empty(2**31 + 1000, dtype=torch.float16, device=device)  # of which little is touched
    except RuntimeError as error:
        pytest.skip(f"the machine refuses 4.3 GB of unused memory: {error}")
    strides = (2**31, 60, 10, 1)
    far_logits = storage.as_strided(logits.shape, strides).copy_(logits)
    far_deltas = storage.as_strided(deltas.shape, strides, logits[0].numel()).copy_(deltas)
    assert_equals_reference(([far_logits], [far_deltas], anchors), IMAGES, 100, 150, 0.7)


# --- the rule, at its edges -------------------------------------------------------------------------------------------


def test_sorted_clipped_and_padded_with_zeros(device):
    levels = random_levels(device=device)
    boxes, scores, count = ops.generate_proposals(*levels, IMAGES, 50, 400, 0.5)
    assert boxes.shape == (2, 150, 4)
    for i, (height, width) in enumerate(IMAGES):
        assert 0 < count[i] < 150
        assert (scores[i, : count[i]].diff() <= 0).all() and (scores[i, : count[i]] > 0).all()
        assert (boxes[i, count[i] :] == 0).all() and (scores[i, count[i] :] == 0).all()
        assert boxes[i].amin() >= 0 and boxes[i, :, 2].amax() <= width and boxes[i, :, 3].amax() <= height


def test_rows_beyond_the_count_are_zero_whatever_the_candidates_hold(device):
    levels = one_level(torch.zeros(6, device=device), delta=NAN)
    boxes, scores, count = ops.generate_proposals(*levels, torch.tensor([[16, 24]]), 100, 4, 0.7)
    assert count.tolist() == [0]
    assert (boxes == 0).all() and (scores == 0).all()


def test_boxes_that_clipping_leaves_without_area_are_no_proposals(device):
    objectness, deltas, anchors = one_level(torch.zeros(6, device=device))
    deltas[0][0, 0, 0, 2:4] = -100  # beyond the left border
    assert chosen((objectness, deltas, anchors), 100, 4) == [0, 1, 4, 5]


def test_a_box_of_exactly_the_smallest_size_is_left_out(device):
    levels = one_level(torch.zeros(3, device=device))  # 4 x 4 pixels
    for min_size, expected in ((3.999, 3), (4, 0)):
        assert ops.generate_proposals(*levels, [(9, 99)], 9, 9, 0.5, min_size)[2].tolist() == [expected]


def test_order(device):
    """By logit; ties, also of the two zeros, by anchor; NaN enters first and leaves last."""
    logits = torch.tensor([NAN, 0.5, -INF, 0.5, INF, -NAN, -0.0, 0.0], device=device)
    assert chosen(one_level(logits), 8, 8) == [4, 1, 3, 6, 7, 2, 0, 5]
    assert chosen(one_level(logits), 8, 3) == [4, 1, 3]
    assert chosen(one_level(logits), 4, 8) == [4, 1, 0, 5]  # of the two 0.5 the first
    assert chosen(one_level(logits), 1, 8) == [0]
    scores = ops.generate_proposals(*one_level(logits), [(10, 1e6)], 8, 8, 0.5)[1][0]
    assert_close(scores, logits[[4, 1, 3, 6, 7, 2, 0, 5]].sigmoid(), equal_nan=True)


def test_equal_logits_of_levels_come_by_level(device):
    first, second = one_level(torch.ones(3, device=device)), one_level(torch.ones(2, device=device))
    second[2][0].add_(torch.tensor([0.0, 1, 0, 1], device=device))
    levels = [a + b for a, b in zip(first, second, strict=True)]
    boxes, _, count = ops.generate_proposals(*levels, [(10, 100)], 9, 9, 1.0)
    assert boxes[0, :, :2].tolist() == [[0, 0], [10, 0], [20, 0], [0, 1], [10, 1]]
    assert count.tolist() == [5]
    assert ops.generate_proposals(*levels, [(10, 100)], 9, 4, 1.0)[0][0].tolist() == boxes[0, :4].tolist()


def test_levels_do_not_suppress_each_other(device):
    levels = [level * 2 for level in one_level(torch.zeros(3, device=device))]
    assert ops.generate_proposals(*levels, [(10, 100)], 9, 9, 0.1)[2].tolist() == [6]


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
def test_values_that_are_not_ordinary(device, value):
    objectness, deltas, anchors = random_levels(device=device)
    for maps in (*objectness, *deltas):
        maps[torch.rand(maps.shape, generator=seeded(9)).to(device) < 0.05] = value
    assert_equals_reference((objectness, deltas, anchors), IMAGES, 60, 100, 0.7)


def test_no_images_and_no_anchors(device):
    objectness, deltas, anchors = random_levels(device=device)
    none = [level[:0] for level in objectness], [level[:0] for level in deltas], anchors
    boxes, scores, count = ops.generate_proposals(*none, torch.zeros(0, 2), 10, 20, 0.7)
    assert boxes.shape == (0, 20, 4) and scores.shape == (0, 20) and count.shape == (0,)
    levels = random_levels(2, 3, [(0, 5)], device=device)
    boxes, scores, count = ops.generate_proposals(*levels, IMAGES, 10, 20, 0.7)
    assert boxes.shape == (2, 0, 4) and count.tolist() == [0, 0]


def test_has_no_gradient(device):
    objectness, deltas, anchors = random_levels(device=device)
    for maps in (*objectness, *deltas):
        maps.requires_grad_()
    boxes, scores, _ = ops.generate_proposals(objectness, deltas, anchors, IMAGES, 10, 10, 0.7)
    assert not boxes.requires_grad and not scores.requires_grad


# --- threads, torch.library, torch.compile, torch.export --------------------------------------------------------------


def test_same_for_any_number_of_threads():
    levels = random_levels(3)
    sizes = torch.tensor([*IMAGES, (50.0, 60.0)])
    assert_same_for_any_number_of_threads(lambda: ops.generate_proposals(*levels, sizes, 500, 800, 0.6))


def test_opcheck(device):
    levels, sizes = random_levels(device=device), torch.tensor(IMAGES, device=device)
    for pre_nms, post_nms in ((20, 30), (10_000, 20)):
        torch.library.opcheck(
            torch.ops.fastrcnn.generate_proposals.default, (*levels, sizes, pre_nms, post_nms, 0.7, 0.0)
        )


def test_compile_and_export(device):
    (o0, o1, _), (d0, d1, _), (a0, a1, _) = random_levels(device=device)
    sizes = torch.tensor(IMAGES, device=device)
    assert_compiles_and_exports(
        lambda o0, o1, d0, d1, s: ops.generate_proposals([o0, o1], [d0, d1], [a0, a1], s, 50, 60, 0.7),
        *(o0, o1, d0, d1, sizes),
    )


# --- wrong input ------------------------------------------------------------------------------------------------------


def small() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Two images with one level of 2 x 3 cells and 1 anchor per cell."""
    return random_levels(2, 1, [(2, 3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, d, a: (o, d, []), "one of each per level"),
        (lambda o, d, a: ([], [], []), "one of each per level"),
        (lambda o, d, a: (o, [d[0][:, :3]], a), r"deltas\[0\]: expected .* \[2, 4, 2, 3\], got \[2, 3, 2, 3\]"),
        (lambda o, d, a: (o, d, [a[0][:5]]), r"anchors\[0\]: expected .* \[6, 4\], got \[5, 4\]"),
        (lambda o, d, a: ([o[0][0]], d, a), r"objectness\[0\]: expected .* got \[1, 2, 3\]"),
    ],
)
def test_wrong_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        ops.generate_proposals(*change(*small()), [(16, 24), (16, 24)], 10, 10, 0.7)
    if "got" in message:  # the operator does not rely on the Python function
        with pytest.raises(RuntimeError, match=message.split(":")[0] + ": expected shape .*, got "):
            torch.ops.fastrcnn.generate_proposals(*change(*small()), torch.ones(2, 2), 10, 10, 0.7, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, d, a: ([o[0].long()], d, a), r"objectness\[0\]: expected dtype float32, .*, got int64"),
        (lambda o, d, a: (o, [d[0].int()], a), r"deltas\[0\]: expected dtype float32, .*, got int32"),
        (lambda o, d, a: (o, d, [a[0].double()]), r"anchors\[0\]: expected dtype float32, got float64"),
    ],
)
def test_wrong_types(change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.generate_proposals(*change(*small()), [(16, 24), (16, 24)], 10, 10, 0.7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-1, 10, 0.7), "pre_nms: expected 0 or more, got -1"),
        ((10, -1, 0.7), "post_nms: expected 0 or more, got -1"),
        ((10, 10, 1.5), r"iou_threshold: expected a number in \[0, 1\], got 1.5"),
        ((10, 10, 0.7, NAN), "min_size: expected a number, got -?nan"),
        ((10, 10, NAN), r"iou_threshold: expected a number in \[0, 1\], got -?nan"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(RuntimeError, match=message):
        ops.generate_proposals(*small(), [(16, 24), (16, 24)], *settings)


def test_errors_name_the_level():
    """Of two levels the second one is wrong, in one of its tensors."""
    right = [level * 2 for level in small()]
    wrong = {
        "objectness": torch.zeros(3, 1),
        "deltas": torch.zeros(2, 4, 2, 2),
        "anchors": torch.zeros(5, 4),
    }
    for i, (name, tensor) in enumerate(wrong.items()):
        levels = [list(level) for level in right]
        levels[i][1] = tensor
        with pytest.raises(ValueError, match=rf"{name}\[1\]: expected shape .*, got"):
            ops.generate_proposals(*levels, [(16, 24), (16, 24)], 10, 10, 0.7)
        with pytest.raises(RuntimeError, match=rf"{name}\[1\]: expected shape .*, got"):
            torch.ops.fastrcnn.generate_proposals(*levels, torch.ones(2, 2), 10, 10, 0.7, 0.0)
        levels[i][1] = tensor.tolist()
        with pytest.raises(TypeError, match=rf"{name}\[1\]: expected a tensor, got list"):
            ops.generate_proposals(*levels, [(16, 24), (16, 24)], 10, 10, 0.7)
        levels[i] = tensor
        with pytest.raises(TypeError, match=f"{name}: expected a list of tensors, one per level, got Tensor"):
            ops.generate_proposals(*levels, [(16, 24), (16, 24)], 10, 10, 0.7)


def test_wrong_image_sizes():
    with pytest.raises(TypeError, match="image_sizes: expected a tensor or a list of pairs of numbers, got None"):
        ops.generate_proposals(*small(), None, 10, 10, 0.7)
    with pytest.raises(ValueError, match=r"image_sizes: expected .* \[2, 2\], got \[1, 2\]"):
        ops.generate_proposals(*small(), [(16, 24)], 10, 10, 0.7)


def test_result_has_no_history(device):
    """Also if the anchors or sizes have one."""
    objectness, deltas, anchors = ([level.to(device).requires_grad_() for level in levels] for levels in small())
    sizes = torch.tensor([(16.0, 24.0), (16.0, 24.0)], device=device, requires_grad=True)
    boxes, scores, _ = ops.generate_proposals(objectness, deltas, anchors, sizes, 10, 10, 0.7)
    assert not boxes.requires_grad and not scores.requires_grad

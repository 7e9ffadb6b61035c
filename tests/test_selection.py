"""select_detections against its definition and torchvision: the same boxes in the same order."""

import pytest
import torch
from conftest import assert_compiles_and_exports, assert_same_for_any_number_of_threads, random_rois, seeded
from cuda_emulator import emulated
from torch import Tensor
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")
MEANS, STDS = (0.0,) * 4, (0.1, 0.1, 0.2, 0.2)
IMAGES, FACTORS = [(90.0, 120.0), (100.0, 80.0)], [(0.5, 0.5), (1.25, 0.75)]


def random_outputs(
    count: int = 120, classes: int = 6, spread: float = 2.0, dtype=torch.float32, seed: int = 0, device="cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """logits, deltas and rois of two images; every tenth RoI is padding."""
    generator = seeded(seed)
    logits = (torch.randn(count, classes + 1, generator=generator) * spread).to(device, dtype)
    deltas = torch.randn(count, 4 * classes, generator=generator).to(device, dtype)
    rois = random_rois(count, 2, seed=seed, device=device)
    rois[::10, 0] = -1
    return logits, deltas, rois


def assert_equals_reference(outputs, *settings, images=IMAGES, factors=FACTORS) -> tuple[Tensor, ...]:
    device = outputs[0].device
    pairs = torch.tensor(images, device=device), torch.tensor(factors, device=device)
    actual = ops.select_detections(*outputs, *pairs, *settings, MEANS, STDS)
    expected = reference.select_detections(*outputs, *pairs, *settings, MEANS, STDS)
    assert actual[3].tolist() == expected[3].tolist()
    assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    return actual


def one_box(logits: list[list[float]], device="cpu") -> tuple[Tensor, Tensor, Tensor]:
    """RoIs that do not touch, with these logits; the x1 of RoI r is 20 * r."""
    scores = torch.tensor(logits, device=device)
    x = torch.arange(len(logits), device=device)[:, None] * 20.0
    rois = torch.cat([x * 0, x, x * 0, x + 10, x * 0 + 10], 1)
    return scores, torch.zeros(len(logits), 4 * (scores.shape[1] - 1), device=device), rois


def select(outputs, score_threshold: float = 0.05, iou_threshold: float = 0.5, max_output: int = 10):
    """Of one image that is not scaled: lists of (x1, label), and the scores."""
    boxes, scores, labels, count = ops.select_detections(
        *outputs, [(1e4, 1e4)], [(1, 1)], score_threshold, iou_threshold, max_output, MEANS, STDS
    )
    k = int(count)
    return list(zip(boxes[0, :k, 0].tolist(), labels[0, :k].tolist(), strict=True)), scores[0, :k]


# --- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 15, 16, 80])
def test_equals_reference(device, classes, dtype):
    assert_equals_reference(random_outputs(classes=classes, dtype=dtype, device=device), 0.05, 0.5, 100)


@pytest.mark.parametrize("score_threshold", [-1.0, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("max_output", [0, 1, 30, 100_000])
def test_equals_reference_for_all_settings(device, score_threshold, iou_threshold, max_output):
    boxes, scores, labels, _ = assert_equals_reference(
        random_outputs(40, device=device), score_threshold, iou_threshold, max_output
    )
    capacity = min(40 * 6, max_output)
    assert boxes.shape == (2, capacity, 4) and scores.shape == labels.shape == (2, capacity)
    assert boxes.dtype == scores.dtype == torch.float32 and labels.dtype == torch.int64


@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0, 60.0])
def test_scores_are_a_float32_softmax(device, spread):
    """All of them, to the last bits but one or two: of flat and steep distributions, down to subnormal numbers."""
    logits, deltas, rois = random_outputs(50, 20, spread, device=device)
    deltas.zero_()
    rois = torch.cat([torch.zeros(50, 1), torch.arange(50.0)[:, None] * 20 + torch.tensor([0.0, 0, 9, 9])], 1)
    sizes, factors = torch.tensor([[1e4, 1e4]], device=device), torch.ones(1, 2, device=device)
    boxes, scores, labels, count = ops.select_detections(
        logits, deltas, rois.to(device), sizes, factors, -1.0, 1.0, 10_000, MEANS, STDS
    )
    assert count.tolist() == [1000]
    actual = torch.zeros(50, 20, device=device)
    actual[(boxes[0, :, 0] / 20).round().long(), labels[0]] = scores[0]
    assert_close(actual, logits.softmax(1)[:, :-1], rtol=1e-6, atol=1e-44)


def test_equals_torchvision():
    pytest.importorskip("torchvision")
    from torchvision.models.detection.roi_heads import RoIHeads

    logits, deltas, rois = random_outputs(300, 20)
    rois[:, 0], rois[:, 1:] = torch.arange(300) // 150, rois[:, 1:] + 50  # inside the image: torchvision drops slivers
    heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100)
    sizes = [(500, 400), (400, 500)]
    proposals = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    first = torch.cat([logits[:, -1:], logits[:, :-1]], 1)  # torchvision: background is class 0, with deltas of its own
    expected = heads.postprocess_detections(first, torch.cat([deltas[:, :4] * 0, deltas], 1), proposals, sizes)
    boxes, scores, labels, count = ops.select_detections(
        logits, deltas, rois, sizes, [(1, 1), (1, 1)], 0.05, 0.5, 100, MEANS, STDS
    )
    for i in range(2):
        k = int(count[i])
        assert k == len(expected[0][i]) == 100
        assert_close(boxes[i, :k], expected[0][i], rtol=1e-5, atol=1e-3)
        assert_close(scores[i, :k], expected[1][i])
        assert torch.equal(labels[i, :k], expected[2][i] - 1)


# --- the rule, at its edges -------------------------------------------------------------------------------------------


def test_a_score_at_the_threshold_is_not_enough(device):
    outputs = one_box([[3.0, 3.0], [2.0, -INF]], device)  # exactly 1/2 and 1
    assert select(outputs, 0.5)[0] == [(20, 0)]
    assert select(outputs, 0.4999999)[0] == [(20, 0), (0, 0)]
    assert select(outputs, 1.0)[0] == []
    quarter = one_box([[1.0, 1.0, 1.0, 1.0]], device)
    assert select(quarter, 0.25)[0] == []
    assert select(quarter, 0.2499999)[0] == [(0, 0), (0, 1), (0, 2)]


def test_as_many_classes_as_a_threshold_lets_through(device):
    """40 of 80 classes share the score, 0.025 each."""
    logits = [[0.0 if c % 2 else -INF for c in range(81)]]
    found, _ = select(one_box(logits, device), 0.0249999, max_output=100)
    assert found == [(0, c) for c in range(1, 80, 2)]


def test_ties_come_by_roi_and_then_by_class(device):
    outputs = one_box([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]], device)
    assert select(outputs)[0] == [(0, 0), (0, 1), (20, 0), (20, 1)]
    assert select(outputs, max_output=3)[0] == [(0, 0), (0, 1), (20, 0)]


def test_classes_do_not_suppress_each_other(device):
    logits, deltas, rois = one_box([[2.0, 1.0, 0.0], [1.5, 2.5, 0.0]], device)
    rois[1] = rois[0]
    found, scores = select((logits, deltas, rois))
    assert [label for _, label in found] == [1, 0]
    assert_close(scores, logits.softmax(1)[[1, 0], [1, 0]])


def test_suppression_happens_in_pixels_of_the_original_image(device):
    """Clipped first, then divided; the aspect may change, IoU does not."""
    logits, deltas, rois = one_box([[9.0, 0.0]], device)
    rois[0, 1:] = torch.tensor([-5.0, 10, 500, 60])
    boxes = ops.select_detections(logits, deltas, rois, [(50, 80)], [(0.5, 2.0)], 0.05, 0.5, 3, MEANS, STDS)[0]
    assert boxes[0].tolist() == [[0, 5, 160, 25]]


def test_rows_beyond_the_count_are_zero(device):
    rois = torch.tensor([[0.0, 0, 0, 10, 10], [-1, 0, 0, 10, 10]], device=device)
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]], device=device)
    deltas = torch.full((2, 4), NAN, device=device)
    deltas[0] = 0
    boxes, scores, labels, count = ops.select_detections(
        logits, deltas, rois, [(20, 20)], [(0.5, 0.5)], 0.05, 0.5, 3, MEANS, STDS
    )
    assert count.tolist() == [1]
    assert boxes[0].tolist() == [[0, 0, 20, 20], [0, 0, 0, 0]]
    assert scores[0, 1] == 0 and labels[0].tolist() == [0, 0]


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_row_without_a_softmax_is_not_detected(device, value):
    outputs = one_box([[value, 1.0, 0.0], [1.0, value, 0.0], [1.0, 0.0, value], [1.0, 0.0, -INF]], device)
    assert select(outputs)[0] == [(60, 0), (60, 1)]
    assert select(one_box([[-INF, -INF], [-INF, 0.0]], device), 0.0)[0] == []


def test_boxes_with_nan_or_without_area(device):
    logits, deltas, rois = random_outputs(60, device=device)
    deltas[::7, 2], rois[3, 1], rois[4, 3], rois[5, 1:] = NAN, NAN, -INF, 7.0
    pairs = torch.tensor(IMAGES, device=device), torch.tensor(FACTORS, device=device)
    settings = (*pairs, 0.05, 0.5, 1000, MEANS, STDS)
    actual = ops.select_detections(logits, deltas, rois, *settings)
    expected = reference.select_detections(logits, deltas, rois, *settings)
    assert_close(actual, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_no_rois(device):
    logits, deltas, rois = (values[:0] for values in random_outputs(device=device))
    boxes, scores, labels, count = ops.select_detections(
        logits, deltas, rois, IMAGES, FACTORS, 0.05, 0.5, 100, MEANS, STDS
    )
    assert boxes.shape == (2, 0, 4) and scores.shape == labels.shape == (2, 0) and count.tolist() == [0, 0]


def test_not_contiguous(device):
    logits, deltas, rois = random_outputs(device=device)
    assert_equals_reference((logits.T.contiguous().T, deltas.repeat(2, 1)[: len(deltas)], rois), 0.05, 0.5, 100)
    wide = torch.cat([logits, deltas, rois], 1)
    assert_equals_reference(tuple(wide.split([7, 24, 5], 1)), 0.05, 0.5, 100)


def test_has_no_gradient(device):
    logits, deltas, rois = random_outputs(device=device)
    outputs = logits.requires_grad_(), deltas.requires_grad_(), rois
    boxes, scores, _, _ = ops.select_detections(*outputs, IMAGES, FACTORS, 0.05, 0.5, 100, MEANS, STDS)
    assert not boxes.requires_grad and not scores.requires_grad


# --- threads, torch.library, torch.compile, torch.export --------------------------------------------------------------


def test_same_for_any_number_of_threads():
    outputs = random_outputs(1000, 30)
    assert_same_for_any_number_of_threads(
        lambda: ops.select_detections(*outputs, IMAGES, FACTORS, 0.05, 0.5, 100, MEANS, STDS)
    )


def test_opcheck(device):
    pairs = torch.tensor(IMAGES, device=device), torch.tensor(FACTORS, device=device)
    for max_output in (20, 10_000):
        arguments = (*random_outputs(device=device), *pairs, 0.05, 0.5, max_output, list(MEANS), list(STDS))
        torch.library.opcheck(torch.ops.fastrcnn.select_detections.default, arguments)


def test_compile_and_export(device):
    pairs = torch.tensor(IMAGES, device=device), torch.tensor(FACTORS, device=device)
    assert_compiles_and_exports(
        lambda lo, de, ro, si, fa: ops.select_detections(lo, de, ro, si, fa, 0.05, 0.5, 20, MEANS, STDS),
        *(*random_outputs(device=device), *pairs),
    )


# --- wrong input ------------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "logits": torch.zeros(2, 2),
    "deltas": torch.zeros(2, 4),
    "rois": torch.zeros(2, 5),
    "image_sizes": torch.full((1, 2), 9.0),
    "scale_factors": torch.ones(1, 2),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", torch.zeros(2, 1), r"logits: expected .* got \[2, 1\]"),
        ("deltas", torch.zeros(2, 8), r"deltas: expected .* \[2, 4\], got \[2, 8\]"),
        ("rois", torch.zeros(2, 4), r"rois: expected .* \[2, 5\], got \[2, 4\]"),
        ("image_sizes", torch.zeros(0, 2), r"image_sizes: expected .* got \[0, 2\]"),
        ("scale_factors", torch.ones(1, 4), r"scale_factors: expected .* \[1, 2\], got \[1, 4\]"),
    ],
)
def test_wrong_shapes(name, value, message):
    arguments = ARGUMENTS | {name: value}
    with pytest.raises(ValueError, match=message):
        ops.select_detections(*arguments.values(), 0.05, 0.5, 3, MEANS, STDS)
    if name != "image_sizes":  # the operator does not rely on the Python function
        with pytest.raises(RuntimeError, match=f"{name}: expected shape .*, got"):
            torch.ops.fastrcnn.select_detections(*arguments.values(), 0.05, 0.5, 3, MEANS, STDS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", torch.zeros(2, 2).long(), "logits: expected dtype float32, .*, got int64"),
        ("deltas", torch.zeros(2, 4).int(), "deltas: expected dtype float32, .*, got int32"),
        ("rois", torch.zeros(2, 5).double(), "rois: expected dtype float32, got float64"),
    ],
)
def test_wrong_types(name, value, message):
    with pytest.raises(RuntimeError, match=message):
        ops.select_detections(*(ARGUMENTS | {name: value}).values(), 0.05, 0.5, 3, MEANS, STDS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((NAN, 0.5, 3, MEANS, STDS), "score_threshold: expected a number, got -?nan"),
        ((0.05, NAN, 3, MEANS, STDS), r"iou_threshold: expected a number in \[0, 1\], got -?nan"),
        ((0.05, -0.1, 3, MEANS, STDS), r"iou_threshold: expected a number in \[0, 1\], got -0.1"),
        ((0.05, 0.5, -1, MEANS, STDS), "max_output: expected 0 or more, got -1"),
        ((0.05, 0.5, 3, MEANS[:3], STDS), "means: expected 4 numbers .* got 3"),
    ],
)
def test_wrong_settings(device, settings, message):
    with pytest.raises(RuntimeError, match=message):
        ops.select_detections(*(value.to(device) for value in ARGUMENTS.values()), *settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", [[0.0, 0.0]], "logits: expected a tensor, got list"),
        ("image_sizes", "large", "image_sizes: expected a tensor or a list of pairs of numbers, got 'large'"),
        ("scale_factors", [(1,), (1, 2)], "scale_factors: expected a tensor or a list of pairs of numbers, got"),
    ],
)
def test_wrong_python_types(name, value, message):
    with pytest.raises(TypeError, match=message):
        ops.select_detections(*(ARGUMENTS | {name: value}).values(), 0.05, 0.5, 3, MEANS, STDS)
    with pytest.raises(TypeError, match=r"means: expected a list of numbers, got float 0\.0"):
        ops.select_detections(*ARGUMENTS.values(), 0.05, 0.5, 3, 0.0, STDS)


WRONG_FACTORS = pytest.mark.parametrize("factor", [0.0, -1.0, NAN, INF, -INF])


@WRONG_FACTORS
def test_wrong_scale_factor(factor):
    for factors in ([(1.0, 1.0), (factor, 1.0)], [(1.0, 1.0), (1.0, factor)]):
        arguments = ARGUMENTS | {"image_sizes": [(9.0, 9.0)] * 2, "scale_factors": factors}
        with pytest.raises(RuntimeError, match=r"scale_factors\[1\]: expected two positive numbers .* got .* and"):
            ops.select_detections(*arguments.values(), 0.05, 0.5, 3, MEANS, STDS)


@WRONG_FACTORS
def test_wrong_scale_factor_without_waiting(factor):
    """On CUDA nobody looks: the image with it has no detections, the others have theirs."""
    outputs = random_outputs()
    sizes, settings = torch.tensor(IMAGES), (0.05, 0.5, 100, MEANS, STDS)
    with emulated():
        expected = ops.select_detections(*outputs, sizes, torch.tensor(FACTORS), *settings)
        for wrong in ((factor, 0.5), (0.5, factor)):
            actual = ops.select_detections(*outputs, sizes, torch.tensor([wrong, FACTORS[1]]), *settings)
            assert actual[3].tolist() == [0, expected[3][1].item()]
            assert all(values[0].count_nonzero() == 0 for values in actual[:3])
            assert_close([values[1] for values in actual], [values[1] for values in expected], rtol=0, atol=0)


@pytest.mark.parametrize("index", [1.0, -2.0, 0.5, NAN, INF])
def test_wrong_image_index(index):
    rois = torch.zeros(2, 5)
    rois[1, 0] = index
    with pytest.raises(IndexError, match=r"rois\[1, 0\]: expected the index of one of 1 images .* got -?[\dni]"):
        ops.select_detections(*(ARGUMENTS | {"rois": rois}).values(), 0.05, 0.5, 3, MEANS, STDS)

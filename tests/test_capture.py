"""detector.capture(): on a GPU the same results as without; elsewhere a clear error, and the model as one graph."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from golden_recipe import GOLDEN
from torch import Tensor, nn
from torch.testing import assert_close

from fastrcnn.config import load_config
from fastrcnn.data.image import prepare_picture, read_image
from fastrcnn.detector import Detector, load

SETTINGS = [
    "model.backbone.depth=18",
    "model.fpn.channels=32",
    "model.rpn.channels=32",
    "model.rpn.test_proposals.post_nms=100",
    "model.box_head.channels=64",
    "model.box_head.num_classes=3",
    "model.box_head.max_detections=30",
    "data.test.scale=[160,120]",
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def tiny(device: str, dtype: torch.dtype = torch.float32) -> Detector:
    """Random weights: every class has a probability near 1/4 everywhere, so there are always detections."""
    torch.manual_seed(0)
    return load(load_config("faster_rcnn_r50_fpn_1x_coco", SETTINGS), checkpoint=False, device=device, dtype=dtype)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Three shapes; the last is without contrast."""
    photo = read_image(GOLDEN / "coffee.png")
    return [photo, np.ascontiguousarray(photo[::-1, :250]), np.full((50, 300, 3), 200, np.uint8)]


# --- without a GPU ----------------------------------------------------------------------------------------------------


def test_without_cuda_the_error_says_what_to_do():
    with pytest.raises(ValueError, match=r'needs a detector on a CUDA device, this one is on cpu.*device="cuda"'):
        tiny("cpu").capture()


class Padded(nn.Module):
    """What a graph records."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.model = detector.model

    def forward(self, images: Tensor, sizes: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.detect_padded(images, sizes, factors))


def inputs(detector: Detector, picture: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    batch, size, factors = prepare_picture(picture, detector.config.data, detector.device, detector.dtype)
    return batch, torch.tensor([size]).float(), torch.tensor([factors])


def test_shapes_depend_on_the_shape_of_the_picture_alone(pictures):
    detector = tiny("cpu")
    blank = np.zeros_like(pictures[0])
    found, other = (Padded(detector)(*inputs(detector, picture)) for picture in (pictures[0], blank))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in other]
    assert found[0].shape == (1, 30, 4)
    assert not torch.equal(found[0], other[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_recorded_with_one_picture_gives_the_detections_of_another(pictures, dtype):
    """No value of the first picture, such as its number of detections, has become a constant of the graph."""
    detector = tiny("cpu", dtype)
    module = Padded(detector).eval()
    recorded, replayed = inputs(detector, pictures[0]), inputs(detector, pictures[0][::-1].copy())
    expected = module(*replayed)
    with torch.no_grad():
        exported = torch.export.export(module, recorded).module()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        compiled(*recorded)
        for run in (exported, compiled):
            assert_close(run(*replayed), expected, rtol=1e-4, atol=1e-2)


# --- with a GPU -------------------------------------------------------------------------------------------------------


def assert_same(captured: Detector, eager: Detector, picture: np.ndarray, threshold: float = 0.05) -> None:
    found, expected = captured.detect(picture, threshold), eager.detect(picture, threshold)
    assert len(expected) > 0
    assert found.names == expected.names
    # cuDNN may choose another algorithm in the graph's own memory
    assert_close((found.boxes, found.scores), (expected.boxes, expected.scores), rtol=1e-3, atol=1e-2)


@needs_cuda
def test_results_equal_those_without_graphs(pictures):
    eager = tiny("cuda")
    captured = eager.capture()
    for picture in [*pictures, *reversed(pictures)]:  # recorded, then replayed in another order
        assert_same(captured, eager, picture)
    assert_same(captured, eager, pictures[0], threshold=0.3)
    assert len(captured._graphs) == 4


@needs_cuda
@pytest.mark.parametrize("where", ["cpu", "device"])
@pytest.mark.parametrize("optimize", [False, True])
def test_nothing_waits_from_the_picture_to_the_detections(pictures, where, optimize):
    """Wherever the picture is resized. Only reading the results waits."""
    detector = tiny("cuda").optimized() if optimize else tiny("cuda")
    data = detector.config.data
    data.test.resize = where

    def detect() -> Tensor:
        batch, size, factors = prepare_picture(pictures[0], data, detector.device, detector.dtype)
        pairs = (torch.tensor([pair]).float().to("cuda", non_blocking=True) for pair in (size, factors))
        return detector.model.detect_padded(batch, *pairs).scores

    expected = detect()  # libraries choose their algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = detect()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(found, expected, rtol=1e-3, atol=1e-3)


@needs_cuda
def test_compiled_kernels_give_the_same(pictures):
    eager = tiny("cuda")
    compiled = eager.compiled()
    for _ in range(2):
        assert_same(compiled, eager, pictures[0])


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pictures, dtype):
    eager = tiny("cuda", dtype)
    captured = eager.capture()
    for _ in range(2):
        found, expected = captured.detect(pictures[0]), eager.detect(pictures[0])
        assert len(found) == len(expected)
        assert_close(found.scores, expected.scores, rtol=0, atol=0.01)


@needs_cuda
def test_results_outlive_the_next_replay_and_other_graphs(pictures):
    captured = tiny("cuda").capture()
    first = captured.detect(pictures[0])
    kept = first.boxes.clone()
    captured.detect(pictures[1])
    captured.detect(pictures[0][::-1].copy())
    assert torch.equal(first.boxes, kept)


@needs_cuda
def test_threads_and_streams_share_a_detector(pictures):
    captured = tiny("cuda").capture()
    expected = [captured.detect(picture) for picture in pictures]
    differences: list[int] = []

    def detect(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(first, first + 30):
                found, right = captured.detect(pictures[i % 3]), expected[i % 3]
                if not (torch.equal(found.boxes, right.boxes) and torch.equal(found.scores, right.scores)):
                    differences.append(i)

    threads = [threading.Thread(target=detect, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == []


@needs_cuda
def test_weights_changed_in_place_take_effect(pictures):
    eager = tiny("cuda")
    captured = eager.capture()
    before = captured.detect(pictures[0])
    with torch.no_grad():
        eager.model.box_head.logits.bias[1] += 2
    assert_same(captured, eager, pictures[0])
    assert not torch.equal(captured.detect(pictures[0]).scores, before.scores)


@needs_cuda
def test_copies_record_their_own_graphs(pictures):
    eager = tiny("cuda")
    captured = eager.capture()
    assert_same(captured, eager, pictures[0])
    for other in (copy.copy(captured), copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert type(other) is type(captured) and not other._graphs
        assert_same(other, eager, pictures[0])

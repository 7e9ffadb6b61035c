"""Models and detectors inside other people's programs: threads, loader workers, pickles, inference mode."""

import copy
import functools
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_model import FACTORS, SIZES, images, small, targets
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from fastrcnn.config import load_config
from fastrcnn.detector import Detector, load
from fastrcnn.models import Detections, FasterRCNN, build_model

SETTINGS = ["backbone.depth=18", "fpn.channels=32", "rpn.channels=32", "box_head.channels=64", "box_head.num_classes=3"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As loader workers compute: convolutions round the same everywhere only with equally many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    config = load_config(
        "faster_rcnn_r50_fpn_1x_coco", [*(f"model.{s}" for s in SETTINGS), "data.test.scale=[160,120]"]
    )
    model = build_model(config.model).to(memory_format=torch.channels_last)
    return Detector(model, config, ["a", "b", "c"])


def picture(seed: int) -> np.ndarray:
    """Of another size for each seed, so that workspaces and anchors differ between threads, too."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (6 + seed % 3, 8 - seed % 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(12 + seed, 0).repeat(14, 1))


def assert_equal(a: Detections, b: Detections) -> None:
    assert len(a) > 0  # else the comparison would say nothing
    assert_close((a.boxes, a.scores, a.labels), (b.boxes, b.scores, b.labels), rtol=0, atol=0)


def all_losses(model: FasterRCNN) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # the samplers draw
    return model.losses(images(*SIZES), SIZES, targets())


# --- threads ----------------------------------------------------------------------------------------------------------


def test_four_threads_detect_what_one_does(detector: Detector) -> None:
    """24 pictures of different sizes, thresholds between them; what every thread finds, to the bit."""
    middle = detector.detect(picture(1)).scores.median().item()
    jobs = [(picture(seed), middle if seed % 2 else 0.05) for seed in range(12)] * 2
    expected = [detector.detect(*job) for job in jobs]
    assert len({len(result) for result in expected}) > 1
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda job: detector.detect(*job), jobs))
    for result, wanted in zip(results, expected, strict=True):
        assert_close(
            (result.boxes, result.scores, result.labels), (wanted.boxes, wanted.scores, wanted.labels), rtol=0, atol=0
        )
        assert result.names == wanted.names


def test_four_threads_of_a_model_with_several_compute_threads_each(detector: Detector) -> None:
    torch.set_num_threads(2)
    try:
        pictures = [picture(seed) for seed in range(8)]
        expected = [detector.detect(image) for image in pictures]
        with ThreadPoolExecutor(4) as pool:

            def detect(image: np.ndarray) -> Detections:
                torch.set_num_threads(2)  # OpenMP's setting is each thread's own
                return detector.detect(image)

            for result, wanted in zip(pool.map(detect, pictures), expected, strict=True):
                assert_equal(result, wanted)
    finally:
        torch.set_num_threads(1)


# --- loader workers ---------------------------------------------------------------------------------------------------


class Found(Dataset):
    """Detects in the worker process."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.detector.detect(picture(index))
        return result.boxes, result.scores


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_a_detector_in_the_workers_of_a_loader(detector: Detector, start: str) -> None:
    """The main process has detected before: a forked worker must not wait for threads that it did not inherit."""
    torch.set_num_threads(2)
    detector.detect(picture(5))
    torch.set_num_threads(1)
    data = Found(detector)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=100)
    results = list(loader)
    assert len(results) == 4
    for index, result in enumerate(results):
        assert len(result[1]) > 0
        assert_close(tuple(result), data[index], rtol=0, atol=0)


# --- copies and pickles -----------------------------------------------------------------------------------------------


def copies(model: FasterRCNN) -> list[FasterRCNN]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]


def test_copies_of_a_model_train_and_detect_the_same_and_share_nothing() -> None:
    model = small()
    model.losses(images(*SIZES), SIZES, targets())  # whatever it keeps between calls is there
    losses = all_losses(model)
    found = model.eval()(images(*SIZES), SIZES, FACTORS)
    for twin in copies(model):
        assert not twin.training
        for a, b in zip(twin(images(*SIZES), SIZES, FACTORS), found, strict=True):
            assert_equal(a, b)
        assert_close(all_losses(twin.train()), losses, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    for a, b in zip(model(images(*SIZES), SIZES, FACTORS), found, strict=True):
        assert_equal(a, b)


def test_a_copy_of_a_model_that_has_gradients() -> None:
    model = small().train()
    sum(all_losses(model).values()).backward()
    for twin in copies(model):
        sum(all_losses(twin).values()).backward()
        assert torch.isfinite(twin.box_head.logits.weight.grad).all()


# --- inference mode ---------------------------------------------------------------------------------------------------


def test_inference_mode_gives_the_same_and_the_model_trains_afterwards() -> None:
    """What is made inside inference mode, as anchors that are kept, could not enter autograd later."""
    model = small()
    untouched = all_losses(small())
    model.eval()
    with torch.inference_mode():
        inside = model(images(*SIZES), SIZES, FACTORS)
        model.losses(images(*SIZES), SIZES, targets())
    for a, b in zip(inside, model(images(*SIZES), SIZES, FACTORS), strict=True):
        assert a.boxes.is_inference() and not b.boxes.is_inference()
        assert_equal(a, Detections(b.boxes.detach(), b.scores.detach(), b.labels))
    losses = all_losses(model.train())
    assert_close(losses, untouched, rtol=0, atol=0)
    sum(losses.values()).backward()
    assert model.rpn_head.deltas.weight.grad.abs().sum() > 0


def test_a_model_that_is_built_in_inference_mode_detects() -> None:
    with torch.inference_mode():
        model = small().eval()
    expected = small().eval()(images(*SIZES), SIZES, FACTORS)
    for a, b in zip(model(images(*SIZES), SIZES, FACTORS), expected, strict=True):
        assert_equal(a, Detections(b.boxes.detach(), b.scores.detach(), b.labels))


def test_a_detectors_results_may_be_changed_in_place(detector: Detector) -> None:
    result = detector.detect(picture(1))
    result.boxes.mul_(2).requires_grad_()
    (result.boxes.sum() * 2).backward()


def test_results_that_were_given_stay_as_they_are(detector: Detector) -> None:
    """An iterator's pictures of one size, which could share a buffer."""
    results = detector.detect(iter([picture(1), 255 - picture(1), picture(1)]))
    first = next(results)
    kept = copy.deepcopy(first)
    next(results).boxes.zero_()
    assert_equal(first, kept)
    assert_equal(next(results), kept)
    assert_equal(first, kept)


# --- what the caller has switched on ----------------------------------------------------------------------------------


@contextmanager
def switched(switch: Callable, new: object, old: object) -> Iterator[None]:
    switch(new)
    try:
        yield
    finally:
        switch(old)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "float64 by default": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16 by default": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "another device by default": lambda: switched(torch.set_default_device, "meta", None),
    "another device in a block": lambda: torch.device("meta"),
    "autocast": functools.partial(torch.autocast, "cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": lambda: torch.set_grad_enabled(False),
    "anomaly detection": torch.autograd.detect_anomaly,
    "deterministic algorithms": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "OpenCV without threads": lambda: switched(cv2.setNumThreads, 0, cv2.getNumThreads()),
    "OpenCV with threads": lambda: switched(cv2.setNumThreads, 3, cv2.getNumThreads()),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_detection_is_the_same_whatever_the_caller_has_switched_on(detector: Detector, name: str) -> None:
    state = detector.model.state_dict()
    fast = detector.optimized()
    expected = [found.detect(picture(1)) for found in (detector, fast)]
    with SURROUNDINGS[name]():
        results = [found.detect(picture(1)) for found in (detector, detector.optimized())]
        results += [load(detector.config, state, "cpu").detect(picture(1)), fast.detect(picture(1))]
    for result, wanted in zip(results, [*expected, *expected], strict=True):
        assert_equal(result, wanted)
        tensors = (result.boxes, result.scores, result.labels)
        assert [values.dtype for values in tensors] == [torch.float32, torch.float32, torch.int64]
        assert all(values.device.type == "cpu" and not values.is_inference() for values in tensors)


@pytest.mark.parametrize("kind", ["l1", "giou"])
@pytest.mark.parametrize("name", [name for name in SURROUNDINGS if "default" in name or "block" in name])
def test_losses_and_gradients_are_the_same_whatever_torchs_defaults_are(name: str, kind: str) -> None:
    model = small(f"rpn.box_loss.kind={kind}", f"box_head.box_loss.kind={kind}")
    batch, objects = images(*SIZES), targets()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        torch.manual_seed(1)
        losses = model.losses(batch, SIZES, objects)
        return losses, list(torch.autograd.grad(sum(losses.values()), weights))

    expected = step()
    with SURROUNDINGS[name]():
        found = step()
    assert_close(found, expected, rtol=0, atol=0)


# --- pictures that cannot be read, among others -----------------------------------------------------------------------


def test_an_error_among_several_pictures_names_the_one(detector: Detector, tmp_path: Path) -> None:
    grey, missing = np.zeros((40, 50), np.uint8), tmp_path / "none.jpg"
    with pytest.raises(ValueError, match=r"^Picture 1 \(the first is 0\): An image array must be uint8 .* \[40, 50\]"):
        detector.detect([picture(1), grey, picture(2)])
    with pytest.raises(TypeError, match=r"^Picture 2 .*: An image must be a path or a uint8 array .*, got NoneType"):
        detector.detect((picture(1), picture(2), None))
    with pytest.raises(FileNotFoundError, match=f"^No image file {missing}$"):
        detector.detect([picture(1), missing])
    results = detector.detect(iter([picture(1), grey]))
    assert_equal(next(results), detector.detect(picture(1)))
    with pytest.raises(ValueError, match=r"^Picture 1 "):
        next(results)

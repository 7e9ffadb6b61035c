"""detector.compiled(): the results of the detector that it was made from, for any shape, threshold and thread."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from tiny_training import SETTINGS, small_resnet
from torch.testing import assert_close

from fastrcnn.config import load_config
from fastrcnn.detector import Detector, load
from fastrcnn.models import Detections


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    """Random weights: every class has a probability near 1/3 everywhere, so there are always detections."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(SETTINGS)
    with small_resnet():
        torch.manual_seed(0)
        yield load(load_config(path), checkpoint=False, device="cpu")


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are recorded and run as they are: compiling each takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def picture(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.names == expected.names
    assert_close((found.boxes, found.scores), (expected.boxes, expected.scores), rtol=1e-4, atol=1e-2)


def test_the_same_detections_of_kernels_that_pytorch_writes(detector: Detector) -> None:
    detector = detector.optimized()
    compiled = detector.compiled()
    assert isinstance(compiled, Detector) and compiled.model is detector.model
    assert (compiled.config, compiled.classes) == (detector.config, detector.classes)
    for seed in range(2):
        expected = detector.detect(picture(seed))
        assert len(expected) > 10
        assert_same(compiled.detect(picture(seed)), expected)


@pytest.mark.usefixtures("without_kernels")
def test_shapes_and_thresholds(detector: Detector) -> None:
    """One graph per padded shape, and one for all thresholds below the config's."""
    compiled = detector.compiled()
    pictures = [picture(0), picture(1), picture(2, 120, 60)]
    scores = detector.detect(pictures[0], 0).scores
    middle, low = scores[len(scores) // 2].item(), detector.model.score_threshold / 2
    assert middle > detector.model.score_threshold
    counts = set()
    for each in pictures:
        for threshold in (0.05, middle, 1.0, low, 0.0):
            expected = detector.detect(each, threshold)
            counts.add(len(expected))
            assert_same(compiled.detect(each, threshold), expected)
    assert len(counts) > 2 and 0 in counts
    assert len(compiled._graphs) == 2 * 2


@pytest.mark.usefixtures("without_kernels")
def test_more_detectors_and_shapes_than_pytorch_compiles_of_one_function(detector: Detector) -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            compiled = detector.compiled()
            for each in (picture(0), picture(1, 120, 60)):
                assert_same(compiled.detect(each), detector.detect(each))


@pytest.mark.usefixtures("without_kernels")
def test_copies_and_pickles(detector: Detector) -> None:
    compiled = copy.deepcopy(detector).compiled()
    expected = compiled.detect(picture(0))
    assert copy.copy(compiled).model is compiled.model and not copy.copy(compiled)._graphs
    others = copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))
    with torch.no_grad():
        compiled.model.box_head.logits.bias[-1] += 0.5  # the background's; weights changed in place take effect
    plain = Detector(compiled.model, compiled.config, compiled.classes)
    changed = compiled.detect(picture(0))
    assert_same(changed, plain.detect(picture(0)))
    assert len(changed) > 0 and changed.scores[0] < expected.scores[0]
    for other in others:
        assert type(other) is type(compiled) and not other._graphs
        assert_same(other.detect(picture(0)), expected)


@pytest.mark.usefixtures("without_kernels")
def test_threads_take_turns(detector: Detector) -> None:
    """Also with the compilation, which several threads ask for at once."""
    compiled = detector.compiled()
    jobs = [(picture(seed, *((90, 120), (120, 60))[seed % 2]), 0.05) for seed in range(8)]
    expected = [detector.detect(*job) for job in jobs]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found, wanted in zip(pool.map(lambda job: compiled.detect(*job), jobs), expected, strict=True):
            assert_same(found, wanted)
    assert len(compiled._graphs) == 2

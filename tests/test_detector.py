"""The detector: numbers on a photo, inputs, outputs, errors, class names, downloads."""

import copy
import hashlib
import json
import pickle
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden_recipe import GOLDEN, checkpoint
from torch.testing import assert_close

from fastrcnn.class_names import COCO_CATEGORY_IDS, COCO_CLASSES, category_ids, class_names
from fastrcnn.config import Config, load_config
from fastrcnn.detector import Detector, load
from fastrcnn.models import Detections, build_model

TINY = [
    "model.backbone.depth=18",
    "model.fpn.channels=32",
    "model.rpn.channels=32",
    "model.box_head.channels=64",
    "model.box_head.num_classes=3",
    "model.rpn.test_proposals.post_nms=100",
    "data.test.scale=[160,120]",
    "published.checkpoint=null",
    "published.sha256=null",
]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("faster_rcnn_r50_fpn_1x_coco", TINY)


@pytest.fixture(scope="module")
def detector(config: Config) -> Detector:
    """Random weights: every class has a probability near 1/4 everywhere, so there are always detections."""
    torch.manual_seed(0)
    return load(config, checkpoint=False, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    photo = cv2.imread(str(GOLDEN / "coffee.png"))
    return [photo, np.ascontiguousarray(photo[::-1, :250]), np.full((50, 300, 3), 200, np.uint8)]


def assert_same(a: Detections, b: Detections) -> None:
    assert_close((a.boxes, a.scores, a.labels), (b.boxes, b.scores, b.labels), rtol=0, atol=0)
    assert a.names == b.names


# --- detect -----------------------------------------------------------------------------------------------------------


def test_a_photo_gives_the_detections_of_the_reference() -> None:
    """The whole path from the file, with the golden weights (golden/README.md)."""
    name = "faster_rcnn_r50_fpn_1x_coco"
    golden = np.load(GOLDEN / f"photo_coffee_{name}.npz")
    config = load_config(name, [f"data.test.scale={golden['scale'].tolist()}"])
    result = load(config, checkpoint(name), "cpu").detect(GOLDEN / "coffee.png")
    assert_close(result.scores, torch.from_numpy(golden["det_scores"]).sort(descending=True)[0], rtol=0, atol=1e-4)
    distance = (result.boxes[:, None] - torch.from_numpy(golden["det_boxes"])).abs().amax(2)
    same = (distance < 0.05) & (result.labels[:, None] == torch.from_numpy(golden["det_labels"]))
    assert same.any(0).float().mean() > 0.97 and same.any(1).float().mean() > 0.97  # ties at the cut may differ
    assert set(result.names) <= set(COCO_CLASSES)


def test_result_of_one_picture(detector: Detector, pictures: list[np.ndarray]) -> None:
    result = detector.detect(pictures[0])
    height, width = pictures[0].shape[:2]
    count = len(result)
    assert 0 < count <= 100
    assert result.boxes.shape == (count, 4) and result.boxes.dtype == torch.float32
    assert result.scores.shape == (count,) and result.scores.dtype == torch.float32
    assert result.labels.shape == (count,) and result.labels.dtype == torch.int64
    assert result.names == [f"class_{label}" for label in result.labels.tolist()]
    assert result.boxes.device.type == "cpu"
    assert (result.scores > 0.05).all() and (result.scores.diff() <= 0).all()
    assert (result.boxes >= 0).all() and (result.boxes <= torch.tensor([width, height] * 2) + 1e-3).all()
    assert result.boxes[:, 2].max() > 200  # original pixels, not those of the network's 160 x 107


def test_results_can_be_changed_and_enter_autograd(detector: Detector, pictures: list[np.ndarray]) -> None:
    result = detector.detect(pictures[0])
    result.boxes += 1
    (result.scores * torch.ones(1, requires_grad=True)).sum().backward()


def test_path_list_and_iterator_give_what_each_picture_gives_alone(
    detector: Detector, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), picture)
    alone = [detector.detect(picture) for picture in pictures]
    mixed = detector.detect([str(paths[0]), paths[1], pictures[2]])
    assert isinstance(mixed, list)
    for results in (mixed, detector.detect(tuple(paths)), list(detector.detect(iter(paths)))):
        assert len(results) == 3
        for result, expected in zip(results, alone, strict=True):
            assert_same(result, expected)
    assert detector.detect([]) == []


def test_an_iterator_is_read_one_picture_at_a_time(detector: Detector, pictures: list[np.ndarray]) -> None:
    taken = []

    def frames():
        for number in range(1000):
            taken.append(number)
            yield pictures[2]

    results = detector.detect(frames())
    assert taken == []
    next(results), next(results)
    assert taken == [0, 1]


def test_score_threshold_is_exclusive_and_may_be_below_the_configs(
    detector: Detector, pictures: list[np.ndarray]
) -> None:
    standard = detector.detect(pictures[0])
    middle = standard.scores[len(standard) // 2].item()
    some = detector.detect(pictures[0], score_threshold=middle)
    kept = standard.scores > middle
    assert 0 < len(some) < len(standard)
    assert_close(some.boxes, standard.boxes[kept], rtol=0, atol=0)
    assert len(detector.detect(pictures[0], score_threshold=1)) == 0
    assert detector.detect(pictures[0], score_threshold=1).boxes.shape == (0, 4)

    strict = copy.deepcopy(detector)
    strict.model.score_threshold = 0.9  # as from a config
    assert_same(strict.detect(pictures[0], score_threshold=0.05), standard)
    assert strict.model.score_threshold == 0.9


def test_resizing_on_the_device_changes_nothing(detector: Detector, pictures: list[np.ndarray]) -> None:
    config = copy.deepcopy(detector.config)
    config.data.test.resize = "device"
    other = Detector(detector.model, config, detector.classes)
    for picture in pictures:
        assert_same(other.detect(picture), detector.detect(picture))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_an_error(detector: Detector, threshold: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {threshold}"):
        detector.detect(np.zeros((50, 50, 3), np.uint8), score_threshold=threshold)


def test_threads_share_a_detector(detector: Detector, pictures: list[np.ndarray]) -> None:
    jobs = [(picture, threshold) for picture in pictures for threshold in (0.05, 0.26)]
    expected = [detector.detect(*job) for job in jobs]
    results: list[Detections | None] = [None] * len(jobs)

    def work(index: int) -> None:
        results[index] = detector.detect(*jobs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        assert_close(result.boxes, wanted.boxes)


def test_copies_and_pickles_detect_the_same(detector: Detector, pictures: list[np.ndarray]) -> None:
    expected = detector.detect(pictures[0])
    for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert_same(twin.detect(pictures[0]), expected)
        assert twin.classes == detector.classes


def test_training_goes_on_after_detecting(config: Config, pictures: list[np.ndarray]) -> None:
    """Nothing that detection made under inference mode is left in the model."""
    detector = load(config, checkpoint=False, device="cpu")
    detector.detect(pictures[2])
    model = detector.model.train()
    target = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])}
    sum(model.losses(torch.rand(1, 3, 96, 128), [(96, 128)], [target]).values()).backward()
    assert model.box_head.logits.weight.grad.abs().sum() > 0


def test_half_precision_detects_what_single_precision_does(config: Config, pictures: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    half = load(config, checkpoint=False, device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    result = half.detect(pictures[0])
    assert result.boxes.dtype == result.scores.dtype == torch.float32
    torch.manual_seed(0)
    single = load(config, checkpoint=False, device="cpu").detect(pictures[0])
    assert len(result) and abs(result.scores[0] - single.scores[0]) < 0.05


# --- inputs that are not pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((0, 10, 3), np.uint8), ValueError, r"empty.*\[0, 10, 3\]"),
        (np.zeros((10, 10), np.uint8), ValueError, r"uint8 \[height, width, 3\].*\[10, 10\]"),
        (np.zeros((10, 10, 4), np.uint8), ValueError, r"\[10, 10, 4\]"),
        (np.full((10, 10, 3), np.nan, np.float32), ValueError, "uint8.*float32"),
        (torch.zeros(3, 10, 10), TypeError, "uint8 BGR array.*Tensor"),
        (None, TypeError, "NoneType"),
        (b"photo.jpg", TypeError, "bytes"),
        ("missing.jpg", FileNotFoundError, "missing.jpg"),
    ],
)
def test_what_is_not_a_picture_is_an_error(detector: Detector, image: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        detector.detect(image)


def test_broken_files_are_errors_that_name_them(detector: Detector, pictures: list[np.ndarray], tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", pictures[0])[1].tobytes()
    for name, content in (("short.jpg", jpeg[: len(jpeg) // 2]), ("text.jpg", b"not an image"), ("nothing.jpg", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            detector.detect(path)


# --- load -------------------------------------------------------------------------------------------------------------


def test_class_names_come_from_checkpoint_then_config_then_coco_then_numbers(config: Config) -> None:
    state = build_model(config.model).state_dict()
    named = load_config("faster_rcnn_r50_fpn_1x_coco", [*TINY, "data.classes=[x,y,z]"])
    assert load(named, {"model": state, "classes": ["a", "b", "c"]}, "cpu").classes == ["a", "b", "c"]
    mmdet = {"state_dict": state, "meta": {"CLASSES": ("d", "e", "f")}}
    assert load(named, mmdet, "cpu").classes == ["d", "e", "f"]
    assert load(named, state, "cpu").classes == ["x", "y", "z"]
    assert load(config, state, "cpu").classes == ["class_0", "class_1", "class_2"]
    assert class_names(80) == COCO_CLASSES
    assert (COCO_CLASSES[0], COCO_CLASSES[62], COCO_CLASSES[79]) == ("person", "tv", "toothbrush")
    with pytest.raises(ValueError, match=r"num_classes is 3.* 2 class names \(a, b\)"):
        class_names(3, ["a", "b"])


def test_coco_names_and_category_ids_are_those_of_coco(shared: Path) -> None:
    categories = json.loads((shared / "data/coco_photos/instances.json").read_text())["categories"]
    assert [(c["name"], c["id"]) for c in categories] == list(zip(COCO_CLASSES, COCO_CATEGORY_IDS, strict=True))
    assert category_ids(COCO_CLASSES) == COCO_CATEGORY_IDS
    assert category_ids(["x", "y"]) == [1, 2]


def test_a_checkpoint_file_is_loaded(config: Config, pictures: list[np.ndarray], tmp_path: Path) -> None:
    model = build_model(config.model)
    torch.save({"model": model.state_dict(), "classes": ["a", "b", "c"]}, tmp_path / "best.pth")
    loaded = load(config, tmp_path / "best.pth", "cpu")
    assert_same(loaded.detect(pictures[1]), Detector(model, config, ["a", "b", "c"]).detect(pictures[1]))
    assert not loaded.model.training


def test_a_checkpoint_of_another_model_is_an_error(config: Config) -> None:
    state = build_model(config.model).state_dict()
    first = next(iter(state))
    with pytest.raises(ValueError, match=rf"lacks 1 of .* {first}"):
        load(config, {name: value for name, value in state.items() if name != first}, "cpu")
    other = load_config("faster_rcnn_r50_fpn_1x_coco", [*TINY, "model.box_head.num_classes=7"])
    with pytest.raises(ValueError, match=r"3 classes.* 7"):
        load(other, state, "cpu")
    with pytest.raises(TypeError, match="got True"):
        load(config, True, "cpu")


def test_devices_and_types_that_cannot_be_used(config: Config) -> None:
    for device, message in (("gpu", "cuda:<number>"), ("meta", "cpu and cuda"), ("cuda:99", "torch sees")):
        with pytest.raises(ValueError, match=message):
            load(config, False, device)
    with pytest.raises(ValueError, match=r"float16.*int8"):
        load(config, False, "cpu", torch.int8)


@pytest.fixture
def published(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path, Path]:
    """A config whose checkpoint is published at a file: URL; that file; where the cache keeps it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    file = tmp_path / "model-12345678.pth"
    torch.save({"model": build_model(config.model).state_dict(), "classes": ["a", "b", "c"]}, file)
    own = copy.deepcopy(config)
    own.published.checkpoint = file.as_uri()
    own.published.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return own, file, tmp_path / "cache" / "hub" / "checkpoints" / file.name


def test_the_published_checkpoint_is_downloaded_once(published: tuple[Config, Path, Path]) -> None:
    config, file, cached = published
    assert load(config, device="cpu").classes == ["a", "b", "c"]
    assert cached.read_bytes() == file.read_bytes()
    file.unlink()
    assert load(config, device="cpu").classes == ["a", "b", "c"]


def test_a_download_with_another_hash_is_not_kept(published: tuple[Config, Path, Path]) -> None:
    config, file, cached = published
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=config.published.sha256):
        load(config, device="cpu")
    assert not cached.exists()
    cached.write_bytes(b"put here by hand")
    with pytest.raises(ValueError, match=f"{cached.name} is not the file.*Delete it"):
        load(config, device="cpu")


def test_without_network_the_error_says_where_to_put_the_file(published: tuple[Config, Path, Path]) -> None:
    config, _, cached = published
    config.published.checkpoint = f"http://127.0.0.1:9/{cached.name}"  # nobody listens there
    with pytest.raises(ConnectionError, match=f"put it at {cached}"):
        load(config, device="cpu")
    config.published.checkpoint = None
    with pytest.raises(ValueError, match="no published checkpoint"):
        load(config, device="cpu")

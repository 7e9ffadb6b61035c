"""COCO metrics against pycocotools on the annotation files themselves; VOC AP against hand-computed cases."""

import contextlib
import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from fastrcnn.config import Config
from fastrcnn.data.coco import read_coco
from fastrcnn.data.sample import Dataset, Sample, make_sample
from fastrcnn.evaluation import coco_metrics, coco_results, detect_dataset, evaluate, voc_ap
from fastrcnn.evaluation.coco import METRICS, evaluate_coco
from fastrcnn.evaluation.evaluate import metrics_table
from fastrcnn.evaluation.proposals import proposal_recall
from fastrcnn.models.detections import Detections

# --- helpers ----------------------------------------------------------------------------------------------------------


def found(*rows: tuple[list[float], float, int]) -> Detections:
    """(box, score, label) rows -> Detections."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def image(image_id: int, objects: list[tuple[list[float], int]], **flags: list[bool]) -> Sample:
    boxes, labels = [box for box, _ in objects], [label for _, label in objects]
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    return make_sample(image_id, Path(f"{image_id}.jpg"), (200, 200), boxes, labels, areas, **flags)


def dataset(*samples: Sample, classes: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    return Dataset("synthetic", list(classes), list(range(1, len(classes) + 1)), list(samples))


def imperfect(data: Dataset, seed: int = 0) -> dict[int, Detections]:
    """Detections made from the objects: moved, some missed, some doubled, some of another class, and false ones."""
    random = np.random.default_rng(seed)
    detections = {}
    for sample in data.samples:
        sizes = np.tile(sample.boxes[:, 2:] - sample.boxes[:, :2], 2)
        boxes = np.concatenate([sample.boxes + random.normal(0, spread, sizes.shape) * sizes for spread in (0.03, 0.1)])
        labels = np.tile(sample.labels, 2)
        kept = random.random(len(labels)) < 0.7
        wrong = random.random(len(labels)) < 0.1
        labels = np.where(wrong, random.integers(len(data.classes), size=len(labels)), labels)[kept]
        false = random.random((3, 2)) * [sample.width, sample.height]
        boxes = np.concatenate([boxes[kept], np.concatenate([false, false + 40], 1)])
        labels = np.concatenate([labels, random.integers(len(data.classes), size=3)])
        scores = random.random(len(labels)).round(2)  # some tie
        order = np.argsort(-scores, kind="stable")
        detections[sample.image_id] = found(*zip(boxes[order].tolist(), scores[order], labels[order], strict=True))
    return detections


def pycocotools_metrics(annotations: Path, results: list[dict]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("data/bccd/val.json", "data/bccd/JPEGImages"), ("data/coco_photos/instances.json", "data/coco_photos/images")],
)
def test_coco_metrics_equal_those_of_the_annotation_file(shared: Path, annotations: str, images: str) -> None:
    data = read_coco(shared / annotations, shared / images)
    detections = imperfect(data)
    expected = pycocotools_metrics(shared / annotations, json.loads(json.dumps(coco_results(data, detections))))
    assert 0.1 < expected[0] < 0.9  # else the comparison would say little
    metrics = coco_metrics(data, detections)
    assert list(metrics) == list(METRICS)
    np.testing.assert_allclose(list(metrics.values()), expected, rtol=0, atol=1e-9)


def test_coco_metrics_equal_those_of_a_file_with_crowds_and_gaps_in_its_ids(tmp_path: Path) -> None:
    annotations = {
        "images": [{"id": id, "file_name": f"{id}.jpg", "width": 200, "height": 200} for id in (30, 7, 900)],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 5, "image_id": 30, "category_id": 3, "bbox": [10, 10, 50.5, 20.25], "area": 700.5, "iscrowd": 0},
            {"id": 6, "image_id": 30, "category_id": 3, "bbox": [80, 80, 100, 100], "area": 5000, "iscrowd": 1},
            {"id": 9, "image_id": 7, "category_id": 44, "bbox": [0, 0, 30, 30], "area": 900, "iscrowd": 0},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(annotations))
    for entry in annotations["images"]:
        (tmp_path / entry["file_name"]).touch()
    data = read_coco(file, tmp_path)
    car, bottle = data.classes.index("car"), data.classes.index("bottle")
    detections = {
        30: found(([11, 11, 60, 30], 0.9, car), ([85, 85, 120, 120], 0.95, car), ([90, 90, 130, 130], 0.8, car)),
        7: found(([0, 0, 30, 25], 0.7, bottle), ([100, 100, 120, 120], 0.75, bottle)),
        900: found(([0, 0, 50, 50], 0.99, car)),  # an image without objects: a false positive
    }
    results = coco_results(data, detections)
    assert {result["category_id"] for result in results} == {3, 44}
    metrics = evaluate_coco(data, detections)
    np.testing.assert_allclose(list(metrics.metrics.values()), pycocotools_metrics(file, results), rtol=0, atol=1e-9)
    # Detections in the crowd are ignored, the one in the empty image is not: the car is found with precision 1/2.
    assert coco_metrics(data, {30: detections[30]})["AP50"] == pytest.approx(0.5)
    assert metrics.per_class["car"] == pytest.approx(0.5 * coco_class_ap_without(data, detections, 900, "car"))


def test_coco_difficult_objects_are_neither_missed_nor_wrong() -> None:
    """A large difficult dog: two detections of it are ignored; a small one within it is false, as in a crowd it is not.

    So the other dog is found with precision 1/2: not 1/4 (no flag), 1/3 (one detection ignored) or 1 (a crowd)."""
    large, other = [0, 0, 100, 100], [120, 120, 150, 150]
    rows = [(large, 0.9, 1), ([0.5, 0, 100, 100], 0.8, 1), ([10, 10, 20, 20], 0.7, 1), (other, 0.6, 1)]
    detections = {1: found(*rows)}
    objects = [(large, 1), (other, 1)]
    data = dataset(image(1, objects, difficult=[True, False]))
    result = evaluate_coco(data, detections)
    assert result.metrics["AP"] == result.metrics["AP75"] == result.per_class["dog"] == pytest.approx(0.5)
    assert result.metrics["AR100"] == 1 and result.metrics["APl"] == -1  # the large one is not wanted
    np.testing.assert_allclose(result.precision[:, :, 1], 0.5)
    crowd = dataset(image(1, objects, crowd=[True, False]))
    both = dataset(image(1, objects, crowd=[True, False], difficult=[True, False]))
    assert coco_metrics(crowd, detections)["AP"] == coco_metrics(both, detections)["AP"] == pytest.approx(1)
    missed = coco_metrics(data, {1: found(rows[3])})
    assert missed["AP"] == pytest.approx(1) and missed["AR100"] == 1
    proposals = {1: found(rows[3])}
    assert proposal_recall(data, proposals)["AR@100"] == 1  # whose judge does not look at classes
    assert proposal_recall(dataset(image(1, objects)), proposals)["AR@100"] == 0.5
    only = dataset(image(1, objects[:1], difficult=[True]))
    assert set(coco_metrics(only, detections).values()) == {-1.0}


def test_coco_an_object_goes_before_a_difficult_one_that_overlaps_more() -> None:
    """pycocotools' order, as for crowds."""
    difficult, other = [0, 0, 100, 100], [0, 0, 100, 80]
    data = dataset(image(1, [(difficult, 0), (other, 0)], difficult=[True, False]))
    assert coco_metrics(data, {1: found(([0, 0, 100, 95], 0.9, 0))})["AP50"] == pytest.approx(1)


def coco_class_ap_without(data: Dataset, detections: dict[int, Detections], image_id: int, name: str) -> float:
    return evaluate_coco(data, {id: d for id, d in detections.items() if id != image_id}).per_class[name]


def test_coco_results_are_unrounded_xywh() -> None:
    data = replace(dataset(image(1, []), image(2, [])), category_ids=[7, 90])
    box = [0.1, 0.2, 33.333333, 44.444444]
    results = coco_results(data, {2: found((box, 0.123456, 1)), 1: found()})
    x1, y1, x2, y2 = torch.tensor(box).tolist()
    assert results == [
        {
            "image_id": 2,
            "category_id": 90,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": torch.tensor(0.123456).item(),
        }
    ]


def test_coco_metrics_without_detections_are_zero_and_without_objects_undefined() -> None:
    data = dataset(image(1, [([0, 0, 20, 20], 0)]), image(2, [([0, 0, 50, 50], 0)]))
    for detections in ({}, {1: found()}):
        metrics = evaluate_coco(data, detections)
        assert metrics.metrics["AP"] == metrics.metrics["AR100"] == metrics.metrics["APs"] == 0
        assert metrics.metrics["APl"] == -1  # no object is large
        assert metrics.per_class == {"cat": 0, "dog": -1}
    empty = dataset(image(1, []))
    assert set(coco_metrics(empty, {1: found(([0, 0, 9, 9], 0.5, 0))}).values()) == {-1.0}


def test_coco_class_ap_belongs_to_its_class_in_any_order() -> None:
    """pycocotools sorts categories by id; labels may be in another order."""
    data = replace(dataset(image(1, [([0, 0, 20, 20], 0), ([50, 0, 70, 20], 1)])), category_ids=[9, 2])
    assert evaluate_coco(data, {1: found(([0, 0, 20, 20], 0.9, 0))}).per_class == {"cat": pytest.approx(1), "dog": 0}


def test_coco_metrics_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    coco_metrics(dataset(image(1, [([0, 0, 20, 20], 0)])), {1: found(([0, 0, 20, 20], 0.5, 0))})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("measure", [coco_metrics, coco_results, voc_ap])
def test_detections_of_another_dataset_are_an_error(measure) -> None:
    data = dataset(image(1, [([0, 0, 20, 20], 0)]))
    with pytest.raises(ValueError, match="image id 5"):
        measure(data, {5: found()})
    with pytest.raises(ValueError, match=r"label 2.* 2 classes"):
        measure(data, {1: found(([0, 0, 20, 20], 0.5, 2))})


# --- VOC --------------------------------------------------------------------------------------------------------------

A, B, C, D = [0, 0, 10, 10], [50, 0, 60, 10], [0, 50, 10, 60], [50, 50, 60, 60]
NOWHERE = [100, 100, 110, 110]


def test_voc_ap_of_a_hand_computed_curve() -> None:
    """Four objects; by score TP, FP, FP (a duplicate), TP, TP: precision 1, 1/2, 1/3, 1/2, 3/5."""
    data = dataset(image(1, [(A, 0), (B, 0)]), image(2, [(C, 0), (D, 0)]), classes=("cat",))
    detections = {
        1: found((A, 0.9, 0), (NOWHERE, 0.8, 0), ([0, 0, 10, 9], 0.7, 0)),
        2: found((C, 0.6, 0), (D, 0.5, 0)),
    }
    result = voc_ap(data, detections)
    assert result["mAP"] == pytest.approx(0.25 * 1 + 0.25 * 3 / 5 + 0.25 * 3 / 5)  # at recall 1/2 the later 3/5 counts
    assert result["per_class"] == {"cat": result["mAP"]}
    # Recall 0, 0.1, 0.2: precision 1 (3 points); 0.3 to 0.7: 3/5 (5 points); 0.8, 0.9, 1: 0.
    assert voc_ap(data, detections, eleven_point=True)["mAP"] == pytest.approx((3 * 1 + 5 * 3 / 5) / 11)


def test_voc_eleven_points_count_a_recall_that_is_exactly_on_a_point() -> None:
    """3 of 10 objects: recall 3/10 reaches the point 0.3, though 3 * 0.1 > 3 / 10 in binary."""
    objects = [([20 * i, 0, 20 * i + 10, 10], 0) for i in range(10)]
    data = dataset(image(1, objects), classes=("cat",))
    detections = {1: found(*[(box, 0.9, 0) for box, _ in objects[:3]])}
    assert voc_ap(data, detections, eleven_point=True)["mAP"] == pytest.approx(4 / 11)


def test_voc_difficult_objects_are_neither_wanted_nor_wrong() -> None:
    data = dataset(image(1, [(A, 0), (B, 0)], difficult=[False, True]), classes=("cat",))
    assert voc_ap(data, {1: found((B, 0.9, 0), (B, 0.8, 0), (A, 0.7, 0))})["mAP"] == 1
    assert voc_ap(data, {1: found((NOWHERE, 0.9, 0), (A, 0.7, 0))})["mAP"] == 0.5
    only_difficult = dataset(image(1, [(B, 0)], difficult=[True]), classes=("cat",))
    assert voc_ap(only_difficult, {1: found((B, 0.9, 0))}) == {"mAP": -1, "per_class": {"cat": -1}}


def test_voc_a_detection_belongs_to_the_object_it_overlaps_most() -> None:
    """Its best object is taken already: a false positive, even if it overlaps another object enough."""
    near, other = [0, 0, 10, 10], [0, 2, 10, 12]
    data = dataset(image(1, [(near, 0), (other, 0)]), classes=("cat",))
    result = voc_ap(data, {1: found((near, 0.9, 0), ([0, 0.5, 10, 10.5], 0.8, 0))})
    assert result["mAP"] == 0.5


def test_voc_the_threshold_is_inclusive_and_classes_are_apart() -> None:
    data = dataset(image(1, [(A, 0), (B, 1)]))
    half = [0, 0, 10, 5]  # IoU exactly 0.5
    assert voc_ap(data, {1: found((half, 0.9, 0))})["per_class"] == {"cat": 1, "dog": 0}
    assert voc_ap(data, {1: found((half, 0.9, 0))}, iou_threshold=0.51)["mAP"] == 0
    assert voc_ap(data, {1: found((A, 0.9, 1), (B, 0.9, 0))})["mAP"] == 0
    assert voc_ap(data, {1: found((A, 0.9, 0), (B, 0.1, 1))})["mAP"] == 1


def test_voc_without_detections_is_zero_and_images_without_objects_count() -> None:
    data = dataset(image(1, [(A, 0)]), image(2, []), classes=("cat",))
    assert voc_ap(data, {})["mAP"] == voc_ap(data, {2: found()})["mAP"] == 0
    assert voc_ap(data, {1: found((A, 0.8, 0)), 2: found((A, 0.9, 0))})["mAP"] == 0.5


def devkit_ap(data: Dataset, detections: dict[int, Detections], label: int) -> tuple[float, float]:
    """(area, 11 points) of one class: the devkit's loops over detections (VOCevaldet.m), its curve (VOCap.m), written
    out one number at a time, with exact fractions for the recall; boxes continuous."""
    rows = []
    for image_id, d in detections.items():
        own = d.labels == label
        rows += [
            (score, image_id, box) for score, box in zip(d.scores[own].tolist(), d.boxes[own].tolist(), strict=True)
        ]
    rows.sort(key=lambda row: -row[0])
    truth = {}
    for sample in data.samples:
        own = sample.labels == label
        truth[sample.image_id] = list(zip(sample.boxes[own].tolist(), sample.difficult[own].tolist(), strict=True))
    wanted = sum(not difficult for objects in truth.values() for _, difficult in objects)
    taken, curve, positives, negatives = set(), [], 0, 0
    for _, image_id, (x1, y1, x2, y2) in rows:
        largest, best = -1.0, None
        for k, ((a1, b1, a2, b2), _) in enumerate(truth[image_id]):
            width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            if width > 0 and height > 0:
                overlap = width * height
                overlap /= (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap
                if overlap > largest:
                    largest, best = overlap, k
        if largest >= 0.5 and truth[image_id][best][1]:
            continue
        if largest >= 0.5 and (image_id, best) not in taken:
            taken.add((image_id, best))
            positives += 1
        else:
            negatives += 1
        curve.append((Fraction(positives, wanted), positives / (positives + negatives)))
    eleven = sum(max((p for r, p in curve if r >= Fraction(k, 10)), default=0.0) for k in range(11)) / 11
    area, before = 0.0, Fraction(0)
    for recall in sorted({r for r, _ in curve}):
        area += float(recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area, eleven


@pytest.mark.parametrize("seed", range(4))
def test_voc_against_the_devkits_loops(seed: int) -> None:
    """Random scenes with difficult objects, duplicates, false detections, images that have nothing."""
    random = np.random.default_rng(seed)
    samples = []
    for image_id in range(1, 25):
        count = int(random.integers(0, 6))
        corners = random.uniform(0, 120, (count, 2))
        boxes = np.hstack([corners, corners + random.uniform(15, 60, (count, 2))])
        objects = [(box.tolist(), int(random.integers(3))) for box in boxes]
        samples.append(image(image_id, objects, difficult=(random.random(count) < 0.3).tolist()))
    data = dataset(*samples, classes=("cat", "dog", "hen"))
    detections = imperfect(data, seed)
    for result in detections.values():  # no ties, whose order the devkit leaves open
        result.scores.add_(torch.from_numpy(random.random(len(result.scores)) * 1e-3).float())
    results = [voc_ap(data, detections, eleven_point=eleven) for eleven in (False, True)]
    expected = np.array([devkit_ap(data, detections, label) for label in range(3)])
    for result, aps in zip(results, expected.T, strict=True):
        np.testing.assert_allclose(list(result["per_class"].values()), aps, rtol=0, atol=1e-12)
        assert result["mAP"] == pytest.approx(aps.mean())
        assert 0.05 < result["mAP"] < 0.95
    plain = replace(data, samples=[replace(s, difficult=np.zeros_like(s.difficult)) for s in samples])
    assert abs(voc_ap(plain, detections)["mAP"] - results[0]["mAP"]) > 0.005  # the flag matters here


def test_voc_area_equals_coco_ap50_up_to_its_sampling(shared: Path) -> None:
    """COCO samples the same curve at 101 recalls and matches a detection to any free object."""
    data = read_coco(shared / "data/bccd/val.json", shared / "data/bccd/JPEGImages")
    detections = imperfect(data)
    assert voc_ap(data, detections)["mAP"] == pytest.approx(coco_metrics(data, detections)["AP50"], abs=0.03)


# --- a model over a dataset -------------------------------------------------------------------------------------------


class Replay(nn.Module):
    """Gives prepared detections, image by image, and notes how it was called."""

    def __init__(self, detections: list[Detections]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.detections, self.calls = list(detections), []

    def forward(self, images, image_sizes, scale_factors):
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        self.calls.append((tuple(images.shape), image_sizes, scale_factors, self.training, channels_last))
        return [self.detections.pop(0) for _ in images]


@pytest.fixture
def painted(tmp_path: Path) -> tuple[Dataset, Config]:
    """Two images on disk with one object each, and a config that doubles their size."""
    cv2 = pytest.importorskip("cv2")
    samples = []
    for image_id, size in ((1, (100, 60)), (2, (60, 100))):
        path = tmp_path / f"{image_id}.png"
        cv2.imwrite(str(path), np.full((size[1], size[0], 3), 127, np.uint8))
        samples.append(make_sample(image_id, path, size, [[10, 10, 50, 50]], [image_id - 1], [1600.0]))
    config = Config()
    config.train.workers = 0
    config.data.test.scale = [200, 120]
    return dataset(*samples), config


def test_evaluate_runs_every_image_in_evaluation_mode(painted: tuple[Dataset, Config]) -> None:
    data, config = painted
    model = Replay([found(([10, 10, 50, 50], 0.9, 0)), found(([10, 10, 50, 50], 0.8, 0))]).train()
    metrics = evaluate(model, data, config, torch.device("cpu")).metrics
    # Image 1 is found (AP 1) though image 2's false cat scores less; image 2's dog is missed (AP 0).
    assert metrics["per_class"] == {"cat": pytest.approx(1), "dog": 0}
    assert metrics["AP"] == pytest.approx(0.5)
    assert metrics["images_per_second"] > 0
    assert model.training  # as before
    assert model.calls == [
        ((1, 3, 128, 224), [(120, 200)], [(2.0, 2.0)], False, True),
        ((1, 3, 224, 128), [(200, 120)], [(2.0, 2.0)], False, True),
    ]


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_evaluate_measures_by_vocs_rules_too(painted: tuple[Dataset, Config], format: str) -> None:
    data, config = painted
    config.data.val.format = format
    model = Replay([found(([10, 10, 50, 50], 0.9, 0)), found()])
    metrics = evaluate(model, data, config, torch.device("cpu")).metrics
    assert metrics["VOC_mAP"] == metrics["VOC07_mAP"] == pytest.approx(0.5)
    assert metrics["VOC_per_class"] == metrics["VOC07_per_class"] == {"cat": 1, "dog": 0}
    table = metrics_table(metrics | {"VOC_per_class": {"cat": 0.91, "dog": -1}, "VOC07_per_class": {"cat": 0.83}})
    assert "VOC07_mAP" in table
    rows = table[table.index("VOC AP of each class") :].splitlines()
    assert rows[1].split() == ["cat", "0.910", "dog", "-"]
    assert rows[2].startswith("VOC07 AP of each class") and rows[3].split() == ["cat", "0.830"]
    assert "VOC" not in metrics_table({name: value for name, value in metrics.items() if "VOC" not in name})


def test_detect_dataset_in_batches_and_errors_name_the_file(painted: tuple[Dataset, Config]) -> None:
    data, config = painted
    model = Replay([found(), found()])
    assert list(detect_dataset(model, data, config, torch.device("cpu"), batch_size=2)) == [1, 2]
    assert len(model.calls) == 1
    data.samples[1].path.write_bytes(b"")
    model = Replay([found(), found()]).train()
    with pytest.raises(ValueError, match=r"2\.png"):
        detect_dataset(model, data, config, torch.device("cpu"))
    assert model.training


def test_metrics_table_shows_every_class_and_marks_the_undefined() -> None:
    metrics = dict.fromkeys(METRICS, 0.1234) | {"APl": -1.0, "images_per_second": 3.0}
    metrics["per_class"] = {f"class_{i}": i / 100 for i in range(80)} | {"absent": -1.0}
    table = metrics_table(metrics)
    assert all(name in table for name in metrics["per_class"])
    assert "0.123" in table and "0.790" in table and "-1" not in table
    assert max(map(len, table.splitlines())) <= 120

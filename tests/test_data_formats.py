"""One dataset in the three formats: the same batches, the same metrics, and training on each."""

import math
from pathlib import Path

import pytest
import torch
from tiny_training import small_resnet, tiny_config, write_formats

from fastrcnn.config import Config
from fastrcnn.data.loader import train_loader, training_dataset
from fastrcnn.data.read import read_dataset
from fastrcnn.data.sample import Dataset
from fastrcnn.evaluation.evaluate import evaluate_coco
from fastrcnn.models.detections import Detections
from fastrcnn.training.train import train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The six pictures of tiny_training, the first without objects, in the three formats."""
    write_formats(tmp_path, without_objects=1)
    return tmp_path


def config(root: Path, format: str, *overrides: str) -> Config:
    places = {"coco": "images/boxes.json", "voc": "Annotations", "yolo": "labels"}
    settings = [
        f"data.{split}.{key}={value}"
        for split in ("train", "val")
        for key, value in (("format", format), ("annotations", root / places[format]))
    ]
    return tiny_config(root / "images", root / format, "data.classes=[wide, tall]", *settings, *overrides)


def datasets(root: Path, *overrides: str) -> list[tuple[Config, Dataset]]:
    configs = [config(root, format, *overrides) for format in ("coco", "voc", "yolo")]
    return [(c, read_dataset(c.data.train, c.data.classes, c.data.rename)) for c in configs]


@pytest.mark.parametrize("keep_empty", [False, True])
def test_the_same_batches(root: Path, keep_empty: bool) -> None:
    found = []
    for settings, dataset in datasets(root):
        kept = training_dataset(dataset, keep_empty)
        assert len(kept.samples) == 5 + keep_empty
        found.append(list(train_loader(kept, settings, epoch=0)))
    for batches in found[1:]:
        for batch, expected in zip(batches, found[0], strict=True):
            assert torch.equal(batch.images, expected.images) and batch.image_ids == expected.image_ids
            for target, other in zip(batch.targets, expected.targets, strict=True):
                torch.testing.assert_close(target["boxes"], other["boxes"], rtol=1e-6, atol=1e-5)
                assert torch.equal(target["labels"], other["labels"])


def test_the_same_metrics(root: Path) -> None:
    """Of detections that are half of the objects, one of them shifted, and one false."""
    results = []
    for _, dataset in datasets(root):
        detections = {}
        for sample in dataset.samples[:4]:
            boxes = torch.tensor(sample.boxes, dtype=torch.float32) + 2 * (sample.image_id % 2)
            labels = torch.tensor(sample.labels)
            detections[sample.image_id] = Detections(boxes, torch.full((len(labels),), 0.5), labels)
        results.append(evaluate_coco(dataset, detections))
    assert results[0].metrics == results[1].metrics == results[2].metrics
    assert results[0].per_class == results[1].per_class == results[2].per_class
    assert 0 < results[0].metrics["AP"] < 1


def test_one_class_under_another_name(root: Path) -> None:
    overrides = ["data.rename={tall: tower}", "data.classes=[tower]"]
    found = [training_dataset(dataset) for _, dataset in datasets(root, *overrides)]
    for dataset in found:
        assert dataset.classes == ["tower"]
        assert [sample.labels.tolist() for sample in dataset.samples] == [s.labels.tolist() for s in found[0].samples]
    assert 0 < len(found[0].samples) < 6


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_training_on_images_without_objects_from_a_cache(root: Path, format: str) -> None:
    overrides = ["schedule.epochs=1", "data.train.keep_empty=true", "data.cache=resized"]
    overrides += ["data.rename={wide: broad}", "data.classes=[broad, tall]", f"data.cache_folder={root / 'cache'}"]
    with small_resnet():
        metrics = train(config(root, format, *overrides))
    assert set(metrics["per_class"]) == {"broad", "tall"} and math.isfinite(metrics["AP"])
    assert len(list((root / "cache").rglob("*.npy"))) == 6  # the scale of training is that of the test

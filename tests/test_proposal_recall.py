"""Average recall of proposals: by hand, against a plain loop, of a model's."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_evaluation import dataset, found, image, imperfect
from tiny_model import small

from fastrcnn.config import Config
from fastrcnn.data.loader import test_loader as load_for_test
from fastrcnn.data.sample import make_sample
from fastrcnn.evaluation.proposals import LIMITS, proposal_recall, propose_dataset
from fastrcnn.models.detections import Detections
from fastrcnn.ops import reference


def test_by_hand() -> None:
    """One of two objects is found exactly, the other with an IoU of 0.72: counted at 0.50, 0.55, ..., 0.70."""
    data = dataset(image(1, [([0, 0, 100, 100], 0), ([100, 100, 150, 150], 1)]))
    boxes = found(([0.0, 0, 100, 100], 0.9, 0), ([100.0, 100, 150, 136], 0.3, 1), ([5.0, 150, 9, 160], 0.2, 0))
    recall = proposal_recall(data, {1: boxes})
    assert recall["AR@100"] == recall["AR@1000"] == pytest.approx((1 + 5 / 10) / 2)
    assert recall["ARm@300"] == pytest.approx(0.5) and recall["ARl@300"] == pytest.approx(1)
    assert recall["ARs@100"] == -1  # no such object


def test_only_the_best_of_an_image_count_and_classes_do_not() -> None:
    data = dataset(image(1, [([0, 0, 50, 50], 1)]))
    boxes = torch.tensor([[100.0, 100, 120, 120]]).repeat(250, 1)
    boxes[249] = torch.tensor([0.0, 0, 50, 50])
    proposals = Detections(boxes, torch.linspace(1, 0, 250), torch.zeros(250, dtype=torch.int64))
    recall = proposal_recall(data, {1: proposals})
    assert (recall["AR@100"], recall["AR@300"], recall["AR@1000"]) == (0, pytest.approx(1), pytest.approx(1))


def test_against_a_plain_loop() -> None:
    random = np.random.default_rng(3)
    samples = []
    for i in range(20):
        corners = random.uniform(0, 150, (6, 2))
        boxes = np.hstack([corners, corners + random.uniform(5, 50, (6, 2))])
        samples.append(image(i, [(box.tolist(), int(random.integers(2))) for box in boxes]))
    data = dataset(*samples)
    proposals = imperfect(data)
    thresholds = np.linspace(0.5, 0.95, 10)
    matched = np.zeros(10)
    for sample in samples:
        best = proposals[sample.image_id]
        order = best.scores.argsort(descending=True, stable=True)
        iou = reference.box_iou(best.boxes[order].double(), torch.from_numpy(sample.boxes)).numpy()
        for t, threshold in enumerate(thresholds):
            free = np.ones(len(sample.boxes), bool)
            for row in iou:  # each proposal takes the best object that is still free
                candidate = np.where(free, row, -1).argmax()
                if free[candidate] and row[candidate] >= threshold:
                    free[candidate] = False
            matched[t] += (~free).sum()
    expected = (matched / (20 * 6)).mean()
    assert 0.2 < expected < 0.9
    assert proposal_recall(data, proposals)["AR@1000"] == pytest.approx(expected)


def test_an_empty_dataset_and_no_proposals() -> None:
    assert set(proposal_recall(dataset(image(1, [])), {}).values()) == {-1.0}
    recall = proposal_recall(dataset(image(1, [([0, 0, 100, 100], 0)])), {})
    assert [recall[f"AR@{limit}"] for limit in LIMITS] == [0, 0, 0]
    with pytest.raises(ValueError, match="image id 7"):
        proposal_recall(dataset(image(1, [])), {7: found()})


def test_proposals_of_a_model_are_boxes_in_the_original_picture(tmp_path: Path) -> None:
    """200 x 90 pixels are resized to 71 x 32: the factors differ from 1, and by rounding from each other."""
    cv2.imwrite(str(tmp_path / "1.png"), np.random.default_rng(0).integers(0, 255, (90, 200, 3), np.uint8))
    data = dataset(make_sample(1, tmp_path / "1.png", (200, 90), [[10, 10, 90, 60]], [0], [4000]))
    config = Config()
    config.data.test.scale = [80, 32]
    model = small()
    found = propose_dataset(model, data, config, torch.device("cpu"))[1]
    (batch,) = load_for_test(data, config)
    model.eval()
    with torch.no_grad():
        expected = model.propose(model.features(batch.images), batch.image_sizes)
    count, (x_factor, y_factor) = int(expected.count[0]), batch.scale_factors[0]
    assert count == len(found) and x_factor != y_factor and max(x_factor, y_factor) < 0.4
    wanted = expected.boxes[0, :count] / torch.tensor([x_factor, y_factor, x_factor, y_factor])
    torch.testing.assert_close(found.boxes, wanted)
    torch.testing.assert_close(found.scores, expected.scores[0, :count])
    assert found.boxes[:, 2].max() > 150 and not found.labels.any()

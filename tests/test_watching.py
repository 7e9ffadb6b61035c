"""What a run shows while it goes: rows as JSON, the gradient's norm, TensorBoard, drawn predictions."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_evaluation import dataset, found
from tiny_training import STEPS_PER_EPOCH, tiny_config
from torch import nn

from fastrcnn.cli import main
from fastrcnn.data.sample import Dataset, make_sample
from fastrcnn.training import train as loop
from fastrcnn.training import validation
from fastrcnn.training.log import RunLog
from fastrcnn.training.predictions import chosen_samples, draw_predictions
from fastrcnn.training.train import clip_gradients, train

pytestmark = pytest.mark.usefixtures("small_backbone")

tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


# --- the log ----------------------------------------------------------------------------------------------------------


def test_json_lines_are_the_rows_of_the_table(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    with open(tmp_path / "log.csv", newline="") as file:
        table = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == table and [line["step"] for line in lines] == [2, 3]
    assert list(lines[0]) == list(table[0])  # the same order


def test_a_norm_that_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 1, 0, 1, torch.device("cpu"), {})
    losses = dict.fromkeys(("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"), 0.5)
    log.add(1, 1, 0.1, losses, torch.tensor(torch.inf), images=2, epoch_ends=True)
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)["grad_norm"] is None
    assert ",inf," in (tmp_path / "log.csv").read_text()


def test_norm_of_the_gradient_before_clipping() -> None:
    model = nn.Linear(2, 2)
    model.weight.grad, model.bias.grad = torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([0.0, 4.0])
    assert clip_gradients(model, None).item() == 5 and model.bias.grad[1] == 4
    assert clip_gradients(model, 10.0).item() == 5 and model.bias.grad[1] == 4
    assert clip_gradients(model, 2.5).item() == 5
    assert model.bias.grad[1].item() == pytest.approx(2) and model.weight.grad[0, 0].item() == pytest.approx(0.5)
    model.weight.grad = None  # frozen
    assert clip_gradients(model, None).item() == pytest.approx(2)


def test_the_logged_norm_is_that_of_the_step(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []

    def note(model: nn.Module, largest: float | None) -> torch.Tensor:
        squares = [
            parameter.grad.double().square().sum() for parameter in model.parameters() if parameter.requires_grad
        ]
        norms.append(torch.stack(squares).sum().sqrt().item())
        return clip_gradients(model, largest)

    monkeypatch.setattr(loop, "clip_gradients", note)
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1", "optimizer.clip_norm=0.01"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms[1:], rel=1e-4)  # of steps 2 and 3
    assert min(norms) > 0.01


def test_the_best_evaluations_classes_are_printed_at_the_end(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if another one came after it."""
    real, values = validation.evaluate, iter([0.8765, 0.1])

    def evaluate(*arguments: object) -> object:
        result = real(*arguments)
        result.metrics["AP"] = next(values)
        result.metrics["per_class"] = {"wide": result.metrics["AP"] / 2, "tall": 0.0}
        return result

    monkeypatch.setattr(validation, "evaluate", evaluate)
    train(tiny_config(pictures, tmp_path))
    end = capsys.readouterr().out.split("Finished 2 epochs. Best AP 0.876 after epoch 1")[1]
    assert "wide   0.438" in end


# --- predictions ------------------------------------------------------------------------------------------------------


def test_every_evaluation_draws_predictions(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "train.predictions=2", "train.eval_first=true"))
    names = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert names == [f"{image}_epoch_{epoch:03}.jpg" for image in ("1_1", "2_4") for epoch in (0, 1, 2)]
    assert cv2.imread(str(tmp_path / "predictions" / names[0])).shape == (96, 2 * 128, 3)
    train(tiny_config(pictures, tmp_path / "none", "train.predictions=0", "schedule.epochs=1"))
    assert not (tmp_path / "none" / "predictions").exists()


@pytest.fixture
def grey(tmp_path: Path) -> Dataset:
    """An image of 1600 x 400 with an object, and one of 60 x 90 without."""
    samples = []
    for image_id, (size, boxes) in enumerate([((1600, 400), [[100, 100, 500, 300]]), ((60, 90), [])], start=7):
        path = tmp_path / "same name.png"
        path = path.with_name(f"{image_id}") / path.name
        path.parent.mkdir()
        cv2.imwrite(str(path), np.full((size[1], size[0], 3), 127, np.uint8))
        samples.append(make_sample(image_id, path, size, boxes, [0] * len(boxes), [80000.0] * len(boxes)))
    return dataset(*samples)


def test_objects_on_the_left_detections_on_the_right(grey: Dataset) -> None:
    """Large pictures are made smaller, with their boxes; improbable detections are left out."""
    box = [1000.0, 100, 1400, 300]
    detections = {7: found((box, 0.9, 1), ([1500.0, 350, 1590, 390], 0.2, 1)), 8: found()}
    drawn = draw_predictions(grey, detections, 4)
    assert list(drawn) == ["1_same name", "2_same name"]
    assert [picture.shape for picture in drawn.values()] == [(200, 1600, 3), (90, 120, 3)]
    assert (drawn["2_same name"] == 127).all()  # nothing there, nothing found
    left, right = np.split(drawn["1_same name"], 2, axis=1)
    for half, (x1, x2) in ((left, (50, 250)), (right, (500, 700))):
        changed = np.argwhere((half != 127).any(2))
        assert changed[:, 0].max() == pytest.approx(150, abs=3)  # the box's lower edge
        assert changed[:, 1].min() == pytest.approx(x1, abs=3) and changed[:, 1].max() == pytest.approx(x2, abs=3)


def test_the_chosen_images_are_spread_over_the_dataset(grey: Dataset) -> None:
    many = Dataset("many", ["a"], [1], [make_sample(i, Path(f"{i}.jpg"), (9, 9), [], [], []) for i in range(100)])
    assert [sample.image_id for sample in chosen_samples(many, 4)] == [0, 25, 50, 75]
    assert [sample.image_id for sample in chosen_samples(grey, 4)] == [7, 8]
    assert chosen_samples(grey, 0) == []


# --- TensorBoard ------------------------------------------------------------------------------------------------------


@tensorboard
def test_tensorboard_has_the_rows_metrics_and_pictures(pictures: Path, tmp_path: Path) -> None:
    """Also of a run that was continued: no step twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = ("train.tensorboard=true", "train.predictions=1")
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1", *settings))
    metrics = train(tiny_config(pictures, tmp_path, *settings), resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for tag, name in (("loss/loss", "loss"), ("loss/loss_cls", "loss_cls"), ("training/grad_norm", "grad_norm")):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [line["step"] for line in lines]
        assert [point.value for point in points] == pytest.approx([line[name] for line in lines])
    assert [point.step for point in events.Scalars("validation/AP")] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    assert events.Scalars("validation/AP")[-1].value == pytest.approx(metrics["AP"])
    assert events.Scalars("AP of class/wide")[-1].value == pytest.approx(metrics["per_class"]["wide"])
    image = events.Images("predictions/1_1")[-1]
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert (image.step, decoded.shape) == (2 * STEPS_PER_EPOCH, (96, 2 * 128, 3))
    same = (decoded[:, :128] == cv2.imread(str(pictures / "1.png"))).all(
        2
    )  # in colours and place, but for what is drawn
    assert 0.5 < same.mean() < 1


def test_without_tensorboard_a_run_that_wants_it_does_not_start(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastrcnn.training.tensorboard.find_spec", lambda _: None)
    tiny_config(pictures, tmp_path)
    out = tmp_path / "out"
    assert main(["train", str(tmp_path / "tiny.yaml"), "train.tensorboard=true", f"output_dir={out}"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not out.exists()
    assert main(["train", str(tmp_path / "tiny.yaml"), "schedule.epochs=1", f"output_dir={out}"]) == 0
    assert not (out / "tensorboard").exists()

"""Loading weights: every accepted form, the report, and errors that leave the model as it was."""

import pickle
from collections import OrderedDict
from pathlib import Path

import golden_recipe
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastrcnn.config import ModelConfig, load_config
from fastrcnn.models import FasterRCNN, build_model, load_backbone, load_checkpoint, read_checkpoint
from fastrcnn.models.checkpoint import MMDET_PREFIXES

HEAD = ["box_head.deltas.bias", "box_head.deltas.weight", "box_head.logits.bias", "box_head.logits.weight"]


def small(num_classes: int = 3, depth: int = 18) -> FasterRCNN:
    config = load_config(
        "faster_rcnn_r50_fpn_1x_coco",
        [
            f"model.backbone.depth={depth}",
            f"model.box_head.num_classes={num_classes}",
            "model.box_head.channels=32",
            "model.fpn.channels=16",
            "model.rpn.channels=16",
        ],
    ).model
    assert isinstance(config, ModelConfig)
    return build_model(config)


def copy_of(model: FasterRCNN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_holds(model: FasterRCNN, state: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def mmdet(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The state dict under mmdetection's names."""
    theirs = {ours: theirs for theirs, ours in MMDET_PREFIXES.items()}
    named = OrderedDict()
    for name, value in state.items():
        ours = next((prefix for prefix in theirs if name.startswith(prefix)), "")
        named[theirs.get(ours, "") + name.removeprefix(ours)] = value
    return named


CLASSES = ("a", "b", "c")
FORMS = {
    "fastrcnn": lambda state: {"model": state, "step": 7, "classes": list(CLASSES)},
    "mmdet v2": lambda state: {"meta": {"epoch": 12, "CLASSES": CLASSES}, "state_dict": mmdet(state)},
    "mmdet v3": lambda state: {"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": mmdet(state)},
    "bare": lambda state: state,
    "distributed": lambda state: {"state_dict": {f"module.{name}": value for name, value in mmdet(state).items()}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("as_file", [True, False])
def test_every_form_loads_completely(form: str, as_file: bool, tmp_path: Path) -> None:
    state = copy_of(small())
    content = FORMS[form](state)
    if as_file:  # the published files are in torch's old format
        torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization="mmdet" not in form)
        content = tmp_path / "file.pth"
    model = small()
    report = load_checkpoint(model, content)
    assert_holds(model, state)
    assert report.matched == sorted(state)
    assert not (report.missing or report.unexpected or report.mismatched)
    assert report.classes == (None if form in ("bare", "distributed") else list(CLASSES))


def test_published_layout_has_a_place_for_every_entry_and_the_shape() -> None:
    model = build_model(load_config("faster_rcnn_r50_fpn_1x_coco").model)
    checkpoint = golden_recipe.checkpoint("faster_rcnn_r50_fpn_1x_coco")
    report = load_checkpoint(model, checkpoint)
    assert len(report.matched) == len(checkpoint["state_dict"]) == len(model.state_dict()) == 348
    assert sum(p.numel() for p in model.parameters()) == 41_753_056
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_527_712


def test_half_precision_weights_and_absent_counters() -> None:
    state = {
        name: value.half() if name.endswith(("conv1.weight", "fc1.weight")) else value
        for name, value in copy_of(small()).items()
        if not name.endswith("num_batches_tracked")
    }
    model = small()
    report = load_checkpoint(model, state)
    assert report.missing == []
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.box_head.fc1.weight, state["box_head.fc1.weight"].float())


def test_report_names_what_did_not_meet() -> None:
    state = copy_of(small())
    del state["fpn.lateral.0.bias"]
    state["optimizer.step"] = torch.zeros(1)
    report = load_checkpoint(small(), state)
    assert report.missing == ["fpn.lateral.0.bias"] and report.unexpected == ["optimizer.step"]
    assert "1 missing (fpn.lateral.0.bias), 1 unexpected (optimizer.step)" in str(report)


def test_another_number_of_classes() -> None:
    state, model = copy_of(small(num_classes=5)), small(num_classes=3)
    before = copy_of(model)
    with pytest.raises(ValueError, match=r"with 5 classes, this one has 3.*new_head=True"):
        load_checkpoint(model, state)
    assert_holds(model, before)
    report = load_checkpoint(model, state, new_head=True)
    assert report.mismatched == HEAD and report.missing == []
    assert_holds(model, {**state, **{name: before[name] for name in HEAD}})
    report = load_checkpoint(small(num_classes=5), state, new_head=True)
    assert report.mismatched == [] and set(HEAD) <= set(report.matched)


def test_another_model_changes_nothing() -> None:
    model = small()
    before = copy_of(model)
    with pytest.raises(ValueError, match=r"another model: backbone\.layer1\.0\.conv1\.weight has shape"):
        load_checkpoint(model, copy_of(small(depth=50)))
    with pytest.raises(ValueError, match=r"nothing that fits this model: expected names like .*, got head\.weight"):
        load_checkpoint(model, {"head.weight": torch.zeros(3)})
    assert_holds(model, before)


class Malicious:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("loading a checkpoint ran code from it",))


def test_broken_files(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "file.pth"
    with pytest.raises(FileNotFoundError, match=r"No checkpoint file .*file\.pth"):
        load_checkpoint(model, path)
    for new_format in (True, False):
        torch.save({"model": model.state_dict()}, path, _use_new_zipfile_serialization=new_format)
        content = path.read_bytes()
        for length in (0, 10, 9999, len(content) // 2, len(content) - 100):
            path.write_bytes(content[:length])
            with pytest.raises(
                ValueError, match=rf"file\.pth \({length} bytes\) is not a readable checkpoint: truncated"
            ):
                load_checkpoint(model, path)
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="truncated, or not written by torch"):
        read_checkpoint(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="expected a dict, got list"):
        read_checkpoint(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r'expected \{"model": ...\}, \{"state_dict": ...\} or tensors by name.*epoch'):
        load_checkpoint(model, path)
    torch.save({"model": model.state_dict(), "extra": Malicious()}, path)
    with pytest.raises(ValueError, match="Python objects besides tensors"):
        load_checkpoint(model, path)
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ValueError, match=r"file\.pth"):
        load_checkpoint(model, path)


def test_backbone_of_a_classifier() -> None:
    model, classifier = small(), torchvision.models.resnet18()
    report = load_backbone(model, classifier.state_dict())
    assert report.unexpected == ["fc.bias", "fc.weight"] and report.missing == []
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight has shape"):
        load_backbone(model, torchvision.models.resnet50().state_dict())
    with pytest.raises(ValueError, match=r"not of this backbone: it has no backbone\.layer1\.2\.conv1\.weight"):
        load_backbone(small(depth=34), classifier.state_dict())


class Vgg(nn.Module):
    """The part of a VGG-16 detector that meets its ImageNet file, with narrower layers."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.backbone, self.box_head = nn.Module(), nn.Module()
        self.backbone.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.box_head.fc1, self.box_head.fc2 = nn.Linear(8, channels), nn.Linear(channels, channels)


@pytest.mark.parametrize("first", [0, 1])  # torchvision's file, and the one converted from Caffe
def test_backbone_and_fully_connected_layers_of_vgg(first: int) -> None:
    theirs = {"fc1": f"classifier.{first}", "fc2": f"classifier.{first + 3}"}
    source, model = Vgg(), Vgg()
    state = {name.removeprefix("backbone."): value.clone() for name, value in source.state_dict().items()}
    for ours, name in theirs.items():
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = state.pop(f"box_head.{ours}.{part}")
    state["classifier.6.weight"] = torch.zeros(1000, 6)
    report = load_backbone(model, {"state_dict": state})
    assert report.unexpected == ["classifier.6.weight"] and len(report.matched) == 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    model = Vgg(channels=5)
    report = load_backbone(model, state)
    assert report.mismatched == [f"box_head.{layer}" for layer in ("fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight")]
    assert torch.equal(model.backbone.features[2].weight, source.backbone.features[2].weight)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.full((16,), float("nan")), "has entries that are NaN or infinite"),
        (torch.full((16,), float("inf")), "has entries that are NaN or infinite"),
        (torch.zeros(16, dtype=torch.int64), r"has type torch\.int64, expected one that converts to torch\.float32"),
        (torch.zeros(16, dtype=torch.complex64), r"has type torch\.complex64"),
        (torch.zeros(16).to_sparse(), "must be a plain tensor with all its numbers, got torch.sparse_coo"),
        (torch.zeros(16, device="meta"), r"must be a plain tensor.*torch\.float32, \[16\] on meta"),
    ],
)
def test_values_that_are_no_weights_change_nothing(value: Tensor, reason: str) -> None:
    model = small()
    before = copy_of(model)
    with pytest.raises(ValueError, match=rf"fpn\.output\.3\.bias.*{reason}"):
        load_checkpoint(model, {**copy_of(small()), "fpn.output.3.bias": value})
    assert_holds(model, before)


def test_an_entry_under_two_names_is_refused() -> None:
    state = copy_of(small())
    state["rpn_head.rpn_conv.bias"] = torch.zeros(16)
    with pytest.raises(
        ValueError, match=r"holds rpn_head\.conv\.bias twice, as rpn_head.conv.bias and as rpn_head.rpn"
    ):
        load_checkpoint(small(), state)


def test_report_is_printed_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model": {**copy_of(small()), "other": torch.zeros(1)}}, tmp_path / "model.pth")
    count = len(load_checkpoint(small(), tmp_path / "model.pth").matched)
    assert capsys.readouterr().out == f"{tmp_path / 'model.pth'}: {count} entries loaded, 1 unexpected (other)\n"

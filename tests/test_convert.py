"""Layouts there and back: names, order, bits, class names, and what is refused."""

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from golden_recipe import GOLDEN, layout
from safetensors.torch import load_file, save_file
from test_checkpoint import assert_holds, copy_of, small
from torch import Tensor

from fastrcnn.class_names import COCO_CLASSES
from fastrcnn.cli import main
from fastrcnn.config import load_config
from fastrcnn.models import build_model, load_checkpoint, read_checkpoint
from fastrcnn.models.convert import convert

R50 = "faster_rcnn_r50_fpn_1x_coco"
FAMILIES = json.loads((GOLDEN / "layouts.json").read_text())
SMALL = ["model.backbone.depth=18", "model.fpn.channels=16", "model.rpn.channels=16", "model.box_head.channels=32"]
SMALL += ["model.box_head.num_classes=3"]
CLASSES = ("cat", "dog", "hen")


def published(names: list[str], num_classes: int = 3) -> dict:
    """What a published file holds, with tensors of a few numbers: bits that a conversion to float32 would change."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for i, name in enumerate(names):
        state[name] = torch.tensor([i, 0.1, float("nan")], dtype=torch.float16 if i % 2 else torch.float32)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(i)
        if "fc_cls.weight" in name:
            state[name] = torch.full((num_classes + 1, 2), -0.0)
    state._metadata = OrderedDict({"": {"version": 1}})  # as nn.Module.state_dict leaves it
    return {
        "meta": {"CLASSES": CLASSES, "epoch": 12, "config": "model = dict()\n", "hook_msgs": {}},
        "state_dict": state,
    }


def write_published(content: dict, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def names_of_the_model(config: str) -> set[str]:
    with torch.device("meta"):
        return set(build_model(load_config(config).model).state_dict())


def assert_same_bits(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].numpy().tobytes() == value.numpy().tobytes(), name


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["ours.pth", "ours.safetensors"])
@pytest.mark.parametrize("back", ["back.pth", "back.safetensors"])
def test_there_and_back_is_bit_identical(between: str, back: str, tmp_path: Path) -> None:
    content = published([name for name, _ in layout(R50)])
    source = write_published(content, tmp_path / "published.pth")
    convert(source, tmp_path / between)
    ours = read_checkpoint(tmp_path / between)
    assert set(ours["model"]) == names_of_the_model(R50)
    assert ours["classes"] == list(CLASSES)
    convert(tmp_path / between, tmp_path / back)
    again = read_checkpoint(tmp_path / back)
    assert_same_bits(again["state_dict" if back.endswith(".pth") else "model"], content["state_dict"])
    assert again["meta"]["epoch"] == 12 and again["meta"]["config"] == "model = dict()\n"
    assert tuple(again["meta"].get("CLASSES", again.get("classes"))) == CLASSES


@pytest.mark.parametrize("config", [family["configs"][0] for family in FAMILIES])
def test_every_layout_of_the_zoo_and_vgg(config: str, tmp_path: Path) -> None:
    content = published([name for name, _ in layout(config)])
    convert(write_published(content, tmp_path / "published.pth"), tmp_path / "ours.pth")
    assert set(read_checkpoint(tmp_path / "ours.pth")["model"]) == names_of_the_model(config)
    convert(tmp_path / "ours.pth", tmp_path / "back.pth")
    assert_same_bits(read_checkpoint(tmp_path / "back.pth")["state_dict"], content["state_dict"])


@pytest.mark.parametrize("target", ["theirs.pth", "theirs.safetensors"])
def test_a_trained_model_gets_the_published_names_and_order(target: str, tmp_path: Path) -> None:
    model = build_model(load_config(R50).model)
    with torch.no_grad():
        for i, value in enumerate(model.state_dict().values()):
            value.fill_(i)
    torch.save({"model": model.state_dict(), "classes": COCO_CLASSES, "optimizer": {}}, tmp_path / "last.pth")
    line = convert(tmp_path / "last.pth", tmp_path / target)
    assert line.endswith("348 entries and 80 class names, in the layout of mmdetection")
    content = read_checkpoint(tmp_path / target)
    state = content.get("state_dict", content.get("model"))
    assert [(name, list(value.shape)) for name, value in state.items()] == [tuple(entry) for entry in layout(R50)]
    assert all(value.is_contiguous() for value in state.values())  # the model is channels-last
    other = build_model(load_config(R50).model)
    load_checkpoint(other, tmp_path / target)
    assert_holds(other, model.state_dict())


def test_form_of_mmdetections_file(tmp_path: Path) -> None:
    torch.save({"model": copy_of(small()), "classes": list(CLASSES)}, tmp_path / "last.pth")
    convert(tmp_path / "last.pth", tmp_path / "theirs.pth")
    assert not (tmp_path / "theirs.pth").read_bytes().startswith(b"PK")  # the older format
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert content["meta"] == {"CLASSES": CLASSES}
    assert type(content["state_dict"]) is OrderedDict


def test_safetensors_of_others_get_the_models_order(tmp_path: Path) -> None:
    """The format sorts the entries, so their order is the config's."""
    state = copy_of(small())
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "sorted.safetensors")
    (tmp_path / "small.yaml").write_text("{}")
    config = load_config(tmp_path / "small.yaml", SMALL)
    convert(tmp_path / "sorted.safetensors", tmp_path / "theirs.pth", config)
    names = list(read_checkpoint(tmp_path / "theirs.pth")["state_dict"])
    assert [name for name in names if name.startswith("backbone.")] == [n for n in state if n.startswith("backbone.")]
    assert names[-8:][::2] == [
        f"roi_head.bbox_head.{part}.weight" for part in ("fc_cls", "fc_reg", "shared_fcs.0", "shared_fcs.1")
    ]


def test_sorted_entries_under_mmdetections_names_get_the_models_order(tmp_path: Path) -> None:
    model = small()
    torch.save(copy_of(model), tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "theirs.pth")
    state = read_checkpoint(tmp_path / "theirs.pth")["state_dict"]
    save_file({name: state[name].contiguous() for name in sorted(state)}, tmp_path / "sorted.safetensors")
    (tmp_path / "small.yaml").write_text("{}")
    convert(tmp_path / "sorted.safetensors", tmp_path / "back.pth", load_config(tmp_path / "small.yaml", SMALL))
    assert list(read_checkpoint(tmp_path / "back.pth")["model"]) == list(model.state_dict())


def test_a_part_of_a_larger_storage_is_written_alone(tmp_path: Path) -> None:
    state = {name: torch.zeros(1000, *value.shape)[0] for name, value in copy_of(small()).items() if "box_head" in name}
    torch.save(state, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").stat().st_size < (tmp_path / "in.pth").stat().st_size / 500


# --- class names ------------------------------------------------------------------------------------------------------


def test_class_names(tmp_path: Path) -> None:
    state = copy_of(small())
    torch.save({"model": state}, tmp_path / "unnamed.pth")
    convert(tmp_path / "unnamed.pth", tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["meta"]["CLASSES"] == ("class_0", "class_1", "class_2")
    named = load_config(R50, [*SMALL, "data.classes=[x,y,z]"])
    convert(tmp_path / "unnamed.pth", tmp_path / "b.pth", named)
    assert read_checkpoint(tmp_path / "b.pth")["meta"]["CLASSES"] == ("x", "y", "z")
    torch.save({"model": state, "classes": ["p", "q", "r"]}, tmp_path / "named.pth")
    convert(tmp_path / "named.pth", tmp_path / "c.pth", named)
    assert read_checkpoint(tmp_path / "c.pth")["meta"]["CLASSES"] == ("p", "q", "r")
    torch.save({"model": state, "classes": ["p", "q"]}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="num_classes is 3, but there are 2 class names"):
        convert(tmp_path / "wrong.pth", tmp_path / "d.pth")
    assert not (tmp_path / "d.pth").exists()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_is_refused(tmp_path: Path) -> None:
    state = copy_of(small())
    source = tmp_path / "in.pth"
    torch.save({"model": state}, source)
    with pytest.raises(ValueError, match=r"must end in \.pth, \.pt, \.safetensors, got .*out\.onnx"):
        convert(source, tmp_path / "out.onnx")
    with pytest.raises(FileExistsError, match=r"in\.pth is the file to read"):
        convert(source, source)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint file .*none\.pth, and no config"):
        convert(tmp_path / "none.pth", tmp_path / "out.pth")
    del state["fpn.lateral.0.bias"]
    torch.save({"model": state}, source)
    with pytest.raises(ValueError, match=r"another model than the config: it has no fpn\.lateral\.0\.bias"):
        convert(source, tmp_path / "out.pth", load_config(R50, SMALL))
    with pytest.raises(ValueError, match="with 3 classes, this one has 80"):
        convert(source, tmp_path / "out.pth", load_config(R50, SMALL[:-1]))
    torch.save({**state, "neck.lateral_convs.0.conv.weight": torch.zeros(1)}, source)
    with pytest.raises(ValueError, match="in both layouts"):
        convert(source, tmp_path / "out.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, source)
    with pytest.raises(ValueError, match=r"not a detector's checkpoint: expected .*got conv1\.weight"):
        convert(source, tmp_path / "other.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]


def test_safetensors_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": copy_of(small())}, tmp_path / "in.pth")
    (tmp_path / "in.safetensors").write_bytes(b"\0" * 8)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    with pytest.raises(ImportError, match="pip install safetensors"):
        read_checkpoint(tmp_path / "in.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# --- command line -----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = copy_of(small())
    torch.save({"model": state, "classes": list(CLASSES)}, tmp_path / "in.pth")
    (tmp_path / "small.yaml").write_text(
        "model:\n  backbone: {depth: 18}\n  fpn: {channels: 16}\n  rpn: {channels: 16}\n"
        "  box_head: {channels: 32, num_classes: 3}\n"
    )
    paths = [str(tmp_path / name) for name in ("in.pth", "out.safetensors", "small.yaml")]
    assert main(["convert", *paths]) == 0
    printed = capsys.readouterr().out
    assert "entries loaded" in printed and f"Wrote {paths[1]}" in printed
    assert_same_bits({"x": load_file(paths[1])["neck.fpn_convs.3.conv.bias"]}, {"x": state["fpn.output.3.bias"]})
    assert main(["convert", paths[0], paths[0]]) == 2
    assert capsys.readouterr().err.startswith("fastrcnn: error: ")

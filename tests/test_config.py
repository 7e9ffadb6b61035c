"""Configs: what comes with the package, overrides, and what a typing mistake reads like."""

from pathlib import Path

import pytest

import fastrcnn
from fastrcnn.config import Config, to_yaml


def test_every_config_loads():
    for name in fastrcnn.config_names():
        config = fastrcnn.load_config(name)
        assert config.output_dir == f"runs/{name}"


def test_overrides():
    overrides = ["model.box_head.num_classes=3", "data.train.scales=[[320, 240]]"]
    overrides += ["optimizer.clip_norm=35", "output_dir=x"]
    config = fastrcnn.load_config("faster_rcnn_r50_fpn_1x_coco", overrides)
    assert config.model.box_head.num_classes == 3
    assert config.data.train.scales == [[320, 240]]
    assert config.optimizer.clip_norm == 35.0
    assert config.output_dir == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.box_hed.num_classes=3", "unknown key model.box_hed. Nearest valid key: model.box_head"),
        ("optimiser.lr=1", "unknown key optimiser. Nearest valid key: optimizer"),
        ("optimizer.lr=fast", "'fast'"),
        ("model.rpn.strides=[a]", "'a'"),
        ("optimizer.lr", "An override is key=value, got 'optimizer.lr'"),
        ("model=3", "model"),
        ("model.fpn.chanels=3", "unknown key model.fpn.chanels. Nearest valid key: model.fpn.channels"),
        ("data.train.scales=[[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str):
    with pytest.raises(ValueError) as caught:
        fastrcnn.load_config("faster_rcnn_r50_fpn_1x_coco", [override])
    assert message in str(caught.value)


def test_unknown_config_names_near_ones():
    with pytest.raises(FileNotFoundError, match="faster_rcnn_r50_fpn_1x_coco"):
        fastrcnn.load_config("faster_rcnn_r50_fpn_1x")
    with pytest.raises(FileNotFoundError, match=r"missing.yaml"):
        fastrcnn.load_config("missing.yaml")


@pytest.mark.parametrize("text", ["model: [1, 2", "- a list\n", "!!python/object/apply:os.system ['true']\n"])
def test_a_broken_file_is_an_error_and_runs_nothing(tmp_path: Path, text: str):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken.yaml"):
        fastrcnn.load_config(path)


def test_unknown_key_in_a_file(tmp_path: Path):
    path = tmp_path / "typo.yaml"
    path.write_text("schedule:\n  epoch: 3\n")
    with pytest.raises(ValueError, match=r"unknown key schedule.epoch. Nearest valid key: schedule.epochs"):
        fastrcnn.load_config(path)


@pytest.mark.parametrize("fpn", [[], ["model.fpn=null"]])
def test_yaml_round_trip(tmp_path: Path, fpn: list[str]):
    path = tmp_path / "saved.yaml"
    overrides = ["optimizer.lr=0.005", "output_dir=out", *fpn]
    config = fastrcnn.load_config("faster_rcnn_r50_fpn_1x_coco", overrides)
    path.write_text(to_yaml(config))
    assert fastrcnn.load_config(path) == config
    assert isinstance(config, Config)

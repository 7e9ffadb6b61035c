"""Configs: what comes with the package, overrides, and what a typing mistake reads like."""

import json
from pathlib import Path

import pytest

import fastrcnn
from fastrcnn.config import PAD_MULTIPLE, Config, to_yaml


def test_every_config_loads():
    for name in fastrcnn.config_names():
        config = fastrcnn.load_config(name)
        assert config.output_dir == f"runs/{name}"


def test_r50_fpn_1x_is_the_row_of_the_zoo():
    config = fastrcnn.load_config("faster_rcnn_r50_fpn_1x_coco")
    row = json.loads((Path(__file__).parent / "golden" / "zoo_r50_fpn_1x.json").read_text())
    model, rpn, head = config.model, config.model.rpn, config.model.box_head
    for ours, key in ((model.backbone.depth, "depth"), (model.backbone.style, "style")):
        assert ours == row["backbone"][key]
    assert model.backbone.frozen_stages == row["backbone"]["frozen_stages"]
    assert (model.backbone.norm == "eval") == (row["backbone"]["norm_eval"] and row["backbone"]["bn_requires_grad"])
    assert model.backbone.pretrained == row["backbone"]["pretrained_url"]
    assert (model.fpn.channels, model.fpn.num_levels) == (row["neck"]["out_channels"], row["neck"]["num_outs"])
    assert rpn.anchor_scales == row["anchors"]["scales"]
    assert rpn.anchor_ratios == row["anchors"]["ratios"]
    assert rpn.strides == row["anchors"]["strides"]
    assert (rpn.channels, rpn.allowed_border) == (row["rpn_head"]["feat_channels"], row["rpn_head"]["allowed_border"])
    assert (head.num_classes, head.channels) == (row["bbox_head"]["num_classes"], row["bbox_head"]["fc_out_channels"])
    assert head.delta_stds == row["bbox_head"]["coder_stds"]
    for ours, theirs in ((rpn, row["rpn_head"]), (head, row["rcnn_train"])):
        assigner, sampler = theirs["assigner"], theirs["sampler"]
        assert (ours.assigner.pos_iou, ours.assigner.neg_iou) == (assigner["pos_iou_thr"], assigner["neg_iou_thr"])
        assert ours.assigner.min_pos_iou == assigner["min_pos_iou"]
        assert ours.assigner.match_low_quality == assigner["match_low_quality"]
        assert (ours.sampler.num, ours.sampler.positive_fraction) == (sampler["num"], sampler["pos_fraction"])
    for ours, key in ((rpn.train_proposals, "proposal_train"), (rpn.test_proposals, "proposal_test")):
        theirs = row["rpn_head"][key]
        assert (ours.pre_nms, ours.post_nms) == (theirs["nms_pre"], theirs["max_per_img"])
        assert (ours.iou_threshold, ours.min_size) == (theirs["nms"]["iou_threshold"], theirs["min_bbox_size"])
    pool = row["roi_extractor"]
    assert (model.pool.output_size, model.pool.sampling_ratio) == (pool["output_size"], pool["sampling_ratio"])
    assert (model.pool.strides, model.pool.finest_scale) == (pool["featmap_strides"], pool["finest_scale"])
    test = row["rcnn_test"]
    assert (head.score_threshold, head.max_detections) == (test["score_thr"], test["max_per_img"])
    assert head.iou_threshold == test["nms"]["iou_threshold"]
    image, data = row["image"], config.data
    assert (data.image.mean, data.image.std) == (image["mean"], image["std"])
    assert data.image.channel_order == image["channel_order"].lower()
    assert row["train_pipeline"]["pad_divisor"] == PAD_MULTIPLE
    assert data.train.scales == [row["train_pipeline"]["img_scale"]]
    assert (data.train.scale_mode, data.train.flip) == ("fixed", row["train_pipeline"]["flip_prob"])
    assert data.test.scale == row["test_pipeline"]["img_scale"]
    for key in ("lr", "momentum", "weight_decay"):
        assert getattr(config.optimizer, key) == row["optimizer"][key]
    schedule = row["lr_schedule"]
    assert (config.schedule.epochs, config.schedule.milestones) == (schedule["max_epochs"], schedule["step"])
    assert config.schedule.warmup_steps == schedule["warmup_iters"]
    assert (config.schedule.warmup_ratio, config.schedule.gamma) == (schedule["warmup_ratio"], schedule["gamma"])
    assert (config.optimizer.clip_norm, config.train.batch_size) == (row["grad_clip"], row["samples_per_gpu"])
    published = row["published"]
    assert config.published.box_ap == published["box_AP"]
    assert (config.published.memory_gb, config.published.fps) == (published["mem_gb"], published["fps"])
    assert (config.published.checkpoint, config.published.log) == (published["model_url"], published["log_url"])
    assert config.published.sha256 == published["sha256_first8"]


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


def test_yaml_round_trip(tmp_path: Path):
    path = tmp_path / "saved.yaml"
    config = fastrcnn.load_config("faster_rcnn_r50_fpn_1x_coco", ["optimizer.lr=0.005", "output_dir=out"])
    path.write_text(to_yaml(config))
    assert fastrcnn.load_config(path) == config
    assert isinstance(config, Config)

"""The configs are the rows of the zoo's table, field by field (golden/zoo.json), and their models have its sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrcnn
from fastrcnn.config import PAD_MULTIPLE

ROWS = {row["name"]: row for row in json.loads((Path(__file__).parent / "golden" / "zoo.json").read_text())}
LOSSES = {"L1Loss": "l1", "IoULoss": "iou", "GIoULoss": "giou", "BoundedIoULoss": "bounded_iou"}


def test_the_table_has_27_models_and_each_has_its_config() -> None:
    assert len(ROWS) == 27 and set(ROWS) <= set(fastrcnn.config_names())


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ROWS[request.param]


@pytest.fixture
def config(row: dict) -> fastrcnn.Config:
    return fastrcnn.load_config(row["name"])


def test_backbone_and_pyramid(config: fastrcnn.Config, row: dict) -> None:
    ours, theirs = config.model.backbone, row["backbone"]
    assert (ours.kind, ours.depth, ours.style) == ("resnet", theirs["depth"], theirs["style"])
    assert (ours.groups, ours.base_width) == (theirs["groups"], theirs["base_width"] or 64)
    last_stage = ((1, 2) if ours.dilated_c5 else (2, 1)) + ((3,) if config.model.fpn is None else (0, 1, 2, 3))
    assert last_stage == (theirs["strides"][3], theirs["dilations"][3], *theirs["out_indices"])
    assert theirs["norm_eval"] and ours.norm == ("eval" if theirs["bn_requires_grad"] else "frozen")
    assert (ours.frozen_stages, ours.pretrained) == (theirs["frozen_stages"], theirs["pretrained_url"])
    if row["neck"] is None:
        assert config.model.fpn is None
    else:
        assert config.model.fpn is not None
        ours, theirs = config.model.fpn, row["neck"]
        assert (ours.channels, ours.num_levels) == (theirs["out_channels"], theirs["num_outs"])


def test_rpn(config: fastrcnn.Config, row: dict) -> None:
    rpn, theirs, anchors = config.model.rpn, row["rpn_head"], row["anchors"]
    assert (rpn.anchor_scales, rpn.anchor_ratios) == (anchors["scales"], anchors["ratios"])
    assert rpn.strides == anchors["strides"]
    assert (rpn.channels, rpn.allowed_border) == (theirs["feat_channels"], theirs["allowed_border"])
    assert (LOSSES[theirs["loss_bbox"]["type"]], theirs["loss_bbox"]["loss_weight"]) == (
        rpn.box_loss.kind,
        rpn.box_loss.weight,
    )
    assert_assigner_and_sampler(rpn, theirs)
    for ours, key in ((rpn.train_proposals, "proposal_train"), (rpn.test_proposals, "proposal_test")):
        assert (ours.pre_nms, ours.post_nms) == (theirs[key]["nms_pre"], theirs[key]["max_per_img"])
        assert (ours.iou_threshold, ours.min_size) == (
            theirs[key]["nms"]["iou_threshold"],
            theirs[key]["min_bbox_size"],
        )


def test_pool_and_box_head(config: fastrcnn.Config, row: dict) -> None:
    pool, theirs = config.model.pool, row["roi_extractor"]
    assert (pool.kind, pool.output_size) == ("roi_align", theirs["output_size"])
    assert (pool.sampling_ratio, pool.strides) == (theirs["sampling_ratio"], theirs["featmap_strides"])
    assert pool.finest_scale == theirs["finest_scale"]
    head, theirs = config.model.box_head, row["bbox_head"]
    assert (head.num_classes, head.channels) == (theirs["num_classes"], theirs["fc_out_channels"])
    assert (head.delta_stds, head.dropout) == (theirs["coder_stds"], 0)
    loss = theirs["loss_bbox"]
    assert (head.box_loss.kind, head.box_loss.weight) == (LOSSES[loss["type"]], loss["loss_weight"])
    assert theirs["reg_decoded_bbox"] == (head.box_loss.kind != "l1")
    assert_assigner_and_sampler(head, row["rcnn_train"])
    test = row["rcnn_test"]
    assert (head.score_threshold, head.max_detections) == (test["score_thr"], test["max_per_img"])
    assert head.iou_threshold == test["nms"]["iou_threshold"]


def assert_assigner_and_sampler(ours: Any, theirs: dict) -> None:
    assigner, sampler = theirs["assigner"], theirs["sampler"]
    assert (ours.assigner.pos_iou, ours.assigner.neg_iou) == (assigner["pos_iou_thr"], assigner["neg_iou_thr"])
    assert ours.assigner.min_pos_iou == assigner["min_pos_iou"]
    assert ours.assigner.match_low_quality == assigner["match_low_quality"]
    assert (ours.sampler.num, ours.sampler.positive_fraction) == (sampler["num"], sampler["pos_fraction"])


def test_data(config: fastrcnn.Config, row: dict) -> None:
    data, image, pipeline = config.data, row["image"], row["train_pipeline"]
    assert (data.image.mean, data.image.std) == (image["mean"], image["std"])
    assert data.image.channel_order == image["channel_order"].lower() == ("rgb" if image["to_rgb"] else "bgr")
    assert data.classes == (row["classes"] if isinstance(row["classes"], list) else [])
    scales, mode = pipeline["img_scale"], pipeline["multiscale_mode"] or "fixed"
    assert (data.train.scales, data.train.scale_mode) == ([scales] if mode == "fixed" else scales, mode)
    assert (data.train.flip, PAD_MULTIPLE) == (pipeline["flip_prob"], pipeline["pad_divisor"])
    assert data.test.scale == row["test_pipeline"]["img_scale"]
    assert data.train.repeat == row["lr_schedule"]["repeat_dataset_times"]


def test_recipe(config: fastrcnn.Config, row: dict) -> None:
    for key in ("lr", "momentum", "weight_decay"):
        assert getattr(config.optimizer, key) == row["optimizer"][key]
    ours, theirs = config.schedule, row["lr_schedule"]
    assert (ours.epochs, ours.milestones) == (theirs["max_epochs"], theirs["step"])
    assert (ours.warmup_steps, ours.warmup_ratio, ours.gamma) == (
        theirs["warmup_iters"],
        theirs["warmup_ratio"],
        theirs["gamma"],
    )
    assert (config.optimizer.clip_norm, config.train.batch_size) == (row["grad_clip"], row["samples_per_gpu"])
    assert (config.optimizer.kind, ours.decay, config.train.accumulation) == (
        row["optimizer"]["type"].lower(),
        "steps",
        1,
    )
    assert (config.optimizer.base_batch_size, config.optimizer.scale_lr) == (row["base_batch_size"], False)
    half = ("float32", None) if row["fp16"] is None else ("float16", row["fp16"]["loss_scale"])
    assert (config.train.precision, config.train.loss_scale) == half
    assert config.load_from == row["load_from"]


def test_published(config: fastrcnn.Config, row: dict) -> None:
    ours, theirs = config.published, row["published"]
    assert (ours.box_ap, ours.memory_gb, ours.fps) == (theirs["box_AP"], theirs["mem_gb"], theirs["fps"])
    assert (ours.checkpoint, ours.log) == (theirs["model_url"], theirs["log_url"])
    assert ours.sha256 == theirs["sha256_first8"]


def test_parameters(config: fastrcnn.Config, row: dict) -> None:
    """The counts of the model that mmdetection builds; no memory is taken for the weights."""
    with torch.device("meta"):
        model = fastrcnn.build_model(config.model)
    parameters, theirs = list(model.parameters()), row["params"]
    trainable = [parameter.numel() for parameter in parameters if parameter.requires_grad]
    assert (len(trainable), sum(trainable)) == (theirs["n_trainable_tensors"], theirs["n_trainable"])
    assert sum(parameter.numel() for parameter in parameters) == theirs["n_params"]
    assert len(model.state_dict()) == theirs["n_entries"]

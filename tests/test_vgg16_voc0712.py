"""The paper's model: its config is what the paper says, in the zoo's conventions, and trains on VOC's own folders."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import fastrcnn
from fastrcnn.cli import main
from fastrcnn.models import vgg
from fastrcnn.training.schedule import base_learning_rate

NAME = "faster_rcnn_vgg16_voc0712"
CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"]
CLASSES += ["horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
IMAGES_2007, IMAGES_2012 = 5011, 11540  # in trainval


@pytest.fixture
def config() -> fastrcnn.Config:
    return fastrcnn.load_config(NAME)


# --- field by field ---------------------------------------------------------------------------------------------------


def test_image(config: fastrcnn.Config) -> None:
    image = config.data.image
    assert (image.channel_order, image.mean, image.std) == ("bgr", [102.9801, 115.9465, 122.7717], [1, 1, 1])
    assert config.data.train.scales == [config.data.test.scale] == [[1000, 600]]
    assert (config.data.train.scale_mode, config.data.train.flip, config.data.train.repeat) == ("fixed", 0.5, 1)


def test_backbone(config: fastrcnn.Config) -> None:
    assert (config.model.backbone.kind, config.model.backbone.frozen_stages) == ("vgg16", 2)  # conv1_x, conv2_x
    assert config.model.fpn is None


def test_rpn(config: fastrcnn.Config) -> None:
    rpn = config.model.rpn
    assert (rpn.channels, rpn.strides, rpn.allowed_border) == (512, [16], 0)
    assert (rpn.anchor_scales, rpn.anchor_ratios) == ([8, 16, 32], [0.5, 1, 2])
    assert asdict(rpn.assigner) == {"pos_iou": 0.7, "neg_iou": 0.3, "min_pos_iou": 0.3, "match_low_quality": True}
    assert asdict(rpn.sampler) == {"num": 256, "positive_fraction": 0.5}
    assert asdict(rpn.box_loss) == {"kind": "smooth_l1", "beta": 1 / 9, "weight": 1}
    proposals = {"iou_threshold": 0.7, "min_size": 0}
    assert asdict(rpn.train_proposals) == {"pre_nms": 12000, "post_nms": 2000, **proposals}
    assert asdict(rpn.test_proposals) == {"pre_nms": 6000, "post_nms": 300, **proposals}


def test_pool_and_box_head(config: fastrcnn.Config) -> None:
    pool, head = config.model.pool, config.model.box_head
    assert (pool.kind, pool.output_size, pool.strides) == ("roi_pool", 7, [16])
    assert (head.num_classes, head.channels, head.dropout) == (20, 4096, 0.5)
    assert asdict(head.assigner) == {"pos_iou": 0.5, "neg_iou": 0.5, "min_pos_iou": 0.5, "match_low_quality": False}
    assert asdict(head.sampler) == {"num": 128, "positive_fraction": 0.25}
    assert asdict(head.box_loss) == {"kind": "smooth_l1", "beta": 1, "weight": 1}
    assert head.delta_stds == [0.1, 0.1, 0.2, 0.2]
    assert (head.score_threshold, head.iou_threshold, head.max_detections) == (0.05, 0.3, 100)


def test_parameters(config: fastrcnn.Config) -> None:
    """By the layers of the paper; of the thirteen convolutions the first four are not trained."""
    with torch.device("meta"):
        model = fastrcnn.build_model(config.model)
    convolutions = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
    convolutions += [(512, 512)] * 6  # of the backbone five, of the RPN one
    frozen = sum(9 * i * o + o for i, o in convolutions[:4])
    layers = [(512, 9), (512, 36), (25088, 4096), (4096, 4096), (4096, 21), (4096, 80)]
    every = sum(9 * i * o + o for i, o in convolutions) + sum(i * o + o for i, o in layers)
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts == {True: every - frozen, False: frozen}


def test_data(config: fastrcnn.Config) -> None:
    data, train, val = config.data, config.data.train, config.data.val
    assert data.classes == CLASSES == sorted(CLASSES) and len(CLASSES) == 20
    assert train.format == val.format == "voc" and not train.keep_empty
    (second,) = train.more
    sources = [(train, "VOC2007", "trainval"), (second, "VOC2012", "trainval"), (val, "VOC2007", "test")]
    for source, year, split in sources:
        folder = f"data/VOCdevkit/{year}"
        assert (source.annotations, source.images) == (f"{folder}/ImageSets/Main/{split}.txt", f"{folder}/JPEGImages")


def test_recipe(config: fastrcnn.Config) -> None:
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.lr, config.train.batch_size, optimizer.base_batch_size) == (0.001, 1, 1)
    optimizer.scale_lr = True
    assert base_learning_rate(config, 2) == 0.002
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.0005, None)
    # 80k of 110k steps, to the nearest whole epoch
    epoch = IMAGES_2007 + IMAGES_2012
    assert (schedule.epochs, schedule.milestones, schedule.gamma) == (round(110e3 / epoch), [round(80e3 / epoch)], 0.1)
    assert schedule.milestones[0] / schedule.epochs == pytest.approx(0.7, abs=0.02)
    assert schedule.warmup_steps < 0.005 * schedule.epochs * epoch
    assert (optimizer.kind, schedule.decay, config.train.accumulation) == ("sgd", "steps", 1)
    assert (config.train.precision, config.load_from) == ("float32", None)


def test_published(config: fastrcnn.Config) -> None:
    published = {"voc07_map": 73.2, "fps": 5, "gpu": "K40"}
    assert {key: value for key, value in asdict(config.published).items() if value is not None} == published


# --- on the development kit's folders ---------------------------------------------------------------------------------


def write_devkit(root: Path, year: str, names: dict[str, list[str]]) -> None:
    """VOC's folders with a small image per name, which has one object of each class; names by list."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / year / part).mkdir(parents=True)
    box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name><difficult>0</difficult>{box}</object>" for name in CLASSES)
    for split, listed in names.items():
        (root / year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(listed) + "\n")
        for name in listed:
            text = f"<annotation><folder>{year}</folder><filename>{name}.jpg</filename>{objects}</annotation>"
            (root / year / "Annotations" / f"{name}.xml").write_text(text)
            cv2.imwrite(str(root / year / "JPEGImages" / f"{name}.jpg"), np.full((48, 64, 3), 99, np.uint8))


def test_trains_from_the_development_kits_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the paths, the classes and the recipe of the config; a narrow model and small images."""
    devkit = tmp_path / "data" / "VOCdevkit"
    write_devkit(devkit, "VOC2007", {"trainval": ["000005", "000007"], "test": ["000001"]})
    write_devkit(devkit, "VOC2012", {"trainval": ["2008_000002", "2008_000003", "2008_000007"], "val": ["2008_000009"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vgg, "BLOCKS", ((4, 4), (4, 4), (8, 8, 8), (8, 8, 8), (8, 8, 8)))
    small = ["model.backbone.pretrained=null", "model.rpn.channels=8", "model.box_head.channels=16"]
    small += ["data.train.scales=[[64, 48]]", "data.test.scale=[64, 48]", "model.rpn.anchor_scales=[1, 2]"]
    assert main(["train", NAME, *small, "schedule.epochs=1", "train.workers=0"]) == 0
    printed = capsys.readouterr().out
    assert "5 images (0 without objects), 100 objects" in printed and "1 images (0 without objects)" in printed
    assert "VOC07 AP of each class" in printed and "Warning" not in printed
    folder = tmp_path / "runs" / NAME
    saved = torch.load(folder / "last.pth", weights_only=True)
    assert saved["step"] == 5 and saved["classes"] == CLASSES
    (metrics,) = json.loads((folder / "metrics.json").read_text())
    assert math.isfinite(metrics["VOC07_mAP"]) and list(metrics["VOC07_per_class"]) == CLASSES

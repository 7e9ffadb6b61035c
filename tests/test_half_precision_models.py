"""Training in half precision: every family of models of the zoo, and the FP16 row from its config to a checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import SIZES, images, targets
from tiny_training import small_resnet, write_pictures

from fastrcnn.cli import main
from fastrcnn.config import Config, TrainConfig, load_config
from fastrcnn.models import build_model, vgg
from fastrcnn.models.backbone import BLOCKS
from fastrcnn.models.proposals import Proposals
from fastrcnn.training.precision import autocast, build_scaler

FP16 = "faster_rcnn_r50_fpn_fp16_1x_coco"
SMALL = ["fpn.channels=32", "rpn.channels=32", "box_head.channels=64", "rpn.train_proposals.pre_nms=200"]
SMALL += ["rpn.train_proposals.post_nms=80", "rpn.test_proposals.pre_nms=200", "rpn.test_proposals.post_nms=50"]
FAMILIES = [
    "faster_rcnn_r50_caffe_fpn_1x_coco",
    "faster_rcnn_r50_caffe_dc5_1x_coco",
    "faster_rcnn_x101_32x4d_fpn_1x_coco",
    "faster_rcnn_r50_fpn_iou_1x_coco",
    "faster_rcnn_r50_fpn_giou_1x_coco",
    "faster_rcnn_r50_fpn_bounded_iou_1x_coco",
    "faster_rcnn_vgg16_voc0712",
]


@pytest.fixture(scope="module", autouse=True)
def small_backbones() -> Iterator[None]:
    with small_resnet(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCKS, 50, (1, 1, 1, 1))
        patch.setitem(BLOCKS, 101, (1, 1, 1, 1))
        patch.setattr(vgg, "BLOCKS", ((8, 8), (8, 8), (16, 16, 16), (32, 32, 32), (32, 32, 32)))
        yield


def small(name: str) -> Config:
    """The config with a narrow model, without dropout (its random numbers depend on the type)."""
    fpn = load_config(name).model.fpn is not None
    overrides = [f"model.{setting}" for setting in SMALL if fpn or not setting.startswith("fpn.")]
    return load_config(name, [*overrides, "model.box_head.dropout=0", "model.rpn.allowed_border=-1"])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_follow_full_precision(name: str, precision: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = build_model(small(name).model).to(device).train()
    select, selected = model._select, []

    def those_of_full_precision(*arguments: Any) -> Proposals:
        """Which boxes random logits select is a matter of their last bits, so both runs go on with the same ones."""
        selected.append(select(*arguments))
        return selected[0]

    model._select = those_of_full_precision
    types: list[torch.dtype] = []  # of what the backbone, the RPN and the box head compute with
    for layer in (model.rpn_head.conv, model.rpn_head.objectness, model.box_head.fc1, model.box_head.fc2):
        layer.register_forward_hook(lambda _, inputs, output: types.append(output.dtype))
    batch = images(*SIZES).to(device)
    objects = [{key: value.to(device) for key, value in target.items()} for target in targets()]
    losses, gradients = {}, {}
    for kind in ("float32", precision):
        config = TrainConfig(precision=kind, loss_scale=512.0 if kind == "float16" else None)
        scaler = build_scaler(config, device)
        torch.manual_seed(0)
        model.zero_grad()
        with autocast(config, device):
            losses[kind] = model.losses(batch, SIZES, objects)
        assert all(loss.dtype == torch.float32 for loss in losses[kind].values())
        scaler.scale(torch.stack(list(losses[kind].values())).sum()).backward()
        scale = scaler.get_scale()
        gradients[kind] = {n: p.grad.double() / scale for n, p in model.named_parameters() if p.requires_grad}
    assert scaler.get_scale() == (512 if precision == "float16" else 1)
    half_type, half_of_the_calls = getattr(torch, precision), len(types) // 2
    assert types == [torch.float32] * half_of_the_calls + [half_type] * half_of_the_calls
    for part, loss in losses["float32"].items():
        assert losses[precision][part].item() == pytest.approx(loss.item(), rel=0.05, abs=1e-3), part
    full, half = (torch.cat([g.flatten() for g in gradients[kind].values()]) for kind in ("float32", precision))
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.99
    assert all(gradients[precision][n].any() for n, g in gradients["float32"].items() if g.any())


def test_fp16_row_from_its_config_to_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config's own recipe at tiny size: float16 with the constant loss scale 512; the weights are float32."""
    write_pictures(tmp_path)
    run = tmp_path / "run"
    small = [f"model.{setting}" for setting in SMALL] + ["model.box_head.num_classes=2"]
    small += ["model.backbone.pretrained=null", "model.backbone.frozen_stages=-1", "model.backbone.norm=train"]
    data = [f"data.{split}.annotations={tmp_path / 'boxes.json'}" for split in ("train", "val")]
    data += [f"data.{split}.images={tmp_path}" for split in ("train", "val")]
    data += ["data.train.scales=[[128, 96]]", "data.test.scale=[128, 96]", "train.workers=0"]
    arguments = [*small, *data, f"output_dir={run}"]
    assert main(["train", FP16, *arguments, "schedule.epochs=2", "schedule.warmup_steps=2", "train.log_every=1"]) == 0
    saved = torch.load(run / "last.pth", weights_only=True)
    assert saved["step"] == 6 and saved["scaler"]["scale"] == 512
    assert saved["config"]["train"]["precision"] == "float16"
    assert {value.dtype for value in saved["model"].values()} == {torch.float32, torch.int64}
    moved = [state["momentum_buffer"].any() for state in saved["optimizer"]["state"].values()]
    assert all(moved)
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    history = json.loads((run / "metrics.json").read_text())
    capsys.readouterr()
    assert main(["eval", FP16, *arguments, "--checkpoint", str(run / "last.pth")]) == 0
    results = json.loads((run / "eval_results.json").read_text())
    assert results["metrics"]["AP"] == pytest.approx(history[-1]["AP"])

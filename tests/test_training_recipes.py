"""Settings of a run: precision, accumulation, checkpointed activations, averaged weights, schedules, evaluation."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import seeded
from test_resume import assert_same, at_step
from tiny_model import SIZES, images, small, targets
from tiny_training import tiny_config
from torch import nn

from fastrcnn.atomic import TEMPORARY
from fastrcnn.config import BackboneConfig, Config, TrainConfig
from fastrcnn.models.activation_checkpointing import checkpointed
from fastrcnn.models.backbone import ResNet
from fastrcnn.models.vgg import VGG16
from fastrcnn.training import train as loop
from fastrcnn.training import validation
from fastrcnn.training.precision import autocast, build_scaler
from fastrcnn.training.schedule import build_optimizer
from fastrcnn.training.train import train

pytestmark = pytest.mark.usefixtures("small_backbone")


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(tiny_config(pictures, folder))
    return folder


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pth", weights_only=True)


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def assert_resumes(config: Config, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that crashes in step `step` and is resumed ends with the same file as one that does not."""
    folder = Path(config.output_dir)
    config.train.checkpoint_minutes = 0
    train(config)
    undisturbed = last(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with monkeypatch.context() as patch:
        at_step(patch, step, crash)
        with pytest.raises(Crash):
            train(config)
    assert last(folder)["step"] == step
    train(config, resume=True)
    resumed = last(folder)
    for state in (undisturbed, resumed):
        del state["schedule"]["unlogged"]
    assert_same(resumed, undisturbed)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_follows_full_precision(precision: str, device: torch.device) -> None:
    """Nearly the losses of float32, from activations in the half type; gradients and weights stay float32."""
    model = small(confident=False).to(device).train()
    arguments = (
        images(*SIZES).to(device),
        SIZES,
        [{name: value.to(device) for name, value in target.items()} for target in targets()],
    )
    seen: set[torch.dtype] = set()
    model.box_head.fc1.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    values = {}
    for name in ("float32", precision):
        config = TrainConfig(precision=name)
        scaler = build_scaler(config, device)
        torch.manual_seed(0)
        model.zero_grad()
        with autocast(config, device):
            losses = model.losses(*arguments)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        values[name] = sum(losses.values()).item()
        assert scaler.is_enabled() == (name == "float16")
    assert seen == {torch.float32, getattr(torch, precision)}
    assert values[precision] == pytest.approx(values["float32"], rel=0.05)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad.dtype == parameter.dtype == torch.float32 for parameter in trained)


def test_a_gradient_that_overflows_skips_the_step_and_lowers_the_scale(pictures: Path, tmp_path: Path) -> None:
    """The first scale is so large that nothing but skipped steps follow: the weights are those of the start."""
    config = tiny_config(pictures, tmp_path, "train.precision=float16", "schedule.epochs=1", "optimizer.momentum=0.9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrcnn.training.precision.FIRST_SCALE", 2.0**40)
        train(config)
    saved = last(tmp_path)
    assert saved["scaler"]["scale"] == 2.0**37  # halved in each of three steps
    loop.seed_everything(config.train.seed)
    start = loop.build_model(config.model).state_dict()
    assert all(torch.equal(saved["model"][name].cpu(), start[name]) for name in start if name.endswith("weight"))
    momenta = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    assert len(momenta) > 50 and not any(momentum.any() for momentum in momenta)


def test_a_skipped_first_step_leaves_no_rubbish_in_the_momenta() -> None:
    """Torch's fused SGD leaves the momenta uninitialised then; ours are zeros from the start."""
    layer = nn.Linear(300, 300)
    optimizer = build_optimizer(layer, Config().optimizer)
    layer.weight.grad, layer.bias.grad = torch.ones(300, 300), torch.ones(300)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None  # as GradScaler.step sets them
    optimizer.step()
    assert not any(optimizer.state[parameter]["momentum_buffer"].any() for parameter in layer.parameters())


def test_fixed_loss_scale(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "train.precision=float16", "train.loss_scale=512"))
    assert last(tmp_path)["scaler"]["scale"] == 512


def test_float16_resumes_with_its_scale(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrcnn.training.precision.FIRST_SCALE", 2.0**18)  # some steps are skipped
    assert_resumes(tiny_config(pictures, tmp_path, "train.precision=float16"), 4, monkeypatch)
    assert last(tmp_path)["scaler"]["scale"] < 2.0**18


# --- memory -----------------------------------------------------------------------------------------------------------


def test_accumulation_averages_the_gradients_of_the_batches(pictures: Path, tmp_path: Path) -> None:
    """The first step with two batches of one image moves the weights by the mean of what each alone does."""
    weights = {}
    one_step = ["train.batch_size=1", "schedule.epochs=1", "schedule.warmup_steps=0", "model.backbone.norm=eval"]
    original = loop.steps

    def only(first: int, count: int) -> Any:
        def limited(batches: Any, start: int, stop: int, size: int) -> Any:
            step = next(original(batches, 0, 2, 2))
            step.batches, step.count = step.batches[first : first + count], count
            yield step

        return limited

    for name, first, count in (("first", 0, 1), ("second", 1, 1), ("both", 0, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "steps", only(first, count))
            patch.setattr(loop, "validate", lambda *arguments: arguments[-1].append({"AP": 0.0, "epoch": 1, "step": 1}))
            config = tiny_config(pictures, tmp_path / name, *one_step, "optimizer.weight_decay=0")
            train(config)
        weights[name] = last(tmp_path / name)["model"]
    loop.seed_everything(config.train.seed)
    start = loop.build_model(config.model).state_dict()
    moved = {name: {k: w[k] - start[k] for k in w if k.endswith("weight")} for name, w in weights.items()}
    assert any((moved["first"][k] - moved["second"][k]).abs().max() > 1e-3 for k in moved["first"])
    for key, value in moved["both"].items():
        torch.testing.assert_close(value, (moved["first"][key] + moved["second"][key]) / 2, rtol=1e-3, atol=1e-6)


def test_accumulated_run_resumes(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches an epoch, two a step: two steps an epoch, the second of one batch."""
    assert_resumes(tiny_config(pictures, tmp_path, "train.accumulation=2"), 3, monkeypatch)
    assert last(tmp_path)["step"] == 4


def test_activation_checkpointing_changes_no_bit(pictures: Path, plain: Path, tmp_path: Path) -> None:
    """With batch norm that trains: its running statistics count each batch once."""
    train(tiny_config(pictures, tmp_path, "train.activation_checkpointing=true"))
    assert_same(last(tmp_path)["model"], last(plain)["model"])


def test_activation_checkpointing_keeps_fewer_activations() -> None:
    """Of the three stages that are trained, the inputs are kept instead of what is inside; of frozen ones nothing."""
    x = torch.randn(2, 3, 64, 64, generator=seeded(0))
    kept = {}
    for setting in (False, True):
        torch.manual_seed(0)
        backbone = ResNet(BackboneConfig(depth=18, norm="train", frozen_stages=1))
        backbone.activation_checkpointing = setting
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(0 if isinstance(tensor, nn.Parameter) else tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = backbone(x)
        kept[setting] = sum(sizes)
        sum(output.sum() for output in outputs).backward()
        assert backbone.layer1[0].conv1.weight.grad is None and backbone.layer2[0].conv1.weight.grad is not None
    inputs = 2 * 4 * (16 * 16**2 + 32 * 8**2 + 48 * 4**2)  # two images, float32: channels and sides of C2, C3, C4
    assert kept[True] == inputs < kept[False] / 4


def test_activation_checkpointing_of_vgg16() -> None:
    torch.manual_seed(0)
    backbone, gradients = VGG16(), []
    for setting in (False, True):
        backbone.activation_checkpointing = setting
        backbone.zero_grad()
        backbone(torch.randn(1, 3, 32, 32, generator=seeded(0)))[0].sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    assert len(gradients[0]) == 18 and all(map(torch.equal, *gradients))


def test_checkpointed_module_counts_its_batch_once() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(2, 3, 5, 5, generator=seeded(0), requires_grad=True)
    checkpointed(module, x).sum().backward()
    assert module[1].num_batches_tracked == 1 and module[1].momentum == 0.1 and x.grad is not None
    mean = module[0](x).mean((0, 2, 3))
    torch.testing.assert_close(module[1].running_mean, 0.1 * mean.detach())


# --- averaged weights -------------------------------------------------------------------------------------------------


def test_averaged_weights_are_saved_and_evaluated(
    pictures: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average is the recursion over the weights after each step; the training itself is as without."""
    after_step: list[dict[str, torch.Tensor]] = []
    original = loop.average_running_statistics

    def note(model: nn.Module, batches: int) -> None:
        original(model, batches)
        after_step.append({name: value.clone() for name, value in model.state_dict().items()})

    evaluated: list[dict[str, torch.Tensor]] = []
    evaluate = validation.evaluate

    def noted(model: nn.Module, *rest: Any) -> dict:
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(model, *rest)

    monkeypatch.setattr(loop, "average_running_statistics", note)
    monkeypatch.setattr(validation, "evaluate", noted)
    train(tiny_config(pictures, tmp_path, "train.ema_decay=0.8"))
    saved = last(tmp_path)
    assert_same(saved["average"]["trained_model"], last(plain)["model"])
    assert saved["average"]["updates"] == len(after_step) == 6
    average = {name: value.double() for name, value in after_step[0].items() if value.is_floating_point()}
    for weights in after_step[1:]:
        average = {name: 0.8 * value + 0.2 * weights[name].double() for name, value in average.items()}
    for name, value in average.items():
        torch.testing.assert_close(saved["model"][name].double(), value, rtol=1e-5, atol=1e-6)
    assert_same(dict(evaluated[-1]), dict(saved["model"]))
    assert not torch.equal(saved["model"]["box_head.fc1.weight"], after_step[-1]["box_head.fc1.weight"])


def test_averaged_run_resumes(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_resumes(tiny_config(pictures, tmp_path, "train.ema_decay=0.8"), 4, monkeypatch)


def test_an_average_may_begin_or_end_when_a_run_is_resumed(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    train(tiny_config(pictures, tmp_path, "train.ema_decay=0.8", "schedule.epochs=2"), resume=True)
    assert last(tmp_path)["average"]["updates"] == 3
    trained = last(tmp_path)["average"]["trained_model"]
    train(tiny_config(pictures, tmp_path, "schedule.epochs=2"), resume=True)
    config = tiny_config(pictures, tmp_path, "schedule.epochs=3", "optimizer.lr=0", "optimizer.weight_decay=0")
    train(config, resume=True)  # nothing moves but the running statistics: it went on from the trained weights
    saved = last(tmp_path)
    assert "average" not in saved
    assert torch.equal(saved["model"]["box_head.fc1.weight"], trained["box_head.fc1.weight"])


# --- optimiser, schedule, evaluation ----------------------------------------------------------------------------------


def test_adamw_with_a_cosine_resumes(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["optimizer.kind=adamw", "optimizer.lr=0.001", "schedule.decay=cosine"]
    assert_resumes(tiny_config(pictures, tmp_path, *settings), 4, monkeypatch)
    assert set(last(tmp_path)["optimizer"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_another_optimizer_cannot_resume(pictures: Path, plain: Path) -> None:
    with pytest.raises(ValueError, match=r"last\.pth was trained with optimizer\.kind=sgd.*adamw"):
        train(tiny_config(pictures, plain, "optimizer.kind=adamw"), resume=True)


def test_changed_momentum_counts_after_resuming(pictures: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "schedule.epochs=1"))
    train(tiny_config(pictures, tmp_path, "optimizer.momentum=0.5", "optimizer.weight_decay=0.01"), resume=True)
    (group,) = last(tmp_path)["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.01)


def test_rate_scaled_with_the_batch(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["schedule.epochs=1", "schedule.warmup_steps=0", "train.accumulation=2"]
    train(tiny_config(pictures, tmp_path / "a", *settings, "optimizer.scale_lr=true"))
    printed = capsys.readouterr().out
    assert "learning rate 0.005" in printed and "Warning" not in printed  # 4 images, not 16
    assert last(tmp_path / "a")["optimizer"]["param_groups"][0]["lr"] == 0.005
    train(tiny_config(pictures, tmp_path / "b", *settings))
    assert "Warning: a step has 4 images, not 16" in capsys.readouterr().out


def test_evaluation_before_the_first_step(pictures: Path, plain: Path, tmp_path: Path) -> None:
    train(tiny_config(pictures, tmp_path, "train.eval_first=true"))
    history = json.loads((tmp_path / "metrics.json").read_text())
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(0, 0), (1, 3), (2, 6)]
    assert_same(last(tmp_path)["model"], last(plain)["model"])  # it changes nothing
    assert (tmp_path / "best.pth").is_file()


def test_validation_data_that_is_missing_stops_the_run_before_it_starts(pictures: Path, tmp_path: Path) -> None:
    content = json.loads((pictures / "boxes.json").read_text())
    content["images"][0]["file_name"] = "lost.png"
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = tiny_config(
        pictures, tmp_path / "run", "train.eval_first=true", f"data.val.annotations={tmp_path}/val.json"
    )
    with pytest.raises(FileNotFoundError, match=r"lost\.png"):
        train(config)
    assert not (tmp_path / "run" / "log.csv").exists()


def test_no_loader_of_training_works_on_during_evaluation(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    evaluate = validation.evaluate

    def count(*arguments: Any) -> dict:
        alive.append(len(multiprocessing.active_children()))
        return evaluate(*arguments)

    monkeypatch.setattr(validation, "evaluate", count)
    train(tiny_config(pictures, tmp_path, "train.workers=2"))
    assert alive == [0, 0]


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    pictures: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the second epoch is saved; with space again, the run goes on from the first."""
    original = torch.save

    def full(content: Any, path: Path) -> None:
        original(content, path)
        if content["step"] == 6:
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            raise OSError(28, "No space left on device", str(path))

    config = tiny_config(pictures, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            train(config)
    assert last(tmp_path)["step"] == 3
    assert not list(tmp_path.glob(TEMPORARY))
    train(config, resume=True)
    assert_same(last(tmp_path)["model"], last(plain)["model"])

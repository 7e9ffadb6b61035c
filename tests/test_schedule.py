"""The learning rate of every step, and which parameters the optimiser has."""

import math

import pytest
import torch
from torch import nn

from fastrcnn.config import Config, OptimizerConfig, ScheduleConfig
from fastrcnn.training.schedule import (
    base_learning_rate,
    build_optimizer,
    learning_rate,
    set_learning_rate,
    unscaled_warning,
)

# The rates of mmdetection 2.28's 1x schedule, by step.
REFERENCE = {0: 2.000000000000002e-05, 1: 5.996000000000113e-05, 50: 0.002018, 250: 0.01001, 499: 0.01996004, 500: 0.02}


def rate(step: int, epoch: int, **settings: object) -> float:
    return learning_rate(step, epoch, ScheduleConfig(**settings), base=0.02, total_steps=12_000)


def test_warm_up_is_the_references() -> None:
    for step, expected in REFERENCE.items():
        assert rate(step, 0) == expected  # to the last bit


def test_rate_falls_at_the_start_of_milestone_epochs() -> None:
    rates = [rate(10_000, epoch) for epoch in range(12)]
    assert rates == pytest.approx([0.02] * 8 + [0.002] * 3 + [0.0002])


def test_warm_up_scales_the_rate_of_its_epoch() -> None:
    settings = {"milestones": [1], "warmup_steps": 100, "warmup_ratio": 0.5}
    assert rate(50, 0, **settings) == pytest.approx(0.02 * 0.75)
    assert rate(50, 1, **settings) == pytest.approx(0.002 * 0.75)


def test_no_warm_up() -> None:
    assert rate(0, 0, warmup_steps=0) == 0.02


def test_cosine() -> None:
    rates = [rate(step, step // 1000, decay="cosine", warmup_steps=0) for step in range(0, 12_001, 1000)]
    half = [0.01 * (1 + math.cos(math.pi * k / 12)) for k in range(13)]
    assert rates == pytest.approx(half)
    assert rates[0] == 0.02 and rates[6] == pytest.approx(0.01) and rates[12] == 0
    assert rate(250, 0, decay="cosine") == pytest.approx(0.01001, rel=2e-3)  # warm-up, as with steps


def test_rate_scales_with_the_batch_only_when_asked() -> None:
    config = Config()
    assert base_learning_rate(config, 4) == base_learning_rate(config, 16) == 0.02
    assert unscaled_warning(config, 16) == ""
    warning = unscaled_warning(config, 4)
    for part in ("4 images, not 16", "optimizer.lr=0.02", "linear scaling rule", "= 0.005", "optimizer.scale_lr=true"):
        assert part in warning
    config.optimizer.scale_lr = True
    assert base_learning_rate(config, 4) == 0.005 and base_learning_rate(config, 32) == 0.04
    assert unscaled_warning(config, 4) == ""
    config = Config(optimizer=OptimizerConfig(lr=0.001, base_batch_size=1))
    assert unscaled_warning(config, 1) == "" and "not 1; optimizer.lr=0.001" in unscaled_warning(config, 2)
    config.optimizer.scale_lr = True
    assert base_learning_rate(config, 2) == 0.002


def test_optimizer_has_the_trained_parameters_and_decays_them_all() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, momentum=0.8, weight_decay=0.01))
    (group,) = optimizer.param_groups
    expected = [*model[1].parameters(), *model[2].parameters()]
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in expected}
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.8, 0.01)
    set_learning_rate(optimizer, 0.05)
    assert group["lr"] == 0.05


def test_steps_are_sgd_with_momentum_for_channels_last_weights() -> None:
    """The fused optimiser trusts the gradient's strides: backward() must give them those of the weight."""
    torch.manual_seed(0)
    model = nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.01))
    images = torch.randn(2, 6, 9, 9)
    weight, velocity = model.weight.detach().clone(), torch.zeros_like(model.weight)
    for memory_format in (torch.channels_last, torch.contiguous_format):  # of what the gradient is computed from
        optimizer.zero_grad()
        model(images.contiguous(memory_format=memory_format)).square().mean().backward()
        velocity = 0.9 * velocity + model.weight.grad + 0.01 * weight
        weight = weight - 0.1 * velocity
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), weight)


def test_adamw_decays_the_weights_apart_from_the_gradient() -> None:
    """The first step of Adam moves each weight by lr against the sign of its gradient, whatever its size."""
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig(kind="adamw", lr=0.01, weight_decay=0.1))
    before = model.weight.detach().clone()
    (model.weight * torch.tensor([[1.0, -100, 1e-3], [5, 6, -7]])).sum().backward()
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * torch.tensor([[1.0, -1, 1], [1, 1, -1]])
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-6)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerConfig())

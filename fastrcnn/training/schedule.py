"""The optimiser, and the learning rate of every step: linear warm-up, times what is left after steps or a cosine."""

import math

import torch
from torch import nn, optim

from fastrcnn.config import Config, OptimizerConfig, ScheduleConfig


def base_learning_rate(config: Config, images_per_step: int) -> float:
    """optimizer.lr, scaled by the linear rule if optimizer.scale_lr asks for it.

    The rule: k times as many images in a step, k times the learning rate (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677, section 2.1).
    """
    factor = images_per_step / config.optimizer.base_batch_size if config.optimizer.scale_lr else 1.0
    return config.optimizer.lr * factor


def unscaled_warning(config: Config, images_per_step: int) -> str:
    """A line for the user if a step has not base_batch_size images and lr is not scaled for it; else empty."""
    lr, base = config.optimizer.lr, config.optimizer.base_batch_size
    if config.optimizer.scale_lr or images_per_step == base:
        return ""
    return (
        f"\nWarning: a step has {images_per_step} images, not {base}; optimizer.lr={lr:g} is used as it is. "
        f"The linear scaling rule would take {lr:g} x {images_per_step} / {base} = "
        f"{lr * images_per_step / base:g}: optimizer.scale_lr=true applies it"
    )


def learning_rate(step: int, epoch: int, schedule: ScheduleConfig, base: float, total_steps: int) -> float:
    """The learning rate that step `step` (from 0, counted over the whole run) of epoch `epoch` (from 0) trains with.

    decay "steps": the base rate is multiplied by gamma at the start of each milestone epoch: milestones [8, 11] act
    from the ninth and the twelfth epoch on. "cosine": it follows half a cosine, from the base rate at step 0 to 0 at
    total_steps (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983, without restarts). During the first
    `warmup_steps` steps it is also scaled by a factor that grows linearly from `warmup_ratio` at step 0 to 1 (Goyal et
    al. 2017, section 2.2). It depends on nothing but its arguments, so a resumed run needs no other state.
    """
    if schedule.decay == "cosine":
        rate = base * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    else:
        rate = base * schedule.gamma ** sum(milestone <= epoch for milestone in schedule.milestones)
    if step < schedule.warmup_steps:
        rate *= 1 - (1 - step / schedule.warmup_steps) * (1 - schedule.warmup_ratio)
    return rate


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """SGD or AdamW over every parameter of `model` that is trained; biases and batch norm decay too, as in the zoo.

    Fused: one pass over the memory, four times as fast on the CPU. It takes a parameter and its gradient to have the
    same strides, which holds for gradients that backward() made, and must hold for any that are assigned.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("Every parameter of the model is frozen: there is nothing to train")
    if config.kind == "adamw":
        return optim.AdamW(trained, config.lr, weight_decay=config.weight_decay, fused=True)
    sgd = optim.SGD(trained, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    for parameter in trained if config.momentum > 0 else ():
        # Torch would allocate it in the first step and leave it as it found it if the loss scaler skips that step.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate

"""Half precision in training: which operations run in it, and the loss scale that keeps float16 gradients above zero.

The weights, their gradients and the optimiser are float32. Autocast runs convolutions and linear layers in the half
type; RoIAlign keeps the features' type; proposals, targets, box coding and losses are computed in float32.
"""

import torch
from torch import amp

from fastrcnn.config import TrainConfig

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_SCALE = 2.0**16  # of a dynamic loss scale: halved where a gradient overflows, doubled after 2000 steps without


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The context in which the losses are computed."""
    dtype = PRECISIONS[config.precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def build_scaler(config: TrainConfig, device: torch.device) -> amp.GradScaler:
    """The scaler of the loss, which skips a step whose gradients overflow; it does nothing but for float16.

    bfloat16 has the range of float32 and needs none. With train.loss_scale set, call update(config.loss_scale) after
    every step: the scale is then constant, as the 512 of mmdetection's FP16 row.
    """
    scale = FIRST_SCALE if config.loss_scale is None else config.loss_scale
    return amp.GradScaler(device.type, init_scale=scale, enabled=config.precision == "float16")

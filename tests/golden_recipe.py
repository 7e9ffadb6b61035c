"""The weights and images behind tests/golden/*.npz, rebuilt from a formula: each tensor is drawn from a generator that
its own name seeds, so no checkpoint is stored."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
# of weights whose name contains the key
GAINS = {"fc_cls": 2.0, "rpn_reg": 0.05, "rpn_cls": 0.3, "fc_reg": 0.2, "backbone.features": 2**0.5}


def layout(config: str) -> list[tuple[str, list[int]]]:
    """Name and shape of every entry of the published checkpoint of a config, in its order."""
    families = json.loads((GOLDEN / "layouts.json").read_text())
    return next(family["layout"] for family in families if config in family["configs"])


def checkpoint(config: str, photo: bool = False) -> dict:
    """A checkpoint as mmdetection writes it. For photos, a network whose pixels are not divided by a standard deviation
    gets a smaller first convolution, so that its scores do not saturate."""
    state = {name: entry(name, shape) for name, shape in layout(config)}
    if photo and "caffe" in config:
        state["backbone.conv1.weight"] /= 16.0 if "dc5" in config else 57.0
    return {"meta": {"epoch": 12, "iter": 1}, "state_dict": state}


def entry(name: str, shape: list[int]) -> Tensor:
    """The value of one entry: float32, or int64 zero for a counter."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith(("running_mean", ".bias")):
        value = 0.05 * random.standard_normal(shape)
    elif len(shape) == 1:  # running_var, and the weight of a batch norm
        value = 0.8 + 0.4 * random.random_sample(shape)
        if name.endswith("bn3.weight"):
            value = value * 0.35  # so that activations stay bounded through the residual stages
    else:
        value = random.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
        for part, gain in GAINS.items():
            value = value * gain if part in name else value
    return torch.from_numpy(np.ascontiguousarray(value)).float()


def images() -> tuple[Tensor, list[tuple[int, int]]]:
    """Noise float32 [2, 3, 160, 224], zero beyond the true (height, width) of each image, and those sizes."""
    sizes = [(150, 220), (128, 200)]
    batch = torch.zeros(2, 3, 160, 224)
    for image, seed, (height, width) in zip(batch, (7, 8), sizes, strict=True):
        noise = np.random.RandomState(seed).standard_normal((3, 160, 224)).astype(np.float32)
        image[:, :height, :width] = torch.from_numpy(noise)[:, :height, :width]
    return batch, sizes


def targets(num_classes: int) -> list[dict[str, Tensor]]:
    """Four objects in the first image, none in the second."""
    boxes = [[20, 30, 90, 110], [100, 10, 200, 140], [5, 5, 25, 25], [60, 70, 75, 80]]
    first = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor([3, 17, 0, 42]) % num_classes}
    return [first, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]

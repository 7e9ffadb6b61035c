"""The log of a run for TensorBoard (`tensorboard --logdir runs`), an optional dependency: train.tensorboard=true."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


def check_tensorboard() -> None:
    """Raises ImportError if the package is not installed: before the run, not in the middle of it."""
    if find_spec("tensorboard") is None:
        raise ImportError(
            "train.tensorboard=true needs the package tensorboard, which is not installed: pip install tensorboard, or "
            "leave it out (log.csv, log.jsonl, metrics.json and curves.png hold the same numbers)"
        )


class TensorBoard:
    """Writes folder/tensorboard.

    Args:
        folder: of the run. step: steps that are done; what an earlier run wrote beyond it is hidden, those steps are
            redone.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def row(self, row: Mapping[str, float]) -> None:
        """A row of the log: its losses under "loss/", the rest under "training/"."""
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                group = "loss" if name.startswith("loss") else "training"
                self._writer.add_scalar(f"{group}/{name}", value, int(row["step"]))
        self._writer.flush()

    def evaluation(self, step: int, metrics: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
        """Metrics under "validation/", classes under "AP of class/", pictures (uint8 BGR) under "predictions/"."""
        for name, value in metrics.items():
            if not isinstance(value, dict) and value >= 0:  # -1: no such object
                self._writer.add_scalar(f"validation/{name}", value, step)
        for name, value in metrics.get("per_class", {}).items():
            if value >= 0:
                self._writer.add_scalar(f"AP of class/{name}", value, step)
        for name, picture in pictures.items():
            rgb = np.ascontiguousarray(picture[:, :, ::-1])
            self._writer.add_image(f"predictions/{name}", rgb, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

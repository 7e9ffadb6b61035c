"""Trains fastrcnn's or torchvision's model on the blood-cell photos (BCCD), in one loop, with one recipe.

    python benchmarks/bccd.py fastrcnn torchvision --data ../shared/data/bccd --seeds 0 1

Loader, optimiser, schedule, evaluation and log are fastrcnn's for both; only the model differs. Both have a ResNet-18
with FPN, batch statistics and random initial weights, and the same anchors, sampling and input size. Each run writes
its log, metrics and curves to <out>/<model>_<seed>; the table and a picture of all curves go to <out>. A finished run
is not trained again.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from fastrcnn.benchmark import OURS, THEIRS, machine_name, training_seconds
from fastrcnn.config import Config, load_config
from fastrcnn.models.detections import Detections
from fastrcnn.peer import build_peer
from fastrcnn.training.train import train

CONFIG = "faster_rcnn_r18_fpn_bccd"
_LOSSES = {"loss_objectness": "loss_rpn_cls", "loss_rpn_box_reg": "loss_rpn_bbox",
           "loss_classifier": "loss_cls", "loss_box_reg": "loss_bbox"}  # fmt: skip


class PeerInOurLoop(nn.Module):
    """torchvision's model with the two methods that training and evaluation call. Its label 0 is background."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = build_peer(config)

    def losses(
        self, images: Tensor, sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        _, losses = self._run(images, sizes, shifted)
        return {_LOSSES[name]: loss for name, loss in losses.items()}

    def forward(
        self, images: Tensor, sizes: list[tuple[int, int]], factors: list[tuple[float, float]]
    ) -> list[Detections]:
        found, _ = self._run(images, sizes, None)
        scales = [result["boxes"].new_tensor(factor * 2) for result, factor in zip(found, factors, strict=True)]
        return [
            Detections(result["boxes"] / scale, result["scores"], result["labels"] - 1)
            for result, scale in zip(found, scales, strict=True)
        ]

    def _run(self, images: Tensor, sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]] | None):
        batch, features = ImageList(images, sizes), self.model.backbone(images)
        proposals, rpn_losses = self.model.rpn(batch, features, targets)
        found, head_losses = self.model.roi_heads(features, proposals, sizes, targets)
        return found, rpn_losses | head_losses


def run(model: str, seed: int, data: Path, out: Path, overrides: list[str]) -> dict:
    """One training; the entry of metrics.json of the last epoch, with the seconds that its steps took."""
    folder = out / f"{model}_{seed}"
    paths = [f"data.{split}.{key}={path}" for split in ("train", "val")
             for key, path in (("annotations", data / f"{split}.json"), ("images", data / "JPEGImages"))]  # fmt: skip
    config = load_config(CONFIG, [*paths, f"train.seed={seed}", f"output_dir={folder}", *overrides])
    if model == THEIRS:
        with patch("fastrcnn.training.train.build_model", lambda _: PeerInOurLoop(config)):
            train(config, resume=True)
    else:
        train(config, resume=True)
    last = json.loads((folder / "metrics.json").read_text())[-1]
    seconds = training_seconds(folder, config.train.batch_size)
    return {"model": model, "seed": seed, "seconds": seconds, **{key: last[key] for key in ("step", "AP", "AP50")}}


def table(results: list[dict]) -> str:
    lines = ["| model | seed | steps | AP | AP50 | minutes of training | s / step |", "|---|---|---|---|---|---|---|"]
    for model in dict.fromkeys(result["model"] for result in results):
        of_model = [result for result in results if result["model"] == model]
        average = {key: mean(result[key] for result in of_model) for key in ("step", "seconds", "AP", "AP50")}
        for result in [*of_model, {**average, "model": f"**{model}**", "seed": "mean"}]:
            lines.append(
                f"| {result['model']} | {result['seed']} | {result['step']:.0f} | {result['AP']:.3f} "
                f"| {result['AP50']:.3f} | {result['seconds'] / 60:.1f} | {result['seconds'] / result['step']:.2f} |"
            )
    return "\n".join(lines)


def draw_curves(out: Path, results: list[dict]) -> None:
    """AP and AP50 over the steps, a line per run, into out/bccd.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, 2), ("AP", "AP50"), strict=True):
        for result in results:
            history = json.loads((out / f"{result['model']}_{result['seed']}" / "metrics.json").read_text())
            style = "-" if result["model"] == OURS else "--"
            name = f"{result['model']}, seed {result['seed']}"
            axes.plot([e["step"] for e in history], [e[metric] for e in history], style, label=name)
        axes.set(xlabel="step", ylabel=metric, ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out / "bccd.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", choices=(OURS, THEIRS))
    parser.add_argument(
        "--data", type=Path, default=Path("data/bccd"), help="folder of train.json (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_bccd"))
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings for both models")
    arguments = parser.parse_args()
    results = [
        run(model, seed, arguments.data, arguments.out, arguments.set)
        for seed in arguments.seeds
        for model in arguments.models
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"\n{CONFIG}; {machine_name(device)}; torch {torch.__version__}\n")
    print(table(results))
    draw_curves(arguments.out, results)


if __name__ == "__main__":
    main()

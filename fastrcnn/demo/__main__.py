"""``python -m fastrcnn.demo``: from nothing to a trained detector and a page of results, on a CPU in minutes.

drawn scenes -> training (log, checkpoints, curve) -> evaluation on scenes it has not seen -> index.html and pictures
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from fastrcnn.config import Config, load_config
from fastrcnn.data.read import read_dataset
from fastrcnn.data.scenes import write_scenes
from fastrcnn.demo.figures import measure
from fastrcnn.demo.page import write_page
from fastrcnn.detector import load
from fastrcnn.evaluation.evaluate import evaluate
from fastrcnn.training.checkpoint import prepare_folder
from fastrcnn.training.train import train

CONFIG = "faster_rcnn_r18_fpn_scenes"
REQUIRED_AP50 = 0.90
NUM_TRAIN, NUM_VAL = 800, 120
_RUN_FILES = ("*.pth", "config.yaml", "log.csv", "log.jsonl", "metrics.json", "curves.png", "predictions/*.jpg")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastrcnn.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    metrics = run_demo(parser.parse_args().out)
    if metrics["AP50"] < REQUIRED_AP50:
        print(f"The demo failed: AP50 {metrics['AP50']:.3f}, expected at least {REQUIRED_AP50:.2f}", file=sys.stderr)
        return 1
    return 0


def run_demo(out: Path, overrides: list[str] | None = None, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL) -> dict:
    """Runs the whole demo into a folder; a former demo there is replaced.

    Args:
        out: the scenes go to out/scenes, training and index.html to out.
        overrides: "key=value" settings for the config. num_train, num_val: how many scenes to draw.
    Returns:
        The metrics of the trained detector on the validation scenes, as fastrcnn.evaluation.evaluate.
    Raises:
        FileExistsError: out holds a run that is not a demo's.
    """
    config = _config(out, overrides or [])
    _remove_former(out)
    prepare_folder(out, resume=False)
    print(f"Drawing {num_train} scenes to train on and {num_val} to evaluate on: {out / 'scenes'}", flush=True)
    write_scenes(out / "scenes", num_train, num_val)
    train(config)
    detector = load(config, out / "best.pth")
    scenes = read_dataset(config.data.val, detector.classes)
    metrics = evaluate(detector.model, scenes, config, detector.device).metrics
    figures = measure(out, detector, scenes.samples[0].path)
    page = write_page(out, detector, scenes, metrics, figures)
    print(
        f"\nAP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on {num_val} scenes that it has not seen, "
        f"{figures.fps:.0f} fps\n"
        f"Results: {page}\n"
        "Detect in your own picture (beach balls, fish, leaves, mugs and toadstools):\n"
        f"  {_command()} detect {CONFIG} YOUR_IMAGE.jpg --checkpoint {out / 'best.pth'} --out detections"
    )
    return metrics


def _command() -> str:
    """How to call the command line from this shell: the environment of `make demo` is not active in it."""
    return "fastrcnn" if shutil.which("fastrcnn") else f"{os.path.relpath(sys.executable)} -m fastrcnn"


def _config(out: Path, overrides: list[str]) -> Config:
    paths = [f"data.{split}.{key}={out / 'scenes' / split}{suffix}" for split in ("train", "val")
             for key, suffix in (("annotations", ".json"), ("images", ""))]  # fmt: skip
    return load_config(CONFIG, [*paths, f"output_dir={out}", *overrides])


def _remove_former(out: Path) -> None:
    """Removes what training wrote in a former demo; a folder without a demo's scenes keeps everything."""
    if (out / "scenes").is_dir():
        for pattern in _RUN_FILES:
            for path in out.glob(pattern):
                path.unlink()


if __name__ == "__main__":
    sys.exit(main())

"""Where a detector's time goes: each stage of detection and of a training step, medians.

    python benchmarks/stages.py faster_rcnn_r50_fpn_1x_coco

One picture; random weights whose heads are scaled as in fastrcnn.benchmark, so that there are as many proposals and
detections as in earnest; in training 20 random objects. A stage's time is its own, without the stages it calls.
"""

import argparse
from pathlib import Path

import torch
from training_step import random_target

from fastrcnn import __version__
from fastrcnn.benchmark import machine_name, realistic_detector
from fastrcnn.config import load_config
from fastrcnn.data.image import prepare_picture, read_image
from fastrcnn.stages import Stopwatch, stage_table, watch_detection, watch_training

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "coffee.png"
NUM_OBJECTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--image", type=Path, default=PHOTO, help="the picture (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config, pixels = load_config(arguments.config), read_image(arguments.image)
    detector = realistic_detector(config, pixels, arguments.device)
    model, device = detector.model, detector.device
    images, size, _ = prepare_picture(pixels, config.data, device, detector.dtype)
    targets = [random_target(size, config.model.box_head.num_classes, NUM_OBJECTS, device)]

    with Stopwatch(device) as watch:
        watch_detection(watch, model)
        watch_training(watch, model)

        def train() -> None:
            losses = model.losses(images, [size], targets)
            with watch.stage("the rest of backward"):
                sum(losses.values()).backward()
            model.zero_grad(set_to_none=True)

        print(
            f"{arguments.config}: {images.shape[3]} x {images.shape[2]}; {machine_name(device)}; fastrcnn "
            f"{__version__}, torch {torch.__version__}; medians of {arguments.repeats} runs"
        )
        print(stage_table("detection", watch.medians(lambda: detector.detect(pixels), arguments.repeats)))
        model.train()
        print(stage_table("training step, without the optimiser", watch.medians(train, arguments.repeats)))


if __name__ == "__main__":
    main()

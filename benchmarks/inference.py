"""Time and memory of detection, one picture at a time, next to torchvision's Faster R-CNN of the same shape.

python benchmarks/inference.py faster_rcnn_r50_fpn_1x_coco
"""

import argparse
from pathlib import Path

from fastrcnn.benchmark import benchmark

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "coffee.png"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--image", type=Path, default=PHOTO, help="the picture (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each model (default: %(default)s)")
    arguments = parser.parse_args()
    print(benchmark(arguments.config, arguments.image, arguments.device, arguments.repeats))

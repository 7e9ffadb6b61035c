"""The time from a decoded picture to the model's input, resized on the CPU and on the device, and how the two differ.

    python benchmarks/resizing.py faster_rcnn_r50_fpn_1x_coco

data.test.resize: "cpu" resizes by OpenCV and sends the result, "device" sends the picture and resizes it there. On CUDA
the time includes the wait for the result, which detection does not have; pictures come decoded, in unpinned memory.
"""

import argparse
import copy
from functools import partial
from statistics import median

import cv2
import numpy as np
import torch

from fastrcnn import __version__
from fastrcnn.benchmark import machine_name, time_alternately
from fastrcnn.config import load_config
from fastrcnn.data.image import prepare_picture
from fastrcnn.data.scenes import draw_scene

SIZES = ("320x240", "640x480", "1280x720", "1920x1080", "4000x3000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WIDTHxHEIGHT", help="(default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each (default: %(default)s)")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    here = load_config(arguments.config).data
    there = copy.deepcopy(here)
    here.test.resize, there.test.resize = "cpu", "device"
    long, short = here.test.scale
    print(
        f"To fit {long} x {short}, {arguments.dtype}; {machine_name(device)}; fastrcnn {__version__}, torch "
        f"{torch.__version__}, OpenCV {cv2.__version__}; medians of {arguments.repeats}, in turn\n\n"
        "| picture | on the CPU ms | on the device ms | ratio | largest difference |\n|---|---|---|---|---|"
    )
    scene = draw_scene(np.random.default_rng(0), 640, 480).image
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        pixels = cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC)
        runs = [partial(prepare_picture, pixels, data, device, dtype) for data in (here, there)]
        cpu, gpu = (1e3 * median(times) for times in time_alternately(runs, arguments.repeats, device))
        difference = (runs[0]()[0].float() - runs[1]()[0].float()).abs().max()
        print(f"| {width} x {height} | {cpu:.2f} | {gpu:.2f} | {cpu / gpu:.2f} | {difference:g} |", flush=True)


if __name__ == "__main__":
    main()

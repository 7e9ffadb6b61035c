"""Time and memory of a training step, next to torchvision's Faster R-CNN of the same shape.

    python benchmarks/training.py faster_rcnn_r50_fpn_1x_coco

Both train the same layers on the same pictures, taking turns: losses, gradients and the optimiser's step, from a batch
of the network's size. The config's batch norm trains its weight and bias, which torchvision's frozen one does not;
with `--overrides model.backbone.norm=frozen` the parameters are the same. Memory: see training_step.py.
"""

import argparse
from statistics import median

import torch
from training_step import add_work_arguments, build_step, peak_memory, work_of

from fastrcnn.benchmark import OURS, THEIRS, machine_name, time_alternately


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_work_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work, device = work_of(arguments), torch.device(arguments.device)
    sides = (OURS, THEIRS)
    memory = {side: peak_memory(side, work, arguments.threads) for side in sides}
    steps = [build_step(side, work) for side in sides]
    seconds = time_alternately(steps, arguments.repeats, device, warm_up=1)

    print(
        f"{work.config}{''.join(f', {setting}' for setting in work.overrides)}: {work.batch} pictures of "
        f"{work.size[0]} x {work.size[1]}, {work.objects} objects each, {work.dtype}; {machine_name(device)}; "
        f"torch {torch.__version__}; {arguments.repeats} steps each, in turn\n"
    )
    print("| step | median ms | fastest - slowest ms | images/s | peak memory MB |\n|---|---|---|---|---|")
    for side, times in zip(sides, seconds, strict=True):
        middle, peak = median(times), memory[side]
        print(
            f"| {side} | {1e3 * middle:.0f} | {1e3 * min(times):.0f} - {1e3 * max(times):.0f} "
            f"| {work.batch / middle:.2f} | {'-' if peak is None else f'{peak:.0f}'} |"
        )
    ours, theirs = median(seconds[0]), median(seconds[1])
    share = f", with {memory[OURS] / memory[THEIRS]:.2f} of the memory" if memory[OURS] and memory[THEIRS] else ""
    print(f"\n{theirs / ours:.2f} times as fast{share}.")


if __name__ == "__main__":
    main()

"""conv3x3 (Winograd) next to torch's conv2d on the 3x3 convolutions of R-50-FPN: medians, taking turns.

    python benchmarks/winograd.py [--only FPN]

One image of 1333 x 800, padded to 1344 x 800; both sides channels-last, float32, with bias. GFLOP/s count the
multiplications and additions of the definition on both sides, so that ours may exceed what the processor can do. Error:
root mean square and largest against float64, relative to the standard deviation of the outputs.
"""

import argparse
from dataclasses import dataclass
from datetime import date
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrcnn import __version__, ops
from fastrcnn.benchmark import machine_name, time_alternately

SECONDS_PER_CASE = 5.0
CPU = torch.device("cpu")


@dataclass
class Case:
    """A convolution from as many channels to as many."""

    name: str
    channels: int
    height: int
    width: int

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, self.channels, self.height, self.width, generator=generator).relu()
        weight = torch.randn(self.channels, self.channels, 3, 3, generator=generator) / (9 * self.channels) ** 0.5
        bias = torch.randn(self.channels, generator=generator)
        return x.contiguous(memory_format=torch.channels_last), weight, bias

    def gflop(self) -> float:
        return 2 * 9e-9 * self.channels**2 * self.height * self.width


CASES = [
    Case("FPN, RPN stride 4", 256, 200, 336),
    Case("FPN, RPN stride 8", 256, 100, 168),
    Case("FPN, RPN stride 16", 256, 50, 84),
    Case("FPN, RPN stride 32", 256, 25, 42),
    Case("RPN stride 64", 256, 13, 21),
    Case("backbone stride 4", 64, 200, 336),
    Case("backbone stride 8", 128, 100, 168),
    Case("backbone stride 16", 256, 50, 84),
    Case("backbone stride 32", 512, 25, 42),
]


def row(case: Case, repeats: int) -> str:
    x, weight, bias = case.inputs()
    theirs = partial(F.conv2d, x, weight.contiguous(memory_format=torch.channels_last), bias, padding=1)
    ours = partial(ops.conv3x3, x, weight, bias)
    (once,) = time_alternately([theirs], 1, CPU)[0]
    repeats = max(repeats, min(200, int(SECONDS_PER_CASE / 2 / once)))
    ms = [1e3 * median(seconds) for seconds in time_alternately([ours, theirs], repeats, CPU)]
    rates = [f"{1e3 * case.gflop() / each:.0f}" for each in ms]
    errors = [" and ".join(error(case, side)) for side in ("ours", "theirs")]
    shape = f"{case.channels}, {case.height} x {case.width}"
    cells = [case.name, shape, f"{ms[0]:.2f}", f"{ms[1]:.2f}", f"{ms[1] / ms[0]:.2f}", *rates, *errors]
    return f"| {' | '.join(cells)} |"


def error(case: Case, side: str) -> tuple[str, str]:
    """Of the first rows of the map: float64 takes its time."""
    x, weight, bias = case.inputs()
    x = x[:, :, :13, :64]
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    value = ops.conv3x3(x, weight, bias) if side == "ours" else F.conv2d(x, weight, bias, padding=1)
    difference = (value - exact) / exact.std()
    return f"{difference.square().mean().sqrt():.1e}", f"{difference.abs().max():.1e}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side, at least")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = [case for case in CASES if arguments.only.lower() in case.name.lower()]
    if not chosen:
        parser.error(f"--only {arguments.only}: expected a part of one of {[case.name for case in CASES]}")
    print(f"{machine_name(CPU)}; fastrcnn {__version__}, torch {torch.__version__}; {date.today()}\n")
    print(
        "| convolution | channels, map | fastrcnn ms | torch ms | ratio | GFLOP/s | torch GFLOP/s | error | torch's |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in chosen:
        print(row(case, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()

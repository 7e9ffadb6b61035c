"""A training step, ours or torchvision's, on random pictures; run as a program: its peak memory.

    python benchmarks/training_step.py fastrcnn faster_rcnn_r50_fpn_1x_coco --batch 2 --size 1333 800

prints the MB (of 2^20 bytes) that two steps need above `import torch` (CPU: resident; CUDA: of the tensors). That wants
a process of its own, because a process keeps what earlier calls allocated.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[], dict[str, float]]  # trains once -> the losses


@dataclass
class Work:
    """What a step has to do: pictures of `size` (width, height), already of the network's size, and their objects."""

    config: str
    overrides: Sequence[str] = ()
    batch: int = 2
    size: tuple[int, int] = (1333, 800)
    objects: int = 20
    device: str = "cpu"
    dtype: str = "float32"  # of the autocast of the forward pass, if another


def build_step(side: str, work: Work) -> Step:
    """The step of `side`, "fastrcnn" or "torchvision": losses, gradients, optimiser.

    Ours as `fastrcnn train` does it; torchvision's as its users run it: images in a list, its own transform within the
    step (normalisation; the size stays), torch's SGD.
    """
    from fastrcnn.config import load_config

    config = load_config(work.config, ["model.backbone.pretrained=null", *work.overrides])
    device, dtype = torch.device(work.device), getattr(torch, work.dtype)
    torch.manual_seed(0)
    images = torch.rand(work.batch, 3, work.size[1], work.size[0])
    targets = [random_target(work.size[::-1], config.model.box_head.num_classes, work.objects, device) for _ in images]
    build = _ours if side == "fastrcnn" else _theirs
    compute_losses, model, optimizer = build(config, images, targets, device)
    for name, module in model.named_modules():
        if name.endswith("bn3"):  # without pretrained weights the residuals would add up to values of 1e8
            module.weight.data.fill_(0.2)
    for group in optimizer.param_groups:
        group["lr"] *= config.schedule.warmup_ratio

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = compute_losses()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        return {name: loss.item() for name, loss in losses.items()}

    return step


def _ours(config, images: Tensor, targets: list[dict[str, Tensor]], device: torch.device):
    from fastrcnn.data.image import pad_and_batch
    from fastrcnn.models.build import build_model
    from fastrcnn.training.schedule import build_optimizer

    sizes = [tuple(images.shape[-2:])] * len(images)
    batch = pad_and_batch(list(images - 0.5)).to(device, memory_format=torch.channels_last)
    model = build_model(config.model).to(device).to(memory_format=torch.channels_last).train()
    return lambda: model.losses(batch, sizes, targets), model, build_optimizer(model, config.optimizer)


def _theirs(config, images: Tensor, targets: list[dict[str, Tensor]], device: torch.device):
    from fastrcnn.peer import build_peer

    config.data.test.scale = sorted(images.shape[-2:], reverse=True)
    model = build_peer(config).to(device).train()
    batch = list(images.to(device))
    shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]  # 0: its background
    settings = config.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    return lambda: model(batch, shifted), model, optimizer


def random_target(size: Sequence[int], num_classes: int, num_objects: int, device: torch.device) -> dict[str, Tensor]:
    """Objects of 5 to 45 % of the sides of an image of size (height, width), anywhere in it."""
    extent = torch.tensor([size[1], size[0]])
    side = extent * (0.05 + 0.4 * torch.rand(num_objects, 2))
    corner = (extent - side) * torch.rand(num_objects, 2)
    labels = torch.randint(num_classes, (num_objects,))
    return {"boxes": torch.cat([corner, corner + side], 1).to(device), "labels": labels.to(device)}


def peak_memory(side: str, work: Work, threads: int) -> float | None:
    """MB, measured in a fresh process; None on a CPU without /proc.

    Raises:
        RuntimeError: the process failed; its last words are in the message.
    """
    if work.device == "cpu" and not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, str(Path(__file__)), side, work.config, "--batch", work.batch, "--size", *work.size]
    command += ["--objects", work.objects, "--device", work.device, "--dtype", work.dtype, "--threads", threads]
    command += ["--overrides", *work.overrides] if work.overrides else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"The memory of {side}'s step could not be measured: {done.stderr.strip()[-1500:]}")
    return float(done.stdout.split()[-1])


def resident_peak() -> float:
    """MB of 2^20 bytes: the most that this process has had in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--overrides", nargs="*", default=[], help="settings that replace the config's")
    parser.add_argument("--batch", type=int, default=2, help="pictures (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(1333, 800), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--objects", type=int, default=20, help="per picture (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="of the autocast, if another (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")


def work_of(arguments: argparse.Namespace) -> Work:
    a = arguments
    return Work(a.config, a.overrides, a.batch, tuple(a.size), a.objects, a.device, a.dtype)


def main() -> None:
    before = resident_peak() if sys.platform == "linux" else 0.0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("side", choices=("fastrcnn", "torchvision"))
    add_work_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step = build_step(arguments.side, work_of(arguments))
    for _ in range(2):  # the optimiser's momentum comes with the first
        step()
    device = torch.device(arguments.device)
    print(torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident_peak() - before)


if __name__ == "__main__":
    main()

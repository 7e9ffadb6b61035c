"""Where a detector's time goes: each stage of detection and of a training step, medians.

    python benchmarks/stages.py faster_rcnn_r50_fpn_1x_coco

One picture; random weights whose heads are scaled as in fastrcnn.benchmark, so that there are as many proposals and
detections as in earnest; in training 20 random objects. A stage's time is its own, without the stages it calls.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fastrcnn import __version__, ops
from fastrcnn.benchmark import Head, machine_name, spread_outputs
from fastrcnn.config import Config, load_config
from fastrcnn.data.image import normalise, pad_and_batch, read_image, resize
from fastrcnn.models import box_head, rpn
from fastrcnn.models.build import build_model
from fastrcnn.models.faster_rcnn import FasterRCNN

PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "coffee.png"
NUM_OBJECTS, WARM_UP = 20, 2
Size = tuple[int, int]


class Stopwatch:
    """The time of named stages, each without that of stages inside it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)  # per stage, of the present run
        self._inside: list[float] = []  # per open stage, the seconds of the stages inside it

    def medians(self, call: Callable[[], object], repeats: int) -> dict[str, float]:
        """ms per stage of a call, in the order of their ends; "all": of the whole call."""
        runs: list[dict[str, float]] = []
        for _ in range(WARM_UP + repeats):
            self._seconds.clear()
            with self.stage("the rest"):
                call()
            runs.append({**self._seconds, "all": sum(self._seconds.values())})
        return {name: 1e3 * median(run.get(name, 0.0) for run in runs[WARM_UP:]) for name in runs[-1]}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        elapsed = time.perf_counter() - start
        self._seconds[name] += elapsed - self._inside.pop()
        if self._inside:
            self._inside[-1] += elapsed

    def watch(self, owner: object, function: str, stage: str) -> None:
        """From now on the calls of owner.function are timed as that stage."""
        call = getattr(owner, function)

        def timed(*args, **kwargs):
            with self.stage(stage):
                return call(*args, **kwargs)

        setattr(owner, function, timed)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def watch_stages(watch: Stopwatch, model: FasterRCNN) -> None:
    for owner, function, stage in (
        (model, "features", "backbone, FPN"),
        (model.rpn_head, "forward", "RPN head"),
        (model.anchors, "forward", "anchors"),
        (model.anchors, "valid", "anchors"),
        (ops, "assign_max_iou", "assignment"),
        (rpn, "sample", "sampling"),
        (box_head, "sample", "sampling"),
        (model.box_head, "sample", "sampling"),
        (model.rpn_head, "losses", "losses"),
        (ops, "generate_proposals", "proposals"),
        (model, "pool", "RoIAlign"),
        (model.box_head, "forward", "box head"),
        (model.box_head, "losses", "losses"),
        (ops, "select_detections", "detections"),
        (torch.ops.fastrcnn, "_multilevel_roi_align_backward", "RoIAlign backward"),
    ):
        watch.watch(owner, function, stage)


def prepare(config: Config, image: Path, device: torch.device) -> tuple[FasterRCNN, Tensor, list[Size]]:
    """The model, a batch of one image, and its true size."""
    torch.manual_seed(0)
    resized, _ = resize(read_image(image), config.data.test.scale)
    images, sizes = pad_and_batch([normalise(resized, config.data.image)]).to(device), [resized.shape[:2]]
    model = build_model(config.model).to(device).eval()

    def detect() -> object:
        return model(images, sizes, [(1.0, 1.0)])

    spread_outputs([Head(model.rpn_head.objectness, 1.0), Head(model.rpn_head.deltas, 0.1)], detect)
    classes = Head(model.box_head.logits, 1.5, background=config.model.box_head.num_classes)
    spread_outputs([classes, Head(model.box_head.deltas, 0.5)], detect)
    return model, images, sizes


def random_target(size: Size, num_classes: int, device: torch.device) -> dict[str, Tensor]:
    extent = torch.tensor([size[1], size[0]])
    side = extent * (0.05 + 0.4 * torch.rand(NUM_OBJECTS, 2))
    corner = (extent - side) * torch.rand(NUM_OBJECTS, 2)
    labels = torch.randint(num_classes, (NUM_OBJECTS,))
    return {"boxes": torch.cat([corner, corner + side], 1).to(device), "labels": labels.to(device)}


def table(title: str, times: dict[str, float]) -> str:
    whole = times["all"]
    lines = [f"\n| {title} | ms | share |", "|---|---|---|"]
    lines += [f"| {stage} | {ms:.2f} | {ms / whole:.1%} |" for stage, ms in times.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", help="name or path of a config")
    parser.add_argument("--image", type=Path, default=PHOTO, help="the picture (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, config = torch.device(arguments.device), load_config(arguments.config)
    model, images, sizes = prepare(config, arguments.image, device)
    targets = [random_target(sizes[0], config.model.box_head.num_classes, device)]

    watch = Stopwatch(device)
    watch_stages(watch, model)

    def train() -> None:
        losses = model.losses(images, sizes, targets)
        with watch.stage("the rest of backward"):
            sum(losses.values()).backward()
        model.zero_grad(set_to_none=True)

    print(
        f"{arguments.config}: {images.shape[3]} x {images.shape[2]}; {machine_name(device)}; fastrcnn {__version__}, "
        f"torch {torch.__version__}; medians of {arguments.repeats} runs"
    )
    print(table("detection", watch.medians(lambda: model(images, sizes, [(1.0, 1.0)]), arguments.repeats)))
    model.train()
    print(table("training step, without the optimiser", watch.medians(train, arguments.repeats)))


if __name__ == "__main__":
    main()

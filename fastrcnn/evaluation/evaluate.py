"""Runs a model over a dataset and measures its detections."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from fastrcnn.config import Config
from fastrcnn.data.loader import Batch, test_loader
from fastrcnn.data.sample import Dataset
from fastrcnn.distributed import all_gather_objects, from_main, is_main, rank, world_size
from fastrcnn.evaluation.coco import METRICS, CocoResult, evaluate_coco
from fastrcnn.evaluation.voc import voc_ap
from fastrcnn.models.detections import Detections
from fastrcnn.models.faster_rcnn import FasterRCNN


def detect_dataset(
    model: FasterRCNN, dataset: Dataset, config: Config, device: torch.device, batch_size: int = 1
) -> dict[int, Detections]:
    """The model's detections in every image of the dataset.

    The model runs in evaluation mode and is returned to the mode it was in. Images come in the dataset's order; with a
    batch_size above 1 they are padded to the largest of their batch, which changes results a little. Of several
    processes, with equal models, each takes every so many-th image, and all get the detections of all.

    Returns:
        image id -> Detections on the CPU, boxes in pixels of the original image, in the dataset's order.
    Raises:
        what reading an image raises (a missing or broken file, by name).
    """

    def detect(images: Tensor, batch: Batch) -> list[Detections]:
        return model(images, batch.image_sizes, batch.scale_factors)

    return run_over_dataset(detect, model, dataset, config, device, batch_size)


def run_over_dataset(
    run: Callable[[Tensor, Batch], list[Detections]],
    model: FasterRCNN,
    dataset: Dataset,
    config: Config,
    device: torch.device,
    batch_size: int = 1,
) -> dict[int, Detections]:
    """What detect_dataset says, of the boxes that `run` finds with the model in a batch's images, on the device."""
    was_training = model.training
    dtype = next(model.parameters()).dtype
    own = replace(dataset, samples=dataset.samples[rank() :: world_size()])
    found: dict[int, Detections] = {}
    model.eval()
    try:
        disable = None if is_main() else True  # None: where standard error is no terminal
        with torch.inference_mode(), tqdm(total=len(own.samples), unit="image", leave=False, disable=disable) as bar:
            for batch in test_loader(own, config, batch_size):
                results = run(batch.images.to(device, dtype, memory_format=torch.channels_last), batch)
                for image_id, result in zip(batch.image_ids, results, strict=True):
                    found[image_id] = Detections(result.boxes.cpu(), result.scores.cpu(), result.labels.cpu())
                bar.update(len(results))
    finally:
        model.train(was_training)
    everyones = {image_id: result for part in all_gather_objects(found) for image_id, result in part.items()}
    return {sample.image_id: everyones[sample.image_id] for sample in dataset.samples}


@dataclass(frozen=True)
class Evaluation:
    """What a model finds in a dataset, and how good that is."""

    metrics: dict  # see evaluate()
    detections: dict[int, Detections]  # image id -> boxes in pixels of the original image, on the CPU
    coco: CocoResult  # the precision-recall curves besides
    detecting: float  # seconds: reading the files, detecting, rescaling the boxes
    measuring: float  # seconds


def evaluate(model: FasterRCNN, dataset: Dataset, config: Config, device: torch.device) -> Evaluation:
    """Detects in every image of the dataset, one at a time, and measures.

    Several processes share the images; the numbers are those of one process, and all get them.

    Returns:
        An Evaluation. Its metrics: the twelve COCO metrics (fastrcnn.evaluation.coco.METRICS) and "per_class"
        {class name: AP}; "VOC_mAP" (area form) and "VOC07_mAP" (11-point form), IoU 0.5, with "VOC_per_class" and
        "VOC07_per_class"; all 0 .. 1, or -1 where the dataset has no such object.
        "images_per_second": over reading the files, detecting and rescaling, not measuring.
    """
    start = time.perf_counter()
    detections = detect_dataset(model, dataset, config, device)
    detecting = time.perf_counter() - start
    return from_main(lambda: _measure(dataset, detections, detecting))


def _measure(dataset: Dataset, detections: dict[int, Detections], detecting: float) -> Evaluation:
    start = time.perf_counter()
    coco = evaluate_coco(dataset, detections)
    metrics: dict = {**coco.metrics, "per_class": coco.per_class}
    for name, eleven_point in (("VOC", False), ("VOC07", True)):
        result = voc_ap(dataset, detections, eleven_point=eleven_point)
        metrics |= {f"{name}_mAP": result["mAP"], f"{name}_per_class": result["per_class"]}
    metrics["images_per_second"] = len(dataset.samples) / detecting
    return Evaluation(metrics, detections, coco, detecting, time.perf_counter() - start)


def metrics_table(metrics: dict) -> str:
    """Evaluation.metrics as text: the metrics, then the APs of each class."""
    names = [name for name in (*METRICS, "VOC_mAP", "VOC07_mAP") if name in metrics]
    lines = ["".join(f"{name:>10}" for name in row) + "\n" + "".join(_cell(metrics[name], 10) for name in row)
             for row in (names[:6], names[6:12], names[12:]) if row]  # fmt: skip
    width = max((len(name) for name in metrics["per_class"]), default=0) + 2
    columns = max(1, 110 // (width + 8))
    for kind, key in (("AP", "per_class"), ("VOC AP", "VOC_per_class"), ("VOC07 AP", "VOC07_per_class")):
        if key in metrics:
            classes = [f"{name:>{width}}{_cell(ap, 8)}" for name, ap in metrics[key].items()]
            lines.append(f"{kind} of each class (-: no object of it in the dataset)")
            lines += ["".join(classes[i : i + columns]) for i in range(0, len(classes), columns)]
    lines.append(f"{metrics['images_per_second']:.2f} images/s, reading included")
    return "\n".join(lines)


def _cell(value: float, width: int) -> str:
    return f"{'-':>{width}}" if value < 0 else f"{value:{width}.3f}"

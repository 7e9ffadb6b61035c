"""A Dataset -> Batches, loaded by worker processes.

What an epoch holds depends on (seed, epoch) alone: its order, and for every image its scale and flip. The number of
workers and where an epoch was resumed do not change it.
"""

import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastrcnn.config import Config, DataConfig
from fastrcnn.data.cache import check_cache
from fastrcnn.data.image import pad_and_batch
from fastrcnn.data.sample import Dataset, Sample
from fastrcnn.data.transforms import Item, check_scale, check_scales, test_item, train_item

MIN_SIDE = 32  # pixels: training leaves out smaller images
ORDER, AUGMENTATION = 0, 1  # separate the random streams of (seed, epoch)

MakeItem = Callable[[Sample, int], Item]  # the sample and its entry in the epoch


@dataclass
class Batch:
    """N images, padded to a common size."""

    images: Tensor  # float32 [N, 3, H, W]
    image_sizes: list[tuple[int, int]]  # (height, width) before padding
    scale_factors: list[tuple[float, float]]  # (width, height): resized / original
    targets: list[dict[str, Tensor]]  # "boxes" float32 [G, 4] xyxy in pixels of images, "labels" int64 [G]; test: empty
    image_ids: list[int]
    mismatches: dict[int, str] = field(default_factory=dict)  # image id -> complaint about its size


def training_dataset(dataset: Dataset, keep_empty: bool = False) -> Dataset:
    """The dataset that is trained on, by mmdetection's rules, each counted in `dropped`.

    Objects: crowds and VOC's difficult objects are left out (what they cover is ordinary background), and boxes
    narrower or lower than one pixel, of zero area, or outside the image; other boxes keep what reaches beyond it
    (train_item clips). Images: those with a side below 32 pixels are left out, then those without an object, unless
    keep_empty (config.data.train.keep_empty).
    Raises ValueError if no image, or no object, is left.
    """
    result = replace(dataset, samples=[], dropped=dict(dataset.dropped), mismatched=set())
    for sample in dataset.samples:
        if min(sample.width, sample.height) < MIN_SIDE:
            result.drop(f"images with a side below {MIN_SIDE} pixels")
            continue
        x1, y1, x2, y2 = sample.boxes.T
        inside_width = np.minimum(x2, sample.width) - np.maximum(x1, 0)
        inside_height = np.minimum(y2, sample.height) - np.maximum(y1, 0)
        outside = (inside_width <= 0) | (inside_height <= 0)
        degenerate = (sample.areas <= 0) | (x2 - x1 < 1) | (y2 - y1 < 1)
        flagged = sample.crowd | sample.difficult
        result.drop("objects that are crowds", int(sample.crowd.sum()))
        result.drop("objects that are marked difficult", int((sample.difficult & ~sample.crowd).sum()))
        result.drop("objects below one pixel or without area", int((degenerate & ~flagged).sum()))
        result.drop("objects outside the image", int((outside & ~degenerate & ~flagged).sum()))
        kept = ~(flagged | outside | degenerate)
        if not kept.any() and not keep_empty:
            result.drop("images without objects to train on")
            continue
        result.samples.append(sample.keep(kept))
    if not any(len(sample.labels) for sample in result.samples):
        what = "object" if result.samples else "image"
        reasons = "; ".join(f"{count} {rule}" for rule, count in result.dropped.items())
        raise ValueError(
            f"{dataset.name}: no {what} is left to train on. Left out: {reasons or 'nothing, it is empty'}"
        )
    return result


def train_loader(dataset: Dataset, config: Config, epoch: int, start: int = 0, stride: int = 1) -> "Loader":
    """The batches of one training epoch.

    Args:
        dataset: what training_dataset returns.
        config: data.train, data.image, and train.{batch_size, seed, workers}.
        epoch: from 0.
        start, stride: the batches start, start + stride, ... of the epoch: for resuming within it, and for one of
            several processes, which together have each batch once.
    Returns:
        A Loader. Every image comes data.train.repeat times, none more often: where the batch size does not divide
        their number, one batch is smaller. A batch holds either landscape images (w > h) or others, but for at most
        one batch of what is left of both.
    """
    if not dataset.samples:
        raise ValueError(f"{dataset.name}: the dataset is empty")
    check_scales(config.data.train)
    check_cache(config.data)
    batches = epoch_batches(dataset, config, epoch)[start::stride]
    seed = (config.train.seed, epoch, AUGMENTATION)
    return Loader(dataset, batches, partial(_train_item, data=config.data, seed=seed), config)


def test_loader(dataset: Dataset, config: Config, batch_size: int = 1) -> "Loader":
    """Every image once, in the dataset's order, at data.test.scale; targets are empty."""
    check_scale(config.data.test.scale, "data.test.scale")
    check_cache(config.data)
    entries = [(index, index) for index in range(len(dataset.samples))]
    batches = [entries[first : first + batch_size] for first in range(0, len(entries), batch_size)]
    return Loader(dataset, batches, partial(_test_item, data=config.data), config)


def epoch_batches(dataset: Dataset, config: Config, epoch: int) -> list[list[tuple[int, int]]]:
    """The batches of an epoch, lists of (entry, sample index); an entry is one appearance of an image in the epoch.

    They depend on the seed, the epoch and the batch size, not on the number of processes that share them.
    """
    random = np.random.default_rng((config.train.seed, epoch, ORDER))
    size, count = config.train.batch_size, len(dataset.samples)
    indices = np.tile(np.arange(count), config.data.train.repeat)
    landscape = np.array([sample.width > sample.height for sample in dataset.samples])[indices]

    batches, rest = [], []
    for group in (landscape, ~landscape):
        entries = random.permutation(np.flatnonzero(group))
        full = len(entries) - len(entries) % size
        batches += list(entries[:full].reshape(-1, size))
        rest.append(entries[full:])
    left = np.concatenate(rest)
    batches += [left[first : first + size] for first in range(0, len(left), size)]
    return [[(int(entry), int(indices[entry])) for entry in batches[i]] for i in random.permutation(len(batches))]


class Loader:
    """Batches in a fixed order; len() is their number. Iterating starts config.train.workers processes.

    The first image whose size is not the annotated one is a warning; all are noted in dataset.mismatched. Their own
    size is used, and boxes stay in pixels. A file that cannot be read raises what read_image raises.
    """

    def __init__(
        self, dataset: Dataset, batches: list[list[tuple[int, int]]], make_item: MakeItem, config: Config
    ) -> None:
        self.dataset = dataset
        self.loader = DataLoader(
            _Items(dataset.samples, make_item),
            batch_sampler=batches,
            num_workers=config.train.workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else it would draw from torch's global one
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        # A process forked while OpenCV has threads would wait forever for threads that it did not inherit.
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            with torch.device("cpu"):  # torch's loader draws a number, on the default device
                batches = iter(self.loader)  # starts the processes
        finally:
            cv2.setNumThreads(threads)
        return self._checked(batches)

    def _checked(self, batches: Iterator[Batch | Exception]) -> Iterator[Batch]:
        try:
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                self._note_mismatches(batch)
                yield batch
        finally:
            del batches  # ends the processes now, not when the last traceback is forgotten

    def _note_mismatches(self, batch: Batch) -> None:
        for image_id, mismatch in batch.mismatches.items():
            if not self.dataset.mismatched:
                warnings.warn(
                    f"{mismatch}. The file's own size is used and boxes stay in pixels: check them, above all if the "
                    "file has an EXIF orientation. Further images like this are counted, not shown",
                    stacklevel=3,
                )
            self.dataset.mismatched.add(image_id)


class _Items(torch.utils.data.Dataset[Item | Exception]):
    """What the worker processes hold: (entry, sample index) -> Item, or the error of a bad file.

    Errors travel as values, so that the main process raises them as they are, without the worker's traceback around.
    """

    def __init__(self, samples: list[Sample], make_item: MakeItem) -> None:
        self.samples = samples
        self.make_item = make_item

    def __getitem__(self, key: tuple[int, int]) -> Item | Exception:
        entry, index = key
        try:
            return self.make_item(self.samples[index], entry)
        except (OSError, ValueError) as error:
            return error


def _train_item(sample: Sample, entry: int, data: DataConfig, seed: tuple[int, int, int]) -> Item:
    return train_item(sample, data, np.random.default_rng((*seed, entry)))


def _test_item(sample: Sample, entry: int, data: DataConfig) -> Item:
    return test_item(sample, data)


def _collate(results: list[Item | Exception]) -> Batch | Exception:
    for result in results:
        if isinstance(result, Exception):
            return result
    items = [result for result in results if isinstance(result, Item)]
    return Batch(
        images=pad_and_batch([item.image for item in items]),
        image_sizes=[(item.image.shape[1], item.image.shape[2]) for item in items],
        scale_factors=[item.scale_factor for item in items],
        targets=[{"boxes": item.boxes, "labels": item.labels} for item in items],
        image_ids=[item.image_id for item in items],
        mismatches={item.image_id: item.mismatch for item in items if item.mismatch},
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal, torchrun's and a job queue's SIGTERM every process of the job: the
    # main one decides, and the workers end with it. A second SIGTERM is the main one's, for a worker that hangs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))

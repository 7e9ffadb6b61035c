"""Transforms and loader: what an item holds, and that an epoch depends on (seed, epoch) alone."""

import multiprocessing
import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastrcnn.config import Config, DataConfig, TrainDataConfig
from fastrcnn.data import loader, transforms  # whole modules: pytest would take test_loader and test_item for tests
from fastrcnn.data.image import normalise, resize
from fastrcnn.data.loader import Batch, epoch_batches, train_loader, training_dataset
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.data.sample import Dataset, Sample, make_sample
from fastrcnn.data.transforms import random_scale, train_item

SIZES = [(64, 48), (48, 64), (64, 40), (64, 48), (40, 64), (64, 48), (50, 50)]  # width, height: 4 landscape, 3 not


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Seven images of noise, each with one object of its own label."""
    random = np.random.default_rng(0)
    samples = []
    for i, (width, height) in enumerate(SIZES):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), random.integers(0, 256, (height, width, 3), np.uint8))
        samples.append(make_sample(10 * i, path, (width, height), [[5, 6, 25 + i, 36]], [i], [30 * (20 + i)]))
    return Dataset("noise", [f"class{i}" for i in range(7)], list(range(7)), samples)


def small_config(**train: int) -> Config:
    config = Config()
    config.data.train.scales, config.data.test.scale = [[80, 60]], [80, 60]
    config.train.workers = 0
    for key, value in train.items():
        setattr(config.train, key, value)
    return config


def identical(a: Batch, b: Batch) -> bool:
    boxes = all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))
    same = (a.image_sizes, a.scale_factors, a.image_ids) == (b.image_sizes, b.scale_factors, b.image_ids)
    return same and boxes and torch.equal(a.images, b.images)


# --- items ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_follow_the_image(tmp_path: Path, flip: float) -> None:
    """A white rectangle stays under its box; a box that reaches beyond the image is clipped."""
    image = np.zeros((50, 100, 3), np.uint8)
    image[10:30, 20:60] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    boxes = [[20, 10, 60, 30], [80, -10, 120, 20]]
    sample = make_sample(1, tmp_path / "a.png", (100, 50), boxes, [3, 1], [800, 1200])
    data = DataConfig(train=TrainDataConfig(scales=[[200, 200]], flip=flip))
    item = train_item(sample, data, np.random.default_rng(0))
    assert item.image.shape == (3, 100, 200) and item.scale_factor == (2.0, 2.0) and item.mismatch is None
    expected = [[80, 20, 160, 60], [0, 0, 40, 40]] if flip else [[40, 20, 120, 60], [160, 0, 200, 40]]
    assert item.boxes.dtype == torch.float32 and item.boxes.tolist() == expected and item.labels.tolist() == [3, 1]
    x1, y1, x2, y2 = (int(v) for v in item.boxes[0])
    white = item.image[0] > 0
    assert white[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
    white[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = False
    assert not white.any()


def test_boxes_use_the_real_factor_of_each_side(tmp_path: Path) -> None:
    """640 x 361 at (1333, 800) becomes 1333 x 752: 752 / 361, not 1333 / 640."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((361, 640, 3), np.uint8))
    sample = make_sample(1, tmp_path / "a.png", (640, 361), [[10, 20, 640, 361]], [0], [1.0])
    item = train_item(sample, DataConfig(train=TrainDataConfig(flip=0.0)), np.random.default_rng(0))
    factors = np.array([1333 / 640, 752 / 361] * 2, np.float32)
    assert item.boxes[0].tolist() == (np.array([10, 20, 640, 361], np.float32) * factors).tolist()
    assert item.boxes[0, 2:].tolist() == [1333, 752] and item.scale_factor == tuple(factors[:2].tolist())


def test_crowds_and_boxes_beyond_the_real_image_are_no_targets(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    boxes = [[1, 1, 9, 9], [2, 2, 30, 30], [50, 5, 60, 15]]
    sample = make_sample(1, tmp_path / "a.png", (80, 40), boxes, [0, 1, 2], [64, 784, 100], crowd=[True, False, False])
    data = DataConfig(train=TrainDataConfig(scales=[[40, 40]], flip=0.0))
    item = train_item(sample, data, np.random.default_rng(0))
    assert item.labels.tolist() == [1] and item.boxes.tolist() == [[2, 2, 30, 30]]
    assert item.mismatch == f"{tmp_path}/a.png is 40 x 40 pixels, its annotation says 80 x 40"


def test_scale_modes() -> None:
    random = np.random.default_rng(0)
    two = [[1333, 640], [1333, 672]]
    drawn = Counter(tuple(random_scale(TrainDataConfig(scales=two, scale_mode="range"), random)) for _ in range(2000))
    assert set(drawn) == {(1333, short) for short in range(640, 673)}  # both ends included
    assert min(drawn.values()) > 25 and max(drawn.values()) < 110  # 60.6 expected
    both = TrainDataConfig(scales=[[640, 1333], [1000, 500]], scale_mode="range")
    values = np.array([random_scale(both, random) for _ in range(500)])
    assert (values.min(axis=0) >= [1000, 500]).all() and (values.max(axis=0) <= [1333, 640]).all()
    drawn = Counter(tuple(random_scale(TrainDataConfig(scales=two, scale_mode="value"), random)) for _ in range(1000))
    assert set(drawn) == {(1333, 640), (1333, 672)} and min(drawn.values()) > 400
    assert random_scale(TrainDataConfig(scales=two[:1]), random) == [1333, 640]


@pytest.mark.parametrize(
    ("scales", "mode", "message"),
    [
        ([[80, 60], [90, 60]], "fixed", "must have one .* scale_mode fixed"),
        ([], "value", "at least one .* scale_mode value"),
        ([[80, 60]], "range", "must have two .* scale_mode range"),
        ([[80, 60]], "random", "must be one of fixed, value, range, got 'random'"),
        ([[80]], "fixed", r"must be \[long side, short side\] in pixels, got \[80\]"),
    ],
)
def test_bad_scales(dataset: Dataset, scales: list[list[int]], mode: str, message: str) -> None:
    config = small_config()
    config.data.train.scales, config.data.train.scale_mode = scales, mode
    with pytest.raises(ValueError, match=message):
        train_loader(dataset, config, epoch=0)


# --- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("repeat", [1, 3])
def test_an_epoch_has_every_image_and_one_smaller_batch(dataset: Dataset, batch_size: int, repeat: int) -> None:
    config = small_config(batch_size=batch_size)
    config.data.train.repeat = repeat
    batches = epoch_batches(dataset, config, epoch=0)
    assert len(batches) == -(-7 * repeat // batch_size) == len(train_loader(dataset, config, epoch=0))
    sizes = sorted(len(batch) for batch in batches)
    assert sizes[1:] == [batch_size] * (len(batches) - 1) and sizes[0] == 7 * repeat - sum(sizes[1:])
    pairs = [pair for batch in batches for pair in batch]
    assert sorted(entry for entry, _ in pairs) == list(range(len(pairs)))  # each appearance is augmented on its own
    counts = Counter(index for _, index in pairs)
    assert counts == dict.fromkeys(range(7), repeat)
    mixed = sum(len({SIZES[index][0] > SIZES[index][1] for _, index in batch}) > 1 for batch in batches)
    assert mixed <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_batches_of_one(dataset: Dataset, batch_size: int, processes: int) -> None:
    config = small_config(batch_size=batch_size)
    alone = list(train_loader(dataset, config, epoch=1))
    for start in (0, processes):
        shares = [list(train_loader(dataset, config, 1, start + rank, processes)) for rank in range(processes)]
        assert sum(len(share) for share in shares) == max(0, len(alone) - start)
        for rank, share in enumerate(shares):
            assert all(identical(a, b) for a, b in zip(alone[start + rank :: processes], share, strict=True))


def test_epochs_differ_and_seeds_differ(dataset: Dataset) -> None:
    orders = {
        str(epoch_batches(dataset, small_config(batch_size=2, seed=seed), epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4
    config = small_config(batch_size=7)
    flips = set()
    for epoch in range(6):  # 7 images with a fair flip each
        (batch,) = train_loader(dataset, config, epoch)
        flips.add(tuple(torch.cat([t["boxes"][:, 0] for t in batch.targets])[np.argsort(batch.image_ids)].tolist()))
    assert len(flips) > 3


def test_flip_probability(dataset: Dataset) -> None:
    config = small_config(batch_size=7)
    config.data.train.repeat = 40
    flipped = [t["boxes"][0, 0] != 5 * wf for batch in train_loader(dataset, config, 0)
               for t, (wf, _) in zip(batch.targets, batch.scale_factors, strict=True)]  # fmt: skip
    assert len(flipped) == 280 and 110 < sum(flipped) < 170


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_same_for_any_number_of_workers_and_after_resuming(dataset: Dataset) -> None:
    config = small_config(batch_size=2)
    config.data.train.scales, config.data.train.scale_mode = [[80, 40], [100, 60]], "range"
    alone = list(train_loader(dataset, config, epoch=3))
    assert len({size for batch in alone for size in batch.image_sizes}) > 4
    state = torch.get_rng_state()
    for workers, start in ((1, 0), (2, 0), (3, 0), (2, 2)):
        config.train.workers = workers
        others = list(train_loader(dataset, config, epoch=3, start=start))
        assert len(others) == len(train_loader(dataset, config, epoch=3, start=start)) == 4 - start
        assert all(identical(a, b) for a, b in zip(alone[start:], others, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # the loader leaves torch's random numbers alone


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_same_however_the_workers_start(dataset: Dataset, start: str) -> None:
    """Forked, or as new processes (the default elsewhere, and of later Pythons), which get all by pickle."""
    config = small_config(batch_size=2)
    config.data.train.scales, config.data.train.scale_mode = [[80, 40], [100, 60]], "range"
    alone = list(train_loader(dataset, config, epoch=3)) + list(loader.test_loader(dataset, config))
    config.train.workers = 1
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(start, force=True)
    try:
        others = list(train_loader(dataset, config, epoch=3)) + list(loader.test_loader(dataset, config))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(alone) == 4 + 7 and all(identical(a, b) for a, b in zip(alone, others, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_same_whatever_torchs_defaults_are(dataset: Dataset, workers: int) -> None:
    config = small_config(batch_size=2, workers=workers)
    expected = list(train_loader(dataset, config, epoch=3)) + list(loader.test_loader(dataset, config))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = list(train_loader(dataset, config, epoch=3)) + list(loader.test_loader(dataset, config))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(identical(a, b) for a, b in zip(expected, found, strict=True))
    assert {batch.images.dtype for batch in found} == {torch.float32}


def test_a_batch_holds_its_images(dataset: Dataset) -> None:
    config = small_config(batch_size=3)
    config.data.train.flip = 0.0
    seen = 0
    for batch in train_loader(dataset, config, epoch=0):
        assert batch.images.shape[2] % 32 == 0 and batch.images.shape[3] % 32 == 0
        for i, image_id in enumerate(batch.image_ids):
            sample = dataset.samples[image_id // 10]
            resized, factors = resize(cv2.imread(str(sample.path)), [80, 60])
            height, width = batch.image_sizes[i]
            assert (height, width) == resized.shape[:2] and batch.scale_factors[i] == factors
            assert torch.equal(batch.images[i, :, :height, :width], normalise(resized, config.data.image))
            assert not batch.images[i, :, height:].any() and not batch.images[i, :, :, width:].any()
            assert batch.targets[i]["labels"].tolist() == sample.labels.tolist()
            assert torch.equal(batch.targets[i]["boxes"][:, 0], torch.tensor([5 * np.float32(factors[0])]))
            seen += 1
    assert seen == 7


def test_the_test_loader_keeps_the_order(dataset: Dataset) -> None:
    config = small_config(workers=1)
    batches = list(loader.test_loader(dataset, config))
    assert [batch.image_ids for batch in batches] == [[0], [10], [20], [30], [40], [50], [60]]
    assert batches[1].image_sizes == [(80, 60)] and tuple(batches[1].images.shape) == (1, 3, 96, 64)
    assert batches[0].targets[0]["boxes"].shape == (0, 4) and batches[0].targets[0]["labels"].shape == (0,)
    pairs = loader.test_loader(dataset, config, batch_size=2)
    assert len(pairs) == 4 and [batch.image_ids for batch in pairs] == [[0, 10], [20, 30], [40, 50], [60]]
    config.data.test.scale = [80]
    with pytest.raises(ValueError, match=r"data.test.scale must be"):
        loader.test_loader(dataset, config)


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_an_error_that_names_it(dataset: Dataset, workers: int) -> None:
    config = small_config(workers=workers)
    path = dataset.samples[4].path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"^The image file {path} is truncated: its end is missing after 200 bytes$"):
        list(train_loader(dataset, config, 0))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^No image file {path}$"):
        list(loader.test_loader(dataset, config))
    assert not multiprocessing.active_children()  # though the tracebacks are still there


def test_stopping_early_ends_the_workers(dataset: Dataset) -> None:
    batches = iter(train_loader(dataset, small_config(batch_size=1, workers=2), 0))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


def test_another_size_than_annotated_is_reported_once_and_counted(dataset: Dataset) -> None:
    for i in (1, 5):
        sample = dataset.samples[i]
        cv2.imwrite(str(sample.path), np.zeros((sample.height + 2, sample.width, 3), np.uint8))
    with pytest.warns(UserWarning, match=r"1.png is 48 x 66 pixels, its annotation says 48 x 64. The file's") as caught:
        batches = list(loader.test_loader(dataset, small_config(workers=2)))
    assert len(caught) == 1 and dataset.mismatched == {10, 50}
    assert batches[1].image_sizes == [(80, 58)]  # of 66 x 48
    assert "2 images have another size than annotated" in summary(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader.test_loader(dataset, small_config()))


def test_no_images() -> None:
    empty = Dataset("nothing", ["a"], [1], [])
    with pytest.raises(ValueError, match="nothing: the dataset is empty"):
        train_loader(empty, small_config(), 0)
    with pytest.raises(ValueError, match="nothing: no image is left to train on"):
        training_dataset(empty)


def _threads(sample: Sample, data: DataConfig) -> transforms.Item:
    item = transforms.test_item(sample, data)
    item.mismatch = f"{cv2.getNumThreads()} {torch.get_num_threads()}"
    return item


def test_workers_have_one_thread_and_do_not_inherit_locks(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the main process used OpenCV's and torch's threads, a careless fork hangs."""
    monkeypatch.setattr(loader, "test_item", _threads)
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (3000, 3000))
        torch.rand(500, 500) @ torch.rand(500, 500)
        with pytest.warns(UserWarning):
            batches = list(loader.test_loader(dataset, small_config(workers=1)))
        assert {text for batch in batches for text in batch.mismatches.values()} == {"1 1"}
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


def test_real_photos_load(shared: Path) -> None:
    """An epoch over 205 photos at half size: all there, and boxes inside."""
    folder = shared / "data" / "bccd"
    config = small_config(batch_size=8, workers=2)
    config.data.train = TrainDataConfig("coco", str(folder / "train.json"), str(folder / "JPEGImages"), [[320, 240]])
    dataset = training_dataset(read_dataset(config.data.train))
    seen: Counter[int] = Counter()
    for batch in train_loader(dataset, config, epoch=0):
        count = len(batch.image_ids)
        assert batch.images.shape == (count, 3, 256, 320) and batch.image_sizes == [(240, 320)] * count
        seen.update(batch.image_ids)
        for target in batch.targets:
            boxes = target["boxes"]
            assert len(boxes) == len(target["labels"]) > 0
            assert (boxes >= 0).all() and (boxes <= torch.tensor([320.0, 240, 320, 240])).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(seen) == sum(seen.values()) == 205

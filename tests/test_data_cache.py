"""The image cache: the same bits with and without, whoever writes, whatever lies in the folder."""

import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastrcnn.config import Config
from fastrcnn.data import cache, loader
from fastrcnn.data.cache import read_resized
from fastrcnn.data.sample import Dataset, make_sample


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    random = np.random.default_rng(0)
    samples = []
    for i, (width, height) in enumerate([(90, 60), (60, 90), (100, 70), (64, 64)]):
        path = tmp_path / f"{i}.jpg"
        cv2.imwrite(str(path), cv2.resize(random.integers(0, 256, (9, 12, 3), np.uint8), (width, height)))
        samples.append(make_sample(i, path, (width, height), [[5, 6, 40, 50]], [0], [1540]))
    return Dataset("noise", ["thing"], [1], samples)


def config(kind: str, folder: Path, workers: int = 0) -> Config:
    result = Config()
    result.data.cache, result.data.cache_folder = kind, str(folder) if kind != "none" else ""
    result.data.train.scales, result.data.test.scale = [[80, 60], [120, 50]], [70, 60]
    result.data.train.scale_mode = "value"
    result.train.batch_size, result.train.workers = 2, workers
    return result


def epochs(dataset: Dataset, settings: Config) -> list[torch.Tensor]:
    batches = [batch for epoch in range(3) for batch in loader.train_loader(dataset, settings, epoch)]
    batches += list(loader.test_loader(dataset, settings))
    return [t for batch in batches for t in (batch.images, *(target["boxes"] for target in batch.targets))] + [
        torch.tensor([batch.scale_factors for batch in batches[-4:]])
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["decoded", "resized"])
def test_the_same_bits_with_and_without(dataset: Dataset, tmp_path: Path, kind: str, workers: int) -> None:
    expected = epochs(dataset, config("none", tmp_path))
    folder = tmp_path / "cache"
    for _ in range(2):  # written, then read
        found = epochs(dataset, config(kind, folder, workers))
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 4 if kind == "decoded" else 4 < len(files) <= 12  # 2 scales of training, 1 of the test
    assert all(path.suffix == ".npy" and not path.name.startswith(".") for path in files)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_that_write_the_same_images_at_once(dataset: Dataset, tmp_path: Path) -> None:
    """Each of four images 30 times in one epoch, so that several workers come to each before it is there."""
    expected, crowded = config("none", tmp_path), config("decoded", tmp_path / "cache", workers=4)
    for settings in (expected, crowded):
        settings.data.train.repeat = 30
    pairs = zip(epochs(dataset, expected), epochs(dataset, crowded), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 4


@pytest.mark.parametrize("kind", ["decoded", "resized"])
def test_the_second_time_nothing_is_decoded(
    dataset: Dataset, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(kind, tmp_path / "cache").data
    path = dataset.samples[0].path
    first = read_resized(path, [80, 60], data)
    monkeypatch.setattr(cache, "read_image", lambda _: pytest.fail("decoded again"))
    second = read_resized(path, [80, 60], data)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1:] == second[1:] and second[2] == (60, 90)


def test_a_changed_image_and_another_scale_are_other_entries(dataset: Dataset, tmp_path: Path) -> None:
    data = config("resized", tmp_path / "cache").data
    path = dataset.samples[0].path
    first = read_resized(path, [80, 60], data)[0]
    assert read_resized(path, [40, 30], data)[0].shape != first.shape
    state = path.stat()
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert (read_resized(path, [80, 60], data)[0] != first).any()


def test_every_part_of_the_key_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two pictures that differ in one of: time, size of the file, decoder, folder, either side of the scale."""
    data = config("resized", tmp_path / "cache").data
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "a" / "picture.bmp"  # not compressed: its size follows from its sides

    def write(level: int, width: int = 90, moment: int = 0, path: Path = path) -> None:
        cv2.imwrite(str(path), np.full((60, width, 3), level, np.uint8))
        os.utime(path, ns=(moment, moment))

    def level(path: Path = path) -> int:
        return int(read_resized(path, [80, 60], data)[0][0, 0, 0])

    write(10)
    assert level() == 10
    write(20, moment=1)
    assert level() == 20
    write(30, width=96, moment=1)
    assert level() == 30
    write(40, width=96, moment=1, path=tmp_path / "b" / "picture.bmp")
    monkeypatch.chdir(tmp_path / "a")
    assert level(Path("picture.bmp")) == 30
    monkeypatch.chdir(tmp_path / "b")
    assert level(Path("picture.bmp")) == 40

    shapes = [read_resized(path, scale, data)[0].shape for scale in ([80, 60], [60, 80], [80, 30])]
    assert shapes[0] == shapes[1] != shapes[2]
    entries = len(list((tmp_path / "cache").rglob("*.npy")))
    assert entries == 5  # the two orders of the scale share one
    monkeypatch.setattr(cache.cv2, "__version__", "0")
    assert level(path) == 30
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == entries + 1


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"rubbish" * 50])
def test_a_damaged_entry_is_written_anew(dataset: Dataset, tmp_path: Path, damage: bytes) -> None:
    data = config("resized", tmp_path / "cache").data
    path = dataset.samples[0].path
    expected = read_resized(path, [80, 60], data)
    (file,) = (tmp_path / "cache").rglob("*.npy")
    whole = file.read_bytes()
    for content in (damage, whole[:-1], whole[:140]):
        file.write_bytes(content)
        found = read_resized(path, [80, 60], data)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:] == expected[1:] and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_warning(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    data = config("resized", tmp_path / "file").data
    with pytest.warns(UserWarning, match="The image cache cannot be written, images are decoded each time: "):
        found = read_resized(dataset.samples[0].path, [80, 60], data)
    np.testing.assert_array_equal(
        found[0], read_resized(dataset.samples[0].path, [80, 60], config("none", tmp_path).data)[0]
    )


def test_errors_of_images_are_those_without_a_cache(dataset: Dataset, tmp_path: Path) -> None:
    data = config("resized", tmp_path / "cache").data
    path = dataset.samples[0].path
    read_resized(path, [80, 60], data)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"^The image file {path} is truncated"):
        read_resized(path, [80, 60], data)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^No image file {path}$"):
        read_resized(path, [80, 60], data)


def test_another_size_than_annotated_is_still_reported(dataset: Dataset, tmp_path: Path) -> None:
    """The size before the resize is kept, too."""
    cv2.imwrite(str(dataset.samples[0].path), np.zeros((90, 60, 3), np.uint8))
    for _ in range(2):
        dataset.mismatched.clear()
        with pytest.warns(
            UserWarning, match=r"0.jpg is 60 x 90 pixels, its annotation says 90 x 60 \(exchanged: was it"
        ):
            list(loader.test_loader(dataset, config("resized", tmp_path / "cache")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "memory", "cache_folder": "x"}, "data.cache must be one of none, decoded, resized, got 'memory'"),
        ({"cache": "decoded"}, "data.cache=decoded needs data.cache_folder"),
        ({"cache": "resized", "cache_folder": "x"}, "every scale of scale_mode range: use data.cache=decoded"),
    ],
)
def test_settings_that_do_not_fit(dataset: Dataset, settings: dict[str, str], message: str) -> None:
    wrong = Config()
    wrong.data.train.scales, wrong.data.train.scale_mode = [[80, 60], [90, 70]], "range"
    for key, value in settings.items():
        setattr(wrong.data, key, value)
    with pytest.raises(ValueError, match=message):
        loader.train_loader(dataset, wrong, 0)
    wrong.data.cache = "none"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader.train_loader(dataset, wrong, 0))

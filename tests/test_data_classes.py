"""Class subsets and renaming, the same for every format."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from fastrcnn.config import load_config
from fastrcnn.data.classes import select_classes
from fastrcnn.data.sample import Dataset, make_sample


def dataset() -> Dataset:
    """Three classes; the first image has one object of each, the second a van."""
    boxes = [[0, 0, 9, 9], [1, 1, 8, 8], [2, 2, 7, 7]]
    samples = [
        make_sample(1, Path("a.jpg"), (64, 64), boxes, [0, 1, 2], [81, 49, 25], crowd=[True, False, False]),
        make_sample(2, Path("b.jpg"), (64, 64), boxes[:1], [2], [81]),
    ]
    return Dataset("street", ["car", "person", "van"], [3, 5, 9], samples)


def labels(result: Dataset) -> list[list[int]]:
    return [sample.labels.tolist() for sample in result.samples]


def test_nothing_asked_changes_nothing() -> None:
    original = dataset()
    assert select_classes(original, [], {}, declared=True) is original


def test_subset_keeps_every_column_of_the_kept_objects() -> None:
    original = dataset()
    result = select_classes(original, ["van", "car"], {}, declared=True)
    assert (result.classes, result.category_ids) == (["van", "car"], [9, 3])
    assert labels(result) == [[1, 0], [0]]
    first = result.samples[0]
    np.testing.assert_array_equal(first.boxes, [[0, 0, 9, 9], [2, 2, 7, 7]])
    assert first.areas.tolist() == [81, 25] and first.crowd.tolist() == [True, False] and len(first.difficult) == 2
    assert result.dropped == {"objects of class 'person', which is not in data.classes": 1}
    assert labels(original) == [[0, 1, 2], [2]] and original.dropped == {}


def test_rename_and_merge() -> None:
    result = select_classes(dataset(), [], {"car": "vehicle", "van": "vehicle"}, declared=True)
    assert (result.classes, result.category_ids) == (["vehicle", "person"], [3, 5])
    assert labels(result) == [[0, 1, 0], [0]] and result.dropped == {}
    joined = select_classes(dataset(), ["car"], {"van": "car"}, declared=True)
    assert labels(joined) == [[0, 0], [0]] and joined.category_ids == [3]
    exchanged = select_classes(dataset(), [], {"car": "van", "van": "car"}, declared=True)
    assert exchanged.classes == ["van", "person", "car"] and labels(exchanged) == [[0, 1, 2], [2]]


def test_undeclared_classes_are_numbered_anew() -> None:
    assert select_classes(dataset(), ["van", "car"], {}, declared=False).category_ids == [1, 2]


@pytest.mark.parametrize("declared", [True, False])
def test_misspelt_names(declared: bool) -> None:
    with pytest.raises(ValueError, match=r"data.rename: street has no .*'vann'. Did you mean 'van'\? Known: car, per"):
        select_classes(dataset(), [], {"vann": "lorry"}, declared)
    with pytest.raises(
        ValueError, match=r"data.classes: street has no .*'lory'. Did you mean 'lorry'\? Known: car, per"
    ):
        select_classes(dataset(), ["lory", "car"], {"van": "lorry"}, declared)  # the new names count
    with pytest.raises(ValueError, match=r"data.classes: street has no .*'van'. "):
        select_classes(dataset(), ["van"], {"van": "lorry"}, declared)


def test_absent_names_are_certain_or_just_rare() -> None:
    for classes, rename in ((["car", "zebra"], {}), ([], {"zebra": "horse"})):
        with pytest.raises(ValueError, match=r"street has no class 'zebra'"):
            select_classes(dataset(), classes, rename, declared=True)
        with pytest.warns(UserWarning, match=r"street has no object of class 'zebra'"):
            select_classes(dataset(), classes, rename, declared=False)
    with pytest.raises(ValueError, match="street has no class 'zebra'"):  # none of them is there
        select_classes(dataset(), ["zebra"], {}, declared=False)


def test_a_dataset_that_has_the_new_name_already() -> None:
    """Training data say "Van", validation data "van"."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = select_classes(dataset(), ["van"], {"Van": "van"}, declared=True)
    assert labels(result) == [[0], [0]]


def test_in_a_config() -> None:
    overrides = ["data.rename={car: vehicle, 'white van': vehicle}", "data.classes=[vehicle]"]
    config = load_config("faster_rcnn_r50_fpn_1x_coco", overrides)
    assert config.data.rename == {"car": "vehicle", "white van": "vehicle"} and config.data.classes == ["vehicle"]

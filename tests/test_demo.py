"""The drawn scenes and the demo that trains on them."""

import json

import cv2
import numpy as np
import pytest
from tiny_training import small_resnet

from fastrcnn.data import scenes
from fastrcnn.data.coco import read_coco
from fastrcnn.data.scene_objects import CLUTTER, OBJECTS, Sprite
from fastrcnn.demo import __main__ as demo
from fastrcnn.training.curves import can_draw

LAMP = np.array([0.3, -0.5, np.sqrt(1 - 0.34)])


def scene(*key: int) -> scenes.Scene:
    return scenes.draw_scene(np.random.default_rng(key), 192, 160)


def test_a_scene_follows_from_its_key():
    same, again, other = scene(1, 2), scene(1, 2), scene(1, 3)
    np.testing.assert_array_equal(same.image, again.image)
    assert (same.boxes, same.labels, same.areas) == (again.boxes, again.labels, again.areas)
    assert not np.array_equal(same.image, other.image)


def test_every_class_appears_and_every_scene_has_objects_inside_the_picture():
    drawn = [scene(index) for index in range(40)]
    assert {label for one in drawn for label in one.labels} == set(range(len(scenes.CLASSES)))
    for one in drawn:
        assert one.image.shape == (160, 192, 3) and one.image.dtype == np.uint8
        assert 1 <= len(one.boxes) <= 5
        for x1, y1, x2, y2 in one.boxes:
            assert 0 <= x1 < x2 <= 192 and 0 <= y1 < y2 <= 160


def test_boxes_are_the_extent_of_what_is_painted(monkeypatch):
    """White squares on a black table: a box's sides touch white pixels, and no white pixel is outside all boxes."""

    def square(rng, radius, lamp):
        side = 2 * round(radius) + 1
        return Sprite(np.full((side, side, 3), 255, np.uint8), np.ones((side, side), np.float32))

    def nothing(rng, radius, lamp):
        return Sprite(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.float32))

    monkeypatch.setattr(scenes, "OBJECTS", dict.fromkeys(OBJECTS, square))
    monkeypatch.setattr(scenes, "CLUTTER", (nothing,))
    monkeypatch.setattr(scenes, "_table", lambda rng, width, height: np.zeros((height, width, 3), np.float32))
    monkeypatch.setattr(scenes, "_light", lambda rng, image: image.astype(np.uint8))
    for index in range(20):
        drawn = scene(index)
        white, covered = drawn.image[..., 0] > 0, np.zeros((160, 192), bool)
        for x1, y1, x2, y2 in drawn.boxes:
            covered[y1:y2, x1:x2] = True
            inside = white[y1:y2, x1:x2]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert white.any() and not (white & ~covered).any()


def test_every_object_stays_visible():
    """The layout's boxes and counts against a replay of what it put where."""
    rng = np.random.default_rng(5)
    layout, put = scenes._Layout(192, 160), []
    for index in range(60):
        shape, label = cv2.circle(np.zeros((61, 61), np.uint8), (30, 30), 30, 1, -1) > 0, index % 3 - 1
        corner = layout.put(rng, shape, label)
        if corner is not None:
            put.append((corner, shape, label))
    owner = np.full((160 + 200, 192 + 200), -1)  # with a margin: nothing is cut off
    for index, ((x, y), shape, _) in enumerate(put):
        owner[y + 100 : y + 161, x + 100 : x + 161][shape] = index
    expected = []
    for index, (_, shape, label) in enumerate(put):
        ys, xs = np.nonzero(owner[100:260, 100:292] == index)
        if label >= 0:
            assert len(xs) >= scenes.MIN_VISIBLE * shape.sum()
            expected.append((label, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), len(xs)))
    assert len(put) < 60 and len(expected) >= 5  # some were refused, so the rule was at work
    assert list(layout.objects()) == expected


@pytest.mark.parametrize("painter", [*OBJECTS.values(), *CLUTTER], ids=lambda painter: painter.__name__)
@pytest.mark.parametrize("radius", [10.0, 60.0])
def test_painters_fill_their_sprite_and_stay_inside(painter, radius):
    for seed in range(8):
        sprite = painter(np.random.default_rng(seed), radius, LAMP)
        assert sprite.colour.shape == (*sprite.alpha.shape, 3) and sprite.colour.dtype == np.uint8
        shown = sprite.alpha > 0.5
        assert shown.sum() > 0.05 * radius**2
        assert not (shown[0].any() or shown[-1].any() or shown[:, 0].any() or shown[:, -1].any())
        assert sprite.colour[shown].std() > 1  # shaded, not flat


def test_written_scenes_are_a_coco_dataset(tmp_path):
    scenes.write_scenes(tmp_path, num_train=5, num_val=2, size=(192, 160), seed=3)
    train = read_coco(str(tmp_path / "train.json"), str(tmp_path / "train"))
    val = read_coco(str(tmp_path / "val.json"), str(tmp_path / "val"))
    assert (len(train.samples), len(val.samples)) == (5, 2)
    assert train.classes == scenes.CLASSES and not train.dropped
    drawn = scenes.draw_scene(np.random.default_rng([3, 0, 4]), 192, 160)
    np.testing.assert_array_equal(train.samples[4].boxes, drawn.boxes)
    assert train.samples[4].labels.tolist() == drawn.labels
    difference = cv2.imread(str(train.samples[4].path)).astype(int) - drawn.image
    assert np.abs(difference).mean() < 6  # what JPEG loses


def test_an_interrupted_writing_leaves_no_annotations(tmp_path, monkeypatch):
    scenes.write_scenes(tmp_path, 2, 1, size=(64, 64))
    monkeypatch.setattr(scenes, "draw_scene", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scenes.write_scenes(tmp_path, 2, 1, size=(64, 64))
    assert not (tmp_path / "train.json").exists()


@pytest.mark.parametrize("counts, size", [((0, 1), (64, 64)), ((1, 0), (64, 64)), ((1, 1), (64, 31))])
def test_scenes_that_cannot_be_are_refused(tmp_path, counts, size):
    with pytest.raises(ValueError, match="at least"):
        scenes.write_scenes(tmp_path, *counts, size=size)


OVERRIDES = [
    "schedule.epochs=1",
    "train.batch_size=2",
    "train.workers=0",
    "train.log_every=1",
    "model.fpn.channels=16",
    "model.box_head.channels=32",
]


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """Runs the demo with a small model on a few scenes. Its memory is measured in a process that has the large one."""
    monkeypatch.setattr("fastrcnn.demo.figures.peak_memory", lambda *_: 123.0)

    def run():
        with small_resnet():
            return demo.run_demo(tmp_path / "demo", OVERRIDES, num_train=4, num_val=3)

    return run


def test_the_demo_writes_its_page_and_replaces_a_former_one(small_demo, tmp_path, capsys):
    small_demo()
    metrics = small_demo()
    out = tmp_path / "demo"
    assert len(json.loads((out / "metrics.json").read_text())) == 1  # of the second run alone
    page = (out / "index.html").read_text()
    assert ('src="curves.png"' in page) == can_draw()
    for text in (f"{metrics['AP50']:.3f}", "fps", "123 MB", "minutes", *scenes.CLASSES):
        assert text in page
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == [f"{index:05d}_{kind}.jpg" for index in range(3) for kind in ("found", "truth")]
    assert all(f"pictures/{name}" in page for name in pictures)
    assert cv2.imread(str(out / "pictures" / pictures[0])).shape == (512, 640, 3)
    assert f"--checkpoint {out / 'best.pth'}" in capsys.readouterr().out.splitlines()[-1]


def test_the_demo_leaves_the_run_of_another_alone(small_demo, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "last.pth").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="already holds a run"):
        small_demo()
    assert (tmp_path / "demo" / "last.pth").read_bytes() == b"precious"


@pytest.mark.parametrize("ap50, status", [(0.95, 0), (0.9, 0), (0.899, 1)])
def test_the_demo_fails_below_its_target(ap50, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fastrcnn.demo", "--out", str(tmp_path)])
    monkeypatch.setattr(demo, "run_demo", lambda out: {"AP50": ap50})
    assert demo.main() == status
    assert ("expected at least 0.90" in capsys.readouterr().err) == bool(status)

"""Checkpoint files as others write them, where they are found, and broken and hostile ones."""

import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import CLASSES, assert_holds, copy_of, mmdet, small

from fastrcnn.config import load_config
from fastrcnn.download import cached_path
from fastrcnn.models import load_checkpoint, read_checkpoint
from fastrcnn.models.checkpoint_files import find_checkpoint
from fastrcnn.models.convert import convert

# --- files of the reference implementation ----------------------------------------------------------------------------


@pytest.fixture
def history_buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """mmengine's class as far as a file can tell: same module, same attributes, with references to its methods."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.max_length = 1000000
            self._log_history = np.array([0.7, 0.5])
            self._count_history = np.array([1, 1])
            self._statistics_methods = {"min": HistoryBuffer.minimum}

        def minimum(self) -> None:
            raise AssertionError("a file called it")

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for value, name in ((HistoryBuffer, "HistoryBuffer"), (HistoryBuffer.minimum, "HistoryBuffer.minimum")):
        value.__module__, value.__qualname__ = module.__name__, name
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield HistoryBuffer


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_training_checkpoint_of_mmengine(
    new_format: bool, core: str, history_buffer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copy_of(small())
    curves = OrderedDict({f"train/loss_{i}": history_buffer() for i in range(3)})
    arrays = {"scalar": np.float32(0.5), "array": np.zeros((2, 3), np.int64), "type": np.dtype("f2"), "bool": np.True_}
    content = {
        "meta": {"epoch": 12, "iter": 87960, "dataset_meta": {"classes": CLASSES, "palette": [(220, 20, 60)]}},
        "state_dict": OrderedDict((f"module.{name}", value) for name, value in mmdet(weights).items()),
        "message_hub": {"log_scalars": curves, "runtime_info": OrderedDict(arrays), "resumed_keys": OrderedDict()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02, "params": [0]}]},
        "param_schedulers": [{"milestones": [8, 11], "last_step": 12}],
        "ema_state_dict": {f"module.{name}": value + 1 for name, value in mmdet(weights).items()},
    }
    path = tmp_path / "epoch_12.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    if new_format:  # both of numpy's names, whichever numpy is here
        replace_pickle(path, np.zeros(1).__reduce__()[0].__module__.encode(), core.encode())
    for name in ("mmengine.logging.history_buffer", "mmengine.logging", "mmengine"):
        monkeypatch.delitem(sys.modules, name)
    before = set(torch.serialization.get_safe_globals())
    model = small()
    report = load_checkpoint(model, path)
    assert_holds(model, weights)  # state_dict's, not ema_state_dict's
    assert report.classes == list(CLASSES) and not (report.missing or report.unexpected)
    assert set(torch.serialization.get_safe_globals()) == before
    assert "mmengine" not in sys.modules


def test_published_file_with_metadata_half_and_module(tmp_path: Path) -> None:
    weights = copy_of(small())
    state = OrderedDict((f"module.{n}", v.half() if v.ndim > 1 else v) for n, v in mmdet(weights).items())
    state._metadata = OrderedDict({"": {"version": 1}, "backbone": {"version": 2}})  # type: ignore[attr-defined]
    meta = {"mmdet_version": "2.0.0rc0+c77ccbb", "config": "model = dict(\n", "CLASSES": CLASSES, "hook_msgs": {}}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "fp16.pth", _use_new_zipfile_serialization=False)
    model = small()
    report = load_checkpoint(model, tmp_path / "fp16.pth")
    assert_holds(model, {n: v.half().float() if v.ndim > 1 else v for n, v in weights.items()})
    assert len(report.matched) == len(weights) and report.classes == list(CLASSES)


def test_safetensors(tmp_path: Path) -> None:
    weights = copy_of(small())
    save_file({name: value.contiguous() for name, value in mmdet(weights).items()}, tmp_path / "model.safetensors")
    model = small()
    report = load_checkpoint(model, tmp_path / "model.safetensors")
    assert_holds(model, weights)
    assert report.classes is None


# --- where a checkpoint is found --------------------------------------------------------------------------------------


def test_path_url_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pth"
    file.write_bytes(b"1")
    assert find_checkpoint("model.pth") == Path("model.pth") and find_checkpoint(file) == file
    assert find_checkpoint(file.as_uri()) == tmp_path / "hub" / "checkpoints" / "model.pth"

    name = "faster_rcnn_r50_fpn_1x_coco"
    cached = cached_path(load_config(name).published.checkpoint or "")
    cached.write_bytes(b"damaged")
    for _ in range(2):  # a folder of that name, as under runs/, changes nothing
        with pytest.raises(ValueError, match="047c8118"):
            find_checkpoint(name)
        (tmp_path / name).mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match="No checkpoint file faster_rcnn_r50, and no config of that name"):
        find_checkpoint("faster_rcnn_r50")


# --- broken files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        ("\ufeff<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "a web page"),
        ('{"message": "Not Found"}', "an answer of a server in JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a pointer of Git LFS"),
    ],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_text_that_was_saved_as_a_checkpoint(content: str, what: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name} is not a checkpoint: it looks like {what}"):
        read_checkpoint(tmp_path / name)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder, expected a checkpoint file"):
        load_checkpoint(small(), tmp_path)


def test_broken_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    content = path.read_bytes()
    shape = content.replace(b"[1000]", b"[9999]")
    assert shape != content
    for broken in (b"", content[:4], content[:20], content[:-1], content + b"x", struct.pack("<Q", 2**60), shape):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"model\.safetensors \({len(broken)} bytes\) is not a readable"):
            read_checkpoint(path)


# --- hostile files ----------------------------------------------------------------------------------------------------


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kind", ["os.system", "exec", "getattr", "open"])
def test_code_in_a_file_never_runs(kind: str, new_format: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')"
    hostile = {
        "os.system": Runs(os.system, f"touch {trace}"),
        "exec": Runs(exec, code),
        "getattr": Runs(getattr, [], "append"),
        "open": Runs(open, str(trace), "w"),
    }[kind]
    path = tmp_path / "model.pth"
    torch.save(
        {"state_dict": mmdet(copy_of(small())), "meta": hostile}, path, _use_new_zipfile_serialization=new_format
    )
    if kind == "getattr":  # allowed by name, and a placeholder: nothing is looked up
        assert type(read_checkpoint(path)["meta"]).__name__ == "_StandIn"
    else:
        with pytest.raises(ValueError, match=r"model\.pth holds Python objects besides tensors.*(allowed|blocked)"):
            load_checkpoint(small(), path)
    path.write_bytes(pickle.dumps({"state_dict": hostile}, protocol=2))
    with pytest.raises(ValueError, match=r"model\.pth"):
        load_checkpoint(small(), path)
    assert not trace.exists()


def replace_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Changes bytes of the pickle in a file of torch.save, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


NUMBER = {2**24: b"J\x00\x00\x00\x01", 2**45: b"\x8a\x06" + (2**45).to_bytes(6, "little")}  # as a pickle spells it


@pytest.mark.parametrize("declared", NUMBER)
@pytest.mark.parametrize("new_format", [True, False])
def test_declared_sizes_that_the_file_does_not_have(declared: int, new_format: bool, tmp_path: Path) -> None:
    """A tensor of 200 numbers that says it has many more, in its shape and in its storage."""
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(200)}, path, _use_new_zipfile_serialization=new_format)
    if new_format:
        replace_pickle(path, b"K\xc8", NUMBER[declared])
    else:
        path.write_bytes(path.read_bytes().replace(b"K\xc8", NUMBER[declared]))
    with pytest.raises(ValueError, match=r"model\.pth \(\d+ bytes\) is not a readable checkpoint"):
        read_checkpoint(path)


def test_compressed_archives_are_not_unpacked(tmp_path: Path) -> None:
    """64 MB of zeros in 64 kB: the same trick gives any size."""
    path, bomb = tmp_path / "model.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(2**24)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"bomb\.pth.*a compressed archive of 671\d+ bytes"):
        read_checkpoint(bomb)


def test_shape_without_the_numbers_behind_it(tmp_path: Path) -> None:
    """An expanded tensor is as large as it says without a byte of storage; nothing may try to copy it."""
    state = copy_of(small())
    state["fpn.lateral.0.weight"] = torch.zeros(1).expand(2**40)
    torch.save({"model": state}, tmp_path / "model.pth")
    expected = r"fpn\.lateral\.0\.weight must be a plain tensor with all its numbers.*\[1099511627776\]"
    with pytest.raises(ValueError, match=expected):
        load_checkpoint(small(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=expected):
        convert(tmp_path / "model.pth", tmp_path / "out.pth")

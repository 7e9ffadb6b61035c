"""The table of `fastrcnn zoo`."""

from pathlib import Path

import pytest
import torch

from fastrcnn.config import config_names, load_config
from fastrcnn.download import cached_path
from fastrcnn.zoo import table


def test_table_has_every_published_config_and_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = "faster_rcnn_r50_fpn_1x_coco"
    published = {config: load_config(config).published for config in config_names()}
    shown = [config for config in published if published[config].checkpoint or published[config].voc07_map]
    lines = table().splitlines()
    assert [line.split()[0] for line in lines[1 : len(shown) + 1]] == shown
    assert lines[len(shown) + 1] == "" and str(tmp_path / "checkpoints") in lines[-1]
    assert lines[0].split() == ["config", "box", "AP", "memory", "fps", "checkpoint"]
    assert row(name) == [name, "37.4", "4.0", "21.4", "not", "downloaded"]
    assert row("faster_rcnn_vgg16_voc0712")[1:] == ["VOC07", "73.2", "-", "K40", "5.0", "none", "published"]

    file = cached_path(published[name].checkpoint or "")
    file.parent.mkdir()
    file.with_name(f"{file.name}.part").write_bytes(b"x" * (3 << 20))
    assert row(name)[4:] == ["begun,", "3", "MiB"]
    file.write_bytes(b"x" * (5 << 20))
    assert row(name)[4:] == ["cached,", "5", "MiB:", file.name]


def row(name: str) -> list[str]:
    return next(line.split() for line in table().splitlines() if line.startswith(f"{name} "))

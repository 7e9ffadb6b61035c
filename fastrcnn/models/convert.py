"""Checkpoints from mmdetection's layout into ours and back, so that a model trained with one runs with the other.

The tensors are neither loaded into a model nor changed: there and back again is bit-identical, in the order of the
published files.
"""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrcnn.atomic import atomic_write
from fastrcnn.class_names import class_names
from fastrcnn.config import Config
from fastrcnn.models.build import build_model
from fastrcnn.models.checkpoint import (
    LOGITS,
    MMDET_PREFIXES,
    classes_of,
    entries_of,
    load_checkpoint,
    renamed,
    shorten,
)
from fastrcnn.models.checkpoint_files import find_checkpoint, import_safetensors, read_checkpoint

OUR_PREFIXES = {ours: theirs for theirs, ours in MMDET_PREFIXES.items()}
SUFFIXES = (".pth", ".pt", ".safetensors")


def convert(source: str | Path, target: str | Path, config: Config | None = None) -> str:
    """Writes a checkpoint in the other layout: mmdetection's names become ours, ours become mmdetection's.

    Only weights, class names, and the texts and numbers of "meta" are kept; the state of the training stays behind.

    Args:
        source: what load_checkpoint takes: a .pth or .safetensors file, a URL, the name of a config.
        target: the file to write, atomically. *.safetensors: tensors by name. *.pth, *.pt, by the layout: ours
            {"model", "classes", "meta"}; mmdetection's {"meta": {"CLASSES": ...}, "state_dict": ...}, in torch's older
            format as its published files are, for the versions 2 and 3 of mmdetection.
        config: what the source must fit completely. It gives the order of entries, which a .safetensors of others has
            lost, and class names (data.classes) where the source has none. Without those 80 classes are COCO's, and
            others class_0, class_1, ...
    Returns:
        One line on what was written.
    Raises:
        FileNotFoundError, ConnectionError: there is no source. FileExistsError: the target is the source. ImportError:
        safetensors is not installed. OSError: the target cannot be written. ValueError: the source is not a detector's
        checkpoint or does not fit the config; the target has another suffix.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"The file to write must end in {', '.join(SUFFIXES)}, got {target}")
    path = find_checkpoint(source)
    if target.exists() and os.path.samefile(path, target):
        raise FileExistsError(f"{target} is the file to read: write to another")
    content = read_checkpoint(path)
    entries = entries_of(content, str(path))
    prefixes = _other_layout(entries, path)
    if config is not None:
        entries = _as_the_model(entries, content, config, path)
    state = {renamed(name, prefixes): value for name, value in entries.items()}
    if len(state) < len(entries):
        raise ValueError(f"{path} holds entries in both layouts, under names that become the same")
    to_ours = prefixes is MMDET_PREFIXES
    num_classes = len(state[LOGITS if to_ours else renamed(LOGITS, OUR_PREFIXES)]) - 1
    classes = class_names(num_classes, classes_of(content), config.data.classes if config else None)
    meta = content.get("meta")
    texts = {str(k): v for k, v in meta.items() if isinstance(v, str | int | float)} if isinstance(meta, dict) else {}
    _write(target, to_ours, _in_order(state), classes, texts)
    layout = "fastrcnn" if to_ours else "mmdetection"
    return f"Wrote {target}: {len(state)} entries and {len(classes)} class names, in the layout of {layout}"


def _other_layout(entries: dict[str, Tensor], path: Path) -> dict[str, str]:
    """The table that translates these names, recognised by the class layer."""
    for prefixes, logits in ((OUR_PREFIXES, LOGITS), (MMDET_PREFIXES, renamed(LOGITS, OUR_PREFIXES))):
        if logits in entries and entries[logits].ndim == 2 and len(entries[logits]) > 1:
            return prefixes
    raise ValueError(
        f"{path} is not a detector's checkpoint: expected {renamed(LOGITS, OUR_PREFIXES)} (mmdetection) or {LOGITS} "
        f"(fastrcnn) with a row per class and one for the background, got {shorten(list(entries))}"
    )


def _as_the_model(entries: dict[str, Tensor], content: dict[str, Any], config: Config, path: Path) -> dict[str, Tensor]:
    """The entries in the order of the config's model, those that it does not know last."""
    model = build_model(config.model)
    report = load_checkpoint(model, content)
    if report.missing:
        raise ValueError(f"{path} is of another model than the config: it has no {shorten(report.missing)}")
    order = {name: place for place, name in enumerate(model.state_dict())}
    return {n: entries[n] for n in sorted(entries, key=lambda n: order.get(renamed(n, MMDET_PREFIXES), len(order)))}


def _in_order(entries: dict[str, Tensor]) -> "OrderedDict[str, Tensor]":
    """mmdetection's names in the order of its files; others, the backbone's among them, come first and as they were."""
    order = {prefix: place for place, prefix in enumerate(MMDET_PREFIXES, start=1)}

    def place(name: str) -> int:
        return next((order[prefix] for prefix in order if name.startswith(prefix)), 0)

    return OrderedDict((name, entries[name]) for name in sorted(entries, key=place))


def _write(target: Path, ours: bool, state: "OrderedDict[str, Tensor]", classes: list[str], meta: dict) -> None:
    for name, value in state.items():  # without channels-last strides, or the rest of a storage that it is a part of
        state[name] = value.detach().clone(memory_format=torch.contiguous_format)
    if target.suffix == ".safetensors":
        safetensors = import_safetensors()
        # The format sorts the tensors: their order is kept beside them.
        text: dict[str, Any] = {"format": "pt", "classes": classes, "meta": meta, "names": list(state)}
        metadata = {key: value if key == "format" else json.dumps(value) for key, value in text.items()}
        with atomic_write(target) as temporary:
            safetensors.torch.save_file(state, temporary, metadata)
        return
    content: dict[str, Any] = {"meta": {**meta, "CLASSES": tuple(classes)}, "state_dict": state}
    if ours:
        content = {"model": dict(state), "classes": classes, "meta": meta}
    with atomic_write(target) as temporary:
        try:
            torch.save(content, temporary, _use_new_zipfile_serialization=ours)
        except RuntimeError as error:  # torch's word for a failed write
            raise OSError(f"{target} could not be written: is the disk full?") from error

"""Weights into a model: from fastrcnn's own checkpoints, those of mmdetection 2 and 3, ImageNet backbones.

A loader changes the model only if the whole checkpoint is fit: after an error the model is as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrcnn.models.checkpoint_files import find_checkpoint, read_checkpoint

# Names of mmdetection's layout -> ours, by prefix, in the order of its files; the backbone's are the same. One to one,
# so it reads backwards too. A model without FPN has fewer of them.
MMDET_PREFIXES = {
    **{f"neck.lateral_convs.{i}.conv.": f"fpn.lateral.{i}." for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv.": f"fpn.output.{i}." for i in range(4)},
    "rpn_head.rpn_conv.": "rpn_head.conv.",
    "rpn_head.rpn_cls.": "rpn_head.objectness.",
    "rpn_head.rpn_reg.": "rpn_head.deltas.",
    "roi_head.bbox_head.fc_cls.": "box_head.logits.",
    "roi_head.bbox_head.fc_reg.": "box_head.deltas.",
    "roi_head.bbox_head.shared_fcs.0.": "box_head.fc1.",
    "roi_head.bbox_head.shared_fcs.1.": "box_head.fc2.",
}
# Of an ImageNet classifier: VGG's first two fully connected layers start the box head's, as in the paper. Torchvision
# counts the layers from 0, the file that was converted from Caffe (vgg16-00b39a1b.pth) from 1.
CLASSIFIER_PREFIXES = {
    **{"classifier.0.": "box_head.fc1.", "classifier.3.": "box_head.fc2."},
    **{"classifier.1.": "box_head.fc1.", "classifier.4.": "box_head.fc2."},
    "": "backbone.",
}
LOGITS = "box_head.logits.weight"  # its rows are the classes and the background
CLASS_LAYERS = ("box_head.logits.", "box_head.deltas.")
SHOWN = 5  # names that an error or a report spells out


@dataclass
class CheckpointReport:
    """What became of the entries of a checkpoint, each list sorted; by the names of our model, but for `unexpected`.

    matched: copied into the model.   missing: of the model, absent from the file; they keep their values.
    unexpected: of the file, unknown to the model, by their names in the file.   mismatched: in both but not copied, for
    their shapes differ: the layers that depend on the classes (with new_head), or VGG's classifier (load_backbone).
    classes: the class names in the file, in label order, or None.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    classes: list[str] | None

    def __str__(self) -> str:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched}
        parts = [f"{len(self.matched)} entries loaded"]
        parts += [f"{len(names)} {kind} ({shorten(names)})" for kind, names in lists.items() if names]
        return ", ".join(parts)


def load_checkpoint(
    model: nn.Module, checkpoint: str | Path | Mapping[str, Any], new_head: bool = False
) -> CheckpointReport:
    """Copies the weights of a checkpoint into the model, and prints the report in one line.

    Args:
        model: of build_model; its weights are changed in place and keep their type and device.
        checkpoint: a file, a URL or the name of a config, whose published file it is (both are downloaded once); or
            what a file holds: {"model": ...} as fastrcnn writes, {"state_dict": ...} as mmdetection 2 and 3 write, or a
            bare dict of tensors by name. "module." before the names is dropped. Half-precision weights become the
            model's type. num_batches_tracked may be absent. Where mmdetection 3 trained with averaged weights,
            "state_dict" holds the averages, which are loaded; "ema_state_dict", the weights behind them, is not.
        new_head: for fine-tuning on other classes: where the file has another number of classes, the two layers that
            depend on it keep their values. With the same number they are loaded like the rest.
    Returns:
        A CheckpointReport. Look at `missing` where the file ought to be complete.
    Raises:
        FileNotFoundError: no such file or config. ConnectionError: the download failed.
        ValueError: the file is truncated or no checkpoint; it is of a model with another number of classes and not
            new_head; an entry has another shape or kind of number, or is not finite; no entry fits.
    """
    content, where = _open(checkpoint)
    entries = _rename(entries_of(content, where), MMDET_PREFIXES, where)
    own = model.state_dict()
    mismatched = _other_classes(entries, own)
    if mismatched and not new_head:
        raise ValueError(
            f"{where} is of a model with {len(entries[LOGITS][1]) - 1} classes, this one has {len(own[LOGITS]) - 1}. "
            "To fine-tune it on other classes, load it with new_head=True"
        )
    report = _copy(model, entries, mismatched, where)
    report.missing = sorted(_missing(own, entries))
    report.classes = classes_of(content)
    print(f"{where}: {report}")
    return report


def load_backbone(model: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> CheckpointReport:
    """Copies ImageNet weights into model.backbone, and prints the report in one line.

    Args:
        checkpoint: as for load_checkpoint; its names are those of torchvision's classifiers, "conv1.weight",
            "layer1.0.conv1.weight", ..., or "features.0.weight", ...; the layer of ImageNet's classes ("fc.*",
            "classifier.6.*") is reported as unexpected. VGG's first two "classifier.<i>.*" start the two
            fully connected layers of the box head, where the shapes are equal.
    Raises:
        FileNotFoundError: no such file. ConnectionError: the download failed.
        ValueError: the file is truncated, no checkpoint, or of another backbone; an entry is not finite.
    """
    content, where = _open(checkpoint)
    found = {name.removeprefix("backbone."): value for name, value in entries_of(content, where).items()}
    entries = _rename(found, CLASSIFIER_PREFIXES, where)
    own = model.state_dict()
    absent = _missing({name: value for name, value in own.items() if name.startswith("backbone.")}, entries)
    if absent:
        raise ValueError(f"{where} is not of this backbone: it has no {shorten(absent)} ({len(absent)} absent in all)")
    head = [name for name in entries if name.startswith("box_head.") and name in own]
    mismatched = sorted(name for name in head if entries[name][1].shape != own[name].shape)
    report = _copy(model, entries, mismatched, where)
    print(f"{where}, for the backbone: {report}")
    return report


def entries_of(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, wherever in it they are, without "module.".

    Raises:
        ValueError: there are none, or one that is sparse, quantised, or larger than the memory behind it.
    """
    state = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), content)
    entries = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not entries:
        raise ValueError(
            f'{where} is not a checkpoint: expected {{"model": ...}}, {{"state_dict": ...}} or tensors by name, got a '
            f"dict with {shorten([str(key) for key in content]) or 'nothing in it'}"
        )
    for name, value in entries.items():
        if not _is_plain(value):
            raise ValueError(
                f"{where}: {name} must be a plain tensor with all its numbers, got {value.layout}, {value.dtype}, "
                f"{list(value.shape)} on {value.device}"
            )
    return entries


def classes_of(content: Mapping[str, Any]) -> list[str] | None:
    """Class names: "classes" (fastrcnn), meta CLASSES (mmdetection 2), meta dataset_meta classes (mmdetection 3)."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    for names in (content.get("classes"), meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with the first of the prefixes that it begins with replaced; without one, the name itself."""
    theirs = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if theirs is None else prefixes[theirs] + name.removeprefix(theirs)


def shorten(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _is_plain(value: Tensor) -> bool:
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


Entries = dict[str, tuple[str, Tensor]]  # by our name: the name in the file, and the tensor


def _open(checkpoint: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The content of a checkpoint, and what to call it in errors."""
    if isinstance(checkpoint, Mapping):
        return checkpoint, "The checkpoint"
    path = find_checkpoint(checkpoint)
    return read_checkpoint(path), str(path)


def _rename(found: Mapping[str, Tensor], prefixes: Mapping[str, str], where: str) -> Entries:
    entries: Entries = {}
    for name, value in found.items():
        ours = renamed(name, prefixes)
        if ours in entries:
            raise ValueError(f"{where} holds {ours} twice, as {entries[ours][0]} and as {name}")
        entries[ours] = (name, value)
    return entries


def _other_classes(entries: Entries, own: Mapping[str, Tensor]) -> list[str]:
    """The entries that depend on the number of classes, if that is not the model's: the commonest mismatch."""
    if LOGITS not in entries or LOGITS not in own or entries[LOGITS][1].shape[:1] == own[LOGITS].shape[:1]:
        return []
    return sorted(name for name in entries if name.startswith(CLASS_LAYERS) and name in own)


def _copy(model: nn.Module, entries: Entries, mismatched: list[str], where: str) -> CheckpointReport:
    """Checks every entry that the model has, but for the mismatched ones, then copies them."""
    own = model.state_dict()
    matched = {name: value for name, (_, value) in entries.items() if name in own and name not in mismatched}
    if not matched:
        raise ValueError(
            f"{where} holds nothing that fits this model: expected names like {shorten(list(own))}, "
            f"got {shorten([name for name, _ in entries.values()])}"
        )
    for name, value in matched.items():
        _check(name, value, own[name], where)
    model.load_state_dict(matched, strict=False)
    unexpected = sorted(theirs for name, (theirs, _) in entries.items() if name not in own)
    return CheckpointReport(sorted(matched), [], unexpected, mismatched, None)


def _check(name: str, value: Tensor, own: Tensor, where: str) -> None:
    """Raises ValueError if the value cannot become that of the model's entry."""
    if value.shape != own.shape:
        raise ValueError(
            f"{where} is of another model: {name} has shape {list(value.shape)}, expected {list(own.shape)}"
        )
    if value.is_floating_point() != own.is_floating_point() or value.is_complex():
        raise ValueError(f"{where}: {name} has type {value.dtype}, expected one that converts to {own.dtype}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{where}: {name} has entries that are NaN or infinite: its training had diverged, or damage")


def _missing(own: Mapping[str, Tensor], entries: Entries) -> list[str]:
    return [name for name in own if name not in entries and not name.endswith("num_batches_tracked")]

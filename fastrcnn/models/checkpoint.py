"""Weights from files: fastrcnn's own checkpoints, those of mmdetection 2 and 3, ImageNet backbones.

Reading a file never runs code from it (torch.load with weights_only). A loader changes the model only if the whole file
is fit: after an error the model is as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Names of mmdetection's layout -> ours, by prefix; the backbone's are the same. One to one, so it reads backwards too.
MMDET_PREFIXES = {
    **{f"neck.lateral_convs.{i}.conv.": f"fpn.lateral.{i}." for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv.": f"fpn.output.{i}." for i in range(4)},
    "rpn_head.rpn_conv.": "rpn_head.conv.",
    "rpn_head.rpn_cls.": "rpn_head.objectness.",
    "rpn_head.rpn_reg.": "rpn_head.deltas.",
    "roi_head.bbox_head.shared_fcs.0.": "box_head.fc1.",
    "roi_head.bbox_head.shared_fcs.1.": "box_head.fc2.",
    "roi_head.bbox_head.fc_cls.": "box_head.logits.",
    "roi_head.bbox_head.fc_reg.": "box_head.deltas.",
}
LOGITS = "box_head.logits.weight"  # its rows are the classes and the background
CLASS_LAYERS = ("box_head.logits.", "box_head.deltas.")
SHOWN = 5  # names that an error or a report spells out


@dataclass
class CheckpointReport:
    """What became of the entries of a checkpoint, by the names of our model, each list sorted.

    matched: copied into the model.   missing: of the model, absent from the file; they keep their values.
    unexpected: of the file, unknown to the model.   mismatched: in both but not copied, for their shapes differ: with
    new_head, the layers that depend on the classes.   classes: the class names in the file, in label order, or None.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    classes: list[str] | None

    def __str__(self) -> str:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched}
        parts = [f"{len(self.matched)} entries loaded"]
        parts += [f"{len(names)} {kind} ({_shorten(names)})" for kind, names in lists.items() if names]
        return ", ".join(parts)


def load_checkpoint(
    model: nn.Module, checkpoint: str | Path | Mapping[str, Any], new_head: bool = False
) -> CheckpointReport:
    """Copies the weights of a checkpoint into the model.

    Args:
        model: of build_model; its weights are changed in place and keep their type and device.
        checkpoint: a file, or what it holds: {"model": ...} as fastrcnn writes, {"state_dict": ...} as mmdetection 2
            and 3 write, or a bare dict of tensors by name. "module." before the names is dropped. Half-precision
            weights become the model's type. num_batches_tracked may be absent.
        new_head: for fine-tuning on other classes: where the file has another number of classes, the two layers that
            depend on it keep their values. With the same number they are loaded like the rest.
    Returns:
        A CheckpointReport. Look at `missing` where the file ought to be complete.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or no checkpoint; it is of a model with another number of classes and not
            new_head; an entry has another shape; no entry fits.
    """
    content, where = _open(checkpoint)
    entries = {_our_name(name): value for name, value in _entries(content, where).items()}
    mismatched = _other_classes(entries, model.state_dict())
    if mismatched and not new_head:
        raise ValueError(
            f"{where} is of a model with {len(entries[LOGITS]) - 1} classes, this one has "
            f"{model.get_parameter(LOGITS).size(0) - 1}. To fine-tune it on other classes, load it with new_head=True"
        )
    return _copy(model, entries, mismatched, where, content)


def load_backbone(model: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> CheckpointReport:
    """Copies ImageNet weights ("conv1.weight", "layer1.0.conv1.weight", ..., as torchvision names them) into
    model.backbone; the classifier, "fc.*", is reported as unexpected.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, no checkpoint, or of another backbone.
    """
    content, where = _open(checkpoint)
    entries = {name.removeprefix("backbone."): value for name, value in _entries(content, where).items()}
    backbone = model.get_submodule("backbone")
    absent = _missing(backbone.state_dict(), entries)
    if absent:
        raise ValueError(f"{where} is not of this backbone: it has no {_shorten(absent)} ({len(absent)} absent in all)")
    return _copy(backbone, entries, [], where, content)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict that a checkpoint file holds, tensors on the CPU. Nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file. PermissionError: it may not be read. ValueError: it is truncated, or no
            checkpoint, or holds other Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file {path}")
    path.open("rb").close()  # a file that may not be read is an OSError that says so
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many unrelated types on broken bytes, OSError among them
        reason = str(error)
        if "Unsupported global" in reason or "Unsupported class" in reason:
            raise ValueError(
                f"{path} holds Python objects besides tensors, and loading them could run code. "
                f'Where you trust it, save its "state_dict" alone first. ({_unsupported(reason)})'
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a readable checkpoint: truncated, or not written by "
            f"torch.save ({type(error).__name__}: {reason.splitlines()[0] if reason else 'no reason given'})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: expected a dict, got {type(content).__name__}")
    return content


def _open(checkpoint: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The content of a checkpoint, and what to call it in errors."""
    if isinstance(checkpoint, Mapping):
        return checkpoint, "The checkpoint"
    return read_checkpoint(checkpoint), str(checkpoint)


def _entries(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors by name, wherever in the checkpoint they are, without "module."."""
    state = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), content)
    entries = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not entries:
        raise ValueError(
            f'{where} is not a checkpoint: expected {{"model": ...}}, {{"state_dict": ...}} or tensors by name, got a '
            f"dict with {_shorten([str(key) for key in content]) or 'nothing in it'}"
        )
    return entries


def _our_name(name: str) -> str:
    for theirs, ours in MMDET_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _other_classes(entries: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The entries that depend on the number of classes, if that is not the model's: the commonest mismatch."""
    if LOGITS not in entries or LOGITS not in own or len(entries[LOGITS]) == len(own[LOGITS]):
        return []
    return sorted(name for name in entries if name.startswith(CLASS_LAYERS) and name in own)


def _copy(
    module: nn.Module, entries: Mapping[str, Tensor], mismatched: list[str], where: str, content: Mapping[str, Any]
) -> CheckpointReport:
    """Checks every entry, then copies those that the module has, but for the mismatched ones."""
    own = module.state_dict()
    matched = {name: value for name, value in entries.items() if name in own and name not in mismatched}
    if not matched:
        raise ValueError(
            f"{where} holds nothing that fits this model: expected names like {_shorten(list(own))}, "
            f"got {_shorten(list(entries))}"
        )
    for name, value in matched.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{where} is of another model: {name} has shape {list(value.shape)}, expected {list(own[name].shape)}"
            )
    module.load_state_dict(matched, strict=False)
    return CheckpointReport(
        matched=sorted(matched),
        missing=sorted(_missing(own, entries)),
        unexpected=sorted(set(entries) - set(own)),
        mismatched=mismatched,
        classes=_classes(content),
    )


def _missing(own: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> list[str]:
    return [name for name in own if name not in entries and not name.endswith("num_batches_tracked")]


def _classes(content: Mapping[str, Any]) -> list[str] | None:
    """Class names: "classes" (fastrcnn), meta CLASSES (mmdetection 2), meta dataset_meta classes (mmdetection 3)."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    for names in (content.get("classes"), meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if isinstance(names, list | tuple) and names:
            return [str(name) for name in names]
    return None


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _unsupported(reason: str) -> str:
    """The sentence of torch's long message that names the object."""
    return next(line.strip() for line in reason.splitlines() if "Unsupported" in line)

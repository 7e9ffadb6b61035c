"""The weights that training starts from: a detector's (load_from), or ImageNet's for the backbone, or none."""

from pathlib import Path

from torch import Tensor

from fastrcnn.config import Config
from fastrcnn.models.checkpoint import load_backbone, load_checkpoint
from fastrcnn.models.checkpoint_files import find_checkpoint
from fastrcnn.models.faster_rcnn import FasterRCNN
from fastrcnn.training.log import say


def load_initial_weights(model: FasterRCNN, config: Config, classes: list[str]) -> None:
    """Loads config.load_from into the whole model, or else config.model.backbone.pretrained into the backbone.

    Either is the path of a file, a URL (downloaded once into torch's cache), or the name of a config (its published
    file); with both null the model keeps its random weights. The last two layers of the box head keep theirs where the
    file of load_from has another number of classes. `classes` are the data's.

    Raises:
        FileNotFoundError: no such file. ConnectionError: no network to download it; the message says where to put it.
        ValueError: the file does not fit the model.
    """
    pretrained = config.model.backbone.pretrained
    if config.load_from:
        report = load_checkpoint(model, _find(config.load_from, "load_from"), new_head=True)
        if report.classes is not None and report.classes != classes and not report.mismatched:
            say(f"  its classes were {report.classes}: as many, so the last layers start from theirs")
    elif pretrained:
        load_backbone(model, _find(pretrained, "model.backbone.pretrained"))
    else:
        say("Random initial weights: load_from and model.backbone.pretrained are null")


def initial_weights(model: FasterRCNN, config: Config, classes: list[str]) -> dict[str, Tensor]:
    """As load_initial_weights; returns the model's state dict, for the processes that are not the main one."""
    load_initial_weights(model, config, classes)
    return model.state_dict()


def _find(source: str, setting: str) -> Path:
    try:
        return find_checkpoint(source)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise type(error)(f"{setting}: {error}") from error

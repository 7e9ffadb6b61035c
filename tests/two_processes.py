"""What two processes do together: `torchrun --nproc-per-node 2 tests/two_processes.py FOLDER` runs every check in both.

Writes FOLDER/<rank>.json: name of a check -> its traceback, or "" if it held.
"""

import json
import math
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import small
from tiny_training import tiny_config, write_pictures
from torch import nn
from torch.testing import assert_close

from fastrcnn.data import loader
from fastrcnn.data.read import read_dataset
from fastrcnn.data.sample import Sample
from fastrcnn.data.transforms import Item
from fastrcnn.distributed import all_gather, all_gather_objects, from_main, process_group, rank, world_size
from fastrcnn.evaluation.evaluate import detect_dataset
from fastrcnn.training import gradients
from fastrcnn.training.gradients import Gradients, average_running_statistics
from fastrcnn.training.steps import Step, steps, summarize


def check_values_of_all(folder: Path) -> None:
    assert world_size() == 2
    assert all_gather([rank() + 0.25, 7.0]) == [[0.25, 7.0], [1.25, 7.0]]
    assert all_gather_objects({"rank": rank()}) == [{"rank": 0}, {"rank": 1}]
    assert from_main(lambda: ["of", rank()]) == ["of", 0]


def check_an_error_of_the_main_process_ends_all(folder: Path) -> None:
    def fail() -> None:
        assert rank() == 0, "called elsewhere"
        raise OSError("no space left")

    with pytest.raises(OSError if rank() == 0 else SystemExit, match="no space left" if rank() == 0 else "2"):
        from_main(fail)
    assert from_main(lambda: "still in step") == "still in step"


def check_a_second_group_is_the_first(folder: Path) -> None:
    with process_group():
        assert world_size() == 2
    assert all_gather([1.0]) == [[1.0], [1.0]]


class Layers(nn.Module):
    """A channels-last convolution, a layer used by rank 0 only, one used by nobody, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.sometimes = nn.Linear(5, 7)
        self.never = nn.Linear(2, 2)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)

    def loss(self, batch: int, sometimes: bool) -> torch.Tensor:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        y = self.frozen(self.convolution(x.contiguous(memory_format=torch.channels_last)).mean((2, 3)))
        return (self.sometimes(y) if sometimes else y).square().sum()


def expected_gradients(losses: list[tuple[int, bool]]) -> dict[str, torch.Tensor]:
    model = Layers()
    for batch, sometimes in losses:
        model.loss(batch, sometimes).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_gradients_are_summed(folder: Path) -> None:
    for bucket_bytes in (1, 400, 1 << 20):  # one parameter each, some together, all together
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gradients, "BUCKET", bucket_bytes)
            model = Layers()
            summed = Gradients(model.parameters())
        uneven = ([(0, True), (1, True)], [(2, False)])  # of rank 0 and of rank 1: batches, and whether with that layer
        for first, second in (uneven, uneven, ([(3, True)], [])):  # the same twice: nothing is left over
            mine = (first, second)[rank()]
            summed.start(passes=len(mine))
            for batch, sometimes in mine:
                model.loss(batch, sometimes).backward()
            summed.finish()
            expected = expected_gradients(first + second)
            for name, parameter in model.named_parameters():
                if name.startswith("frozen"):
                    assert parameter.grad is None
                    continue
                assert parameter.grad.stride() == parameter.stride()
                assert_close(parameter.grad, expected.get(name, torch.zeros_like(parameter)))


def check_gradients_travel_before_backward_has_ended(folder: Path) -> None:
    """The last layer's bucket is on its way when the gradient of the first layer is computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "BUCKET", 1)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        summed = Gradients(model.parameters())
    sent: list[int] = []
    model[0].weight.register_hook(lambda _: sent.append(len(summed._sent)))
    summed.start(passes=1)
    model(torch.ones(1, 4)).sum().backward()
    assert sent[0] >= 2
    summed.finish()
    assert_close(model[1].bias.grad, torch.full((4,), 2.0))


def check_running_statistics_are_averaged(folder: Path) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(4))
    for norm in (model[0], model[1], model[2]):
        norm.running_mean.fill_(rank() + 1.0)
        norm.running_var.copy_(torch.arange(len(norm.running_var)) * (rank() + 1.0))
    average_running_statistics(model, batches=2)
    for norm in (model[0], model[2]):
        assert_close(norm.running_mean, torch.full_like(norm.running_mean, 1.5))
        assert_close(norm.running_var, torch.arange(len(norm.running_var)) * 1.5)
    assert model[1].running_mean[0] == rank() + 1.0  # it does not count, and is not trained
    model[0].running_mean.fill_(rank() + 1.0)
    average_running_statistics(model, batches=rank())  # process 0 had none
    assert_close(model[0].running_mean, torch.full((2,), 2.0))
    model[0].running_mean.fill_(rank() + 1.0)
    average_running_statistics(model, batches=3 - 2 * rank())  # three and one
    assert_close(model[0].running_mean, torch.full((2,), 1.25))


def check_steps_and_their_summary(folder: Path) -> None:
    own = list(range(10, 15))[rank() :: 2]  # batches 10 .. 14, in steps of 4: 2 and 2, then 1 and 0
    dealt = list(steps(iter(own), 10, 15, 4))
    numbers = [[number for number, _ in step.batches] for step in dealt]
    assert numbers == ([[10, 12], [14]], [[11, 13], []])[rank()] and [step.count for step in dealt] == [4, 1]
    assert all(number == batch for step in dealt for number, batch in step.batches)

    losses = {"loss_rpn_cls": 1.0, "loss_rpn_bbox": 2.0, "loss_cls": 3.0, "loss_bbox": 4.0 + rank()}
    step = Step(3, [])
    for _ in range(2 - rank()):  # two batches in rank 0, one in rank 1
        step.add(losses)
    summary = summarize(step, signal.SIGTERM if rank() == 1 else None, checkpoint_due=rank() == 0)
    assert summary.losses == {"loss_rpn_cls": 1.0, "loss_rpn_bbox": 2.0, "loss_cls": 3.0, "loss_bbox": 13 / 3}
    assert (summary.signal, summary.checkpoint_due) == (signal.SIGTERM, True)
    step.sums["loss_cls"] = math.nan if rank() == 1 else 1.0
    quiet = summarize(step, None, checkpoint_due=False)
    assert math.isnan(quiet.losses["loss_cls"]) and quiet.signal is None and not quiet.checkpoint_due


def check_evaluation_is_sharded_and_merged(folder: Path) -> None:
    """Five images: three for one process and two for the other; all get what one process finds in all."""
    pictures = folder / f"pictures{rank()}"
    pictures.mkdir()
    write_pictures(pictures)
    config = tiny_config(pictures, folder / f"run{rank()}")
    dataset = read_dataset(config.data.val)
    dataset = replace(dataset, samples=dataset.samples[:5])
    model = small().eval()
    seen: list[int] = []
    original = loader.test_item

    def noted(sample: Sample, *rest: Any) -> Item:
        seen.append(sample.image_id)
        return original(sample, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "test_item", noted)
        found = detect_dataset(model, dataset, config, torch.device("cpu"))
    ids = [sample.image_id for sample in dataset.samples]
    assert seen == ids[rank() :: 2] and list(found) == ids
    assert sum(len(detected.scores) for detected in found.values()) > 20
    with torch.inference_mode():
        for batch in loader.test_loader(dataset, config):
            (expected,) = model(batch.images, batch.image_sizes, batch.scale_factors)
            detected = found[batch.image_ids[0]]
            assert torch.equal(detected.boxes, expected.boxes) and torch.equal(detected.scores, expected.scores)
            assert torch.equal(detected.labels, expected.labels)


CHECKS: dict[str, Callable[[Path], None]] = {
    name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome = {}
    with process_group():
        for name, check in CHECKS.items():
            try:
                check(Path(sys.argv[1]))
                outcome[name] = ""
            except BaseException:
                outcome[name] = traceback.format_exc()
                break  # the other process may wait for this one
        (Path(sys.argv[1]) / f"{rank()}.json").write_text(json.dumps(outcome))

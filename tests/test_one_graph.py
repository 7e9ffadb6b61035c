"""The whole inference path, plain and optimized, is one graph, and waits for no device before its end.

On a GPU, test_cuda.py and test_capture.py show the same with CUDA's own means.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_optimized import build
from tiny_model import images, small
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastrcnn.models import FasterRCNN
from fastrcnn.models.optimized import OptimizedFasterRCNN

pytestmark = pytest.mark.usefixtures("small_backbone")

BATCHES = {  # true sizes, and the padded size of the batch
    "two": ([(90, 120), (64, 100)], (96, 128)),
    "one, upright": ([(160, 70)], (160, 96)),
}


class Padded(nn.Module):
    """What becomes the graph."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.detect_padded(images, sizes, factors))


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor]:
    sizes, padded = BATCHES[name]
    return images(*sizes, padded=padded), torch.tensor(sizes).float(), torch.full((len(sizes), 2), 0.5)


def plain() -> FasterRCNN:
    return small().eval()


def optimized() -> FasterRCNN:
    return OptimizedFasterRCNN(plain(), torch.float32)


# --- one graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("make", [plain, optimized])
def test_compiled_and_exported_give_what_the_model_gives(make: Callable[[], FasterRCNN], batch: str) -> None:
    module, arguments = Padded(make()).eval(), inputs(batch)
    expected = module(*arguments)
    assert (expected[-1] > 3).all()  # detections: else the comparison would say little
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
        exported = torch.export.export(module, arguments)
        for run in (compiled, exported.module()):
            assert_close(run(*arguments), expected, rtol=1e-4, atol=1e-2)
    shapes = [list(node.meta["val"].shape) for node in exported.graph.output_node().args[0]]
    count = len(arguments[0])
    assert shapes == [[count, 20, 4], [count, 20], [count, 20], [count]]  # numbers, no symbols of unknown size


def test_no_value_of_the_picture_has_become_a_constant() -> None:
    module, (pictures, sizes, factors) = Padded(optimized()).eval(), inputs("two")
    other = (pictures.flip(0), sizes.flip(0), factors * 2)
    expected = module(*other)
    with torch.no_grad():
        exported = torch.export.export(module, (pictures, sizes, factors)).module()
    assert not torch.equal(expected[0], module(pictures, sizes, factors)[0])
    assert_close(exported(*other), expected, rtol=1e-4, atol=1e-2)


# --- no host wait -----------------------------------------------------------------------------------------------------


class HostWait(Exception):
    """A step needs the device's numbers on the host, or holds the host up with a copy."""


class NoHostWait(TorchDispatchMode):
    """Raises HostWait for what waits for a GPU: reading values, shapes that depend on them, copies between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        arguments = tree_leaves((args, kwargs or {}))
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            raise HostWait(f"{func} needs the values of its input on the host")
        if func is torch.ops.aten.index.Tensor and any(_is_mask(leaf) for leaf in tree_leaves(args[1])):
            raise HostWait(f"{func} with a mask counts its elements on the host")
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in (*arguments, *tree_leaves(result)) if _has_numbers(leaf)}
        if len(devices) > 1:
            raise HostWait(f"{func} copies between {sorted(map(str, devices))}")
        return result


def _is_mask(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)


def _has_numbers(leaf: Any) -> bool:
    """Not a number that Python wrapped into a tensor of the CPU: it travels with the kernel's arguments."""
    return isinstance(leaf, Tensor) and not (leaf.device.type == "cpu" and leaf.dim() == 0)


def detect_on_a_fake_gpu(name: str, optimize: torch.dtype | None, spoil: Callable[[Tensor], Any] | None = None) -> None:
    """Runs detect_padded with tensors that have shapes and a device, "cuda", and no numbers.

    Args:
        name: of a model of test_optimized.py. optimize: the type of an optimized model; None: as it is.
        spoil: called with the pooled features, before the box head.
    """
    model = build(name).to("meta")  # not the CPU, for which other layers are chosen
    if optimize is not None:
        model = OptimizedFasterRCNN(model, optimize)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        tensors[key] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
        if spoil is not None:
            box_head = model.box_head.forward
            model.box_head.forward = lambda pooled: (spoil(pooled), box_head(pooled))[1]
        dtype = next(model.parameters()).dtype
        batch, pairs = torch.zeros(1, 3, 96, 128, dtype=dtype), torch.ones(1, 2)
        with NoHostWait():
            found = model.detect_padded(batch, pairs, pairs)
        assert {output.device.type for output in found} == {"cuda"}


@pytest.mark.parametrize("optimize", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["r18", "r50", "caffe", "dc5", "vgg16"])
def test_nothing_waits_for_the_device(name: str, optimize: torch.dtype | None) -> None:
    detect_on_a_fake_gpu(name, optimize)


PLANTED: dict[str, Callable[[Tensor], Any]] = {
    "a value": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).any()),
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x[:, 0, 0, 0] > 0],
    "distinct values": lambda x: x.unique(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy into a tensor of the host": lambda x: torch.empty(x.shape, device="cpu").copy_(x),
    "a constant of the host": lambda x: x[0, 0, 0] + torch.tensor([1.0, 2, 3, 4, 5, 6, 7], device=x.device),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_wait_is_caught(name: str) -> None:
    with pytest.raises(HostWait):
        detect_on_a_fake_gpu("r18", None, PLANTED[name])

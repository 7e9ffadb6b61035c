"""What tests share: the folder of data that is not in the repository, devices, tolerances, and reproducible inputs.

Fixtures are found by name; the functions are imported: ``from conftest import random_boxes``.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulator import emulated, ptx
from inspected_split import Split
from tiny_training import small_resnet, write_pictures
from torch import Tensor, nn
from torch.testing import assert_close

# How far a result may be from the reference's in the same type: rounding, in another order of summation.
TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # tests run side by side, and share the processors
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and photos beside the repository; the test is skipped where it does not exist."""
    folder = Path(os.environ.get("FASTRCNN_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} (set FASTRCNN_SHARED to another place)")
    return folder


@pytest.fixture(scope="session")
def units() -> dict[str, Any]:
    """Unit vectors of the reference implementation, see golden/README.md."""
    return json.loads((Path(__file__).parent / "golden" / "units.json").read_text())


@pytest.fixture(params=["cpu", "emulated", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Every device that ops can run on here: a test that takes it is repeated on each.

    "emulated": the CUDA kernels, executed on the CPU (cuda_emulator/README.md); tensors are on the CPU. With
    CUDA_EMULATOR_PTX=80, what nvcc makes of them for compute_80.
    """
    if request.param == "emulated":
        architecture = os.environ.get("CUDA_EMULATOR_PTX")
        with ptx.from_ptx(int(architecture)) if architecture else emulated():
            yield torch.device("cpu")
    else:
        yield torch.device(request.param)


@pytest.fixture(scope="module")
def small_backbone() -> Iterator[None]:
    """The config's ResNet-18 is a small one, for training runs of a second (tiny_training.py)."""
    with small_resnet():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tiny_training.write_pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Split:
    """For `fastrcnn data`: three photos to plant errors in (inspected_split.py)."""
    return Split(tmp_path, "train", 0)


@pytest.fixture
def val(tmp_path: Path) -> Split:
    """Of other photos than `train`."""
    return Split(tmp_path, "val", 100)


# --- reproducible inputs ----------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, extent: float = 100.0, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Boxes float32 [count,4] that start in a square of `extent` pixels and overlap in all degrees."""
    generator = seeded(seed)
    corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * extent
    size = torch.rand(count, 2, generator=generator) ** 2 * extent + 0.01 * extent
    return torch.cat((corner, corner + size), dim=1).to(device)


def random_rois(
    count: int, num_images: int, extent: float = 100.0, seed: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """RoIs float32 [count,5]: the index of a random image, then a box of `random_boxes`."""
    image = torch.randint(num_images, (count, 1), generator=seeded(seed + 1)).float().to(device)
    return torch.cat((image, random_boxes(count, extent, seed, device)), dim=1)


# --- questions asked of several ops -----------------------------------------------------------------------------------


def assert_same_for_any_number_of_threads(compute: Callable[[], Any]) -> None:
    """Bitwise, for 1, 2 and 3 threads."""
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(compute())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_close(result, results[0], rtol=0, atol=0, equal_nan=True)


def assert_compiles_and_exports(function: Callable[..., Any], *args: Any) -> None:
    """torch.compile without a graph break, and torch.export, give what the plain call gives."""

    class Module(nn.Module):
        def forward(self, *args: Any) -> Any:
            return function(*args)

    expected = function(*args)
    torch.compiler.reset()
    assert_close(torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")(*args), expected)
    assert_close(torch.export.export(Module(), args).module()(*args), expected)

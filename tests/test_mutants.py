"""The tests can fail: a small error put into a CUDA kernel is caught by the test that is there for it.

Each mutant is a copy of csrc with one text changed and the sources of one operator. It is built for the emulator
(cuda_emulator/README.md), where the named tests must pass without the change and fail with it, for the stated reason.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_emulator import build

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"

pytestmark = [
    pytest.mark.skipif("CUDA_EMULATOR_VARIANT" in os.environ, reason="runs in the process that starts the others"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree"),
]

DIFFERENT = "AssertionError"
RACE = "race in (shared|global) memory"
OUT_OF_BOUNDS = "AddressSanitizer: (heap-buffer-overflow|use-after-poison)"


@dataclass(frozen=True)
class Mutant:
    """operator: whose .cu is built. original: occurs once in the file. variant: of the emulator. says: a pattern."""

    name: str
    operator: str
    file: str
    original: str
    mutated: str
    variant: str
    test: str
    says: str


def edges(name: str, parameters: str) -> str:
    return f"test_emulated_ops.py::test_{name}[{parameters}]"


MUTANTS = [
    # --- barriers, masks, atomics
    Mutant(
        "NMS scan: the barrier between writing and reading a tile's words is missing",
        "nms",
        "nms/nms.cuh",
        "    __syncthreads();  // and what the tile before removed is in the ring\n",
        "",
        "races",
        edges("nms", "torch.float32-65-races-in_order"),
        RACE,
    ),
    Mutant(
        "RoIAlign: the barrier behind the lists in shared memory is missing",
        "roi_align",
        "roi_align/roi_align.cuh",
        "  if (listed && !padding) lists.fill(place, p);\n  __syncthreads();\n",
        "  if (listed && !padding) lists.fill(place, p);\n",
        "races",
        edges("roi_align", "torch.float32-races-in_order-channels_last-8"),
        RACE,
    ),
    Mutant(
        "RoIAlign backward: an atomic addition is a plain one",
        "roi_align",
        "common/pack.cuh",
        "atomicAdd(&where->values[i], values.values[i]);",
        "where->values[i] += values.values[i];",
        "races",
        edges("roi_align", "torch.float32-races-in_order-channels_last-8"),
        RACE,
    ),
    Mutant(
        "assignment: an atomic maximum is a plain one",
        "assignment",
        "assignment/assignment.cuh",
        "atomicMax(&tile_max[g], bit_copy<Bits<T>>(overlap));",
        "tile_max[g] = max(tile_max[g], bit_copy<Bits<T>>(overlap));",
        "races",
        edges("assign_max_iou", "33-65-races-in_order"),
        RACE,
    ),
    Mutant(
        "selection: the mask of a vote lacks a lane",
        "selection",
        "common/block.cuh",
        "const unsigned flags = __ballot_sync(kFullWarp, flag);\n  __syncthreads();  // the counts",
        "const unsigned flags = __ballot_sync(kFullWarp >> 1, flag);\n  __syncthreads();  // the counts",
        "plain",
        "test_selection.py::test_ties_come_by_roi_and_then_by_class[emulated]",
        "a lane is not in the mask of its warp operation",
    ),
    Mutant(
        "selection: a sum over a warp begins at half the distance",
        "selection",
        "selection/selection.cuh",
        "for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {\n    value += ",
        "for (int distance = kWarpSize / 4; distance > 0; distance /= 2) {\n    value += ",
        "plain",
        "test_selection.py::test_equals_reference[emulated-80-torch.float32]",
        DIFFERENT,
    ),
    # --- bounds, edges of tiles, strides
    Mutant(
        "NMS mask: the last candidate of a tile is left out",
        "nms",
        "nms/nms.cuh",
        "const int columns = static_cast<int>(minimum<int64_t>(kWordBits, groups.n - first));",
        "const int columns = static_cast<int>(minimum<int64_t>(kWordBits - 1, groups.n - first));",
        "plain",
        edges("nms", "torch.float32-1023-plain-in_order"),
        DIFFERENT,
    ),
    Mutant(
        "NMS mask: a candidate meets itself",
        "nms",
        "nms/nms.cuh",
        "(w > 0 || j > row_in_tile)",
        "(w > 0 || j >= row_in_tile)",
        "plain",
        edges("nms", "torch.float32-33-plain-in_order"),
        DIFFERENT,
    ),
    Mutant(
        "NMS scan: candidates far behind are compared with the wrong tile",
        "nms",
        "nms/nms.cuh",
        "far_gone[f] |= chunk.word(row, w + f * near);",
        "far_gone[f] |= chunk.word(row, w);",
        "plain",
        "test_emulated_ops.py::test_nms_of_long_segments[plain-in_order]",
        DIFFERENT,
    ),
    Mutant(
        "NMS scan: the next chunk of the mask does not learn who is removed",
        "nms",
        "nms/nms.cuh",
        "  if (tid < near && later <= last_tile) atomicOr(&removed[later], ring[later % (2 * near)]);\n",
        "",
        "plain",
        "test_emulated_ops.py::test_nms_of_long_segments[plain-in_order]",
        DIFFERENT,
    ),
    Mutant(
        "NMS: an array of the scratch memory is written past its end",
        "nms",
        "nms/nms_order.cuh",
        "decisions.removed[position / kWordBits] = 0;",
        "decisions.removed[position / kWordBits + 1] = 0;",
        "address",
        edges("nms", "torch.float32-33-address-in_order"),
        OUT_OF_BOUNDS,
    ),
    Mutant(
        "IoU: a number too many",
        "box_iou",
        "box_iou/box_iou.cuh",
        "start + offset < n * m",
        "start + offset <= n * m",
        "address",
        edges("box_iou", "torch.float32-31-address-in_order"),
        OUT_OF_BOUNDS,
    ),
    Mutant(
        "RoIAlign backward, deterministic: a column too many of a tile at the border",
        "roi_align",
        "roi_align/roi_align_gather.cuh",
        "if (x0 + x >= p.widths[tile.level]) break;",
        "if (x0 + x > p.widths[tile.level]) break;",
        "address",
        edges("roi_align", "torch.float32-address-in_order-channels_last-8"),
        OUT_OF_BOUNDS,
    ),
    Mutant(
        "RoIAlign: the stride of rows is that of columns",
        "roi_align",
        "roi_align/roi_align.cuh",
        "y * row + x * p.channels);\n        for (int v = 0; v < vector; ++v) sum[v] += ",
        "y * p.channels + x * p.channels);\n        for (int v = 0; v < vector; ++v) sum[v] += ",
        "plain",
        edges("roi_align", "torch.float32-plain-in_order-channels_last-8"),
        DIFFERENT,
    ),
    Mutant(
        "proposals: the filter leaves out the last logit of a level",
        "proposals",
        "proposals/top_k.cuh",
        "first + j * kWarpSize < level.size && keys[j] >= bound",
        "first + j * kWarpSize < level.size - 1 && keys[j] >= bound",
        "plain",
        "test_proposals.py::test_equals_reference_for_every_capacity[emulated-3-10000-100000]",
        DIFFERENT,
    ),
    # --- addresses, unwritten memory
    Mutant(
        "RoIAlign: vectors are loaded from any address",
        "roi_align",
        "roi_align/roi_align.cuh",
        "packed = packed && is_pack_aligned(features.maps[l]);",
        "packed = packed && features.maps[l] != nullptr;",
        "address",
        edges("features_and_gradients_at_any_address", "roi_align-address-in_order"),
        "misaligned address",
    ),
    Mutant(
        "RoIAlign: where an image begins is counted in 32 bits",
        "roi_align",
        "roi_align/roi_align.cuh",
        "image * p.heights[level] * p.widths[level] * p.channels;",
        "static_cast<int>(image * p.heights[level] * p.widths[level] * p.channels);",
        "plain",
        "test_roi_align.py::test_more_than_2_to_the_31_features[emulated-64-372]",
        f"{DIFFERENT}|Segmentation fault",
    ),
    Mutant(
        "NMS: who is kept is not cleared",
        "nms",
        "nms/nms_order.cuh",
        "    decisions.keep[position] = false;\n",
        "",
        "plain",
        edges("nms", "torch.float32-33-plain-in_order"),
        DIFFERENT,
    ),
    # --- ties, comparisons, NaN
    Mutant(
        "proposals: NaN is not the largest logit",
        "proposals",
        "math/score.h",
        "return value != value ? kTopKNan : key;",
        "return key;",
        "plain",
        "test_proposals.py::test_order[emulated]",
        DIFFERENT,
    ),
    Mutant(
        "proposals: the filter leaves out logits that equal the bound",
        "proposals",
        "proposals/top_k.cuh",
        "first + j * kWarpSize < level.size && keys[j] >= bound",
        "first + j * kWarpSize < level.size && keys[j] > bound",
        "plain",
        "test_proposals.py::test_top_k_of_maps_with_few_or_many_large_values",
        DIFFERENT,
    ),
    Mutant(
        "assignment: of equal overlaps the last one wins",
        "assignment",
        "assignment/assignment.cuh",
        "if (overlap > best) {",
        "if (overlap >= best) {",
        "plain",
        "test_assignment.py::test_ties[emulated]",
        DIFFERENT,
    ),
    Mutant(
        "assignment: a low-quality match must overlap more, not as much",
        "assignment",
        "assignment/assignment.cuh",
        "own_max >= largest",
        "own_max > largest",
        "plain",
        edges("assign_max_iou", "33-65-plain-in_order"),
        DIFFERENT,
    ),
    Mutant(
        "selection: a score at the threshold is enough",
        "selection",
        "selection/selection.cuh",
        "score > p.score_threshold;",
        "score >= p.score_threshold;",
        "plain",
        "test_selection.py::test_a_score_at_the_threshold_is_not_enough[emulated]",
        DIFFERENT,
    ),
]
Run = subprocess.CompletedProcess[str]


def run_tests(variant: str, csrc: Path, *tests: str) -> Run:
    environment = os.environ | {"CUDA_EMULATOR_VARIANT": variant, "CUDA_EMULATOR_CSRC": str(csrc)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *tests]
    build.library(variant, csrc)  # here, because the compiler does not want the sanitizer's libraries
    if variant == "address":
        environment |= build.preload()
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300)


def run_mutant(mutant: Mutant, folder: Path) -> Run:
    others = [path.name for path in CSRC.glob("*/*.cu") if path.parent.name not in (mutant.operator, "common")]
    shutil.copytree(CSRC, folder, ignore=shutil.ignore_patterns(*others))
    text = (folder / mutant.file).read_text()
    (folder / mutant.file).write_text(text.replace(mutant.original, mutant.mutated))
    return run_tests(mutant.variant, folder, mutant.test)


@pytest.mark.parametrize("variant", sorted({mutant.variant for mutant in MUTANTS}))
def test_without_a_mutant_the_tests_pass(variant: str):
    tests = dict.fromkeys(mutant.test for mutant in MUTANTS if mutant.variant == variant)
    result = run_tests(variant, CSRC, *tests)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_the_mutant_is_caught(mutant: Mutant, tmp_path: Path):
    found = (CSRC / mutant.file).read_text().count(mutant.original)
    assert found == 1, f"csrc/{mutant.file}: expected this text once, found it {found} times: {mutant.original!r}"
    result = run_mutant(mutant, tmp_path / "csrc")
    said = result.stdout + result.stderr
    assert result.returncode != 0, f"not caught by {mutant.test}"
    assert re.search(mutant.says, said), f"{mutant.test} fails, but not with {mutant.says!r}:\n{said[-3000:]}"

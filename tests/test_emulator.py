"""The emulator itself: kernels with a planted bug of each kind are caught, and right ones are not."""

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cuda_emulator import SCHEDULES, build, planted

SOURCE = build.HERE / "planted.cu"


def run(variant: str, kernel: str, n: int = 128, schedule: str = "in_order") -> list[float]:
    return planted.run(build.program_library(SOURCE, variant), kernel, n, schedule)


def under_sanitizers(kernel: str, n: int, room: int) -> subprocess.CompletedProcess[str]:
    library = build.program_library(SOURCE, "address")
    command = [sys.executable, str(build.HERE / "planted.py"), str(library), kernel, str(n), str(room)]
    return subprocess.run(command, env=os.environ | build.preload(), capture_output=True, text=True, timeout=60)


# --- right kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", ["plain", "races"])
@pytest.mark.parametrize("n", [1, 31, 33, 100, 128, 129])
def test_right(variant, n, schedule):
    expected = [i + 1.0 + 4 for i in range(n)] + [0.0] * (129 - n)  # 4 warps
    assert run(variant, "right", n, schedule) == expected


@pytest.mark.parametrize("variant", ["plain", "races"])
def test_a_warp_that_waits_for_its_lanes(variant):
    for schedule in SCHEDULES:
        assert run(variant, "synchronised_warp", 128, schedule)[:4] == [2, 1, 4, 3]


def test_right_under_sanitizers():
    for kernel in ("right", "synchronised_warp", "tile_sum"):
        result = under_sanitizers(kernel, 128, 129)
        assert result.returncode == 0, result.stderr


# --- planted bugs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("kernel", "where"),
    [
        ("missing_barrier", "shared"),
        ("missing_barrier_in_loop", "shared"),  # whose result can be right
        ("missing_syncwarp", "shared"),
        ("race_between_blocks", "global"),
        ("race_within_block", "global"),
        ("atomic_and_plain", "global"),
    ],
)
def test_race(kernel, where, schedule):
    message = rf"{kernel}: race in {where} memory: thread \(.*\) of block \(.*planted\.cu:\d+.*planted\.cu:\d+"
    with pytest.raises(RuntimeError, match=message):
        run("races", kernel, schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", r"threads are at different barriers: .*planted\.cu:\d+.*planted\.cu:\d+"),
        ("exit_before_barrier", "threads are missing at a barrier: 28 of 128 have exited"),
        ("barrier_in_one_warp", r"threads wait for each other:\n  thread \(.*|threads are at different barriers"),
        ("full_mask_in_a_branch", r"threads wait for each other:[\s\S]*with mask ffffffff"),
        ("lane_not_in_mask", "a lane is not in the mask of its warp operation"),
        ("source_not_in_mask", "a shuffle reads lane 20, which is not in the mask"),
    ],
)
def test_threads_that_do_not_meet(kernel, message, schedule):
    with pytest.raises(RuntimeError, match=f"CUDA emulator: {kernel}: ({message})"):
        run("plain", kernel, 100, schedule)
    assert run("plain", "right", 1, schedule)[0] == 5  # an error leaves nothing behind


@pytest.mark.parametrize(
    ("kernel", "n", "room", "message"),
    [
        ("past_static_shared", 128, 129, r"index 128 out of bounds|global-buffer-overflow"),
        ("past_dynamic_shared", 128, 129, r"use-after-poison|heap-buffer-overflow"),
        ("past_global", 100, 100, "heap-buffer-overflow"),
        ("misaligned_vector", 128, 129, "misaligned address"),
    ],
)
def test_memory(kernel, n, room, message):
    result = under_sanitizers(kernel, n, room)
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr


def test_uninitialised_shared_memory_is_nan():
    result = run("plain", "uninitialised_shared")
    assert np.isnan(result[0]) and result[1:128] == [1.0] * 127


def test_off_by_one_at_the_edge_of_a_tile():
    """Sizes around the edge show it: up to 127 numbers the result is right."""
    for n, same in ((127, True), (128, False)):
        assert (run("plain", "tile_edge", n)[n] == run("plain", "tile_sum", n)[n]) is same
        assert run("plain", "tile_sum", n)[n] == n * (n + 1) / 2


# --- types ------------------------------------------------------------------------------------------------------------


def test_half_types_round_as_in_torch():
    """Every exponent, and numbers half-way between two."""
    bits = torch.arange(0, 2**32, 2**32 // 500_009, dtype=torch.int64)
    edges = torch.arange(2**16)[:, None] * 2**16 + torch.tensor([0, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001])
    bits = torch.cat((bits, edges.flatten()))
    numbers = torch.from_numpy(bits.numpy().astype(np.uint32).view(np.float32).copy())
    n = len(numbers)
    half_bits, bfloat_bits = torch.empty(2, n, dtype=torch.int16)
    half, bfloat = torch.empty(2, n)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (numbers, half_bits, bfloat_bits, half, bfloat)]
    ctypes.CDLL(str(build.program_library(SOURCE, "plain"))).round_trip(ctypes.c_int64(n), *pointers)
    torch.testing.assert_close(half_bits.view(torch.float16), numbers.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(half, numbers.half().float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bfloat_bits.view(torch.bfloat16), numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bfloat, numbers.bfloat16().float(), rtol=0, atol=0, equal_nan=True)

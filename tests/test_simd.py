"""The CPU kernels give the same bits on every SIMD level that this processor has."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, torch
from fastrcnn import ops

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
corner = torch.rand(300, 2, generator=generator) * 90 - 5
boxes = torch.cat([corner, corner + torch.rand(300, 2, generator=generator) ** 2 * 60], 1)
boxes[7], boxes[8, 2] = boxes[6], float("nan")
scores = torch.rand(300, generator=generator)
rois = torch.cat([torch.randint(2, (300, 1), generator=generator).float(), boxes], 1)
results = []
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for channels in (3, 16, 150):  # below a vector, one vector, blocks of vectors and a rest
        values = torch.randn(2, channels, 25, 30, generator=generator).to(dtype)
        values[0, :, 3, 4:7] = torch.tensor([float("nan"), float("inf"), torch.finfo(dtype).tiny])
        for layout in (torch.contiguous_format, torch.channels_last):
            features = values.contiguous(memory_format=layout).requires_grad_()
            pooled = ops.roi_align(features, rois, 5, 0.25)
            results += [pooled, *torch.autograd.grad(pooled, features, torch.rand_like(pooled))]
for dtype in (torch.float32, torch.float64):
    results.append(ops.nms(boxes.to(dtype), scores.to(dtype), 0.4))
    results += ops.assign_max_iou(boxes.to(dtype), boxes[::17].to(dtype), 0.7, 0.3, 0.1, True)
digest = hashlib.sha256()
for result in results:
    digest.update(result.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
print("digest", digest.hexdigest())
"""


def run(level: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTRCNN_SIMD": level}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_every_level_gives_the_bits_of_the_baseline(level: str):
    result = run(level)
    if "this processor has levels up to" in result.stderr:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stderr
    baseline = run("baseline")
    assert baseline.returncode == 0, baseline.stderr
    assert result.stdout == baseline.stdout
    assert result.stdout.startswith("digest")


def test_an_unknown_level_is_named():
    result = run("avx1024")
    assert result.returncode != 0
    assert "FASTRCNN_SIMD: expected baseline, avx2 or avx512, got avx1024" in result.stderr

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
            largest = ops.roi_pool(features, rois, 5, 0.25)
            results += [largest, *torch.autograd.grad(largest, features, torch.ones_like(largest))]
for dtype in (torch.float32, torch.float64):
    results.append(ops.nms(boxes.to(dtype), scores.to(dtype), 0.4))
    results += ops.assign_max_iou(boxes.to(dtype), boxes[::17].to(dtype), 0.7, 0.3, 0.1, True)
    leaf = boxes.to(dtype).requires_grad_()
    for kind in ("iou", "giou", "diou", "ciou", "bounded_iou"):
        for mode in ("log", "linear", "square"):
            loss = ops.iou_loss(leaf, boxes.roll(1, 0).lerp(boxes, 0.8).to(dtype), kind, mode)
            (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
            results += [loss.nan_to_num(7), gradient.nan_to_num(7)]  # the sign of a NaN may differ
    results.append(ops.box_iou(boxes.to(dtype), boxes[::17].to(dtype)))
    coding = (0.1, -0.2, 0.05, 0.3), (0.1, 0.1, 0.2, 0.2)
    results.append(ops.encode_boxes(boxes.to(dtype), boxes.flip(0).to(dtype), *coding).nan_to_num(7))
    for classes in (1, 3, 80):
        for max_shape in (None, (50, 60), torch.rand(300, 2, generator=generator, dtype=dtype) * 90):
            deltas = torch.randn(300, 4 * classes, generator=generator, dtype=dtype) * 3
            decoded = ops.decode_boxes(boxes.to(dtype), deltas.requires_grad_(), *coding, max_shape)
            (gradient,) = torch.autograd.grad(decoded, deltas, torch.ones_like(decoded))
            results += [decoded.nan_to_num(7), gradient.nan_to_num(7)]
crowd = torch.rand(3000, 2, generator=generator) * 900  # so many that NMS divides the plane into cells
crowd = torch.cat([crowd, crowd + torch.rand(3000, 2, generator=generator) * 200], 1)
for threshold in (0.0, 0.3, 0.7):
    results.append(ops.nms(crowd, torch.rand(3000, generator=generator), threshold))
    results.append(ops.nms(crowd.double(), torch.rand(3000, generator=generator).double(), threshold))
anchors = ops.grid_anchors([(40, 50)], [4], [ops.base_anchors(4, [4], [0.5, 1, 2])])
sizes, factors, zeros = [(150.0, 190.0)] * 2, [(0.5, 0.75)] * 2, (0.0,) * 4
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    objectness, deltas = (torch.randn(2, c, 40, 50, generator=generator).to(dtype) for c in (3, 12))
    objectness[0, 0, 3, :5], objectness[1, 1, 4, :3] = float("nan"), -0.0
    for pre_nms in (10, 200, 3000, 10_000):
        results += ops.generate_proposals([objectness], [deltas], anchors, sizes, pre_nms, 900, 0.7)
    logits, deltas = (torch.randn(300, c, generator=generator).to(dtype) * 3 for c in (38, 148))
    for threshold in (0.0, 0.05):
        results += ops.select_detections(
            logits, deltas, rois, sizes, factors, threshold, 0.5, 2000, zeros, (0.1, 0.1, 0.2, 0.2)
        )
for channels, outputs in ((1, 5), (16, 32), (37, 49)):
    x = torch.randn(2, channels, 9, 30, generator=generator)
    x[0, 0, 3, 4], x[1, 0, 8, 29] = float("nan"), float("inf")
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    results += [ops.conv3x3(x, weight, bias, relu).nan_to_num(7) for relu in (False, True)]
x, weight = torch.randn(1, 1, 301, 230, generator=generator), torch.randn(128, 1, 3, 3, generator=generator)
results.append(ops.conv3x3(x, weight, None))  # so large that it is written past the caches
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

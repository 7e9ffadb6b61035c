"""Measuring: what is timed, in which order, and what the figures mean."""

import time

import pytest
import torch
from tiny_training import SETTINGS, small_resnet
from torch import nn

from fastrcnn import benchmark as measuring
from fastrcnn.config import load_config
from fastrcnn.training.log import COLUMNS

CPU = torch.device("cpu")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SETTINGS)
    return path


def test_runs_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    slow = lambda: (calls.append("a"), time.sleep(0.02))  # noqa: E731
    seconds = measuring.time_alternately([slow, lambda: calls.append("b")], 3, CPU)
    assert "".join(calls) == "ab" * 5
    assert [len(times) for times in seconds] == [3, 3]
    assert min(seconds[0]) >= 0.02 > max(seconds[1])


def test_outputs_are_spread_as_asked():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 5), torch.randn(300, 8)
    measuring.spread_outputs([measuring.Head(layer, 1.5, background=4)], lambda: layer(inputs), background=6.0)
    output = layer(inputs)
    torch.testing.assert_close(output.std(0), torch.full((5,), 1.5))
    torch.testing.assert_close(output.mean(0), torch.tensor([0.0, 0, 0, 0, 6]), atol=1e-4, rtol=0)


def test_outputs_of_several_calls_are_spread_together():
    torch.manual_seed(0)
    layer, levels = nn.Conv2d(4, 3, 1), [torch.randn(1, 4, 9, 9), 5 + 3 * torch.randn(1, 4, 5, 5)]
    run = lambda: [layer(level) for level in levels]  # noqa: E731
    measuring.spread_outputs([measuring.Head(layer, 0.1)], run)
    together = torch.cat([output.flatten(2) for output in run()], 2)[0]
    torch.testing.assert_close(together.std(1), torch.full((3,), 0.1))
    torch.testing.assert_close(together.mean(1), torch.zeros(3), atol=1e-5, rtol=0)


def test_the_table_has_both_detectors_with_as_many_proposals(config_file, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setattr(measuring, "peak_memory", lambda *_: 12.0)
    with small_resnet():
        text = measuring.benchmark(config_file, repeats=1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["detector", measuring.OURS, measuring.THEIRS]
    for row in rows[1:]:
        assert float(row[1]) > 0 and float(row[2]) == pytest.approx(1e3 / float(row[1]), rel=0.05, abs=0.01)
        assert row[4] == "12" and row[5] == "50"  # test_proposals.post_nms of the config: NMS left enough
        assert int(row[6]) > 0
    assert "640 x 480" in text and "128 x 96" in text and torch.__version__.split("+")[0] in text


def test_without_torchvision_the_table_says_so(config_file, monkeypatch):
    monkeypatch.setattr(measuring, "peak_memory", lambda *_: None)
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    with small_resnet():
        text = measuring.benchmark(config_file, repeats=1)
    assert "torchvision is not installed" in text and f"| {measuring.OURS} |" in text


def test_no_repeats_are_refused(config_file):
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        measuring.benchmark(config_file, repeats=0)


def test_memory_is_that_of_a_fresh_process(config_file):
    mine = torch.ones(300 * 2**18)  # 300 MB here must not count there
    memory = measuring.peak_memory(measuring.OURS, config_file, CPU)
    if memory is None:
        pytest.skip("no /proc/self/status on this system")
    assert 30 < memory < 300 and mine[0] == 1


def test_a_failed_measurement_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"no_such\.yaml"):
        measuring.peak_memory(measuring.OURS, tmp_path / "no_such.yaml", CPU)


def test_training_time_leaves_evaluations_out(tmp_path):
    rows = [(10, 4.0), (15, 2.0)]  # 10 steps of 8 images at 4 images/s, then 5 steps at 2 images/s
    lines = [",".join(COLUMNS)]
    for step, rate in rows:
        values = dict.fromkeys(COLUMNS, 1.0) | {"step": step, "images_per_second": rate}
        lines.append(",".join(str(values[column]) for column in COLUMNS))
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    assert measuring.training_seconds(tmp_path, 8) == pytest.approx(10 * 8 / 4 + 5 * 8 / 2)


def test_the_peer_has_the_shape_of_the_config(config_file):
    pytest.importorskip("torchvision")
    from fastrcnn.models.build import build_model
    from fastrcnn.peer import build_peer

    config = load_config("faster_rcnn_r50_fpn_1x_coco", ["model.backbone.pretrained=null"])
    ours, theirs = build_model(config.model), build_peer(config)
    count = lambda module, trained: sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)  # noqa: E731
    # Theirs has deltas for the background too, and batch norms whose affine part is a buffer.
    extra = 4 * (config.model.box_head.channels + 1)
    affine = sum(m.weight.numel() + m.bias.numel() for m in ours.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert count(theirs, False) == count(ours, False) + extra - affine
    assert not theirs.backbone.body.layer1[0].conv1.weight.requires_grad
    assert theirs.backbone.body.layer2[0].conv1.weight.requires_grad


# --- stages -----------------------------------------------------------------------------------------------------------


def test_every_stage_of_detection_has_its_time(config_file):
    from fastrcnn import ops, stages

    before = ops.generate_proposals
    with small_resnet():
        times = stages.detection_stages(config_file, device="cpu", repeats=1)
    assert ops.generate_proposals is before
    whole = times.pop(stages.WHOLE)
    expected = ["data", "backbone", "FPN", "RPN head", "proposals", "RoIAlign", "box head", "selection", stages.REST]
    assert list(times) == expected
    assert all(ms > 0 for ms in times.values()) and sum(times.values()) == pytest.approx(whole)
    rows = stages.stage_table("stage", times | {stages.WHOLE: whole}).splitlines()
    assert rows[-1] == f"| all | {whole:.2f} | 100.0% |"


def test_stages_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    import cv2

    from fastrcnn import stages

    stages.draw_stages("title", {"data": 1.0, "backbone": 7.0, "all": 8.0}, tmp_path / "new" / "stages.png")
    drawn = cv2.imread(str(tmp_path / "new" / "stages.png"))
    assert drawn.shape[1] == 960 and drawn.std() > 10


def test_the_command_prints_stages_and_draws_them(config_file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from fastrcnn.cli import main

    monkeypatch.setattr(measuring, "peak_memory", lambda *_: 12.0)
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    with small_resnet():
        assert main(["benchmark", str(config_file), "--profile", str(tmp_path / "stages.png")]) == 0
    text = capsys.readouterr().out
    assert "| stage of fastrcnn's detection | ms | share |" in text and "| RoIAlign |" in text
    assert (tmp_path / "stages.png").stat().st_size > 5000

"""Training and evaluation by two processes, started by torchrun on the CPU (gloo)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same, content_of
from tiny_training import tiny_config, write_pictures
from train_tiny import run
from two_processes import CHECKS

from fastrcnn.config import Config
from fastrcnn.data.loader import epoch_batches, training_dataset
from fastrcnn.data.read import read_dataset
from fastrcnn.detector import load
from fastrcnn.distributed import all_gather, all_gather_objects, from_main, is_main, process_group, rank, world_size
from fastrcnn.evaluation.coco import coco_results
from fastrcnn.evaluation.evaluate import detect_dataset, evaluate
from fastrcnn.models.build import build_model
from fastrcnn.training.train import check_settings

TESTS = Path(__file__).parent
TIMEOUT = 120  # seconds, on a busy machine; a run takes ten


def torchrun(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    paths = [str(TESTS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], env=environment, **pipes)


def output_of(process: subprocess.Popen[str]) -> str:
    """All that it printed, once it has ended; killed if it hangs."""
    try:
        return process.communicate(timeout=TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes with it
        pytest.fail(f"hangs: {process.communicate(timeout=60)[0]}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pth", weights_only=True)


def assert_same_weights(folder: Path, expected: Path) -> None:
    """Weights, averaged too, and momenta, to the last bit. Not batch norm's running statistics, see gradients.py."""
    one, two = last(folder), last(expected)
    for saved in (one, two):
        for model in (saved["model"], saved.get("average", {}).get("trained_model", {})):
            for name in [name for name in model if "running" in name or "tracked" in name]:
                del model[name]
    for part in ("model", "average", "optimizer"):
        assert_same(one.get(part), two.get(part), part)
    assert (one["step"], one["epoch"]) == (two["step"], two["epoch"])


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("checks")
    process = torchrun(str(TESTS / "two_processes.py"), str(folder))
    printed = output_of(process)
    assert process.returncode == 0, printed
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(name: str, outcomes: list[dict[str, str]]) -> None:
    for outcome in outcomes:
        assert outcome.get(name, "not reached: an earlier check failed") == ""


def test_a_process_alone_is_a_group_of_one() -> None:
    with process_group():
        assert (rank(), world_size(), is_main()) == (0, 1, True)
        assert all_gather([3.0]) == [[3.0]] and all_gather_objects("a") == ["a"] and from_main(lambda: 5) == 5
        with pytest.raises(OSError, match="full"):
            from_main(lambda: (_ for _ in ()).throw(OSError("full")))


# --- training ---------------------------------------------------------------------------------------------------------


OVERRIDES = ["train.log_every=1", "optimizer.clip_norm=0.5", "train.ema_decay=0.5"]
RUNS: dict[str, dict[str, Any]] = {  # of three batches an epoch: the last step has one, and process 1 none
    "with objects": {"overrides": OVERRIDES},
    "process 1 without objects": {"overrides": OVERRIDES, "without_objects": True},
    "process 1 without batches": {"overrides": [*OVERRIDES, "train.batch_size=6", "train.workers=1"]},
}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one_with_twice_the_accumulation(
    name: str, pictures: Path, together: Path, tmp_path: Path
) -> None:
    """Clipping sees the gradient of all."""
    settings = RUNS[name] | {"output": str(tmp_path)}
    run(pictures, settings | {"overrides": [*settings["overrides"], "train.accumulation=2"]})
    assert_same_weights(together / name, tmp_path)
    assert last(together / name)["step"] == (2 if name == "process 1 without batches" else 4)
    for file in ("log.csv", "log.jsonl"):
        assert_same(*(content_of(folder / file) for folder in (together / name, tmp_path)), file)
    if name == "process 1 without batches":  # batch norm's statistics, too, are of process 0's batches alone
        assert_same(last(together / name)["model"], last(tmp_path)["model"])


@pytest.fixture(scope="module")
def together(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes."""
    folder = tmp_path_factory.mktemp("together")
    runs = [settings | {"output": str(folder / name)} for name, settings in RUNS.items()]
    process = torchrun(str(TESTS / "train_tiny.py"), str(pictures), json.dumps(runs))
    printed = output_of(process)
    assert process.returncode == 0, printed
    assert printed.count("epoch 1  step 1/4") == 2  # once for each such run: the main process alone speaks
    assert "2 images x 1 batches x 2 processes" in printed
    return folder


def test_killed_processes_are_restarted_and_nothing_is_lost(pictures: Path, tmp_path: Path) -> None:
    """Process 1 dies within the second epoch, then the main one in the last evaluation; torchrun starts both again."""
    overrides = ["train.batch_size=1", "train.checkpoint_minutes=0"]
    accidents = {"kill": 4, "kill_in_evaluation": True}
    settings = {"output": str(tmp_path / "killed"), "overrides": overrides, "resume": True, **accidents}
    process = torchrun(
        str(TESTS / "train_tiny.py"), str(pictures), json.dumps([settings]), options=("--max-restarts=2",)
    )
    printed = output_of(process)
    assert process.returncode == 0, printed
    assert "starting from the beginning" in printed
    assert "last.pth: 1 of 2 epochs and 2 batches of the next are done" in printed
    assert "last.pth: 2 of 2 epochs and 0 batches of the next are done" in printed
    run(pictures, {"output": str(tmp_path / "alone"), "overrides": [*overrides, "train.accumulation=2"]})
    assert_same_weights(tmp_path / "killed", tmp_path / "alone")
    for name in ("log.csv", "log.jsonl"):
        assert_same(*(content_of(tmp_path / folder / name) for folder in ("killed", "alone")), name)
    assert [entry["epoch"] for entry in json.loads((tmp_path / "killed" / "metrics.json").read_text())] == [1, 2]


def test_sigterm_to_one_process_stops_both(pictures: Path, tmp_path: Path) -> None:
    """As a queue's, or an administrator's. The checkpoint is of the end of that step, in both."""
    settings = {"output": str(tmp_path), "overrides": ["train.batch_size=1"], "stop": 1}
    process = torchrun(str(TESTS / "train_tiny.py"), str(pictures), json.dumps([settings]))
    printed = output_of(process)
    assert process.returncode != 0 and "exitcode  : 143" in printed  # 128 + SIGTERM
    assert printed.count("Stopped by SIGTERM after step 2; everything is in") == 1, printed
    assert (last(tmp_path)["step"], last(tmp_path)["schedule"]["epoch_batches"]) == (2, 4)


def test_an_error_in_a_loader_of_one_process_ends_all(pictures: Path, tmp_path: Path) -> None:
    """A picture that cannot be read, in a worker of process 1: its name is told, and no process stays behind."""
    broken = tmp_path / "pictures"
    shutil.copytree(pictures, broken)
    overrides = ["train.batch_size=1", "train.workers=2"]
    config = tiny_config(broken, tmp_path / "out", *overrides)
    dataset = training_dataset(read_dataset(config.data.train))
    _, index = epoch_batches(dataset, config, epoch=0)[3][0]  # of process 1's second step
    dataset.samples[index].path.write_bytes(b"no picture")
    settings = {"output": str(tmp_path / "out"), "overrides": overrides}
    process = torchrun(str(TESTS / "train_tiny.py"), str(broken), json.dumps([settings]))
    printed = output_of(process)
    assert process.returncode != 0
    assert dataset.samples[index].path.name in printed and not (tmp_path / "out" / "last.pth").exists()
    deadline = time.monotonic() + TIMEOUT
    while processes_with(str(broken)) and time.monotonic() < deadline:
        time.sleep(0.1)  # workers look every few seconds whether the process that they work for is there
    assert not processes_with(str(broken))


def processes_with(argument: str) -> list[str]:
    """The processes that have an argument which contains this."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if argument.encode() in file.read_bytes():
                found.append(file.parent.name)
    return found


def test_sigterm_to_torchrun_and_resuming_with_another_number_of_processes(pictures: Path, tmp_path: Path) -> None:
    """With loader workers, which get the signal too. What two processes began, one with two batches a step ends."""
    overrides = ["train.batch_size=1", "train.workers=2"]
    settings = {"output": str(tmp_path / "stopped"), "overrides": overrides}
    process = torchrun(str(TESTS / "train_tiny.py"), str(pictures), json.dumps([settings | {"slow": 0.5}]))
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "stopped" / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # the row of the second step
    process.send_signal(signal.SIGTERM)
    printed = output_of(process)
    assert "Stopped by SIGTERM after step" in printed, printed
    saved = last(tmp_path / "stopped")
    assert 0 < saved["step"] < 6
    run(pictures, settings | {"overrides": [*overrides, "train.accumulation=2"], "resume": True})
    run(pictures, {"output": str(tmp_path / "alone"), "overrides": [*overrides, "train.accumulation=2"]})
    assert_same_weights(tmp_path / "stopped", tmp_path / "alone")


def test_evaluation_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    """A random model, and the best of its own detections for objects, so that there is something to find."""
    overrides = ["model.box_head.score_threshold=0", f"data.val.annotations={tmp_path}/found.json"]
    config = tiny_config(pictures, tmp_path, overrides[0])
    torch.manual_seed(0)
    torch.save({"model": build_model(config.model).state_dict(), "classes": ["wide", "tall"]}, tmp_path / "a.pth")
    detector = load(config, str(tmp_path / "a.pth"), device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes
    dataset = read_dataset(config.data.val)
    found = coco_results(dataset, detect_dataset(detector.model, dataset, config, detector.device))
    content = json.loads((pictures / "boxes.json").read_text())
    content["annotations"] = [
        result | {"id": id, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for id, result in enumerate(found[::40], start=1)
    ]
    (tmp_path / "found.json").write_text(json.dumps(content))
    config = tiny_config(pictures, tmp_path, *overrides)
    expected = evaluate(detector.model, read_dataset(config.data.val), config, detector.device).metrics
    torch.set_num_threads(threads)
    assert 0 < expected["AP"] < 1

    arguments = [str(tmp_path / "tiny.yaml"), "--checkpoint", str(tmp_path / "a.pth"), f"output_dir={tmp_path}"]
    process = torchrun("-m", "fastrcnn", "eval", *arguments, *overrides)
    printed = output_of(process)
    assert process.returncode == 0, printed
    assert printed.count("images/s, reading included") == 1
    metrics = json.loads((tmp_path / "eval_results.json").read_text())["metrics"]
    assert metrics | {"images_per_second": 0} == expected | {"images_per_second": 0}


def test_restarts_need_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match=r"--max-restarts=3.*add --resume"):
        check_settings(Config(), resume=False)
    check_settings(Config(), resume=True)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fastrcnn.distributed.choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match=r"number 2 of this machine, which has 1.*CUDA_VISIBLE_DEVICES"),
        process_group(),
    ):
        pass

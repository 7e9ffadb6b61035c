"""Nothing grows with the number of steps and evaluations: memory, objects, tensors, files, threads, processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from long_run import EPOCHS, STEPS

PROGRAM = Path(__file__).parent / "long_run.py"
WARM = 3  # epochs after which caches are full and pools of memory have their size


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux tells in /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_grows(workers: int, pictures: Path, tmp_path: Path) -> None:
    """Between two steps at the same place of their epochs, with an evaluation in every second epoch."""
    command = [sys.executable, str(PROGRAM), str(pictures), str(tmp_path), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    moments = json.loads(done.stdout.splitlines()[-1])
    assert len(moments) == EPOCHS
    before, after = moments[WARM], moments[-1]
    growth = {name: after[name] - before[name] for name in before}
    steps = (EPOCHS - 1 - WARM) * STEPS
    assert growth["tensors"] == growth["files"] == growth["threads"] == growth["processes"] == 0, growth
    assert after["processes"] == workers
    assert growth["elements"] < steps  # boxes of the batches that are held
    assert growth["objects"] < steps / 2  # an entry of metrics.json for each evaluation
    assert growth["megabytes"] < 16  # one batch of images a step would be 28

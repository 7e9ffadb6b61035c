"""A run that is killed at any moment and resumed leaves what an undisturbed run leaves: every file, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import assert_same_run


@pytest.mark.parametrize("kind", ["files", "calls"])
def test_a_killed_run_is_resumed_as_if_nothing_had_been(kind: str, pictures: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_runs.py")
    command = [sys.executable, str(script), str(pictures), str(tmp_path), kind]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    killed = [folder for folder in tmp_path.iterdir() if folder.is_dir() and folder.name != "undisturbed"]
    assert len(killed) >= 3
    for folder in killed:
        try:
            assert_same_run(folder, tmp_path / "undisturbed")
        except AssertionError as error:
            pytest.fail(f"killed at moment {folder.name}: {error}")

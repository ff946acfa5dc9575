"""A disk without room, while a model trains: one line, no traceback, and the last whole checkpoint stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = {
    "name": "tiny",
    "model": {"preset": "qwen3-tiny", "context": 16, "layers": 1, "dim": 32, "heads": 2, "hidden": 64},
    "train": {"steps": 60, "global_batch": 4, "compile": "off", "device": "cpu"},
    "checkpoint": {"every": 4},
}
FULL = """
mount -t tmpfs -o size=250k tmpfs "$PWD" && cd "$PWD" || exit 77
"$@"
code=$?
ls runs/tiny/checkpoints
exit $code
"""


def test_training_on_a_disk_that_fills_up_ends_with_one_line_and_keeps_the_last_whole_checkpoint(
    corpus: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({**RECIPE, "data": {"directory": str(corpus)}}))
    disk = tmp_path / "disk"
    disk.mkdir()
    space = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user", "--user"])]
    command = [*space, "sh", "-c", FULL, "sh", sys.executable, "-m", "shoal", "pretrain", str(recipe)]
    try:
        done = subprocess.run(command, cwd=disk, capture_output=True, text=True, timeout=240)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no disk can be mounted here")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert "step-00000004" in done.stdout.splitlines() and "latest" in done.stdout.splitlines()

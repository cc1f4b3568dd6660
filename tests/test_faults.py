"""Killed, pre-empted, out of disk, damaged: continued, an experiment ends with the undisturbed records, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_muscaling.checkpoints import MANIFEST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded torch"),
]

CHECKPOINT_STEPS = 5  # of tests.series_helpers.tiny_experiment


def inject(folder: Path, *words: str) -> list[dict]:
    """Return the lines of `python -m tests.faults`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_MUSCALING_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tests.faults", "--folder", str(folder / "work"), "--faults", *words]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(line: dict, statuses: set[int]) -> None:
    """Check that a fault struck, that the end equals the undisturbed one, and that little was trained again."""
    assert set(line["statuses"]) <= statuses, line
    assert line["last"] == 0 and line["equal"], line
    trained, undisturbed = line["steps"]
    assert undisturbed <= trained <= undisturbed + 2 * CHECKPOINT_STEPS * len(line["statuses"]), line


def test_twenty_kills_at_random_moments(tmp_path):
    (line,) = inject(tmp_path, "random:20")
    check(line, {-9, 0})
    assert line["statuses"].count(-9) >= 10


@pytest.mark.parametrize(
    "faults",
    [
        ("start", "grid", "proxy", "evaluation", "checkpoint", "checkpoint-state", "manifest"),
        ("model", "record", "record-moved", "report", "clock", "sigterm", "disk-full"),
    ],
    ids=["training", "writing"],
)
def test_a_fault_at_a_named_place(tmp_path, faults):
    expected = {"disk-full": 2, "sigterm": 75, "clock": 0}
    for line in inject(tmp_path, *faults):
        check(line, {expected.get(line["fault"], -9)})
        if line["fault"] in ("checkpoint", "checkpoint-state", "manifest", "disk-full"):
            assert f"it is incomplete (it has no {MANIFEST.partition('.')[0]}" in line["messages"]
        if line["fault"] == "disk-full":
            assert "the disk is probably full" in line["messages"] and "/broken/runs/" in line["messages"]
            assert line["finished_before"] == 1
        if line["fault"] == "sigterm":
            assert "Stopped (SIGTERM)" in line["messages"]
            assert line["steps"][0] == line["steps"][1]  # it stopped at a checkpoint: no step is trained twice


def test_a_damaged_checkpoint(tmp_path):
    for line in inject(tmp_path, "truncated", "bit-flip", "bit-flip-weights"):
        check(line, {-9})
        assert "Passing over checkpoint-" in line["messages"] and "continuing from the one before" in line["messages"]


@pytest.mark.parametrize(("safeguard", "fault"), [("checksum", "bit-flip"), ("atomic", "record")])
def test_without_the_safeguard_the_fault_is_seen(tmp_path, safeguard, fault):
    """The negative control: these tests can fail."""
    (line,) = inject(tmp_path, fault, "--without", safeguard)
    assert line["statuses"] == [-9] and not line["equal"], line

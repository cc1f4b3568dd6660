"""Under a launcher: "apart" is one process's training on every rank, and a killed rank stops the others cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from hf_muscaling import Series
from hf_muscaling.experiment import run_experiment
from tests.series_helpers import flags, tiny_experiment

RECIPE = Path(__file__).parents[1] / "recipes" / "run_series.py"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))


def launch(config):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*launcher, RECIPE, *flags(config)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def numbers(folder):
    runs = Series.from_jsonl(folder / "runs.jsonl")
    prediction = json.loads((folder / "prediction.json").read_text())
    return [(run.run_id, run.loss, run.curve, run.layout) for run in runs], prediction


def test_every_rank_trains_whole_runs(tmp_path):
    settings = {"steps": 20, "widths": [8, 16, 32], "placement": "apart"}
    process = launch(tiny_experiment(tmp_path, output_dir=str(tmp_path / "launched"), **settings))
    out, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown[-3000:]
    assert out.count("Predicted loss") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_experiment(tiny_experiment(tmp_path, output_dir=str(tmp_path / "alone"), **settings), progress=False)
    assert numbers(tmp_path / "launched") == numbers(tmp_path / "alone")


def test_a_killed_rank_stops_the_others_and_the_run_continues(tmp_path):
    settings = {"steps": 200, "widths": [8, 16, 32], "learning_rates": [1e-2], "placement": "together"}
    config = tiny_experiment(tmp_path, output_dir=str(tmp_path / "broken"), checkpoint_steps=20, **settings)
    process = launch(config)
    while process.poll() is None and not list((tmp_path / "broken").glob("runs/*/checkpoints/*/manifest.json")):
        time.sleep(0.1)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    shown = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "the same command continues" in shown.replace("The same", "the same"), shown[-3000:]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    finished = {p: p.stat().st_ino for p in (tmp_path / "broken").glob("runs/*/run.json")}
    process = launch(config)
    shown = process.communicate(timeout=300)[1]
    assert process.returncode == 0, shown[-3000:]
    assert {p: p.stat().st_ino for p in finished} == finished  # a record that is written again is another file
    whole = launch(tiny_experiment(tmp_path, output_dir=str(tmp_path / "whole"), checkpoint_steps=20, **settings))
    shown = whole.communicate(timeout=300)[1]
    assert whole.returncode == 0, shown[-3000:]
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")

"""A study that several workers share: every cell once, a killed worker's again, nothing twice, no secrets shown."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from hf_muscaling.cli import main
from hf_muscaling.configuration import ExperimentConfig, parse_experiment
from hf_muscaling.errors import ConfigurationError, Preempted
from hf_muscaling.experiment import run_experiment
from tests.series_helpers import flags, tiny_experiment
from tests.test_runs import make_run

pytest.importorskip("optuna")

from hf_muscaling.study import Study, SweepOptions, tpe_by_number
from hf_muscaling.sweep import best_yaml, run_sweep

GRID = {"learning_rates": [4e-3, 8e-3, 1e-3], "init_stds": [0.05]}  # few: a commit waits for the disk
ROOT = Path(__file__).parent.parent

# A worker without torch: it notes each cell that it starts and finishes, and may stop for good at its first.
WORKER = """
import os, sys, time
from pathlib import Path
from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.study import Study, SweepOptions, tpe_by_number
from hf_muscaling.sweep import best_yaml, run_sweep

folder, name, seconds, hangs = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4] == "hang"
def note(word, params):
    with open(folder / f"notes-{name}", "a") as handle:
        handle.write(f"{word} {params['learning_rate']:.6g} {params['init_std']:.6g}\\n")
def train(params, report):
    note("start", params)
    time.sleep(3600 if hangs else seconds)
    note("end", params)
    return abs(params["learning_rate"] - 4e-3) + params["init_std"], "run"
lists = {"learning_rates": [1e-3, 2e-3, 4e-3, 8e-3], "init_stds": [0.02, 0.05, 0.1]}
study = Study(ExperimentConfig(**lists), SweepOptions(heartbeat=1, grace=3), folder)
print("done", study.work(train))
"""


def worker(folder, name, seconds=0.05, hang=False):
    words = [sys.executable, "-c", WORKER, str(folder), name, str(seconds), "hang" if hang else "work"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def notes(folder):
    lines = [line.split() for path in sorted(folder.glob("notes-*")) for line in path.read_text().splitlines()]
    return [tuple(line[1:]) for line in lines if line[0] == "start"], [tuple(x[1:]) for x in lines if x[0] == "end"]


def a_study(folder, **options):
    return Study(ExperimentConfig(**GRID), SweepOptions(**options), folder)


def test_one_worker_does_every_cell_once_and_none_when_it_comes_again(tmp_path):
    seen = []

    def train(params, report):
        seen.append((params["learning_rate"], params["init_std"], params["output_multiplier"]))
        return sum(seen[-1]), f"run-{len(seen)}"

    study = a_study(tmp_path)
    assert study.work(train) == 3
    assert sorted(seen) == sorted((lr, std, 1.0) for lr in GRID["learning_rates"] for std in GRID["init_stds"])
    rows = study.results()
    assert {row["state"] for row in rows} == {"finished"}
    assert min(rows, key=lambda row: row["loss"])["params"] == {
        "learning_rate": 1e-3, "init_std": 0.05, "output_multiplier": 1.0,
    }  # fmt: skip
    again = a_study(tmp_path)
    assert again.work(train) == 0
    assert len(seen) == 3 == len(again.study.trials)


def test_a_grid_may_grow(tmp_path):
    counts = [a_study(tmp_path).work(lambda params, report: (1.0, "x"))]
    grown = ExperimentConfig(**GRID | {"learning_rates": [*GRID["learning_rates"], 1.6e-2]})
    counts.append(Study(grown, SweepOptions(), tmp_path).work(lambda params, report: (1.0, "x")))
    assert counts == [3, 1]


def test_a_failed_cell_is_tried_again_by_the_same_command(tmp_path):
    def fail(params, report):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        a_study(tmp_path).work(fail)
    assert a_study(tmp_path).work(lambda params, report: (1.0, "x")) == 3


@pytest.mark.parametrize("end", [Preempted, KeyboardInterrupt])
def test_a_worker_that_is_asked_to_stop_leaves_its_cell_to_the_others(tmp_path, end):
    others = a_study(tmp_path)

    def stop(params, report):
        raise end

    with pytest.raises(end):
        a_study(tmp_path).work(stop)
    assert others.work(lambda params, report: (1.0, "x")) == 3
    assert {row["state"] for row in others.results()} == {"finished"}


def test_a_cell_that_was_enqueued_twice_is_done_once(tmp_path):
    """What two workers do that create a study at the same moment without a shared lock."""
    study = a_study(tmp_path)
    for name, params in study.cells().items():
        study.study.enqueue_trial(params, user_attrs={"cell": name})
    assert len(study.study.trials) == 6
    assert study.work(lambda params, report: (1.0, "x")) == 3
    assert {row["state"] for row in study.results()} == {"finished"}


def test_diverged_and_pruned_cells_are_done(tmp_path):
    def train(params, report):
        if params["learning_rate"] == 8e-3:
            return None, "run"
        for step, loss in ((13, 6.0), (25, 5.0), (100, 4.0 if params["learning_rate"] > 1e-3 else 6.5)):
            report(step, loss)
        return 3.0, "run"

    study = a_study(tmp_path)
    assert study.work(train) == 3
    states = {row["params"]["learning_rate"]: row["state"] for row in study.results()}
    assert states == {8e-3: "diverged", 1e-3: "pruned", 4e-3: "finished"}


def test_tpe_tries_as_many_points_as_asked_between_the_ends(tmp_path):
    config = ExperimentConfig(learning_rates=[1e-4, 1.0], init_stds=[0.05])
    seen = []

    def train(params, report):
        seen.append(params["learning_rate"])
        return 3.0, "run"

    assert Study(config, SweepOptions("tpe", trials=5), tmp_path).work(train) == 5
    assert len(set(seen)) == 5 and all(1e-4 <= lr <= 1 for lr in seen)
    assert Study(config, SweepOptions("tpe", trials=6), tmp_path).work(train) == 1


def test_tpe_draws_towards_the_optimum_and_two_workers_draw_apart():
    import optuna

    def loss(trial):
        return math.log10(trial.suggest_float("learning_rate", 1e-4, 1.0, log=True) / 1e-2) ** 2

    study = optuna.create_study(sampler=tpe_by_number(optuna, seed=0, startup=8))
    study.optimize(loss, n_trials=48)
    distances = sorted(math.sqrt(trial.value) for trial in study.trials[24:])
    assert distances[12] < 0.6  # a random point's median distance is 1
    one, two = study.ask(), study.ask()  # as two workers do at once
    assert loss(one) != loss(two)


def test_another_experiment_is_refused(tmp_path):
    a_study(tmp_path)
    with pytest.raises(ConfigurationError, match="another experiment.*steps.*--study"):
        Study(ExperimentConfig(**GRID, steps=100), SweepOptions(), tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@nowhere.invalid/name",
        "sqlite:////nowhere-hunter2/sweep.db",
        "nonsense://me:hunter2@host/x",
        "hunter2",
    ],
)
def test_a_storage_that_cannot_be_opened_and_its_password(tmp_path, url):
    with pytest.raises(ConfigurationError, match="cannot be opened") as raised:
        Study(ExperimentConfig(**GRID), SweepOptions(storage=url), tmp_path)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_a_password_is_in_no_file(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db?timeout=61"
    study = Study(ExperimentConfig(**GRID), SweepOptions(storage=url), tmp_path)
    study.work(lambda params, report: (None, "run"))
    (tmp_path / "sweep.json").write_text(json.dumps(study.results()))
    for path in tmp_path.iterdir():
        assert b"timeout=61" not in path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "random"}, "sampler='random'"),
        ({"trials": 0}, "trials=0"),
        ({"heartbeat": 60}, "heartbeat=60"),
        ({"heartbeat": 0}, "heartbeat=0"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ConfigurationError, match=message):
        SweepOptions(**change)


def test_without_optuna_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", *flags(tiny_experiment(tmp_path))]) == 2
    assert "pip install 'hf_muscaling[optuna]'" in capsys.readouterr().err


def test_the_best_settings_are_an_experiment(tmp_path):
    config = tiny_experiment(tmp_path, **GRID)
    (tmp_path / "best.yaml").write_text("", encoding="utf-8")
    text = best_yaml(
        config, make_run(lr=4e-3, loss=3.0), {"learning_rate": 4e-3, "init_std": 0.1, "output_multiplier": 2.0}
    )
    (tmp_path / "best.yaml").write_text(text, encoding="utf-8")
    read, _ = parse_experiment(["--config", str(tmp_path / "best.yaml")])
    assert read == replace(config, learning_rates=[4e-3], init_stds=[0.1], output_multipliers=[2.0])


@pytest.mark.slow
def test_two_workers_do_twelve_cells_once(tmp_path):
    workers = [worker(tmp_path, name, 0.3) for name in "ab"]
    done = [int(w.communicate(timeout=100)[0].split()[-1]) for w in workers]
    started, ended = notes(tmp_path)
    assert len(started) == len(set(started)) == len(ended) == 12
    assert sum(done) == 12 and min(done) > 0


@pytest.mark.slow
def test_a_killed_workers_cell_is_done_by_another(tmp_path):
    """Killed in its first cell; the other one, already at work, does that cell too, and nothing else twice."""
    victim = worker(tmp_path, "victim", hang=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "notes-victim").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    other = worker(tmp_path, "other", 0.1)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert int(other.communicate(timeout=100)[0].split()[-1]) == 12
    lost = (tmp_path / "notes-victim").read_text().split()[1:]
    started, ended = notes(tmp_path)
    assert sorted(started).count(tuple(lost)) == 2 and len(started) == 13
    assert len(ended) == len(set(ended)) == 12
    assert {row["state"] for row in a_study(tmp_path, heartbeat=1, grace=3).results()} == {"finished"}


@pytest.mark.slow
def test_the_command_with_two_workers_and_then_the_series(tmp_path, monkeypatch):
    """Four cells by two processes; again, nothing is trained; the series finds the best run trained."""
    lists = {"learning_rates": [1e-2, 2e-2], "init_stds": [0.05, 0.1]}
    config = tiny_experiment(tmp_path, **lists, steps=40, checkpoint_steps=100)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_MUSCALING_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "recipes/search_hyperparameters.py"), *flags(config)]
    two = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in two]
    finally:
        for process in two:
            process.kill()
    assert 0 in [process.returncode for process in two] and {p.returncode for p in two} <= {0, 3}
    assert sum(output.count("training ") for output in outputs) == 4
    folder = Path(config.output_dir)
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert {cell["state"] for cell in cells} <= {"finished", "pruned", "diverged"}
    records = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}
    assert len(records) == sum(cell["run_id"] is not None for cell in cells) >= 3

    monkeypatch.setenv("HF_MUSCALING_CACHE", environment["HF_MUSCALING_CACHE"])
    again = run_sweep(config, progress=False)
    assert again.complete and again.cells == cells
    best, _ = parse_experiment(["--config", str(folder / "best.yaml")])
    result = run_experiment(best, progress=False)
    assert records == {path: path.stat().st_mtime_ns for path in records}
    assert result.best.run_id == again.best.run_id
    assert result.best.loss <= 1.0025 * min(cell["loss"] for cell in cells if cell["loss"])


@pytest.mark.slow
def test_a_hopeless_run_is_stopped_without_a_record_and_trained_when_pruning_is_off(tmp_path):
    config = tiny_experiment(tmp_path, learning_rates=[2e-2, 1e-6], steps=64, logging_steps=2, checkpoint_steps=100)
    result = run_sweep(config, progress=False)
    assert {cell["params"]["learning_rate"]: cell["state"] for cell in result.cells} == {
        2e-2: "finished",
        1e-6: "pruned",
    }
    folder = Path(config.output_dir)
    assert len(list(folder.glob("runs/*/run.json"))) == 1
    assert result.best.lr == 2e-2
    whole = run_sweep(config, SweepOptions(study="whole", pruning=False), progress=False)
    assert {cell["state"] for cell in whole.cells} == {"finished"}
    assert len(list(folder.glob("runs/*/run.json"))) == 2


@pytest.mark.parametrize("script", sorted((ROOT / "recipes/slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_scripts_are_shell_and_say_how_they_are_used(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    alone = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert alone.returncode != 0 and "usage: sbatch" in alone.stderr


def test_slurm_workers_call_the_command_and_pass_on_its_failure(tmp_path):
    """With srun replaced by a script: status 3 (others still work) is success, any other is passed on."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" > "$NOTE"\nexit "$STATUS"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTE": str(tmp_path / "note")}
    for status, expected in ((0, 0), (3, 0), (2, 2), (137, 137)):
        words = ["bash", str(ROOT / "recipes/slurm/sweep.sbatch"), "a.yaml", "/out dir", "--sampler", "tpe"]
        done = subprocess.run(words, env=environment | {"STATUS": str(status)})
        assert done.returncode == expected
    assert (tmp_path / "note").read_text().split() == [
        "--ntasks=1", "muscaling", "sweep", "a.yaml", "--output_dir", "/out", "dir", "--sampler", "tpe",
    ]  # fmt: skip

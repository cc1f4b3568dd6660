"""The main job, small: grid → transfer → proxies → law → prediction → report; interrupted, refused, repeated."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hf_muscaling import PowerLaw, Series
from hf_muscaling.cli import main
from hf_muscaling.configuration import parse_experiment
from hf_muscaling.errors import TrainingError
from hf_muscaling.experiment import at_edge, best_of_grid, run_experiment
from hf_muscaling.trainer import MuTrainer
from tests.series_helpers import flags, tiny_experiment
from tests.test_runs import make_run

RECIPE = Path(__file__).parents[1] / "recipes" / "run_series.py"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_flags_describe_a_configuration(tmp_path):
    config = tiny_experiment(tmp_path)
    assert parse_experiment(flags(config))[0] == config


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_the_whole_job(tmp_path, quiet, architecture, monkeypatch):
    settings = {"steps": 100 if architecture in ("llama", "gpt2") else 40}
    if architecture == "bert":  # few tokens, whose frequencies alone teach wider models more in so few steps
        settings = {"steps": 80, "vocab_size": 266, "learning_rates": [5e-3, 1e-2]}
    config = tiny_experiment(tmp_path, architecture=architecture, verify=True, seeds=2, **settings)
    result = run_experiment(config, progress=False)
    folder = Path(config.output_dir)
    written = {p.name for p in folder.iterdir()}
    assert written >= {
        "report.md", "law.json", "runs.jsonl", "prediction.json", "experiment.json",
        "law.png", "curves.png", "landscape.png",
    }  # fmt: skip
    assert [(r.width, r.seed) for r in result.proxies] == [(w, s) for w in config.widths for s in (0, 1)]
    assert result.best.lr in config.learning_rates
    assert {run.lr for run in result.proxies} == {result.best.lr}
    assert result.actual == result.targets[0].loss
    assert len({run.data_hash for run in [*result.grid, *result.proxies, *result.targets]}) == 1

    prediction = json.loads((folder / "prediction.json").read_text())
    assert prediction["loss"] == result.prediction.loss
    assert prediction["relative_error"] == pytest.approx(result.prediction.loss / result.actual - 1)
    assert PowerLaw.from_json(folder / "law.json").predict(N=result.target_N).loss == result.prediction.loss
    series = Series.from_jsonl(folder / "runs.jsonl")
    # the best grid run is the base width's first proxy: trained once, listed once
    assert len(series) == 2 + 2 * len(config.widths) - 1 + 1
    report = (folder / "report.md").read_text()
    for word in ("Predicted loss", "interval", "Actual loss", "Eq. 1", "data sha256", "law.png", "held-out loss"):
        assert word in report
    target = {"bert": "nats per masked token", "t5": "nats per target token"}.get(architecture, "nats per token")
    assert target in report
    objectives = {run.settings.get("objective", {}).get("name", "causal") for run in series}
    assert objectives == {json.loads((folder / "experiment.json").read_text())["objective"]}
    assert str(tmp_path) not in report.replace(config.output_dir, "")

    def train(self, *a, **k):
        raise AssertionError("trained again")

    monkeypatch.setattr(MuTrainer, "train", train)
    before = (folder / "law.png").read_bytes()
    again = run_experiment(config, progress=False)
    assert (again.prediction.loss, again.prediction.low, again.actual) == (
        result.prediction.loss, result.prediction.low, result.actual,
    )  # fmt: skip
    assert (folder / "law.png").read_bytes() == before


def test_the_law_can_leave_embeddings_out(tmp_path, quiet):
    config = tiny_experiment(tmp_path, count="non_embedding", learning_rates=[1e-2])
    result = run_experiment(config, progress=False)
    assert result.law.range_["N"][1] == max(run.N_non_embedding for run in result.proxies)
    assert json.loads((Path(config.output_dir) / "prediction.json").read_text())["count"] == "non_embedding"


def test_a_grid_where_every_run_diverges(tmp_path):
    config = tiny_experiment(tmp_path, learning_rates=[1e4, 1e5], max_grad_norm=0.0)
    with pytest.raises(TrainingError, match=r"Every run of the grid diverged.*Lower them"):
        run_experiment(config, progress=False)
    records = list(Path(config.output_dir).glob("runs/*/run.json"))
    assert len(records) == 2


def test_of_equal_losses_the_smallest_learning_rate_is_taken(tmp_path):
    config = tiny_experiment(tmp_path)
    runs = [make_run(lr=lr, loss=loss) for lr, loss in ((0.1, 3.5), (0.2, 3.403), (0.4, 3.4), (0.8, 3.401))]
    assert best_of_grid(runs, config).lr == 0.2
    assert best_of_grid([*runs, make_run(lr=0.6, loss=3.3)], config).lr == 0.6


def test_a_diverged_grid_run_is_never_the_best(tmp_path, quiet):
    config = tiny_experiment(tmp_path, learning_rates=[1e-2, 1e5], max_grad_norm=0.0)
    assert run_experiment(config, progress=False).best.lr == 1e-2


def test_the_edge_of_the_grid_is_pointed_out(tmp_path, quiet, caplog):
    config = tiny_experiment(tmp_path, learning_rates=[1e-5, 1e-4, 1e-2])
    result = run_experiment(config, progress=False)
    assert result.best.lr == 1e-2
    assert "at the edge of the grid" in caplog.text
    note = "Note: The best learning rate 0.01 is at the edge of the grid [1e-05, 0.0001, 0.01]; extend"
    assert note in (Path(config.output_dir) / "report.md").read_text()


def test_a_best_rate_inside_the_grid_has_no_note():
    grid = [make_run(lr=rate) for rate in (0.1, 0.2, 0.4)]
    rates = [run.lr for run in grid]
    assert at_edge(rates, grid[1]) == "" and "edge of the grid [0.1, 0.2, 0.4]" in at_edge(rates, grid[2])
    assert at_edge(rates[:2], grid[0]) == ""  # of two, one is always at an edge


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--widths", "16", "20", "32", "64"], "a width must be a multiple of 8"),
        (["--data_files", "nowhere.txt"], "nowhere.txt"),
        (["--text_column", "body"], "body"),
        (["--steps", "100000"], "tokens"),
        (["--config", "nowhere.yaml"], "does not exist"),
        (["--batch_size", "9", "--accumulation_steps", "2"], "multiple of 2"),
    ],
)
def test_bad_input_is_one_paragraph_and_no_traceback(tmp_path, capsys, words, message):
    assert main(["run-series", *flags(tiny_experiment(tmp_path)), *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not list((tmp_path / "out").glob("runs/*/run.json"))


def test_an_output_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["run-series", *flags(tiny_experiment(tmp_path, output_dir=str(tmp_path / "file" / "out")))]) == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_two_processes_train_the_same_series(tmp_path, architecture):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_MUSCALING_CACHE": str(tmp_path / "cache")}
    settings = {"steps": 20, "widths": [16, 32, 64], "learning_rates": [1e-2], "architecture": architecture}
    settings["placement"] = "together"
    series = {}
    for processes in (1, 2):
        config = tiny_experiment(tmp_path, output_dir=str(tmp_path / f"out{processes}"), **settings)
        launch = (
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            if processes == 2
            else [sys.executable]
        )
        done = subprocess.run([*launch, RECIPE, *flags(config)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Predicted loss") == 1
        series[processes] = Series.from_jsonl(tmp_path / f"out{processes}" / "runs.jsonl")
    for one, two in zip(series[1], series[2], strict=True):
        assert (one.N, one.D, one.B, one.S) == (two.N, two.D, two.B, two.S)
        assert two.loss == pytest.approx(one.loss, abs=2e-4)
        for a, b in zip(one.curve, two.curve, strict=True):
            assert b["tokens"] == a["tokens"]
            assert b["loss"] == pytest.approx(a["loss"], abs=2e-4)

"""The sweep over horizons and batch sizes: finds minima wherever they lie, resumes, and an experiment uses its law."""

import json
import math
import re
import runpy
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_muscaling import LearningRateLaw
from hf_muscaling.cli import main
from hf_muscaling.configuration import parse_experiment
from hf_muscaling.errors import ConfigurationError, RecordError, TrainingError
from hf_muscaling.experiment import prepare_experiment
from hf_muscaling.horizon import Cell, HorizonSweep, centred_rates, hold_out, horizon_cells, moved_grid, table_of
from tests.series_helpers import flags, tiny_experiment
from tests.test_runs import make_run

RECIPE = Path(__file__).parents[1] / "recipes" / "horizon.py"


class Landscapes(HorizonSweep):
    """A sweep whose runs are not trained: their losses come from a landscape with a known best rate."""

    def __init__(self, config, best, diverges=math.inf):
        self.config, self.best, self.diverges = config, best, diverges
        self.middle, self.longest = config.learning_rates[0], 6400
        self.runs, self.trained = {}, []

    def train(self, wanted):
        for cell, rate, seed in dict.fromkeys(wanted):
            if (cell, rate, seed) in self.runs:
                continue
            self.trained.append((cell, rate, seed))
            noise = np.random.default_rng(len(self.trained)).normal()
            loss = 4 + 0.1 * math.log(rate / self.best(cell)) ** 2 + 0.002 * noise
            B = cell.batch_size * self.config.sequence_length
            run = make_run(
                run_id=f"r{len(self.trained)}", loss=loss, lr=rate, seed=seed, B=B, D=B * cell.steps, S=cell.steps
            )
            if rate > self.diverges:
                run.loss, run.status = None, "diverged"
            self.runs[cell, rate, seed] = run


def best_rate(cell):
    return 0.05 * (cell.sequences / 800) ** -0.3 * (cell.batch_size / 8) ** 0.5


@pytest.fixture
def config(tmp_path):
    return tiny_experiment(tmp_path, learning_rates=[0.02], seeds=2)


CELLS = [Cell(steps, batch) for total in (800, 1600, 3200, 6400) for batch in (2, 8, 32) for steps in [total // batch]]


def test_cells_are_whole_batches_of_the_same_horizons(config):
    cells = horizon_cells(config, [100, 200], [0.25, 1, 4])
    assert {cell.sequences for cell in cells} == {800, 1600} and len(cells) == 6
    for horizons, factors in (([100], [0.3]), ([90], [4.0]), ([100, 100], [1.0]), ([100], [0.0625])):
        with pytest.raises(ConfigurationError, match="whole numbers|repeat"):
            horizon_cells(config, horizons, factors)


@pytest.mark.parametrize("middle", [0.02, 0.02 * 2**-5, 0.02 * 2**4])
def test_the_sweep_finds_the_minima_from_a_wrong_start(config, middle):
    config.learning_rates = [middle]
    sweep = Landscapes(config, best_rate)
    law = LearningRateLaw().fit(table_of(sweep.search(CELLS)))
    assert all(cell.lr == pytest.approx(best_rate(Cell(round(cell.D / cell.B), round(cell.B / 16))), rel=0.1)
               for cell in law.cells_)  # fmt: skip
    assert len(law.cells_) == 12 and law.params_["gamma"] == pytest.approx(0.3, abs=0.05)
    assert len(sweep.trained) == len(set(sweep.trained))  # nothing twice
    for found in hold_out(sweep, law):
        assert found.D == 6400 * 16 and found.predicted == pytest.approx(found.optimum, rel=0.05)
        assert found.optimum_loss < found.kept_loss  # the landscape moved, and keeping the rate costs
        assert abs(found.predicted_loss - found.optimum_loss) < 0.01


def test_short_horizons_get_more_seeds(config):
    sweep = Landscapes(config, best_rate)
    assert [len(sweep.seeds(Cell(total // 8, 8))) for total in (800, 1600, 3200, 6400)] == [4, 4, 3, 2]
    sweep.search(CELLS)
    trained = {(cell.sequences, seed) for cell, _, seed in sweep.trained}
    assert (800, 3) in trained and (6400, 1) in trained and (6400, 2) not in trained


def test_diverged_rates_are_no_minimum(config):
    sweep = Landscapes(config, best_rate, diverges=0.06)
    rows = table_of(sweep.search(CELLS[:3]))
    assert rows and all(math.isfinite(row["loss"]) for row in rows) and max(row["lr"] for row in rows) <= 0.06
    with pytest.raises(TrainingError, match="diverged"):
        Landscapes(config, best_rate, diverges=0.0).search(CELLS[:3])


@pytest.fixture
def law(config, tmp_path):
    sweep = Landscapes(config, best_rate)
    path = tmp_path / "rates.json"
    fitted = LearningRateLaw().fit(table_of(sweep.search(CELLS)))
    fitted.to_json(path)
    return fitted, path


def test_a_law_moves_the_grid_and_keeps_its_shape(config, law):
    fitted, path = law
    config.learning_rates = [0.004, 0.008, 0.016]
    assert centred_rates(config) is config  # off by default
    config.learning_rate_law, config.steps = str(path), 200
    rates = centred_rates(config).learning_rates
    assert rates[1] == pytest.approx(fitted.predict(D=200 * 8 * 16, B=8 * 16).lr, rel=0.005)
    assert rates[1] / rates[0] == pytest.approx(2, rel=0.01) and rates[2] / rates[1] == pytest.approx(2, rel=0.01)
    (note,) = moved_grid(config)[1]
    given, moved = "0.004, 0.008, 0.016", ", ".join(f"{rate:.3g}" for rate in rates)
    assert note.startswith(f"The learning rates {given} were moved to {moved}, around ") and str(path) in note
    config.steps = 100_000
    with pytest.warns(UserWarning, match="outside the fitted range"):
        far, notes = moved_grid(config)
    assert far.learning_rates[1] < 0.3 * rates[1] and "outside the fitted range" in notes[1]
    config.learning_rate_law = str(path.with_name("nope.json"))
    with pytest.raises(RecordError, match=r"--learning_rate_law: there is no file '.*nope.json'\. Give the law.json"):
        centred_rates(config)
    config.learning_rate_law = str(path)
    path.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(RecordError, match="format"):
        centred_rates(config)


def test_a_search_starts_around_the_law_too(config, law, monkeypatch):
    """And what it finds, best.yaml, is not moved again by the experiment that takes it."""
    pytest.importorskip("optuna")
    from hf_muscaling.sweep import run_sweep

    class Seen(Exception):
        pass

    def study(config, options, folder):
        raise Seen(config.learning_rates, config.learning_rate_law)

    monkeypatch.setattr("hf_muscaling.sweep.Study", study)
    config.learning_rates, config.learning_rate_law = [0.004, 0.008, 0.016], str(law[1])
    with pytest.raises(Seen) as seen:
        run_sweep(config)
    assert seen.value.args == (centred_rates(config).learning_rates, None) and seen.value.args[0] != [
        0.004,
        0.008,
        0.016,
    ]


def test_a_search_records_that_its_grid_was_moved(config, law, monkeypatch, tmp_path):
    """In sweep.json, at the head of best.yaml and in what is printed; without a law, a best rate at the edge only."""
    pytest.importorskip("optuna")
    from hf_muscaling.sweep import run_sweep

    def trainer(config, folder, progress):
        def train(params, report):
            run = make_run(run_id=f"lr-{params['learning_rate']}", lr=params["learning_rate"])
            run.loss = 3.0 + abs(math.log(run.lr / min(config.learning_rates)))
            (folder / "runs" / run.run_id).mkdir(parents=True)
            run.save(folder / "runs" / run.run_id / "run.json")
            return run.loss, run.run_id

        return train

    monkeypatch.setattr("hf_muscaling.sweep._trainer", trainer)
    config.learning_rates, config.steps = [0.004, 0.008, 0.016], 200
    moved, (note,) = moved_grid(replace(config, learning_rate_law=str(law[1])))
    for name, path, grid in (("moved", str(law[1]), moved.learning_rates), ("plain", None, config.learning_rates)):
        folder = tmp_path / name
        assert run_sweep(replace(config, output_dir=str(folder), learning_rate_law=path)).best.lr == grid[0]
        again = run_sweep(replace(config, output_dir=str(folder), learning_rate_law=path))  # read back: nothing trains
        edge = f"The best learning rate {grid[0]:g} is at the edge of the grid"
        assert [*again.notes[:-1], again.notes[-1][: len(edge)]] == [*([note] if path else []), edge]
        assert json.loads((folder / "sweep.json").read_text())["notes"] == again.notes
        head = [line for line in (folder / "best.yaml").read_text().splitlines() if line.startswith("# ")][1:]
        assert head == [f"# {text}" for text in again.notes]
        assert str(again).splitlines()[-len(again.notes) :] == [f"note: {text}" for text in again.notes]
        assert parse_experiment(["--config", str(folder / "best.yaml")])[0].learning_rates == [grid[0]]


@pytest.mark.slow
def test_an_experiment_trains_at_the_rate_of_the_law(tmp_path, law, capsys):
    fitted, path = law
    config = tiny_experiment(tmp_path, learning_rates=[0.01], steps=30, learning_rate_law=str(path), widths=[8, 16, 32])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["run-series", *flags(config)]) == 0
        expected = float(f"{fitted.predict(D=30 * 8 * 16, B=8 * 16).lr:.3g}")
    runs = [json.loads(line) for line in (Path(config.output_dir) / "runs.jsonl").read_text().splitlines()]
    assert {run["lr"] for run in runs} == {expected} != {0.01}
    assert main(["run-series", *flags(config), "--learning_rate_law", str(tmp_path / "none.json")]) == 2
    assert "--learning_rate_law: there is no file" in capsys.readouterr().err
    report = (Path(config.output_dir) / "report.md").read_text()
    assert f"Note: The learning rates 0.01 were moved to {expected:g}" in report


def run_recipe(monkeypatch, config, *words):
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *flags(config), *words])
    with pytest.raises(SystemExit) as done, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(RECIPE), run_name="__main__")
    return done.value.code


@pytest.mark.slow
def test_the_recipe_writes_table_law_and_plots(tmp_path, monkeypatch, capsys):
    """With made-up losses: what a tiny model's would say is noise, and the law refuses it."""

    class MadeUp(Landscapes):
        def __init__(self, config, setup, workers):
            super().__init__(config, best_rate)
            self.args = SimpleNamespace(process_index=0)

    monkeypatch.setattr("hf_muscaling.horizon.HorizonSweep", MadeUp)
    config = tiny_experiment(tmp_path, learning_rates=[0.04], steps=32, seeds=2)
    assert run_recipe(monkeypatch, config, "--horizons", "100", "200", "400", "--batch_factors", "0.25", "1", "4") == 0
    folder, out = Path(config.output_dir), capsys.readouterr().out
    assert out.count("Held out") == 3 and "gamma" in out
    written = {"runs.csv", "law.json", "horizon.json", "horizon.png", "landscapes.png"}
    assert written <= {p.name for p in folder.iterdir()}
    held = json.loads((folder / "horizon.json").read_text())["held_out"]
    assert [h["B"] for h in held] == [32, 128, 512] and all(h["kept"] > h["predicted"] for h in held)
    command = ["fit", str(folder / "runs.csv"), "--law", "learning-rate", "--predict", "D=102400", "B=128"]
    assert main([*command, "--plot", str(tmp_path / "law.png")]) == 0
    rate = float(re.search(r"learning rate ([^,]+),", capsys.readouterr().out)[1])
    assert rate == pytest.approx(best_rate(Cell(800, 8)), rel=0.1) and (tmp_path / "law.png").stat().st_size > 1000
    assert run_recipe(monkeypatch, config, "--horizons", "100", "--batch_factors", "0.3") == 2


@pytest.mark.slow
def test_a_sweep_trains_each_run_once_with_its_own_schedule(tmp_path, monkeypatch):
    config = tiny_experiment(tmp_path, learning_rates=[0.04], steps=32, warmup_steps=8, placement="together")
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    sweep = HorizonSweep(config, prepare_experiment(config, progress=False), progress=False)
    wanted = [(Cell(32, 8), 0.04, 0), (Cell(8, 16), 0.02, 0), (Cell(8, 16), 0.02, 1)]
    sweep.train(wanted)
    long, short, other = (sweep.runs[key] for key in wanted)
    assert (long.S, long.settings["batch_size"], long.settings["warmup_steps"], long.lr) == (32, 8, 8, 0.04)
    assert (short.S, short.B, short.settings["warmup_steps"]) == (8, 16 * 16, 2)  # the same share
    assert short.width == config.base_width and short.loss != other.loss
    written = {p: p.stat().st_mtime_ns for p in Path(config.output_dir).glob("runs/*/run.json")}
    again = HorizonSweep(config, sweep.setup, progress=False)
    again.train(wanted)
    assert [again.runs[key].loss for key in wanted] == [long.loss, short.loss, other.loss] and len(written) == 3
    assert {p: p.stat().st_mtime_ns for p in Path(config.output_dir).glob("runs/*/run.json")} == written

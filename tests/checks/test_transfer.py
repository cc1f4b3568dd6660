"""Learning-rate transfer: the rule on made-up landscapes, and sweeps that are trained."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_muscaling import MuTrainingArguments, TransferCheck, transfer_check
from hf_muscaling.checks import transfer
from hf_muscaling.checks.transfer import find_optimum, tabulate
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.runs import Run
from tests.series_helpers import flags, tiny_experiment

RATES = [2.0**-k for k in range(9, 4, -1)]


def bowl(optimum, curvature=0.05, floor=3.0):
    """Return losses that are a parabola in log2 lr around an optimum."""
    return {lr: floor + curvature * math.log2(lr / optimum) ** 2 for lr in RATES}


def made(*optima, **settings):
    return TransferCheck("M", {"mup": {64 * 2**k: bowl(lr) for k, lr in enumerate(optima)}}, **settings)


class TestOptimum:
    """The best rate of one width."""

    @pytest.mark.parametrize("optimum", [2**-7, 2**-6.7, 2**-7.4])
    def test_the_parabola_finds_the_vertex(self, optimum):
        found = find_optimum(64, bowl(optimum))
        assert found.interpolated == pytest.approx(optimum) and found.learning_rate == 2**-7 and not found.at_edge

    def test_edges_and_diverged_runs(self):
        assert find_optimum(64, bowl(2**-5)).at_edge and find_optimum(64, bowl(2**-12)).at_edge
        assert find_optimum(64, bowl(2**-12)).interpolated is None
        beside = bowl(2**-6) | {2**-5: math.inf}
        assert not find_optimum(64, beside).at_edge and find_optimum(64, beside).interpolated is None
        nothing = find_optimum(64, dict.fromkeys(RATES, math.inf))
        assert nothing.learning_rate is None and nothing.near == ()

    def test_near(self):
        assert find_optimum(64, bowl(2**-7), 0.0).near == (2**-7,)
        assert find_optimum(64, bowl(2**-7), 0.05 / 3).near == (2**-8, 2**-7, 2**-6)


class TestVerdict:
    """How far the optimum moves."""

    def test_one_grid_step_passes_and_two_fail(self):
        assert made(2**-7, 2**-7, 2**-7).moves_by() == 1 and made(2**-7, 2**-6, 2**-7).moves_by() == 2
        assert made(2**-7, 2**-6).passed and not made(2**-8, 2**-7, 2**-6).passed
        assert made(2**-8, 2**-7, 2**-6).moves_by() == 4 and made(2**-8, 2**-6, factor=4.0).passed

    def test_losses_within_the_tolerance_are_not_told_apart(self):
        flat = {64: bowl(2**-8, 0.001), 128: bowl(2**-6, 0.001)}
        assert TransferCheck("M", {"mup": flat}, tolerance=0.0).moves_by() == 4
        assert TransferCheck("M", {"mup": flat}, tolerance=0.001).moves_by() == 1

    def test_an_optimum_at_the_edge_is_none(self):
        """All widths best at the smallest rate would "move" by a factor of 1."""
        found = made(2**-9, 2**-9)
        assert found.moves_by() == 1 and not found.passed and "edge of the grid" in str(found)
        assert "UNDECIDED" in found.headline()

    def test_a_width_that_always_diverged_fails(self):
        found = TransferCheck("M", {"mup": {64: bowl(2**-7), 128: dict.fromkeys(RATES, math.inf)}})
        assert not found.passed and found.moves_by() == math.inf and "128: diverged" in str(found)
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["moves_by"] == {"mup": None} and document["passed"] is False
        assert {row["loss"] for row in document["losses"] if row["width"] == 128} == {None}
        assert found.plot().axes[0].get_xlabel() == "learning rate at base width"

    def test_the_control_is_shown_beside(self, tmp_path):
        found = TransferCheck("M", made(2**-7, 2**-6).losses | {"sp": made(2**-6, 2**-8).losses["mup"]})
        assert found.passed and found.moves_by("sp") == 4 and "standard parametrisation: best" in str(found)
        found.to_json(tmp_path / "t.json")
        assert json.loads((tmp_path / "t.json").read_text())["optima"]["sp"][1]["learning_rate"] == 2**-8
        figure = found.plot(tmp_path / "t.png")
        assert [axes.get_title() for axes in figure.axes] == ["μP", "standard parametrisation"]

    def test_seeds_are_averaged_and_a_diverged_one_counts(self):
        def run(lr, loss, seed):
            status = "diverged" if loss is None else "finished"
            return Run("r", status, 1, 1, 1, 1, 1, 1.0, loss, 64, seed, lr)

        table = tabulate([run(0.1, 3.0, 0), run(0.1, 4.0, 1), run(0.2, 3.0, 0), run(0.2, None, 1)])
        assert table == {64: {0.1: 3.5, 0.2: math.inf}}


def markov(count, vocabulary=64, length=32, seed=0):
    """Return blocks of a sparse Markov chain: each token is followed by one of four, so the entropy is ln 4."""
    generator = torch.Generator().manual_seed(seed)
    following = torch.randint(0, vocabulary, (vocabulary, 4), generator=torch.Generator().manual_seed(99))
    ids = torch.randint(0, vocabulary, (count, length), generator=generator)
    for t in range(1, length):
        ids[:, t] = following[ids[:, t - 1], torch.randint(0, 4, (count,), generator=generator)]
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder, **settings):
    defaults = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine",
        "save_strategy": "no", "use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 10,
    }  # fmt: skip
    return MuTrainingArguments(**(defaults | settings))


class TestTraining:
    """Sweeps that are trained."""

    def test_every_width_and_rate_is_trained_once(self, llama, tmp_path, monkeypatch):
        config, data = llama.base(layers=1), markov(16)

        def sweep():
            rates = [1e-3, 1e-2, 1e-1]
            return transfer_check(config, [32, 64], rates, arguments(tmp_path), data, control=True, progress=False)

        found = sweep()
        assert len({run.run_id for run in found.runs}) == 2 * 3 * 2
        assert {run.config["parametrization"] for run in found.runs} == {"mup", "sp"}
        assert found.losses["mup"][64][1e-2] != found.losses["sp"][64][1e-2]
        monkeypatch.setattr("hf_muscaling.training._train", lambda *args: pytest.fail("trained again"))
        assert sweep().losses == found.losses

    def test_seeds_and_data_are_passed_through(self, llama, tmp_path, monkeypatch):
        seen = {}

        def run_jobs(jobs, train, heldout, folder, **options):
            seen.update(options, jobs=jobs, data=(train, heldout), folder=folder)
            return []

        monkeypatch.setattr(transfer, "run_jobs", run_jobs)
        options = {"data_collator": len, "model_class": int, "hashes": {"data_hash": "h"}, "output_dir": "there"}
        transfer_check(llama.base(), [32, 64], RATES, arguments(tmp_path), [1], [2], seeds=2, progress=False, **options)
        assert len(seen["jobs"]) == 2 * 5 * 2 and {job.args.seed for job in seen["jobs"]} == {42, 43}
        assert {job.args.learning_rate for job in seen["jobs"]} == set(RATES)
        assert seen["data"] == ([1], [2]) and seen["folder"] == "there"
        assert all(seen[key] == options[key] for key in ("data_collator", "model_class", "hashes"))

    @pytest.mark.parametrize(
        ("widths", "rates", "message"),
        [
            ([32], RATES, "two different widths"),
            ([32, 32], RATES, "two different widths"),
            ([32, 40], RATES, "Width 40"),
            ([32, 64], [1e-3, 1e-2], "three different positive rates"),
            ([32, 64], [1e-3, 1e-3, 1e-2], "three different positive rates"),
            ([32, 64], [0.0, 1e-3, 1e-2], "three different positive rates"),
        ],
    )
    def test_refusals(self, llama, tmp_path, monkeypatch, widths, rates, message):
        monkeypatch.setattr(transfer, "run_jobs", lambda *args, **options: pytest.fail("trained"))
        with pytest.raises(ConfigurationError, match=message):
            transfer_check(llama.base(), widths, rates, arguments(tmp_path), markov(8))
        with pytest.raises(ConfigurationError, match="needs a μP config, got LlamaConfig"):
            transfer_check(llama.base().to_stock_config(), [32, 64], RATES, arguments(tmp_path), markov(8))

    def test_the_recipe(self, tmp_path, monkeypatch, capsys):
        config = tiny_experiment(
            tmp_path, learning_rates=[1e-3, 1e-2, 1e-1], steps=3, warmup_steps=1, widths=[8, 16, 32]
        )
        recipe = Path(__file__).parents[2] / "recipes" / "lr_transfer.py"
        monkeypatch.setattr(sys, "argv", [str(recipe), *flags(config)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(recipe), run_name="__main__")
        assert done.value.code == 0 and "Learning-rate transfer of MuLlama" in capsys.readouterr().out
        document = json.loads((tmp_path / "out" / "transfer.json").read_text())
        assert len(document["losses"]) == 18 and (tmp_path / "out" / "transfer.png").exists()

    @pytest.mark.slow
    def test_the_optimum_stays_under_mup_and_moves_without(self, llama, tmp_path):
        config = llama.base(layers=1, initializer_range=0.05)
        args = arguments(tmp_path, max_steps=50, warmup_steps=10, per_device_train_batch_size=16)
        data = markov(800), markov(64, seed=1)
        rates = [4.0**-k for k in range(1, 6)]  # one step of this grid is a factor of 4
        found = transfer_check(config, [32, 256], rates, args, *data, control=True, factor=4.0, progress=False)
        assert found.moves_by() <= 4, str(found)
        assert found.moves_by("sp") >= 16, str(found)

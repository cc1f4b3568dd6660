"""The nanoLM benchmark: the paper's configs against its tables, the laws of published losses, the leaderboard."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit

from hf_muscaling import Run, plan_experiment
from hf_muscaling.configuration import ExperimentConfig, parse_experiment
from hf_muscaling.errors import ConfigurationError, RecordError
from hf_muscaling.runs import write_json

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "nanolm"
sys.path.insert(0, str(FOLDER))

import from_tables  # noqa: E402
import leaderboard  # noqa: E402
import published  # noqa: E402
import twins  # noqa: E402

PAPER = sorted(path.stem for path in (FOLDER / "paper").glob("*.yaml"))


def paper(name: str) -> ExperimentConfig:
    return parse_experiment(["--config", str(FOLDER / "paper" / f"{name}.yaml")])[0]


def planned(config: ExperimentConfig) -> dict[int, int]:
    return dict(sorted((row.width, row.N) for row in plan_experiment(config).rows))


def without_positions(config: ExperimentConfig) -> dict[int, int]:
    return {width: N - config.sequence_length * width for width, N in planned(config).items()}


class TestThePapersConfigs:
    # in millions or billions, cut (not rounded) to the digits printed
    COUNTS = {
        "gpt-12l": (1e6, [8.82, 22.36, 40.61, 63.59, 91.28, 123.6, 160.9, 202.67]),
        "llama-12l": (1e6, [9.59, 25.47, 47.64, 76.10, 110.85, 151.9, None, 252.86]),
        "gpt-32l": (1e9, [0.038, 0.076, 0.126, 0.189, 0.265, 0.353, 0.454, 1.714, 26.185]),
        "gpt-64l": (1e9, [0.077, 0.153, 0.254, 0.381, 0.532, 0.709, 0.911, 3.432, 52.385]),
    }

    def test_there_is_a_twin_of_each(self):
        assert sorted(twins.TWINS) == PAPER == sorted(p.stem for p in (FOLDER / "twin").glob("*.yaml"))

    @pytest.mark.parametrize("name", COUNTS)
    def test_the_plan_counts_the_published_parameters(self, name):
        config = paper(name)
        found = without_positions(config) if name in ("gpt-12l", "gpt-32l") else planned(config)
        unit, table = self.COUNTS[name]
        for N, printed in zip(found.values(), table, strict=True):
            if printed is not None:
                last_digit = 10.0 ** -len(str(printed).partition(".")[2])
                assert abs(N / unit - printed) < last_digit, (name, N, printed)

    def test_an_untied_head_or_another_ffn_would_not_match(self):
        untied = without_positions(replace(paper("gpt-12l"), tie_word_embeddings=False))
        assert untied[1024] > 1.2 * 202.67e6
        stock_ffn = planned(replace(paper("llama-12l"), model_fields="{vocab_size: 50304}"))
        assert stock_ffn[1024] < 0.9 * 252.86e6

    def test_t5_lacks_one_embedding_and_bert_is_another_design(self):
        t5, bert = planned(paper("t5-12l")), planned(paper("bert-12l"))
        for width, printed in ((256, 67.03e6), (512, 190.63e6), (1024, 607.70e6)):
            assert t5[width] + 50304 * width == pytest.approx(printed, rel=0.002)
        assert bert[1024] < 0.75 * 355.96e6

    @pytest.mark.parametrize("name", PAPER)
    def test_settings_that_the_paper_states(self, name):
        config = paper(name)
        assert (config.base_width, config.head_size, config.zero_query) == (256, 64, True)
        assert (config.lr_scheduler, config.max_grad_norm, config.weight_decay) == ("cosine", 1.0, 0.0)
        assert (min(config.learning_rates), max(config.learning_rates)) == (5e-4, 1e-1)
        steps = {"gpt-12l": 20000, "llama-12l": 20000, "gpt-64l": 10000}
        assert config.steps == steps.get(name, 7000)
        lr, std, tau = {"gpt-32l": (3e-2, 0.04, 4.0), "gpt-64l": (1e-3, 0.01, 1.0)}.get(name, (3e-2, 0.05, 5.0))
        assert lr in config.learning_rates and std in config.init_stds and tau in config.output_multipliers
        assert config.zero_readout == (not config.tie_word_embeddings)
        assert config.sequence_length == (2048 if name == "gpt-64l" else 512)

    def test_mc4_and_the_ablations_steps_are_flags(self):
        config, _ = parse_experiment(
            ["--config", str(FOLDER / "paper" / "gpt-12l.yaml"), "--mixture", "mc4", "--steps", "7000"]
        )
        assert config.data_config().mixture == "mc4" and config.steps == 7000

    def test_cost_ratios(self):
        config = paper("gpt-32l")
        eight = replace(config, init_stds=[0.04], output_multipliers=[4.0])
        assert plan_experiment(eight).cost_ratio == pytest.approx(0.1386, abs=5e-5)
        claim = from_tables.cost()
        assert claim.numbers["gpt-64l"]["8 trials"] == pytest.approx(0.1645, abs=5e-5)
        assert claim.verdict == "not reproduced" and claim.figure is not None


class TestPublishedSeries:
    def test_the_32_and_64_layer_predictions_are_the_papers(self):
        rows = {row["name"]: row for row in from_tables.published().numbers["rows"]}
        assert rows["GPT, 32 layers, 7k steps"]["predicted"] == pytest.approx(3.381, abs=1e-3)
        assert rows["GPT, 64 layers, 10k steps"]["predicted"] == pytest.approx(2.861, abs=1e-3)
        assert len(rows["Pythia"]["N"]) == 8 and len(rows["Cerebras-GPT"]["N"]) == 7

    def test_the_deviations_are_those_of_curve_fit(self):
        series = published.TABLE_4[1]
        row = from_tables.fit_published(series)
        N, loss = np.array(series.N[:-1]), np.array(series.loss[:-1])
        start = [row["params"][k] * 1.01 for k in "abc"]
        values, covariance = curve_fit(lambda n, a, b, c: a * n**b + c, N, loss, p0=start, maxfev=10000)
        expected = np.sqrt(np.diag(covariance)) / np.abs(values)
        assert [row["deviations"][k] for k in "abc"] == pytest.approx(expected, rel=1e-3)

    def test_a_law_without_noise_has_no_deviation(self):
        N = tuple(float(n) for n in np.geomspace(0.1, 10, 8))
        exact = published.PublishedSeries("made up", "", N, tuple(0.5 * n**-0.4 + 2 for n in N))
        row = from_tables.fit_published(exact)
        assert abs(row["error"]) < 1e-6 and max(row["deviations"].values()) < 1e-4

    def test_without_mup_the_published_losses_extrapolate_worse(self):
        claim = from_tables.published().numbers["figure_3"]
        assert abs(claim["GPT"]["μP"]["error"]) < abs(claim["GPT"]["without"]["error"])
        assert abs(claim["T5"]["μP"]["error"]) < 0.03 and "does not fall" in claim["T5"]["without"]["why"]
        assert abs(claim["BERT"]["without"]["error"]) < abs(claim["BERT"]["μP"]["error"])  # as its table has it


def run(width: int, loss: float | None, seed: int = 0) -> Run:
    N = 1000 * width + 24 * width**2
    return Run(
        f"w{width}-{seed}", "finished" if loss else "diverged", N, 24 * width**2, 1000, 10, 100, 6.0 * N * 1000, loss,
        width, seed, 0.01,
    )  # fmt: skip


class TestScores:
    def test_a_true_law_is_found_and_a_flat_one_refused(self):
        def loss(width: int) -> float:
            return 90.0 * run(width, 1.0).N ** -0.5 + 3

        proxies = [run(w, loss(w)) for w in (32, 48, 64, 80)]
        good = twins.score_law(proxies, [run(144, loss(144))])
        assert abs(good.error) < 1e-5 and good.residual < 1e-6 and good.inside
        rising = twins.score_law([run(w, 3 + w / 100) for w in (32, 48, 64, 80)], [run(144, 4.0)])
        assert rising.error is None and rising.shown.startswith("no law")
        assert good.beats(rising) and not rising.beats(good) and good.fits_closer(rising)
        other = twins.score_law(proxies, [run(144, loss(144))], "non_embedding")
        assert abs(other.error) > abs(good.error)

    def test_a_diverged_target_or_width_is_no_law(self):
        proxies = [run(w, 4 - w / 100) for w in (32, 48)] + [run(64, None)]
        assert "three widths" in twins.score_law(proxies, [run(144, 3.0)]).why
        assert twins.score_law([run(w, 4 + 10 / w) for w in (32, 48, 64)], [run(144, None)]).why == "target diverged"

    def test_rates_are_powers_of_two_apart(self):
        assert twins.nearest_rates(8e-3, (0.5, 1, 2)) == [4e-3, 8e-3, 1.6e-2]
        with pytest.raises(ConfigurationError, match="powers of two"):
            twins.nearest_rates(8e-3, (3,))


def design(**changes):
    record = {
        "format": leaderboard.FORMAT, "name": "mine", "architecture": "llama", "objective": "causal", "layers": 2,
        "target_width": 144, "target_N": 800000, "tokens": 204800, "widths": [32, 48, 64], "predicted": 4.0,
        "low": 3.9, "high": 4.1, "level": 0.9, "actual": 4.0, "error": 0.0, "inside": True, "cost_ratio": 1.2,
        "proxies": [], "data_sha256": "ab" * 32, "predicted_bits_per_byte": 2.0, "actual_bits_per_byte": 2.0,
    }  # fmt: skip
    return record | changes


class TestLeaderboard:
    def test_causal_designs_lead_by_predicted_bits_per_byte(self, tmp_path):
        masked = {"predicted_bits_per_byte": None, "objective": "masked", "predicted": 1.0, "actual": 1.0}
        for record in (
            design(name="worse", predicted_bits_per_byte=2.5),
            design(name="bert", **masked),
            design(name="better", predicted_bits_per_byte=1.5),
        ):
            leaderboard.save_design(record, tmp_path)
        checks = {"it fits": True, "it extrapolates": False}
        claim = {"name": "basin", "source": "Figure 5a", "statement": "S", "checks": checks, "headline": "|error|"}
        write_json(tmp_path / "claims" / "basin.json", claim)
        text = leaderboard.write_results(tmp_path).read_text(encoding="utf-8")
        rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
        assert rows[1:4] == ["better", "worse", "bert"]
        assert r"| S | Figure 5a | reproduced in part | \|error\| |" in text  # a bar would end the cell
        assert "reproduced in part" in text and "it extrapolates: no" in text

    def test_a_quick_run_says_so_everywhere_and_does_not_mix(self, tmp_path):
        quick = leaderboard.mark_quick
        leaderboard.save_design(quick(design()), tmp_path)
        claim = {"source": "Figure 3", "statement": "S", "checks": {"it fits": True}, "headline": "Errs by 0.1 %."}
        write_json(tmp_path / "claims" / "parametrization.json", quick(claim))
        write_json(tmp_path / "claims" / "cost.json", claim)  # trains nothing: the same in both
        text = leaderboard.write_results(tmp_path).read_text(encoding="utf-8")
        assert "**Quick run, a dozen steps: the numbers mean nothing.**" in text and "| mine (quick) |" in text
        assert "| no verdict | QUICK RUN" in text and text.count("| reproduced |") == 1
        leaderboard.check_kind(tmp_path, True, ["cost"])
        with pytest.raises(ConfigurationError, match=r"\.json is a record of a quick run.*--report_dir"):
            leaderboard.check_kind(tmp_path, False, ["cost"])
        with pytest.raises(ConfigurationError, match="is a record of a real run, and this is a quick one"):
            leaderboard.check_kind(FOLDER, True, ["cost", "published"])
        leaderboard.check_kind(FOLDER, False, ["cost", "published"])
        plain = leaderboard.results_text([design()], [claim])
        assert "uick" not in plain

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "other"}, "format"),
            ({"actual": None}, "actual must be float"),
            ({"target_N": True}, "target_N must be int"),
            ({"actual": math.inf, "error": -1.0}, "actual must be float"),
            ({"error": 0.5}, "does not follow"),
            ({"name": "../x"}, "must have its name"),
        ],
    )
    def test_a_record_that_cannot_be_is_refused(self, changes, message):
        path = Path("results/mine.json")
        assert leaderboard.check_design(design(), path)
        with pytest.raises(RecordError, match=message):
            leaderboard.check_design(design(**changes), path)

    def test_results_md_is_what_the_records_give(self, tmp_path):
        from benchmark import NAMES

        for kind in ("results", "claims"):
            for path in (FOLDER / kind).glob("*.json"):
                (tmp_path / kind).mkdir(exist_ok=True)
                (tmp_path / kind / path.name).write_bytes(path.read_bytes())
        written = leaderboard.write_results(tmp_path, NAMES).read_text(encoding="utf-8")
        assert written == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
        assert {path.stem for path in (FOLDER / "claims").glob("*.json")} == set(NAMES)
        for path in (FOLDER / "figures").glob("*.png"):
            assert path.stem in NAMES and path.stat().st_size < 100_000


@pytest.mark.slow
def test_a_quick_claim_runs_and_is_read_back(tmp_path):
    command = [
        sys.executable, str(FOLDER / "benchmark.py"), "--quick", "--only", "parametrization", "--threads", "1",
        "--output_dir", str(tmp_path),
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr[-2000:]
    claim = json.loads((tmp_path / "claims" / "parametrization.json").read_text(encoding="utf-8"))
    assert set(claim["numbers"]) == {"mup", "sp", "learning_rate"}
    assert claim["quick"] is True and claim["headline"].startswith("QUICK RUN") and "no verdict" in first.stdout
    assert (tmp_path / "figures" / "parametrization.png").stat().st_size > 10_000
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(records) == 10  # 3 rates, 2 more proxies and the target under μP; 3 proxies and the target without
    add = [*command[:3], "--add", str(FOLDER / "twin" / "gpt-12l.yaml"), *command[5:]]  # its runs are there
    added = subprocess.run(add, capture_output=True, text=True, timeout=300)
    assert records == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert added.returncode == 0 and "| gpt-12l (quick) | causal |" in (tmp_path / "RESULTS.md").read_text(
        encoding="utf-8"
    )

"""`muscaling plan --budget` and `run-series --budget`: from the flags to the advice, and back from the records."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from hf_muscaling import ChinchillaLaw
from hf_muscaling.budget.experiment import offer
from hf_muscaling.budget.finished import finished_proxies
from hf_muscaling.cli import main
from hf_muscaling.configuration import ExperimentConfig, parse_experiment
from hf_muscaling.counting import count_parameters
from hf_muscaling.errors import ConfigurationError, RecordError
from hf_muscaling.experiment import experiment_step_flops, run_experiment
from hf_muscaling.runs import Series
from hf_muscaling.trainer import MuTrainer
from tests.laws.test_learning_rate import fitted, sweep
from tests.series_helpers import flags, tiny_experiment

SMALL = ["--target", "512", "--candidates", "32", "48", "64", "160", "--budget", "20%"]


def test_options_are_the_experiments_models_and_costs():
    config = ExperimentConfig(target_width=512, budget="20%", tolerance="0.02")
    offered = offer(config, 1024)
    assert offered.budget == 0.2 and offered.tolerance == 0.02
    widths = [o.width for o in offered.options]
    assert widths[0] == 32 and all(w % 16 == 0 for w in widths) and len(widths) <= 17 and max(widths) < 512
    base = config.base_config()
    for option in offered.options[::5]:
        assert count_parameters(base.at_width(option.width)) == option.N
        ratio = experiment_step_flops(config, option.width, 1024) / experiment_step_flops(config, 512, 1024)
        assert option.cost == pytest.approx(ratio)
    assert offered.overhead == pytest.approx(3 * offered.options[0].cost)
    assert [o.paid for o in offered.options] == [1] + [0] * (len(widths) - 1)


@pytest.mark.slow
def test_the_command_plans(tmp_path, capsys):
    figure = tmp_path / "plan.png"
    words = [*SMALL, "--tolerance", "0.5%", "--max-seeds", "1", "--noise", "0.05%", "0.1%"]
    assert main(["plan", *words, "--plot", str(figure), "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert plan["design"]["cost"] <= 0.2 and plan["budget"] == 0.2 and plan["tight"] is False
    assert {run["width"] for run in plan["design"]["runs"]} <= {32, 48, 64, 160}
    assert "0.05 to 0.1 %" in plan["beliefs"]
    assert plan["curve"][-1]["half_width"] < plan["curve"][0]["half_width"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "lots"], "budget='lots' must be a positive share"),
        (["--budget=-1%"], "budget='-1%'"),
        (["--tolerance", "0"], "tolerance='0'"),
        (["--budget", "1%"], "cheapest three widths cost"),
        (["--budget", "5%", "--target", "256"], "the grid costs 9.3"),
        (
            ["--budget", "40%", "--target", "32", "--widths", "48", "64", "96"],
            "target's width 32 is not larger than the base width 32",
        ),
        (["--budget", "40%", "--target", "24", "--head_size", "8"], "target's width 24 is not larger than the base"),
        (["--budget", "40%", "--target", "64", "--widths", "32", "48", "96"], "lie 2 multiples of the head size 16"),
        (["--budget", "40%", "--target", "abc"], "argument --target: invalid int value: 'abc'"),
        (["--budget", "40%", "--steps", "abc"], "argument --steps: invalid int value: 'abc'"),
        (["--budget", "40%", "--target", "0"], "target_width must be positive"),
        (["--budget", "40%", "--max-seeds", "0"], "--max-seeds 0: the most runs"),
        (["--runs", "nowhere"], "add --budget"),
        (["--budget", "50%", "--runs", "nowhere"], "no finished run"),
        (["--budget", "50%", "--candidates", "32", "48", "512", "--target", "512"], "no proxy of a target"),
        (["--budget", "50%", "--noise", "1%", "0.1%"], "noise="),
        (["--budget", "50%", "--law", "nowhere.json"], "nowhere.json"),
        (["--budget", "50%", "--plot", "nowhere/plan.png"], "there is no folder 'nowhere'"),
        (["--budget", "50%", "--plot", "plan.txt"], "must end in .png"),
        (["--budget", "50%", "--plot", "plan.png", "--runs", "nowhere"], "--plot draws the trade-off"),
        (["--budget", "50%", "--law", "law.json", "--runs", "nowhere"], "give one of them"),
    ],
)
def test_bad_flags_are_one_paragraph(capsys, words, message):
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and "usage:" not in shown and "overhead" not in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_law_of_something_else_is_sent_where_it_belongs(capsys, tmp_path, monkeypatch):
    n = np.array([1e6, 2e6, 4e6, 8e6])
    losses = {"N": np.repeat(n, 3), "D": np.tile([1e8, 4e8, 1.6e9], 4)}
    losses["loss"] = 1.7 + 400 / losses["N"] ** 0.34 + 410 / losses["D"] ** 0.28
    cases = {
        "LearningRateLaw": (fitted(sweep()), "give it as --learning_rate_law law.json"),
        "ChinchillaLaw": (ChinchillaLaw().fit(losses), "muscaling fit RUNS --law power --save law.json"),
    }
    monkeypatch.chdir(tmp_path)
    for name, (law, remedy) in cases.items():
        law.to_json("law.json")
        assert main(["plan", "--budget", "50%", "--law", "law.json"]) == 2
        shown = capsys.readouterr().err
        assert f"--law takes a PowerLaw, L(N) of a similar design; 'law.json' holds a {name}." in shown
        assert remedy in shown and "Write it again" not in shown


def test_the_smallest_budget_is_named_and_is_enough(recwarn):
    config = ExperimentConfig(target_width=256, budget="5%")
    with pytest.raises(ConfigurationError) as refused:
        offer(config, 1024)
    least = re.search(r"--budget must be ([\d.]+) % or more", str(refused.value)).group(1)
    assert float(least) > 10
    assert len(offer(ExperimentConfig(target_width=256, budget=f"{least}%"), 1024).options) >= 3
    below = f"{0.98 * float(least)}%"
    with pytest.raises(ConfigurationError, match="cheapest three"):
        offer(ExperimentConfig(target_width=256, budget=below), 1024)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="500 % is more than training the target, which costs 100 %"):
        offer(ExperimentConfig(target_width=256, budget="500%"), 1024)


def test_settings_of_a_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("budget: 5%\ntolerance: 0.01\ntokenizer: null\n", encoding="utf-8")
    config, _ = parse_experiment(["--config", str(path)])
    assert (config.budget, config.tolerance, config.tokenizer) == ("5%", "0.01", None)
    with pytest.raises(ConfigurationError, match="tolerance='none'"):
        ExperimentConfig(tolerance="none")


@pytest.fixture
def planned(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    return tiny_experiment(tmp_path, widths=[16, 24, 32], learning_rates=[1e-2], target_width=64, steps=40,
                           budget="0.75")  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_series_is_trained_as_advised(planned, monkeypatch, capsys):
    result = run_experiment(planned, progress=False)
    folder = Path(planned.output_dir)
    said = json.loads((folder / "advice.json").read_text())
    assert [a["action"] for a in said] == ["add"] * (len(said) - 1) + ["stop"]
    trained = sorted((run.width, run.seed) for run in result.proxies)
    assert len(trained) == len(said) and len({w for w, _ in trained}) >= 3
    assert result.cost_ratio <= 0.75 and said[-1]["spent"] == pytest.approx(result.cost_ratio)

    # the folder says the same to the command, and the whole job is found again without training
    proxies = finished_proxies(planned, folder)
    assert sorted((run.width, run.seed) for run in proxies) == trained
    capsys.readouterr()
    (folder.parent / "small.yaml").write_text(yaml.safe_dump(asdict(planned)), encoding="utf-8")
    words = [str(folder.parent / "small.yaml")]
    status = main(["plan", *words, "--runs", str(folder), "--json"])
    advice = json.loads(capsys.readouterr().out)
    assert advice["action"] == "stop" and advice["half_width"] == pytest.approx(said[-1]["half_width"], rel=1e-6)
    assert status == 1  # it stopped, not because the interval was tight
    loose = main(["plan", *words, "--runs", str(folder), "--tolerance", "0.9"])
    assert loose == 0 and "interval is tight enough" in capsys.readouterr().out

    def train(self, *a, **k):
        raise AssertionError("trained again")

    monkeypatch.setattr(MuTrainer, "train", train)
    again = run_experiment(planned, progress=False)
    assert again.prediction.loss == result.prediction.loss
    assert json.loads((folder / "advice.json").read_text()) == said
    assert len(Series.from_jsonl(folder / "runs.jsonl")) == len(trained)

    with pytest.raises(ConfigurationError, match="steps is 40 there and 31 here"):
        finished_proxies(tiny_experiment(folder.parent, steps=31), folder)
    os.remove(next(folder.glob("runs/*/run.json")))
    with pytest.raises(RecordError, match="no finished run"):
        finished_proxies(planned, folder / "tokenizer")


@pytest.mark.slow
def test_a_budget_that_buys_no_law_is_refused_before_training(planned, capsys):
    assert main(["run-series", *flags(planned), "--budget", "1%"]) == 2
    assert "cheapest three widths cost" in capsys.readouterr().err
    assert not list(Path(planned.output_dir).glob("runs/*/run.json"))

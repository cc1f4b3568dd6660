"""Which runs of a folder are an experiment's own: the others are left out or refused by name."""

import json
from dataclasses import asdict, replace

import pytest

from hf_muscaling.budget.finished import finished_proxies
from hf_muscaling.cli import main
from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.counting import count_parameters
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.runs import Run
from hf_muscaling.training import config_record, run_name, run_settings

RATES = [8e-3, 1.6e-2]
CONFIG = ExperimentConfig(target_width=256, steps=40, warmup_steps=10, batch_size=8, head_size=8, heldout_tokens=8192,
                          learning_rates=RATES, widths=[32, 48, 64])  # fmt: skip


def record(config, folder, data="d" * 64, stated=True, widths=(32, 48, 64)):
    """Write the records that a run-series of this experiment leaves, losses on a curve."""
    hashes = {"data_hash": data, "tokenizer_hash": "t" * 64}
    base, tokens = config.base_config(), config.batch_size * config.sequence_length
    cells = [(width, seed, config.learning_rates[-1]) for width in widths for seed in range(config.seeds)]
    for width, seed, rate in [*cells, *((config.base_width, 0, rate) for rate in config.learning_rates[:-1])]:
        model = base.at_width(width)
        settings = run_settings(config.training_arguments()) | {"learning_rate": rate, "seed": seed}
        N = count_parameters(model)
        run = Run(run_name(model, settings, hashes), "finished", N=N, N_non_embedding=N, D=tokens * config.steps,
                  S=config.steps, B=tokens, C=6.0 * N * tokens * config.steps, width=width, seed=seed, lr=rate,
                  loss=2 + 60 * N**-0.25 + 0.002 * seed + 0.1 * (rate < RATES[-1]), config=config_record(model),
                  settings=settings, **hashes)  # fmt: skip
        (folder / "runs" / run.run_id).mkdir(parents=True, exist_ok=True)
        run.save(folder / "runs" / run.run_id / "run.json")
    if stated:
        (folder / "experiment.json").write_text(json.dumps({"config": asdict(config), **hashes}), encoding="utf-8")
    return folder


@pytest.mark.filterwarnings("error")
def test_its_own_runs_are_found(tmp_path):
    folder = record(CONFIG, tmp_path)
    found = [(run.width, run.seed, run.lr) for run in finished_proxies(CONFIG, folder)]
    assert found == [(width, seed, RATES[-1]) for width in (32, 48, 64) for seed in (0, 1)]
    grown = replace(CONFIG, widths=[32, 48, 64, 96], target_width=512, seeds=4, budget="20%", level=0.8)
    assert len(finished_proxies(grown, folder)) == 6  # what a plan may change


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "gpt2", "adam_beta2": 0.99}, "architecture is gpt2 there and llama here, adam_beta2 is 0.99"),
        ({"architecture": "gpt2"}, "N at width 32 is"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 there and 2 here"),
        ({"head_size": 16}, "head_size is 16 there and 8 here"),
        ({"base_width": 48}, "base_width is 48 there and 32 here"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True there and False here"),
        ({"tie_word_embeddings": True, "num_hidden_layers": 1}, "tie_word_embeddings is True"),
        ({"parametrization": "sp"}, "parametrization is sp there"),
        ({"adam_beta2": 0.99}, "adam_beta2 is 0.99 there and 0.95 here"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"warmup_steps": 4}, "warmup_steps is 4 there"),
        ({"steps": 80}, "steps is 80 there and 40 here"),
        ({"batch_size": 16}, "batch_size is 16 there"),
        ({"sequence_length": 32, "batch_size": 16}, "batch_size is 16 there"),
        ({"seed": 1}, "seed is 1 there and 0 here"),
        ({"learning_rates": [10.0]}, "learning_rate is 10.0 there"),
        ({"init_stds": [0.02]}, "initializer_range is 0.02 there and 0.05 here"),
        ({"domains": ["code"]}, "domains is ['code'] there and ['prose'] here"),
        ({"heldout_tokens": 4096}, "heldout_tokens is 4,096 there"),
        ({"vocab_size": 512}, "vocab_size is 512 there"),
    ],
)
def test_runs_of_another_design_are_refused_or_left_out(tmp_path, changes, named):
    record(replace(CONFIG, **changes), tmp_path / "other")
    with pytest.raises(ConfigurationError, match="of another design") as refused:
        finished_proxies(CONFIG, tmp_path / "other")
    assert named in str(refused.value)
    record(CONFIG, tmp_path / "own")
    with pytest.warns(UserWarning, match=r"of the \d+ runs below .* are left out"):
        beside = finished_proxies(CONFIG, tmp_path)
    assert [run.run_id for run in beside] == [run.run_id for run in finished_proxies(CONFIG, tmp_path / "own")]


def test_losses_on_two_texts_are_not_pooled(tmp_path):
    record(CONFIG, tmp_path / "a", data="a" * 64, stated=False)
    assert len(finished_proxies(CONFIG, tmp_path / "a")) == 6
    record(CONFIG, tmp_path / "b", data="b" * 64, stated=False)
    with pytest.raises(ConfigurationError, match="2 data sets"):
        finished_proxies(CONFIG, tmp_path)
    record(CONFIG, tmp_path / "b", data="b" * 64)  # now it is known that b's data are the experiment's
    with pytest.warns(UserWarning, match="7 of the 14 runs"):
        assert {run.data_hash for run in finished_proxies(CONFIG, tmp_path)} == {"b" * 64}
    with pytest.raises(ConfigurationError, match="vocab_size is 1,024 there and 512 here"):
        finished_proxies(replace(CONFIG, vocab_size=512), tmp_path / "a")


def test_runs_without_a_grid_say_so(tmp_path):
    one = replace(CONFIG, learning_rates=RATES[-1:])
    record(one, tmp_path, widths=(48, 64))
    for path in tmp_path.glob("runs/w0032-*"):
        (path / "run.json").unlink()
    with pytest.raises(ConfigurationError, match=r"widths \[48, 64\], but none of base width 32"):
        finished_proxies(one, tmp_path)


def test_the_command_refuses_another_design_and_says_what_it_leaves_out(tmp_path, capsys):
    record(replace(CONFIG, architecture="gpt2"), tmp_path / "g2")
    words = ["--target", "256", "--budget", "60%", "--steps", "40", "--warmup_steps", "10", "--batch_size", "8"]
    words += ["--head_size", "8", "--heldout_tokens", "8192", "--learning_rates", "8e-3", "1.6e-2"]
    assert main(["plan", *words, "--runs", str(tmp_path / "g2")]) == 2
    assert "architecture is gpt2 there and llama here" in capsys.readouterr().err
    record(CONFIG, tmp_path / "l2")
    assert main(["plan", *words, "--tolerance", "0.9", "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "note: 7 of the 14 runs below" in shown.err and "tight enough" in shown.out
    # the grid's second trial, both widths and the second seeds are counted as spent, not the grid alone
    assert main(["plan", *words, "--tolerance", "0.9", "--runs", str(tmp_path / "l2"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spent"] > 0.15

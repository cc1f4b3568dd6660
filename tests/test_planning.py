"""Plans of experiments: counts and FLOPs against the formulas, what fits, the command and its errors."""

import json
import time

import pytest

from hf_muscaling import count_parameters
from hf_muscaling.cli import main
from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.counting import cost_ratio, step_flops
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.planning import Hardware, plan_experiment

NANOLM_52B = {
    "architecture": "gpt2", "num_hidden_layers": 64, "head_size": 64, "base_width": 256, "target_width": 8192,
    "widths": [256, 384, 512, 640, 768, 896, 1024, 2048], "vocab_size": 100256, "sequence_length": 2048,
    "batch_size": 512, "steps": 10000, "tie_word_embeddings": True,
}  # fmt: skip


def test_the_default_experiment_row_by_row():
    config = ExperimentConfig(verify=True, target_seeds=3)
    plan = plan_experiment(config)
    shown = [(row.role, row.width, row.runs) for row in plan.rows]
    assert shown == [("grid", 32, 3), *(("proxy", w, 2) for w in (32, 48, 64, 80, 96)), ("target", 192, 3)]
    base = config.base_config()
    for row in plan.rows:
        model = base.at_width(row.width)
        assert count_parameters(model) == row.N
        assert row.N_non_embedding == count_parameters(model, "non_embedding")
        assert config.tokens_per_run == row.D
        assert row.flops_6nd == 6 * row.N * row.D
        assert row.flops_nanolm == config.steps * step_flops(2, row.width, 64, 1024, 32)
        assert row.fits and row.least_devices == 1
    assert plan.fits
    flops = {row.width: row.flops_nanolm for row in plan.rows}
    proxies = [flops[w] for w in (48, 64, 80, 96)]
    assert plan.cost_ratio == pytest.approx(cost_ratio(flops[32], 3, proxies, flops[192]))
    assert plan.cost_ratio_all == pytest.approx(cost_ratio(flops[32], 3, [*proxies, *proxies, flops[32]], flops[192]))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5"])
def test_every_architecture_is_planned(architecture):
    plan = plan_experiment(ExperimentConfig(architecture=architecture))
    totals = [row.memory.total for row in plan.rows[1:]]
    assert totals == sorted(totals)
    assert str(plan).count("\n") >= len(plan.rows)


def test_52_billion_parameters_are_planned_in_seconds():
    config = ExperimentConfig(**NANOLM_52B)
    plan_experiment(ExperimentConfig(architecture="gpt2"))  # imports are no part of planning
    started = time.process_time()
    plan = plan_experiment(config, Hardware(64, "fsdp2", "bf16", gradient_checkpointing=True))
    assert time.process_time() - started < 30
    target = plan.rows[-1]
    assert pytest.approx(52.4e9, rel=0.002) == target.N
    assert target.memory.weights == target.N * 4 / 64
    alone = plan_experiment(config).rows[-1]
    assert not alone.fits and alone.memory.total > 16 * alone.N
    # nanoLM's Table: the formula gives 0.1645 with eight trials
    grid = [1e-3 * (k + 1) for k in range(8)]
    ratio = plan_experiment(ExperimentConfig(**NANOLM_52B, learning_rates=grid)).cost_ratio
    assert ratio == pytest.approx(0.1645, abs=5e-5)


def test_more_devices_checkpointing_and_fewer_sequences_make_it_fit():
    config = ExperimentConfig(**NANOLM_52B)
    few = plan_experiment(config, Hardware(8, "fsdp2", "bf16", gradient_checkpointing=True)).rows[-1]
    assert not few.fits
    assert few.least_devices is not None and few.least_devices > 8
    enough = Hardware(few.least_devices, "fsdp2", "bf16", gradient_checkpointing=True)
    one_at_a_time = ExperimentConfig(**NANOLM_52B, accumulation_steps=512 // few.least_devices)
    row = plan_experiment(one_at_a_time, enough).rows[-1]
    assert row.fits and row.sequences == 1
    halved = Hardware(few.least_devices // 2, "fsdp2", "bf16", gradient_checkpointing=True)
    smaller = ExperimentConfig(**NANOLM_52B, accumulation_steps=1024 // few.least_devices)
    assert not plan_experiment(smaller, halved).rows[-1].fits


def test_the_command(tmp_path, capsys):
    path = tmp_path / "small.yaml"
    path.write_text("architecture: gpt2\nwidths: [32, 48, 64]\n", encoding="utf-8")
    assert main(["plan", str(path), "--target_width", "256"]) == 0
    table = capsys.readouterr().out
    assert "target    256" in table and "nanoLM, Eq. 1" in table
    words = [str(path), "--device-memory", "1e6", "--json", "--devices", "2", "--sharding", "fsdp2"]
    assert main(["plan", *words]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["hardware"]["sharding"] == "fsdp2" and not plan["fits"]
    assert [row["width"] for row in plan["runs"]] == [32, 32, 48, 64, 192]
    assert plan["runs"][0]["memory"]["total"] == sum(v for k, v in plan["runs"][0]["memory"].items() if k != "total")
    assert main(["plan", str(path), "--device-memory", "1e6"]) == 1
    assert "fits under fsdp2 on no number of such devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "does not exist"),
        (["--devices", "0"], "devices=0"),
        (["--devices", "3"], "multiple of 3"),
        (["--devices", "2", "--sharding", "none"], "leave all but one idle"),
        (["--device-memory", "0"], "device_memory=0"),
        (["--device-memory", "lots"], "invalid float value: 'lots'"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--widths", "33", "48", "64"], "must be a multiple"),
        (["--colour", "blue"], "--colour"),
        (["one.yaml", "--config", "two.yaml"], "Give the experiment once"),
        (["--tokenizer", "nowhere/tokenizer"], "nowhere/tokenizer"),
    ],
)
def test_bad_input_is_one_paragraph(capsys, words, message):
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_hardware_is_checked():
    with pytest.raises(ConfigurationError, match="device_memory=nan"):
        Hardware(device_memory=float("nan"))

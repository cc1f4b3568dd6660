"""The recipe's job, tiny: small runs → constants → prediction, written before the target is trained → verification."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_muscaling import KaplanStepLaw, Run, TrajectoryConfig, predict_trajectory
from hf_muscaling.configuration import parse_experiment
from hf_muscaling.errors import ConfigurationError, TrainingError
from hf_muscaling.runs import write_json
from hf_muscaling.trajectory import check_prediction, check_settings, curve_error, levels_within
from hf_muscaling.trajectory_report import verification_lines
from tests.series_helpers import flags, write_text_file


def tiny(folder, **changes):
    """A configuration that trains in seconds, on text that every Python has."""
    text = folder / "text.jsonl"
    if not text.exists():
        write_text_file(folder)
    settings = {
        "output_dir": str(folder / "out"), "data_files": [str(text)], "vocab_size": 300, "sequence_length": 16,
        "heldout_tokens": 1024, "num_hidden_layers": 1, "head_size": 8, "base_width": 16, "widths": [8, 16, 32],
        "target_width": 64, "batch_sizes": [2, 8, 32], "target_batch_sizes": [16, 64], "batch_size": 8, "steps": 60,
        "least_steps": 30, "learning_rates": [1e-2], "threads": 1, "placement": "together",
    }  # fmt: skip
    return TrajectoryConfig(**(settings | changes))


def test_flags_describe_a_configuration(tmp_path):
    config = tiny(tmp_path)
    assert parse_experiment(flags(config), kind=TrajectoryConfig)[0] == config


def test_steps_tokens_and_rates_at_a_batch_size(tmp_path):
    config = tiny(tmp_path, steps=100)
    assert [config.steps_at(b) for b in (2, 8, 32)] == [400, 100, 30]
    assert config.tokens_per_run == 30 * 64 * 16  # the largest batch takes the most: no token is read twice
    assert [round(config.lr_at(0.01, b), 4) for b in (2, 8, 32)] == [0.005, 0.01, 0.02]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"batch_sizes": [8, 32]}, "needs three"),
        ({"target_batch_sizes": []}, "target_batch_sizes"),
        ({"lr_scheduler": "cosine"}, "constant_with_warmup"),
        ({"irreducible": "maybe"}, "irreducible"),
        ({"loss_levels": [0.0]}, "loss_levels"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"target_width": 32}, "predict a width not trained"),
        ({"live": "tensorboard"}, "live='tensorboard' is not used"),
        ({"push_to_hub": "me/mine"}, "push_to_hub"),
        ({"budget": "5%"}, "budget"),
        ({"tolerance": "1%"}, "tolerance"),
        ({"warmup_steps": 50}, "warmup_share"),
        ({"output_multipliers": [1.0, 2.0]}, "output_multipliers"),
    ],
)
def test_what_cannot_work_is_refused_early(tmp_path, change, word):
    with pytest.raises(ConfigurationError, match=word):
        tiny(tmp_path, **change)


def test_an_error_is_measured_after_the_start_of_a_curve():
    from hf_muscaling.laws.forecasting import Curve, Estimate, Forecast, Reach

    steps = np.geomspace(10, 1000, 60)
    loss = 2 + 20 / steps**0.5
    curve = Curve(512.0, steps, 512 * steps, loss, 0.99 * loss, 1.01 * loss)
    reach = Reach(3.0, 512.0, Estimate(400.0, 360.0, 450.0), Estimate(2e5, 1.8e5, 2.3e5), Estimate(1e3, 9e2, 2e3))
    found = Forecast(1e5, 0.9, Estimate(2.0, 1.9, 2.1), (reach,), (curve,), (), {})
    wrong_early = {"B": 512, "seed": 0, "S": steps, "loss": np.where(steps < 290, 3 * loss, 1.005 * loss)}
    error = curve_error(found, wrong_early)
    assert error.error == pytest.approx(1 - 1 / 1.005) and error.inside == 1.0
    assert error.reaches[0]["steps"] == pytest.approx((20 / (3 / 1.005 - 2)) ** 2, rel=1e-2)
    assert error.reaches[0]["inside"] and error.reaches[0]["error"] == pytest.approx(400 / 410 - 1, abs=0.01)
    off = curve_error(found, wrong_early | {"loss": 1.05 * loss})
    assert off.error == pytest.approx(1 - 1 / 1.05) and off.inside == 0.0
    never = curve_error(found, wrong_early | {"loss": loss + 2})
    assert not never.reaches[0]["reached"] and never.reaches[0]["steps"] == 1000.0
    assert never.reaches[0]["error"] == pytest.approx(-0.6) and never.reaches[0]["inside"] is False
    short = curve_error(found, {"B": 512, "seed": 0, "S": steps[:48], "loss": loss[:48]})  # ends within the interval
    assert not short.reaches[0]["reached"] and short.reaches[0]["inside"] is None

    early = curve_error(found, {"B": 512, "seed": 0, "S": steps[52:], "loss": loss[52:]})  # begins below the loss
    assert early.reaches[0]["reached"] is None and early.reaches[0]["steps"] == steps[52]
    assert early.reaches[0]["error"] is None and early.reaches[0]["inside"] is None
    lines = verification_lines(SimpleNamespace(forecast=replace(found, fitted={"B": (1.0, 1e3)}), errors=[early]))
    assert "reached before the first window" in lines[1] and "not comparable" in lines[1]


def test_levels_nobody_named_are_reached_by_every_target():
    """Each by 80 % of its steps as predicted, so that a run that needs 10 % more tells; quarters and ends would not."""
    law = KaplanStepLaw(irreducible=False)
    law.params_ = {"N_c": 2e9, "alpha_N": 0.12, "S_c": 150, "alpha_S": 0.6, "B_star": 3e6, "alpha_B": 0.19, "E": 0.0}
    steps, batches = [750, 12000, 250], [4096, 256, 16384]
    levels = levels_within(law, 1e6, steps, batches)
    assert len(levels) == 3 and levels == sorted(levels, reverse=True)
    runs = list(zip(steps, batches, strict=True))
    needed = {(b, loss): law.steps_to(loss, 1e6, b) / s for s, b in runs for loss in levels}
    assert max(needed.values()) == pytest.approx(0.8, abs=0.02)  # the largest batch is least far
    assert [needed[16384, loss] for loss in levels] == pytest.approx([0.5, 0.65, 0.8], abs=0.02)


def test_a_prediction_stays_once_its_target_is_known(tmp_path):
    config, record = tiny(tmp_path), {"forecast": {"loss": 3.0}, "sizes": (1, 2)}
    write_json(tmp_path / "experiment.json", {"config": asdict(config)})
    write_json(tmp_path / "prediction.json", record)
    changed, other = tiny(tmp_path, window=0.5), {"forecast": {"loss": 3.1}, "sizes": (1, 2)}
    check_settings(changed, tmp_path)  # the target is unknown: predict as often as you like
    check_prediction(other, tmp_path)
    target = Run("t", "finished", N=9, N_non_embedding=6, D=8, S=2, B=4, C=1.0, loss=2.0, width=8, seed=0, lr=0.1,
                 role="target")  # fmt: skip
    (tmp_path / "runs" / "t").mkdir(parents=True)
    target.save(tmp_path / "runs" / "t" / "run.json")
    check_settings(tiny(tmp_path, verify=True, target_seeds=2), tmp_path)
    check_prediction(record, tmp_path)
    with pytest.raises(ConfigurationError, match=r"window was 0.3 and is 0.5.*--output_dir"):
        check_settings(changed, tmp_path)
    with pytest.raises(ConfigurationError, match="another prediction"):
        check_prediction(other, tmp_path)


@pytest.mark.slow
def test_the_whole_job(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    config = tiny(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = predict_trajectory(config, progress=False)
    folder = Path(config.output_dir)
    assert {(r.width, r.B) for r in result.runs} == {(w, 16 * b) for w in (8, 16, 32) for b in (2, 8, 32)}
    assert len({r.data_hash for r in result.runs}) == 1 and not result.targets
    assert {row["N"] for row in result.table} == {r.N_non_embedding for r in result.runs}
    trained = [Run.load(path) for path in folder.glob("runs/*/run.json")]
    assert max(r.width for r in trained) == 32  # the prediction is there, the target is not
    prediction = (folder / "prediction.json").read_bytes()
    said = json.loads(prediction)["forecast"]
    assert said["N"] > max(r.N_non_embedding for r in result.runs) and len(said["reaches"]) == 6
    assert "Minimum loss" in (folder / "prediction.md").read_text()

    config = tiny(tmp_path, verify=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verified = predict_trajectory(config, progress=False)
    assert (folder / "prediction.json").read_bytes() == prediction  # nothing was adapted to what was seen
    assert [r.run_id for r in verified.runs] == [r.run_id for r in result.runs]
    assert [(r.width, r.B, r.S) for r in verified.targets] == [(64, 256, 30), (64, 1024, 30)]
    seen = json.loads((folder / "verification.json").read_text())
    assert all(0 < curve["error"] < 0.3 for curve in seen["curves"])
    assert (folder / "overlay.png").read_bytes()[:4] == b"\x89PNG"
    assert "outside the fitted range" in (folder / "verification.md").read_text()


@pytest.mark.slow
def test_diverged_runs_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TrainingError, match="diverged"):
        predict_trajectory(tiny(tmp_path, learning_rates=[1e4], steps=12, least_steps=6), progress=False)

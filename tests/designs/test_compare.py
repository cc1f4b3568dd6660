"""The whole comparison, small: train, judge, report, verify; continued, never trained twice; the command."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from hf_muscaling import compare_designs
from hf_muscaling.cli import main
from hf_muscaling.errors import TrainingError
from hf_muscaling.trainer import MuTrainer
from tests.series_helpers import tiny_experiment


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
def test_two_designs_are_compared_and_verified(tmp_path, monkeypatch, capsys):
    small = tiny_experiment(tmp_path, placement="together", target_width=120)
    # a design that is worse by construction: its learning rates are far too small
    designs = {"good": small, "bad": replace(small, learning_rates=[5e-4, 1e-3], vocab_size=320)}
    folder = tmp_path / "out"
    files = []
    for name, config in designs.items():
        settings = {k: v for k, v in asdict(config).items() if v is not None and k != "output_dir"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        files.append(str(tmp_path / f"{name}.yaml"))
    assert main(["compare", *files, "--target_N", "2.2e5", "--output_dir", str(folder), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "good beats bad (probability" in shown
    assert "the verdict was RIGHT" in shown

    record = json.loads((folder / "comparison.json").read_text())
    (call,) = record["verdict"]["calls"]
    assert record["unit"] == "bits per byte"
    assert call["winner"] == "good" and call["right"] is True and call["probability"] > 0.95
    for design in record["designs"].values():
        assert 1.8e5 < design["N"] < 2.6e5
        assert 1 < design["actual"] < 6  # bits per byte of text
    assert record["cost_ratio"] == pytest.approx(
        sum(d["spent"] for d in record["designs"].values()) / sum(d["target_flops"] for d in record["designs"].values())
    )
    report = (folder / "comparison.md").read_text()
    for word in ("good or bad?", "bits per byte", "learning_rates", "What more would buy", "Eq. 1", "comparison.png"):
        assert word in report
    assert str(tmp_path) not in report.replace(str(tmp_path / "text.jsonl"), "")
    for name in designs:
        assert (folder / name / "report.md").exists()

    def train(self, *a, **k):
        raise AssertionError("trained again")

    monkeypatch.setattr(MuTrainer, "train", train)
    before = (folder / "comparison.png").read_bytes()
    again = compare_designs(files, 2.2e5, output_dir=folder, verify=True, progress=False)
    assert again.verdict.calls["good", "bad"].probability == call["probability"]
    assert again.right(again.verdict.calls["good", "bad"])
    assert (folder / "comparison.png").read_bytes() == before


def _write(folder, name, **changes):
    settings = {k: v for k, v in asdict(tiny_experiment(folder, **changes)).items() if v is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / f"{name}.yaml")


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["compare", _write(tmp_path, "a"), str(tmp_path / "nope.yaml")]) == 2
    shown = capsys.readouterr().err
    assert "There is no file" in shown and "nope.yaml" in shown and "--config" not in shown


def test_a_design_that_fails_is_named(tmp_path, capsys, monkeypatch):
    def diverge(config, *_):
        raise TrainingError("Every run of the grid diverged.")

    monkeypatch.setattr("hf_muscaling.designs.compare.run_experiment", diverge)
    files = [_write(tmp_path, "boom"), _write(tmp_path, "calm", vocab_size=300)]
    assert main(["compare", *files, "--output_dir", str(tmp_path / "out")]) == 2
    assert "TrainingError: Design 'boom': Every run of the grid diverged." in capsys.readouterr().err


@pytest.mark.slow
def test_bad_input_is_a_paragraph_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = []
    for name, steps in (("a", 30), ("b", 40)):
        config = tiny_experiment(tmp_path, steps=steps)
        settings = {k: v for k, v in asdict(config).items() if v is not None}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        files.append(str(tmp_path / f"{name}.yaml"))
    assert main(["compare", *files]) == 2
    assert "horizon D in tokens" in capsys.readouterr().err
    assert main(["compare", files[0]]) == 2
    assert "two designs or more" in capsys.readouterr().err
    assert main(["compare", *files, "--no_such_flag", "3"]) == 2
    assert not Path("runs").exists()

"""`muscaling trajectory` as a user runs it, on CSV and parquet."""

import json
import re

import numpy as np
import pytest

from hf_muscaling.cli import main
from hf_muscaling.commands.trajectory import _fitted_curves
from hf_muscaling.laws import ScalingLaw

from .truth import critical_batch, loss_at, runs, steps_to

ASKED = ["--N", "1.5M", "--B", "4096", "16384", "--loss", "3.6", "--tokens", "1.6M", "--irreducible", "no"]


def write(folder, kind):
    """Runs as another tool's table might name them."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(runs()).rename(columns={"N": "params_non_embed", "B": "batch_tokens", "S": "step"})
    table["params"] = table["params_non_embed"] + 60_000
    file = folder / f"runs.{kind}"
    table.to_csv(file, index=False) if kind == "csv" else table.to_parquet(file)
    return str(file)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs"), "csv")


def test_the_answers_in_words(path, tmp_path, capsys):
    law, plot = tmp_path / "law.json", tmp_path / "curves.png"
    assert main(["trajectory", path, *ASKED, "--save", str(law), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "N counts parameters without embeddings" in out and "stage by stage" in out
    row = re.search(r"^ +3\.6 +4,096 +([\d,.]+) \[", out, re.MULTILINE)
    assert float(row[1].replace(",", "")) == pytest.approx(steps_to(3.6, 1.5e6, 4096), rel=0.1)
    stage_wise = re.search(r"B_crit at loss 3.6, stage by stage: ([\d,]+) tokens", out)
    assert float(stage_wise[1].replace(",", "")) == pytest.approx(critical_batch(3.6), rel=0.5)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert ScalingLaw.from_json(law).variables == ("N", "S", "B")


def test_the_answers_as_json_from_parquet(tmp_path, capsys):
    assert main(["trajectory", write(tmp_path, "parquet"), *ASKED, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    curve = said["forecast"]["curves"][1]
    truth = loss_at(1.5e6, np.array(curve["S"]), curve["B"])
    late = np.array(curve["D"]) > 0.5e6
    assert np.abs(np.array(curve["loss"]) / truth - 1)[late].mean() < 0.015
    assert set(said["constants"]["stage_wise"]) == {"N_c", "alpha_N", "S_c", "alpha_S", "B_star", "alpha_B"}


def test_the_total_count_is_another_n(path, capsys):
    words = ["trajectory", path, "--N", "1.56M", "--B", "4096", "--loss", "3.6", "--count", "total", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["N_counts"] == "parameters with embeddings"


def test_what_is_missing_is_named(tmp_path, capsys):
    one_batch = tmp_path / "one.csv"
    rows = [r for r in runs() if r["B"] == 2048]
    one_batch.write_text(
        "run_id,N,step,loss\n" + "\n".join(f"{r['run_id']},{r['N']},{r['S']},{r['loss']}" for r in rows)
    )
    assert main(["trajectory", str(one_batch), "--N", "1e6", "--B", "4096"]) == 2
    assert "--runs_B" in capsys.readouterr().err
    words = ["trajectory", str(one_batch), "--runs_B", "2048", "--N", "1e6", "--B", "4096", "--loss", "3.6"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "Stage 1" in captured.out and "note: " in captured.err  # one batch size tells no critical one
    assert "B_crit rests on the prior" in captured.out and "semidefinite" not in captured.err
    assert main(["trajectory", str(one_batch), "--N", "much", "--B", "1"]) == 2
    assert "--N" in capsys.readouterr().err


def test_runs_that_share_a_name_are_refused(tmp_path, capsys):
    file = tmp_path / "shared.csv"
    file.write_text("run_id,N,B,step,loss\nx,1e5,512,10,5.0\nx,1e5,512,20,4.5\nx,2e5,512,10,4.8\nx,2e5,512,20,4.2\n")
    assert main(["trajectory", str(file), "--N", "1e6", "--B", "512"]) == 2
    assert "run_id 'x' has 2 different N" in capsys.readouterr().err


def test_the_curves_of_a_trajectory_experiment_are_those_it_fitted(tmp_path):
    (tmp_path / "runs").mkdir()
    assert _fitted_curves(str(tmp_path)) is None
    (tmp_path / "curves.csv").write_text("N,S,B,loss\n")
    assert _fitted_curves(str(tmp_path)) == _fitted_curves(str(tmp_path / "runs")) == tmp_path / "curves.csv"


def test_far_outside_warns(path, capsys):
    assert main(["trajectory", path, "--N", "1e9", "--B", "1M", "--loss", "1.0"]) == 0
    out = capsys.readouterr().out
    assert "times beyond the largest fitted N" in out and "never" in out
    assert "times outside the fitted batch sizes" in out

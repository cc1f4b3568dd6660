"""`muscaling fit` and `muscaling evaluate`, and the recipe that draws the maps, as a user runs them."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.cli import main
from hf_muscaling.laws import (
    AnnealingLaw,
    DownstreamLaw,
    LearningRateLaw,
    ScalingLaw,
    constant_schedule,
    cosine_schedule,
    wsd_schedule,
)
from hf_muscaling.laws.schedules import areas

RECIPE = Path(__file__).parents[1] / "recipes" / "estimate_laws.py"
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def loss_at(n, d):
    """The true loss."""
    return 1.8 + 480 / n**0.35 + 2100 / d**0.37


def write(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


@pytest.fixture
def curves(tmp_path):
    """Six runs of a known law with 0.2 % noise a run."""
    rng, rows = np.random.default_rng(0), []
    for i, n in enumerate(np.geomspace(1e7, 1e9, 6)):
        shift = 1 + 0.002 * rng.normal()
        rows += [(f"r{i}", n, d, loss_at(n, d) * shift) for d in np.linspace(1e9, 2e10, 20)]
    return write(tmp_path / "runs.csv", "run_id,N,D,loss", rows)


def predicted(out):
    """Loss and interval that the command printed."""
    return [float(v) for v in re.search(r"loss ([\d.]+) nats.*\[([\d.]+), ([\d.]+)\]", out).groups()]


def test_fit_predicts_the_truth(curves, tmp_path, capsys):
    law, plot = tmp_path / "law.json", tmp_path / "law.png"
    words = ["fit", curves, "--law", "chinchilla", "--predict", "N=7e9", "D=2e11", "--count", "total"]
    assert main([*words, "--save", str(law), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    loss, low, high = predicted(out)
    assert low < loss_at(7e9, 2e11) < high and loss == pytest.approx(loss_at(7e9, 2e11), rel=0.02)
    assert "120 rows of 6 runs" in out and "7 × the largest fitted N" in out and "alpha" in out
    assert plot.read_bytes()[:4] == b"\x89PNG"
    stored = ScalingLaw.from_json(law)
    assert stored.predict(N=7e9, D=2e11).loss == pytest.approx(loss, abs=1e-4)


def test_several_predictions_short_numbers_and_level(curves, capsys):
    words = ["fit", curves, "--predict", "N=2B", "D=40B", "--predict", "N=4B", "D=40B", "--level", "0.5"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "N = 2e+09" in out and "N = 4e+09" in out and out.count("50 % interval") == 2


@pytest.mark.parametrize("level", ["90", "0", "1"])
def test_an_impossible_level_is_refused_without_a_prediction_too(curves, capsys, level):
    assert main(["fit", curves, "--level", level]) == 2
    assert "must lie between 0 and 1" in capsys.readouterr().err


def test_a_far_prediction_warns_in_one_line(curves, capsys):
    assert main(["fit", curves, "--predict", "N=1e12", "D=1e13"]) == 0
    error = capsys.readouterr().err
    assert "note: N lies 1e+03 times beyond" in error and ".py" not in error


def test_a_law_in_one_variable(tmp_path, capsys):
    n = np.geomspace(1e6, 1e8, 7)
    path = write(tmp_path / "t.csv", "N,loss", zip(n, 2 + 40 * n**-0.25, strict=True))
    assert main(["fit", path, "--law", "power", "--objective", "least_squares", "--predict", "N=3e8"]) == 0
    assert predicted(capsys.readouterr().out)[0] == pytest.approx(2 + 40 * 3e8**-0.25, rel=1e-3)


def test_what_a_wandb_export_lacks_is_given_by_flags(tmp_path, capsys):
    rows = [(s, *(loss_at(n, s * 1e6) for n in (1e7, 3e7, 1e8, 3e8))) for s in range(1000, 20001, 1000)]
    header = "Step," + ",".join(f"gpt-{m}M - loss" for m in (10, 30, 100, 300))
    path = write(tmp_path / "w.csv", header, rows)
    assert main(["fit", path]) == 2
    assert "--N RUN=1.2e8" in capsys.readouterr().err
    assert main(["fit", path, "--N", "name", "--B", "1e6", "--predict", "N=1e9", "D=2e10"]) == 0
    assert predicted(capsys.readouterr().out)[0] == pytest.approx(loss_at(1e9, 2e10), rel=0.02)
    sizes = [word for m in (10, 30, 100, 300) for word in ("--N", f"gpt-{m}M={m}M")]
    assert main(["fit", path, *sizes, "--B", "1e6"]) == 0
    assert "N 1e+07 to 3e+08" in capsys.readouterr().out


def test_columns_are_named_by_a_flag(tmp_path, capsys):
    """With names that no reader knows, and with an N beside the one that is meant."""
    path = tmp_path / "runs.csv"
    lines = ["run,N,my size,trained on,step,final CE,temperature"]
    for i, n in enumerate(np.geomspace(1e6, 1e8, 6)):
        for d in (1e8, 4e8, 1.6e9):
            lines.append(f"r{i}-{d:g},{3 * n:.0f},{n:.0f},{d:g},100,{1.8 + 480 / n**0.35 + 2100 / d**0.37:.6f},1")
    path.write_text("\n".join(lines))
    named = ["N=my size", "D=trained on"]
    words = ["fit", str(path), "--columns", *named, "loss=final CE", "--objective", "huber", "--predict", "N=1e9"]
    assert main([*words, "D=1e10"]) == 0
    shown = capsys.readouterr().out
    assert "N from 1e+06 to 1e+08" in shown and "N is 'my size', as stated" in shown
    assert f"loss {1.8 + 480 / 1e9**0.35 + 2100 / 1e10**0.37:.4f} nats" in shown
    for words, message in (
        ([*named, "loss=CE"], "has no column 'CE'; its columns are run, N, my size"),
        (["N=size", "D=trained on"], "has no column 'size'; its columns are run, N, my size"),
        (["M=my size"], "columns names 'M'; it may name N, N_non_embedding, D"),
        (["my size"], "--columns 'my size' must be written NAME=VALUE"),
        ([*named, "--loss", "final CE", "--N", "1e6"], "N is given twice, by N= and by columns= (--columns)"),
        ([*named, "loss=final CE", "--loss", "final CE"], "loss is given twice"),
        (["D=trained on", "loss=final CE", "N=run"], "'run' is 'r0-1e+08', expected a number > 0 for N"),
    ):
        assert main(["fit", str(path), "--columns", *words]) == 2
        assert message in capsys.readouterr().err


def test_evaluate(curves, capsys):
    assert main(["evaluate", curves, "--law", "chinchilla"]) == 0
    out = capsys.readouterr().out
    found = re.search(r"ARE ([\d.]+) % over 1 target, (\d+) % inside the 90 % interval", out)
    assert float(found[1]) < 2 and "r5" in out
    assert main(["evaluate", curves, "--target", "rolling", "--models", "4"]) == 0
    assert "from 4 sizes" in capsys.readouterr().out
    assert main(["evaluate", curves, "--target", "1e9"]) == 0


def test_families_apart(curves, tmp_path, capsys):
    lines = Path(curves).read_text().splitlines()
    both = [lines[0] + ",family"] + [line + f",{f}" for f in "ab" for line in lines[1:]]
    path = tmp_path / "two.csv"
    path.write_text("\n".join(both) + "\n")
    assert main(["fit", str(path)]) == 2
    assert "--where 'family=a'" in capsys.readouterr().err
    assert main(["fit", str(path), "--where", "family=a"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(path)]) == 0
    out = capsys.readouterr().out
    assert "a: ChinchillaLaw" in out and "b: ChinchillaLaw" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "required: path"),
        (["fit", "PATH", "--lw", "x"], "unrecognized arguments"),
        (["fit", "PATH", "--law", "cubic"], "invalid choice"),
        (["fit", "PATH", "--predict", "7e9"], "NAME=VALUE"),
        (["fit", "PATH", "--predict", "N=big", "D=1e9"], "'big' is not a number"),
        (["fit", "PATH", "--predict", "N=1e9"], "needs 'D'"),
        (["fit", "PATH", "--predict", "N=-1", "D=1e9"], "finite numbers > 0"),
        (["fit", "PATH", "--N", "x"], "--N: 'x'"),
        (["fit", "PATH", "--level", "2"], "level=2"),
        (["fit", "PATH", "--window", "2"], "window=2"),
        (["fit", "PATH", "--save", "law.txt"], "must end in .json"),
        (["fit", "PATH", "--plot", "no/such/law.png"], "no folder"),
        (["fit", "PATH", "--where", "kind=a"], "no column 'kind'"),
        (["fit", "missing.csv"], "no such file"),
        (["fit", "PATH", "--law", "kaplan-step"], "--B"),
        (["evaluate", "PATH", "--target", "r9"], "No run is called 'r9'"),
        (["evaluate", "PATH", "--models", "9"], "5 sizes below"),
        (["evaluate", "PATH", "--seen", "0"], "seen=0"),
    ],
)
def test_errors_are_one_paragraph_and_status_2(curves, capsys, words, message):
    words = [curves if word == "PATH" else word for word in words]
    level = ["--predict", "N=1e9", "D=1e10"] if "--level" in words else []
    assert main([*words, *level]) == 2
    *notes, error = capsys.readouterr().err.strip().split("\n\n")  # the law's notes may come before the error
    assert message in error and "Error: " in error and "Traceback" not in error
    assert all(line.startswith("note: ") for note in notes for line in note.splitlines())


def run_recipe(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, words)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(RECIPE), run_name="__main__")
    return done.value.code


SMALL = ["--laws", "chinchilla", "--windows", "0.3", "--seen", "0.5", "1", "--models", "4", "8", "--processes", "1"]


def test_the_recipe_draws_its_own_example(tmp_path, monkeypatch, capsys):
    assert run_recipe(monkeypatch, "--output_dir", tmp_path, *SMALL) == 0
    out = capsys.readouterr().out
    assert "4 laws fitted" in out and (tmp_path / "heatmap.png").read_bytes()[:4] == b"\x89PNG"
    cells = json.loads((tmp_path / "are.json").read_text())["cells"]
    full = [c["are"] for c in cells if c["models"] == 8 and c["seen"] == 1.0]
    assert len(cells) == 4 and full[0] < 0.02  # 0.3 % noise a run


def test_the_recipe_reads_a_table(curves, tmp_path, monkeypatch, capsys):
    words = [curves, "--output_dir", tmp_path / "out", "--laws", "chinchilla", "--windows", "0.3", "--seen", "1"]
    assert run_recipe(monkeypatch, *words, "--processes", 1) == 0
    assert "3 laws fitted" in capsys.readouterr().out
    assert run_recipe(monkeypatch, tmp_path / "missing.csv") == 2


def test_the_recipe_says_once_what_is_wrong_with_a_table(tmp_path):
    """In a process of its own with two workers, as a user runs it: no line of the library's code, no sentence twice."""
    rows = [(f"r{n:g}", n, d, loss_at(n, d)) for n in np.geomspace(1e7, 1e9, 5) for d in np.linspace(1e9, 2e10, 8)]
    table = write(tmp_path / "runs.csv", "run_id,N,D,loss", [*rows, rows[-1]])
    words = [table, "--output_dir", str(tmp_path / "out"), "--windows", "0", "0.3", "--seen", "0.5", "1"]
    done = subprocess.run([sys.executable, RECIPE, *words, "--processes", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rows repeat another row exactly") == 1 and "UserWarning" not in done.stderr
    assert "note: 1 rows repeat" in done.stderr


@pytest.fixture
def annealed(tmp_path):
    """A constant-rate run and one with a cooldown, of a known law."""
    rows = []
    for name, rates in (
        ("constant", constant_schedule(2000, 1e-2, 100)),
        ("cooled", wsd_schedule(2000, 1e-2, 400, warmup=100)),
    ):
        s1, s2 = areas(rates, 0.999)
        rows += [(name, s, rates[s - 1], 3 + 0.5 * s1[s - 1] ** -0.4 - 0.08 * s2[s - 1]) for s in range(25, 2001, 25)]
    return write(tmp_path / "curves.csv", "run_id,step,learning_rate,eval_loss", rows)


def test_fit_predicts_the_end_of_a_schedule(annealed, tmp_path, capsys):
    words = ["fit", annealed, "--law", "annealing", "--predict", "schedule=cosine", "steps=6000", "peak=1e-2"]
    law, plot = tmp_path / "law.json", tmp_path / "law.png"
    assert main([*words, "warmup=100", "--save", str(law), "--plot", str(plot)]) == 0
    loss, low, high = predicted(capsys.readouterr().out)
    s1, s2 = areas(cosine_schedule(6000, 1e-2, 0.0, 100), 0.999)
    truth = 3 + 0.5 * s1[-1] ** -0.4 - 0.08 * s2[-1]
    assert low < truth < high and loss == pytest.approx(truth, rel=0.01)
    assert isinstance(ScalingLaw.from_json(law), AnnealingLaw) and plot.stat().st_size > 1000
    wrongs = ((["steps=9"], "schedule="), (["schedule=cosine", "stops=9"], "stops"), (["schedule=step"], "cosine"))
    for wrong, said in wrongs:
        assert main(["fit", annealed, "--law", "annealing", "--predict", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["evaluate", annealed, "--law", "annealing"]) == 2  # one model has no larger one


def test_fit_predicts_scores_through_both_stages(curves, tmp_path, capsys):
    first = tmp_path / "first.json"
    assert main(["fit", curves, "--count", "total", "--save", str(first)]) == 0
    capsys.readouterr()
    losses = np.linspace(3.6, 2.3, 12)
    rows = [(loss, 0.25 + 0.75 / (1 + np.exp(4 * (loss - 2.5))), 1000) for loss in losses]
    path = write(tmp_path / "scores.csv", "loss,acc,items", rows)
    words = ["fit", path, "--law", "downstream", "--chance", "0.25"]
    plot = tmp_path / "scores.png"
    assert main([*words, "--first", str(first), "--predict", "N=2e9", "D=4e10", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    score, low, high = (float(v) for v in re.search(r"score ([\d.]+), .*\[([\d.]+), ([\d.]+)\]", out).groups())
    truth = 0.25 + 0.75 / (1 + np.exp(4 * (loss_at(2e9, 4e10) - 2.5)))
    assert low < truth < high and score == pytest.approx(truth, abs=0.05) and plot.stat().st_size > 1000
    law = tmp_path / "law.json"
    assert main([*words, "--predict", "loss=2.4", "--save", str(law)]) == 0
    assert DownstreamLaw.from_json(law).params_["k"] == pytest.approx(4, rel=0.01)
    for wrong in (["--predict", "N=2e9"], ["--objective", "huber"], ["--first", str(law)], ["--chance", "25"]):
        assert main([*words, *wrong]) == 2
    assert main(["fit", curves, "--chance", "0.25"]) == 2


def test_a_name_given_twice_is_two_predictions(curves, capsys):
    assert main(["fit", curves, "--predict", "N=2B", "N=4B", "D=40B"]) == 0
    out = capsys.readouterr().out
    assert "N = 2e+09, D = 4e+10" in out and "N = 4e+09, D = 4e+10" in out
    assert main(["fit", curves, "--predict", "N=2B", "D=40B", "N=4B", "D=80B"]) == 0
    out = capsys.readouterr().out
    assert "N = 2e+09, D = 4e+10" in out and "N = 4e+09, D = 8e+10" in out and out.count("90 % interval") == 2
    assert main(["fit", curves, "--predict", "N=2B", "N=4B", "N=8B", "D=40B", "D=80B"]) == 2
    assert "N 3 times, D 2 times" in capsys.readouterr().err


@pytest.fixture
def rates(tmp_path):
    """A sweep of learning rates whose best one falls as D^-0.3 and grows as B^0.5."""
    rng, rows = np.random.default_rng(0), []
    for d in (1e8, 2e8, 4e8):
        for b in (2e5, 4e5, 8e5):
            best = 1e-3 * (d / 1e8) ** -0.3 * (b / 4e5) ** 0.5
            for k in range(-3, 4):
                loss = 3 * (1 + 0.03 * (0.5 * k * np.log(2) - 0.1) ** 2 + 0.0005 * rng.normal())
                rows.append((f"r{len(rows)}", d, b, best * np.exp(0.1) * 2 ** (k / 2) * np.exp(-0.2), loss))
    return write(tmp_path / "rates.csv", "run_id,D,B,lr,loss", rows)


def test_fit_predicts_the_learning_rate(rates, tmp_path, capsys):
    law, plot = tmp_path / "law.json", tmp_path / "law.png"
    words = ["fit", rates, "--law", "learning-rate"]
    assert main([*words, "--predict", "D=8e8", "B=4e5", "--save", str(law), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    rate, low, high = (float(v) for v in re.search(r"learning rate ([^,]+), .*\[(\S+), (\S+)\]", out).groups())
    assert low < 1e-3 * 8**-0.3 < high and rate == pytest.approx(1e-3 * 8**-0.3, rel=0.05)
    assert LearningRateLaw.from_json(law).params_["delta"] == pytest.approx(0.5, abs=0.03)
    assert "gamma" in out and plot.read_bytes()[:4] == b"\x89PNG"
    assert main([*words, "--delta", "0.5", "--predict", "D=8e8", "B=4e5"]) == 0
    assert "delta = 0.5 (stated)" in capsys.readouterr().out
    for wrong in (["--predict", "D=8e8"], ["--objective", "huber"], ["--chance", "0.25"], ["--gamma", "x"]):
        assert main([*words, *wrong]) == 2
    assert main(["fit", rates, "--law", "chinchilla", "--delta", "0.5"]) == 2


def test_the_figure_of_learning_rates_marks_the_predictions(rates, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("hf_muscaling.plotting.save_figure", lambda figure, path: drawn.append(figure))
    words = ["fit", rates, "--law", "learning-rate", "--plot", str(tmp_path / "law.png")]
    assert main(words) == 0 and main([*words, "--predict", "D=4e9", "B=4e5"]) == 0
    without, marked = ([t.get_text() for t in figure.axes[0].get_legend().get_texts()] for figure in drawn)
    assert [label for label in marked if label not in without][0].startswith("D 4e+09, B 4e+05: 0.000")
    assert drawn[1].axes[0].get_xlim()[1] > 4e9


def test_repeated_data_are_noted_and_left_out_by_a_flag(tmp_path, capsys):
    rows = [(n, d, min(d, 4e9), loss_at(n, d)) for n in np.geomspace(1e7, 1e9, 5) for d in np.geomspace(1e9, 6.4e10, 4)]
    path = write(tmp_path / "t.csv", "params,tokens,unique_tokens,loss", rows)
    assert main(["fit", path]) == 0
    out, error = capsys.readouterr()
    assert "10 of 20 rows repeat their data, up to 16 times" in error and "data repeated up to 16 times" in out
    assert main(["fit", path, "--epochs", "4"]) == 0
    out, error = capsys.readouterr()
    assert "15 rows" in out and "repeated up to 4 times" in out
    assert main(["evaluate", path, "--epochs", "1", "--target", "largest_compute"]) == 0
    assert "repeat" not in capsys.readouterr().err
    assert main(["fit", path, "--epochs", "0.1"]) == 2
    assert "leaves no row" in capsys.readouterr().err
    bare = write(tmp_path / "b.csv", "params,tokens,loss", [(n, d, loss) for n, d, _, loss in rows])
    assert main(["fit", bare, "--epochs", "1"]) == 2
    assert "--epochs needs the columns" in capsys.readouterr().err

"""Task scores: lm-evaluation-harness folders, `evaluate.save`, CSV; joined with runs; what is wrong is said by name."""

import json
import warnings

import numpy as np
import pytest

from hf_muscaling import DownstreamLaw, TwoStage, read_runs, read_scores
from hf_muscaling.cli import main
from hf_muscaling.commands.downstream import _figure
from hf_muscaling.errors import ConfigurationError, RecordError, UnknownQuantityError
from hf_muscaling.laws import PowerLaw
from hf_muscaling.readers.scores import Score, ScoreTable, known_chance

SIZES = np.geomspace(1e7, 1.28e9, 8)


def loss_of(n):
    return 1.9 + 60 * n**-0.25


def truth(n, chance, middle=2.55):
    return chance + (1 - chance) / (1 + np.exp(5 * (loss_of(n) - middle)))


def truth_of_loss(loss):
    return 0.25 + 0.75 / (1 + np.exp(4 * (loss - 2.8)))


def result(model, tasks, questions=2000, **more):
    """A results file as lm_eval writes it."""
    scores = {
        task: {
            "alias": task, "acc,none": share, "acc_stderr,none": (share * (1 - share) / questions) ** 0.5,
            "acc_norm_stderr,none": "N/A",
        }
        for task, share in tasks.items()
    }  # fmt: skip
    return {
        "results": scores, "config": {"model": "hf", "model_args": f"pretrained={model},dtype=float32"},
        "n-samples": {task: {"original": questions, "effective": questions} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0), **more,
    }  # fmt: skip


def write(folder, name, document):
    path = folder / name / "results_2024-05-01T10-00-00.000000.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def harness(tmp_path):
    """Eight models of one family, scored in two tasks with binomial noise; runs.csv beside them."""
    rng, lines = np.random.default_rng(0), ["run_id,N,D,loss"]
    for i, n in enumerate(SIZES):
        shares = {"arc_easy": truth(n, 0.25), "piqa": truth(n, 0.5, 2.7)}
        shares = {task: rng.binomial(2000, share) / 2000 for task, share in shares.items()}
        write(tmp_path / "results", f"model-{i}", result(f"/models/run-{i}/model", shares))
        lines.append(f"run-{i},{n},2e10,{loss_of(n) * (1 + 0.001 * rng.normal()):.5f}")
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_folder_of_results_joins_the_runs(harness):
    scores = read_scores(harness / "results")
    assert scores.tasks == ["arc_easy", "piqa"] and len(scores) == 16
    assert scores[0].model == "/models/run-0/model" and scores[0].questions == pytest.approx(2000, rel=1e-6)
    table = scores.join(read_runs(harness / "runs.csv", count="total"), "piqa")
    assert list(table["run_id"]) == [f"run-{i}" for i in range(8)]
    assert set(table["chance"]) == {0.5} and np.allclose(table["items"], 2000)
    assert table["loss"][3] == pytest.approx(loss_of(SIZES[3]), rel=0.01)
    law = DownstreamLaw().fit(table)
    first = PowerLaw().fit(read_runs(harness / "runs.csv", count="total"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = TwoStage(first, law).predict(N=5e9)
    assert law.params_["chance"] == 0.5 and p.low < truth(5e9, 0.5, 2.7) < p.high


def test_the_standard_error_weighs(harness):
    """A badly measured score that is off moves the law less than one that claims to be sure."""
    runs = read_runs(harness / "runs.csv", count="total")
    fits = []
    for error in (0.2, 0.001):
        share = truth(SIZES[5], 0.25) - 0.15
        wrong = Score("run-5", "arc_easy", "acc", share, error)
        scores = [wrong if s.model == "/models/run-5/model" else s for s in read_scores(harness / "results")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits.append(DownstreamLaw().fit(ScoreTable(scores, "results").join(runs, "arc_easy")))
    away = [abs(fit.score(loss_of(SIZES[5])) - truth(SIZES[5], 0.25)) for fit in fits]
    assert away[0] < 0.03 < away[1]


def test_the_average_has_its_own_chance_and_weight(harness):
    scores = read_scores(harness / "results")
    mean = scores.average()
    assert mean.tasks == ["mean of 2 tasks"] and mean.chance("mean of 2 tasks") == pytest.approx(0.375)
    own = {s.task: s for s in scores if s.model == "/models/run-2/model"}
    found = next(s for s in mean if s.model == "/models/run-2/model")
    assert found.score == pytest.approx(np.mean([s.score for s in own.values()]))
    assert found.error == pytest.approx(np.hypot(*(s.error for s in own.values())) / 2)
    some = ScoreTable([s for s in scores if (s.model, s.task) != ("/models/run-2/model", "piqa")], "x")
    assert len(some.average()) == 7 and "1 models lack a task" in some.average().notes[0]
    with pytest.raises(RecordError, match="no average"):
        ScoreTable([Score("a", "piqa", "acc", 0.6), Score("b", "boolq", "acc", 0.6)], "x").average()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("run-1", "run-1"),
        ("/some/where/run-1", "run-1"),
        ("here/run-1/checkpoint-200", "run-1"),
        ("__some__where__run-1", "run-1"),
        ("elsewhere/run-10", None),
        ("run-1/run-2", None),
    ],
)
def test_models_find_their_runs(tmp_path, name, found):
    rows = [f"{run},1e7,{step},{step}000,{5 - step / 100}" for run in ("run-1", "run-2") for step in (100, 200, 300)]
    (tmp_path / "runs.csv").write_text("\n".join(["run_id,N,step,D,loss", *rows]) + "\n")
    runs = read_runs(tmp_path / "runs.csv", count="total")
    table = ScoreTable([Score(name, "piqa", "acc", 0.6)], "x")
    if found is None:
        with pytest.raises(RecordError, match="is no run of|could be the run"):
            table.join(runs)
        return
    step = 200 if "checkpoint" in name else 300  # a checkpoint's own row, else the last
    joined = table.join(runs)
    assert joined["run_id"][0] == found and joined["loss"][0] == 5 - step / 100 and "items" not in joined
    with pytest.raises(RecordError, match="step 250"):
        ScoreTable([Score("run-1/checkpoint-250", "piqa", "acc", 0.6)], "x").join(runs)


def test_a_model_without_a_run_is_left_out_on_request(harness):
    write(harness / "results", "other", result("gpt-5", {"piqa": 0.9}))
    runs = read_runs(harness / "runs.csv", count="total")
    scores = read_scores(harness / "results", tasks=["piqa"])
    with pytest.raises(RecordError, match="'gpt-5' is no run"):
        scores.join(runs)
    table = scores.join(runs, drop_bad=True)
    assert table.n_rows == 8 and any("1 models have no run" in note for note in table.notes)


def test_revisions_dicts_and_old_names_are_read(tmp_path):
    new = result("x", {"piqa": 0.6})
    new["config"]["model_args"] = {"pretrained": "org/run-1", "revision": "step100"}
    write(tmp_path, "a", new)
    old = {"results": {"piqa": {"acc": 0.7, "acc_stderr": 0.01}}, "config": {"model_args": "pretrained=run-2"}}
    write(tmp_path, "b", old)
    named = {"results": {"piqa": {"acc,none": 0.8, "acc,other": 0.1}}, "model_name": "run-3"}
    write(tmp_path, "c", named)
    found = {s.model: (s.score, s.error) for s in read_scores(tmp_path)}
    assert found["org/run-1/step100"][0] == 0.6 and found["run-2"] == (0.7, 0.01) and found["run-3"][0] == 0.8
    nobody = write(tmp_path, "d", {"results": {"piqa": {"acc,none": 0.8}}})
    with pytest.raises(UnknownQuantityError, match="which model"):
        read_scores(nobody)


def test_the_last_of_repeated_results_counts(tmp_path):
    for day, share in (("2024-05-02", 0.62), ("2024-05-01", 0.55)):
        (tmp_path / f"results_{day}.json").write_text(json.dumps(result("m", {"piqa": share})))
    scores = read_scores(tmp_path)
    assert [s.score for s in scores] == [0.62] and "repeated" in scores.notes[0]


@pytest.mark.slow
def test_evaluate_files_are_read(tmp_path):
    import evaluate

    path = evaluate.save(tmp_path / "out", accuracy=0.61, model="run-1", task="piqa", n_samples=500)
    score = read_scores(tmp_path / "out")[0]
    assert (score.model, score.task, score.metric, score.score, score.items) == ("run-1", "piqa", "accuracy", 0.61, 500)
    assert read_scores(path)[0] == score
    nameless = evaluate.save(tmp_path / "other" / "result-1.json", accuracy=0.61, model="run-1")
    with pytest.raises(UnknownQuantityError, match="which task"):
        read_scores(nameless)


def test_a_table_is_read(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("model,task,metric,score,stderr\na,piqa,acc,61,1.1\na,piqa,f1,50,1\nb,piqa,acc,66,1.0\n")
    scores = read_scores(path, metric="acc", percent=True)
    assert [(s.model, s.score, s.error) for s in scores] == [("a", 0.61, pytest.approx(0.011)), ("b", 0.66, 0.01)]
    with pytest.raises(ConfigurationError, match="holds the metrics acc, f1"):
        read_scores(path)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda d: "{", RecordError, "not valid JSON"),
        (lambda d: [1], RecordError, "not a JSON object"),
        (lambda d: d.pop("results") and d, RecordError, "no 'results'"),
        (lambda d: d["results"].update(piqa=3) or d, RecordError, "no object"),
        (lambda d: d["results"]["piqa"].update({"acc,none": float("nan")}) or d, RecordError, "is nan"),
        (lambda d: d["results"]["piqa"].update({"acc,none": 61.0}) or d, RecordError, "no share of 1.*--percent"),
        (lambda d: d["results"]["piqa"].update({"acc,none": -0.1}) or d, RecordError, "no share of 1"),
        (lambda d: d["results"]["piqa"].update({"acc_stderr,none": -1.0}) or d, RecordError, "error -1"),
        (lambda d: d["results"].pop("piqa") and d, ConfigurationError, "no task 'piqa'; it has boolq"),
    ],
)
def test_bad_results_are_refused_by_name(tmp_path, change, error, said):
    document = change(result("m", {"piqa": 0.6, "boolq": 0.7}))
    path = tmp_path / "results_1.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(error, match=said):
        read_scores(tmp_path, tasks=["piqa"])


def test_bad_scores_can_be_left_out(tmp_path):
    write(tmp_path, "a", result("a", {"piqa": 0.6}))
    write(tmp_path, "b", result("b", {"piqa": float("nan")}))
    scores = read_scores(tmp_path, drop_bad=True)
    assert [s.model for s in scores] == ["a"] and "left out" in scores.notes[0]
    with pytest.raises(ConfigurationError, match="has no 'f1'; it has acc"):
        read_scores(tmp_path, metric="f1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="holds no results"):
        read_scores(tmp_path / "empty")


def perplexity(task="wikitext"):
    """What the harness writes for a task of text: no score, but numbers."""
    return {task: {"alias": task, "bits_per_byte,none": 0.9, "bits_per_byte_stderr,none": "N/A", "sample_len": 62}}


def test_tasks_not_asked_for_are_not_judged(tmp_path):
    document = result("a", {"piqa": 0.6})
    document["results"] |= perplexity() | {"group": {"alias": "group", " ": ""}}
    path = write(tmp_path, "a", document)
    assert [s.task for s in read_scores(tmp_path, tasks=["piqa"], metric="acc")] == ["piqa"]
    assert read_scores(tmp_path, tasks=["piqa"]).notes == ()
    for tasks, metric, remedy in (
        (["wikitext"], "acc", r"Name one of these with metric= \(--metric\)\.$"),
        (None, "acc", r"--task\)\.$"),
        (["wikitext"], None, "is no score"),
    ):
        with pytest.raises(ConfigurationError, match=remedy) as said:
            read_scores(tmp_path, tasks=tasks, metric=metric)
        assert str(path) in str(said.value) and "it has bits_per_byte. " in str(said.value)  # no alias, no sample_len
    with pytest.raises(ConfigurationError, match="no task 'boolq'; it has piqa, wikitext"):
        read_scores(tmp_path, tasks=["boolq"])


def test_what_is_left_out_by_default_is_noted(tmp_path):
    for model in ("a", "b"):
        document = result(model, {"piqa": 0.6})
        document["results"] |= perplexity()
        write(tmp_path, model, document)
    scores = read_scores(tmp_path)
    assert scores.tasks == ["piqa"] and len(scores.notes) == 1
    assert scores.notes[0].startswith("wikitext is left out: it has bits_per_byte, none of acc_norm")
    with pytest.raises(RecordError, match=f"'{tmp_path}/b/results.*is nan"):  # the file with its folder
        write(tmp_path, "b", result("b", {"piqa": float("nan")}))
        read_scores(tmp_path)


def test_percent_of_shares_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("model,task,score\na,piqa,0.61\nb,piqa,0.66\n")
    with pytest.raises(ConfigurationError, match=r"no score is above 1.*leave out percent=True \(--percent\)"):
        read_scores(path, percent=True)
    path.write_text("model,task,score\na,piqa,61\nb,piqa,0.66\na,gsm8k,0.4\nb,gsm8k,0.9\n")
    scores = read_scores(path, percent=True)
    assert [s.score for s in scores] == pytest.approx([0.61, 0.0066, 0.004, 0.009])
    assert scores.notes == ("no score in gsm8k is above 1: read as less than 1 %",)


def test_chance_is_known_or_asked_for():
    assert known_chance("mmlu_anatomy") == 0.25 and known_chance("lambada_openai") == 0.0
    assert known_chance("my_task") is None and known_chance("racecars") is None
    table = ScoreTable([Score("a", "my_task", "acc", 0.6)], "x")
    with pytest.raises(UnknownQuantityError, match="--chance my_task="):
        table.chance("my_task")


def test_a_variable_that_the_runs_share_is_named_with_its_remedy(harness, capsys):
    words = ["fit", str(harness / "results"), "--law", "downstream", "--runs", str(harness / "runs.csv")]
    assert main([*words, "--task", "piqa", "--predict", "N=7e9", "D=2e12"]) == 2
    said = capsys.readouterr().err
    assert "have D = 2e+10" in said and "Predict from N alone (--predict N=7e+09)" in said


def test_the_figure_shows_task_and_predictions():
    loss = np.linspace(3.6, 2.6, 12)
    law = DownstreamLaw(chance=0.25).fit({"loss": loss, "score": truth_of_loss(loss)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = [law.predict(2.5), law.predict(1.0)]  # the second lies beyond what is drawn without it
    axes = _figure(law, points, "arc_easy", 0.9).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert axes.get_title().startswith("arc_easy\n") and min(axes.get_xlim()) < 1.0
    assert [label for label in labels if label.startswith("loss ")] == [
        f"loss {p.loss:.4g}: {p.score:.3f}" for p in points
    ]
    assert not any(
        text.get_text().startswith("loss ") for text in _figure(law, [], "x", 0.9).axes[0].get_legend().texts
    )


@pytest.mark.slow
def test_the_command_fits_every_task_and_their_mean(harness, tmp_path, capsys):
    words = ["fit", str(harness / "results"), "--law", "downstream", "--runs", str(harness / "runs.csv")]
    law, plot = tmp_path / "law.json", tmp_path / "score.png"
    assert main([*words, "--predict", "N=5e9", "--save", str(law), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert out.count("N = 5e+09, loss") == 3 and "--- mean of 2 tasks (chance 0.375)" in out
    names = {p.name for p in tmp_path.iterdir()}
    assert {"law-arc_easy.json", "law-piqa.json", "law-mean_of_2_tasks.json", "score-piqa.png"} <= names
    assert DownstreamLaw.from_json(tmp_path / "law-piqa.json").params_["chance"] == 0.5
    assert main([*words, "--task", "arc_easy", "--chance", "0.25", "--predict", "loss=2.3"]) == 0
    assert "mean of" not in capsys.readouterr().out
    assert main([*words, "--chance", "arc_easy=0.3", "--predict", "N=5e9", "--task", "arc_easy"]) == 0
    assert "chance 0.3" in capsys.readouterr().out
    for wrong, said in (
        (["--task", "hellaswag"], "no task 'hellaswag'"),
        (["--chance", "hellaswag=0.25"], "no task of"),
        (["--chance", "25"], "share of 1"),
        (["--predict", "C=1e20"], "--predict takes"),
    ):
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(words[:4]) == 2 and "give --runs" in capsys.readouterr().err

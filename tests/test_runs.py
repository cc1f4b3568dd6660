"""Records: whole, checked, and plain."""

import json

import pytest

from hf_muscaling.errors import RecordError
from hf_muscaling.runs import Run, Series, mean_losses, read_json, write_json, write_text


def make_run(**changes) -> Run:
    fields = {
        "run_id": "w32", "status": "finished", "N": 1000, "N_non_embedding": 400, "D": 640, "S": 10, "B": 64,
        "C": 3.84e6, "loss": 3.5, "width": 32, "seed": 0, "lr": 0.01,
        "curve": [{"step": 1, "tokens": 64, "loss": 5.0, "lr": 0.01, "grad_norm": 1.0}],
    }  # fmt: skip
    return Run(**(fields | changes))


def test_round_trip(tmp_path):
    run = make_run()
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run


def test_a_record_edited_by_hand_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "run.json"
    make_run().save(path)
    document = json.loads(path.read_text())
    document["run"]["loss"] = 2.0
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"run\.json was changed after the run finished.*move the run's folder"):
        Run.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": float("nan")}, "not a positive number"),
        ({"loss": None}, "not a positive number"),
        ({"loss": -1.0}, "not a positive number"),
        ({"N": 0}, "N must be a positive number"),
        ({"D": "many"}, "D must be a positive number"),
        ({"lr": float("inf")}, "lr must be a positive number"),
        ({"width": True}, "width must be a positive number"),
        ({"status": "running"}, "status must be one of"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(RecordError, match=message):
        make_run(**changes)


def test_a_diverged_run_has_no_loss_and_stays_out_of_the_table():
    series = Series([make_run(), make_run(run_id="bad", status="diverged", loss=None)])
    assert [row["run_id"] for row in series.to_rows()] == ["w32"]
    assert len(series) == 2


def test_series_jsonl_round_trip_and_damaged_line(tmp_path):
    series = Series([make_run(), make_run(run_id="w64", width=64)], name="x")
    path = tmp_path / "runs.jsonl"
    series.to_jsonl(path)
    assert list(Series.from_jsonl(path)) == list(series)
    path.write_text(path.read_text() + '{"run_id": "half')
    with pytest.raises(RecordError, match="line 3"):
        Series.from_jsonl(path)


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "\x80"])
def test_text_that_is_not_json(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match=r"x\.json is not"):
        read_json(path)


def test_unknown_and_missing_fields():
    record = make_run().to_dict()
    with pytest.raises(RecordError, match="unknown fields: extra"):
        Run.from_dict(record | {"extra": 1})
    del record["N"]
    with pytest.raises(RecordError, match="incomplete"):
        Run.from_dict(record)
    with pytest.raises(RecordError, match="JSON object"):
        Run.from_dict([1])


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(*_):
        raise OSError("power cut")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="power cut"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})


def test_mean_losses_by_width():
    runs = [make_run(loss=3.0), make_run(loss=4.0), make_run(width=16, loss=5.0)]
    assert mean_losses(runs) == {16: 5.0, 32: 3.5}


def test_precision_reaches_the_law(tmp_path):
    runs = [make_run(run_id=f"w{k}", N=1000 * 2**k, loss=4 - 0.1 * k, settings={"bf16": k > 2}) for k in range(5)]
    assert [run.precision for run in runs] == ["fp32", "fp32", "fp32", "bf16", "bf16"]
    assert make_run(settings={"bf16": False, "fp16": True}).precision == "fp16"
    assert make_run(settings={}).precision == ""
    for run in runs:
        (tmp_path / run.run_id).mkdir()
        run.save(tmp_path / run.run_id / "run.json")
    from hf_muscaling import PowerLaw, read_runs

    for table in (Series(runs), read_runs(tmp_path)):
        with pytest.warns(UserWarning, match="mixes precisions"):
            PowerLaw(objective="least_squares").fit(table)

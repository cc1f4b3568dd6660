"""Series on the Hub: every run to the last bit, parquet for the viewer, and nothing taken on trust."""

import math
import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from hf_muscaling import PowerLaw, Series
from hf_muscaling.errors import RecordError
from hf_muscaling.hub import series as module
from hf_muscaling.hub.series import series_parquet, series_schema
from tests.hub.conftest import environment
from tests.hub.helpers import small_run, small_series
from tests.hub.markdown import images, tables

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def written(tmp_path, **changes):
    """The parquet file of one run with a column's value or the file's metadata changed, past all of our checks."""
    record = module._row(small_run())
    metadata = {"format": module.FORMAT, "format_version": "1", "name": "x"} | changes.pop("metadata", {})
    schema = changes.pop("schema", series_schema()).with_metadata(metadata)
    rows = changes.pop("rows", [record | changes])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "runs.parquet")
    return tmp_path


def test_a_series_comes_back_to_the_last_bit(hub):
    series = small_series()
    pushed = series.push_to_hub("me/llama-series", landscape=b"\x89PNG")
    repo = hub.repo("me/llama-series", "dataset")
    assert set(repo.files) == {"README.md", "runs.parquet", "curves.png", "landscape.png"}
    back = Series.from_hub("me/llama-series", revision=pushed.revision)
    assert list(back) == list(series) and back.name == "llama"
    assert [run.loss.hex() for run in back if run.loss] == [run.loss.hex() for run in series if run.loss]
    proxies = Series([run for run in series if run.role == "proxy"])
    again = Series([run for run in back if run.role == "proxy"])
    assert PowerLaw().fit(again).to_json() == PowerLaw().fit(proxies).to_json()
    with hub.watch() as seen:
        assert series.push_to_hub("me/llama-series", landscape=b"\x89PNG") == pushed
    assert not [s for s in seen if s.method == "PUT" or "/commit/" in s.path]


def test_the_viewer_and_a_stranger_can_read_it(hub, tmp_path):
    """`datasets.load_dataset` in a process without this package's help; the viewer reads the same front matter."""
    small_series().push_to_hub("me/llama-series")
    program = (
        "from datasets import load_dataset\n"
        "rows = load_dataset('me/llama-series', split='train')\n"
        "print(rows.num_rows, rows[1]['loss'].hex(), rows[1]['curve'][0]['step'], rows[0]['loss'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = small_series()[1]
    assert done.stdout.split() == ["6", run.loss.hex(), "1", "None"]


def test_the_card(hub):
    series = small_series()
    series.push_to_hub("me/llama-series", title="A series", license="mit")
    card = DatasetCard(hub.repo("me/llama-series", "dataset").files["README.md"].decode())
    card.validate()
    assert card.data.pretty_name == "A series" and card.data.license == "mit"
    assert card.data.tags == ["scaling-law", "mup", "hf_muscaling"]
    files = [{"split": "train", "path": "runs.parquet"}]
    assert card.data.to_dict()["configs"] == [{"config_name": "default", "data_files": files}]
    (runs,) = tables(card.text)
    assert len(runs) == 1 + len(series) and runs[1][5] == "diverged" and runs[1][-1] == "`w0016-lr9-s0-11111111`"
    assert [i.target for i in images(card.text)] == ["curves.png"]
    assert "d" * 64 in card.text and 'role == "proxy"' in card.text


def test_home_folders_and_tokens_stay_at_home(hub, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere/else/alice")
    paths = {"data": ["/home/bob/c4.jsonl", "/somewhere/else/alice/x", "C:\\Users\\carol\\x", "/root/y", "/rooted/z"]}
    run = small_run(settings=paths, family="/Users/dave/runs", run_id="hf_abcdefghijklmnopqrstuvwxyz")
    Series([run], "/home/erin/series").push_to_hub("me/s")
    files = hub.repo("me/s", "dataset").files
    back = Series.from_hub("me/s")
    assert back[0].settings["data"] == ["~/c4.jsonl", "~/x", "~\\x", "~/y", "/rooted/z"]
    everything = files["README.md"] + repr(back[0].to_dict()).encode() + back.name.encode()
    for name in (b"alice", b"bob", b"carol", b"dave", b"erin", b"hf_abcdef"):
        assert name not in everything


def test_what_the_columns_cannot_hold(hub):
    with pytest.raises(RecordError, match="no runs"):
        Series([]).push_to_hub("me/s")
    with pytest.raises(RecordError, match="curve has columns other than"):
        series_parquet(Series([small_run(curve=[{"mfu": 0.4}])]))
    with pytest.raises(RecordError, match="D must be a whole number"):
        series_parquet(Series([small_run(D=1.5)]))
    with pytest.raises(RecordError, match="cannot be stored"):
        series_parquet(Series([small_run(D=10**30)]))
    assert not hub.seen


def nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


HOSTILE = [
    ({"loss": math.nan}, "not a positive number"),
    ({"loss": -1.0}, "not a positive number"),
    ({"loss": None}, "not a positive number"),
    ({"C": math.inf}, "C must be a positive number"),
    ({"N": 0}, "N must be a positive number"),
    ({"lr": None}, "lr must be a positive number"),
    ({"seconds": math.nan}, "not finite"),
    ({"seed": None}, "not finite"),
    ({"status": "running"}, "status must be one of"),
    ({"run_id": None}, "run_id must be a text"),
    ({"family": "x" * 200_000}, "family must be a text of at most 100,000"),
    ({"config": "[" * 90_000}, "config of run .* is not JSON, or too deep"),
    ({"config": nested(15_000)}, "config of run .* is not JSON, or too deep"),
    ({"settings": "[1]"}, "must be a JSON object"),
    ({"settings": '{"a": NaN}'}, "contains NaN"),
    ({"versions": "\x80\x04\x95"}, "is not JSON"),
    ({"curve": [{"loss": math.inf}]}, "not finite"),
    ({"curve": [None]}, "is broken or too long"),
    ({"metadata": {"format": "pickle"}}, "not a series written by"),
    ({"metadata": {"format_version": "2"}}, "format_version '2', not 1; upgrade"),
    ({"schema": pa.schema([("run_id", pa.string())])}, "other columns or types"),
    ({"schema": series_schema().append(pa.field("evil", pa.binary()))}, "other columns or types"),
]


@pytest.mark.parametrize("changes, message", HOSTILE, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in enumerate(HOSTILE)])
def test_hostile_values(tmp_path, changes, message):
    with pytest.raises(RecordError, match=message):
        Series.from_hub(written(tmp_path, **changes))


def test_what_hostile_values_were_changed_from_is_read(tmp_path):
    """The control of the test above."""
    assert list(Series.from_hub(written(tmp_path))) == [small_run()]


def test_a_run_twice(tmp_path):
    row = module._row(small_run())
    with pytest.raises(RecordError, match="twice"):
        Series.from_hub(written(tmp_path, rows=[row, row]))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """A text of 100 MB in each of 2,000 runs, which parquet stores once: 200 GB in a file of some kilobytes."""
    row = module._row(small_run()) | {"config": "x" * 10**8}
    schema = series_schema("x")
    columns = [
        pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([row["config"]])) if name == "config"
        else pa.array([row[name]] * 2000, schema.field(name).type) for name in schema.names
    ]  # fmt: skip
    table = pa.Table.from_arrays(columns, names=schema.names).replace_schema_metadata(schema.metadata)
    pq.write_table(table, tmp_path / "runs.parquet", compression="zstd")
    assert (tmp_path / "runs.parquet").stat().st_size < 10**6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RecordError, match="config must be a text of at most 100,000 characters"):
        Series.from_hub(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6  # kB, on Linux


def test_a_curve_that_is_a_bomb(tmp_path, monkeypatch):
    """Equal steps, which parquet stores as a count: the values are counted before they are unpacked."""
    step = {"step": 1, "tokens": 1, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0}
    written(tmp_path, rows=[module._row(small_run()) | {"curve": [step] * 50_000}])
    assert (tmp_path / "runs.parquet").stat().st_size < 10_000
    assert len(Series.from_hub(tmp_path)[0].curve) == 50_000
    monkeypatch.setattr(module, "MAX_VALUES", 200_000)
    with pytest.raises(RecordError, match="more than a series may"):
        Series.from_hub(tmp_path)


def test_too_many_and_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_RUNS", 0)
    with pytest.raises(RecordError, match="holds 1 runs"):
        Series.from_hub(written(tmp_path))
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(RecordError, match="more than the 100 allowed"):
        Series.from_hub(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x80\x04\x95N.", b"PAR1" * 1000, b"\x00" * 5000, b"{}"])
def test_files_that_are_no_parquet(tmp_path, content):
    (tmp_path / "runs.parquet").write_bytes(content)
    with pytest.raises(RecordError):
        Series.from_hub(tmp_path)


def test_folders_without_a_series(tmp_path):
    with pytest.raises(RecordError, match="holds no runs.parquet"):
        Series.from_hub(tmp_path)

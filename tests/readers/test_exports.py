"""Tables that others write: each layout gives back the law that made it, and asks for what it does not say."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_muscaling.errors import ConfigurationError, MuScalingError, RecordError, UnknownQuantityError
from hf_muscaling.readers import RunTable, detect_format, read_runs
from hf_muscaling.readers.files import parse_csv
from hf_muscaling.readers.table import Given
from hf_muscaling.readers.tidy import tidy

from .conftest import SIZES, TOKENS_PER_STEP, curves, recovers, write_csv

RUNS = curves(SIZES)
N_OF = {name: n for name, n, _ in RUNS}


def long_rows(columns):
    """One row per checkpoint; `columns` maps (name, N, step, tokens, loss) to cells."""
    return [columns(name, n, *point) for name, n, curve in RUNS for point in curve]


@pytest.fixture
def chart(tmp_path):
    """A wandb chart: one column a run, with its minimum and maximum."""
    header = ["Step"] + [f"{name} - train/loss{end}" for name in N_OF for end in ("", "__MIN", "__MAX")]
    steps = [point[0] for point in RUNS[0][2]]
    rows = [[s] + [curve[i][2] + k for _, _, curve in RUNS for k in (0, -0.5, 0.5)] for i, s in enumerate(steps)]
    return write_csv(tmp_path / "wandb_export.csv", header, rows)


class TestTable:
    def test_usual_names(self, tmp_path):
        rows = long_rows(lambda name, n, s, d, loss: [name, n, d, s, loss])
        path = write_csv(tmp_path / "t.csv", ["run", "params", "tokens", "step", "val_loss"], rows)
        table = read_runs(path)
        assert detect_format(path) == "table" and recovers(table)
        np.testing.assert_allclose(table["B"], TOKENS_PER_STEP)
        np.testing.assert_allclose(table["C"], 6 * table["N"] * table["D"])
        assert table["S"].tolist() == table["step"].tolist()

    @pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".json", ".parquet"])
    def test_every_file_type_gives_the_same(self, tmp_path, suffix):
        pd = pytest.importorskip("pandas")
        rows = long_rows(lambda name, n, s, d, loss: {"run_id": name, "N": n, "D": d, "loss": loss})
        frame, path = pd.DataFrame(rows), tmp_path / f"t{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif "json" in suffix:
            frame.to_json(path, orient="records", lines=suffix == ".jsonl", double_precision=15)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        table = read_runs(path)
        assert table.n_rows == len(rows)
        np.testing.assert_allclose(table["loss"], frame["loss"], rtol=1e-12)

    def test_round_trip(self, tmp_path):
        table = read_runs(write_csv(tmp_path / "t.csv", ["N", "D", "loss", "name"], [[1e6, 1e8, 0.1 + 3, 'a,"b']]))
        table.to_csv(tmp_path / "out.csv")
        again = read_runs(tmp_path / "out.csv")
        assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in table.items()}

    def test_short_numbers_units_and_compute(self, tmp_path):
        path = write_csv(tmp_path / "t.csv", ["size", "flops", "ppl"], [["125M", "3e18", np.exp(3.0)]])
        table = read_runs(path)
        np.testing.assert_allclose([table["N"][0], table["D"][0], table["loss"][0]], [1.25e8, 4e9, 3.0])
        assert any("perplexity" in n for n in table.notes) and any("C/(6·N)" in n for n in table.notes)
        bits = read_runs(path, loss="ppl", loss_unit="bits")
        np.testing.assert_allclose(bits["loss"], np.exp(3.0) * np.log(2))

    def test_held_out_loss_is_preferred_and_said(self, tmp_path):
        path = write_csv(tmp_path / "t.csv", ["N", "D", "loss", "eval_loss"], [[1e6, 1e8, 3.0, 3.2]])
        table = read_runs(path)
        assert table["loss"][0] == 3.2 and any("'loss'" in n for n in table.notes)
        assert read_runs(path, loss="loss")["loss"][0] == 3.0

    def test_rows_before_training_and_without_loss_are_left_out(self, tmp_path):
        path = write_csv(tmp_path / "t.csv", ["N", "D", "loss"], [[1e6, 0, 11], [1e6, 1e8, ""], [1e6, 2e8, 3.1]])
        table = read_runs(path)
        assert table.n_rows == 1 and len([n for n in table.notes if "left out" in n]) == 2

    def test_a_diverged_run_is_refused_then_left_out(self, tmp_path):
        path = write_csv(tmp_path / "t.csv", ["run", "N", "D", "loss"], [["a", 1e6, 1e8, 3], ["b", 1e6, 1e8, "NaN"]])
        with pytest.raises(RecordError, match=r"row 2, run 'b'.*drop_bad"):
            read_runs(path)
        assert read_runs(path, drop_bad=True).n_rows == 1

    def test_where_and_count(self, tmp_path):
        rows = [["a", 1e6, "", 1e8, 3], ["b", "", 8e5, 1e8, 3]]
        path = write_csv(tmp_path / "t.csv", ["kind", "params", "params_non_embed", "tokens", "loss"], rows)
        assert read_runs(path, where={"kind": "a"})["N"].tolist() == [1e6]
        bare = read_runs(path, where={"kind": "b"}, count="non_embedding")
        assert bare["N"].tolist() == bare["N_non_embedding"].tolist() == [8e5]
        with pytest.raises(RecordError, match="where="):
            read_runs(path)
        with pytest.raises(ConfigurationError, match="it holds a, b"):
            read_runs(path, where={"kind": "c"})

    @pytest.mark.parametrize(
        ("header", "row", "asked"),
        [
            (["N", "loss"], [1e6, 3], r"how many tokens.*B=…"),
            (["D", "loss"], [1e6, 3], r"how many parameters.*N=…"),
            (["N", "D", "accuracy"], [1e6, 1e8, 0.3], r"which column is the loss.*--loss"),
            (["params_non_embed", "D", "loss"], [1e6, 1e8, 3], "count='non_embedding'"),
        ],
    )
    def test_what_is_missing_is_asked_for(self, tmp_path, header, row, asked):
        with pytest.raises(UnknownQuantityError, match=asked):
            read_runs(write_csv(tmp_path / "t.csv", header, [row]))

    def test_needs_follow_the_law(self, tmp_path):
        path = write_csv(tmp_path / "t.csv", ["N", "loss"], [[1e6, 3]])
        assert "D" not in read_runs(path, need=("N", "loss"))
        with pytest.raises(UnknownQuantityError, match="an optimizer step takes"):
            read_runs(path, need=("N", "B", "loss"))


class TestTracker:
    def test_a_wandb_chart(self, chart):
        assert detect_format(chart) == "tracker"
        table = read_runs(chart, N=N_OF, B=TOKENS_PER_STEP)
        assert recovers(table) and set(table["run_id"]) == set(N_OF)

    def test_it_asks_for_parameters_then_tokens(self, chart):
        with pytest.raises(UnknownQuantityError, match="--N RUN=1.2e8"):
            read_runs(chart)
        with pytest.raises(UnknownQuantityError, match="--B"):
            read_runs(chart, N=N_OF)
        with pytest.raises(UnknownQuantityError, match="not for 'run-4'"):
            read_runs(chart, N={k: v for k, v in N_OF.items() if k != "run-4"}, B=1)

    def test_a_chart_over_tokens_with_gaps(self, tmp_path):
        path = write_csv(
            tmp_path / "c.csv",
            ["num_input_tokens_seen", "gpt-10M - eval/loss", "my - gpt-20M - eval/loss"],
            [[1e6, 4.0, ""], [2e6, "", 3.5], [3e6, 3.7, 3.4]],
        )
        table = read_runs(path, N="name")
        assert table["N"].tolist() == [1e7, 1e7, 2e7, 2e7] and table["D"].tolist() == [1e6, 3e6, 2e6, 3e6]
        assert set(table["run_id"]) == {"gpt-10M", "my - gpt-20M"}

    def test_the_metric_is_asked_for(self, tmp_path):
        path = write_csv(tmp_path / "c.csv", ["Step", "a - x", "a - y"], [[1, 4.0, 3.0]])
        with pytest.raises(UnknownQuantityError, match="metrics are x, y"):
            read_runs(path, N=1e6, B=1)
        assert read_runs(path, N=1e6, B=1, loss="y")["loss"].tolist() == [3.0]

    def test_trackio_history(self, tmp_path):
        rows = long_rows(lambda name, n, s, d, loss: ["2026-01-01", name, s, loss, 1e-3])
        path = write_csv(tmp_path / "project.csv", ["timestamp", "run_name", "step", "train/loss", "train/lr"], rows)
        assert recovers(read_runs(path, N=N_OF, B=TOKENS_PER_STEP))

    def test_a_folder_of_histories(self, tmp_path):
        for name, _, curve in RUNS:
            write_csv(tmp_path / f"{name}.csv", ["_step", "loss"], [[s, loss] for s, _, loss in curve])
        table = read_runs(tmp_path, N=N_OF, B=TOKENS_PER_STEP)
        assert recovers(table) and set(table["run_id"]) == set(N_OF)

    def test_a_run_without_held_out_loss_does_not_vanish(self, tmp_path):
        rows = [["a", 10, 3.0, 3.1], ["a", 20, 2.9, ""], ["b", 10, 2.8, ""], ["b", 20, 2.7, ""]]
        path = write_csv(tmp_path / "p.csv", ["run", "step", "loss", "eval_loss"], rows)
        table = read_runs(path, N=1e6, B=10)
        assert table.n_rows == 4 and set(table["run_id"]) == {"a", "b"}


class TestColpret:
    HEADER = ["model_name", "scaled_set", "num_params", "tokens_seen", "seed", "loss_cols", "loss", "x_ppl"]

    def test_checkpoints(self, tmp_path):
        rows = long_rows(lambda name, n, s, d, loss: [name, "GPT", n, d, 0, "('loss',)", loss, ""])
        path = write_csv(tmp_path / "c.csv", self.HEADER, rows)
        table = read_runs(path)
        assert detect_format(path) == "colpret" and recovers(table) and table.families() == ["GPT"]

    def test_seeds_are_runs_and_perplexity_is_logged(self, tmp_path):
        rows = [["m", "", "7B", "4B", seed, "['x_ppl']", "", np.exp(2.0)] for seed in (0, 1)]
        table = read_runs(write_csv(tmp_path / "c.csv", self.HEADER, rows))
        assert set(table["run_id"]) == {"m-seed0", "m-seed1"} and table["N"].tolist() == [7e9, 7e9]
        np.testing.assert_allclose(table["loss"], 2.0)

    def test_loss_cols_are_never_evaluated(self, tmp_path):
        bomb = "(__import__('os').mkdir('" + str(tmp_path / "owned") + "'),)"
        read_runs(write_csv(tmp_path / "c.csv", self.HEADER, [["m", "G", 1e6, 1e8, 0, bomb, 3.0, ""]]))
        assert not (tmp_path / "owned").exists()


class TestLadder:
    LOSS = "eval/c4_en-validation/CrossEntropyLoss"

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "ladder"
        folder.mkdir()
        for _, n, curve in RUNS:
            rows = [[s, d, TOKENS_PER_STEP, loss, loss + 1] for s, d, loss in curve]
            header = [
                "_step",
                "throughput/total_tokens",
                "batch_size_in_tokens",
                self.LOSS,
                "eval/pile/CrossEntropyLoss",
            ]
            write_csv(folder / f"{n / 1e6:g}M-1xC.csv", header, rows)
        return folder

    def test_sizes_from_names(self, folder):
        assert detect_format(folder) == "ladder"
        with pytest.raises(UnknownQuantityError, match="'name'"):
            read_runs(folder)
        table = read_runs(folder, N="name")
        assert recovers(table) and any("nominal" in n for n in table.notes)

    def test_sizes_from_the_config(self, folder):
        config = {
            f"s{n:g}": {"paths": [f"data/{n / 1e6:g}M-1xC.csv"], "mode": "train", "n": int(n), "label": "", "color": ""}
            for n in SIZES
        }
        (folder / "c.json").write_text(json.dumps(config))
        table = read_runs(folder, format="ladder", config=folder / "c.json")
        assert recovers(table) and table["N"].tolist() == table["N_non_embedding"].tolist()
        with pytest.raises(ConfigurationError, match="either config"):
            read_runs(folder, format="ladder", config=folder / "c.json", N=1e6)

    def test_tokens_from_steps_and_another_loss(self, folder, tmp_path):
        path = write_csv(tmp_path / "1M-1xC.csv", ["_step", "batch_size_in_tokens", "a", "b"], [[5, 100, 3.0, 4.0]])
        table = read_runs(path, N="name", loss="b")
        assert table["D"].tolist() == [500.0] and table["loss"].tolist() == [4.0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", b"", "first line"),
            ("a.csv", b"N,D,loss\n", "no rows"),
            ("a.csv", b"N,D,loss\n1,2\n", "2 cells"),
            ("a.csv", b"N,N,loss\n1,2,3\n", "two columns"),
            ("a.csv", b"N,D,loss\n1,2,\x003\n", "NUL"),
            ("a.csv", b"\xff\xfe\x00", "UTF-8"),
            ("a.csv.gz", b"not gzip", "cannot be opened"),
            ("a.json", b"[" * 100_000, "not valid JSON"),
            ("a.json", b'{"N": [1], "loss": [1, 2]}', "different lengths"),
            ("a.json", b"3", "neither a list"),
            ("a.jsonl", b"{\n", "line 1"),
            ("a.jsonl", b"3\n", "not an object"),
            ("a.parquet", b"PAR1", "not a parquet"),
            ("a.pkl", b"cos\nsystem\n", "none of .csv"),
            ("a.csv", b"N,D,loss\n1e6,1e8,three\n", "'three'"),
            ("a.csv", b"N,D,loss\n1e6,-1e8,3\n", "'-1e8'"),
            ("a.csv", b"N,D,loss\n1e6,1e999,3\n", "'1e999'"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordError, match=message):
            read_runs(tmp_path / name, format="table")

    def test_sizes_are_bounded(self, tmp_path, monkeypatch):
        import gzip

        from hf_muscaling.readers import files

        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"N,D,loss\n" + b"1,1,1\n" * 5000))
        with pytest.raises(RecordError, match="unpacks to more"):
            files.read_bytes(tmp_path / "a.csv.gz", limit=10_000)
        monkeypatch.setattr(files, "MAX_ROWS", 100)
        with pytest.raises(RecordError, match="more than 100 rows"):
            read_runs(tmp_path / "a.csv.gz")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(RecordError, match="no such file"):
            read_runs(tmp_path / "missing.csv")
        with pytest.raises(RecordError, match="it holds no trainer_state"):
            read_runs(tmp_path)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sise": 3}, "Unknown option 'sise'"),
            ({"count": "all"}, "count='all'"),
            ({"loss_unit": "bytes"}, "loss_unit"),
            ({"N": -1}, "N=-1"),
            ({"B": True}, "B=True"),
            ({"N": {"a": float("nan")}}, "N="),
            ({"where": "x"}, "where"),
            ({"need": "loss"}, "need"),
            ({"format": "xls"}, "format='xls'"),
            ({"loss": "nope"}, "no column 'nope'"),
        ],
    )
    def test_a_bad_option_is_named(self, tmp_path, options, message):
        path = write_csv(tmp_path / "t.csv", ["N", "D", "loss"], [[1e6, 1e8, 3]])
        with pytest.raises(ConfigurationError, match=message):
            read_runs(path, **options)


def clean(table):
    """What every table that comes out must satisfy."""
    assert isinstance(table, RunTable)
    for name in ("N", "D", "loss"):
        assert np.isfinite(table[name]).all() and (table[name] > 0).all()
    assert len({len(v) for v in table.values()}) == 1


CELLS = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.text(max_size=8),
    st.sampled_from(["", "NaN", "7B", "1e400", "-0"]),
)
NAMES = st.sampled_from(["N", "D", "loss", "step", "run", "a - loss", "params", "B", "ppl", "seed", "flops"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=1, max_size=6), st.lists(st.lists(CELLS, min_size=6, max_size=6), max_size=4))
def test_any_table_is_read_or_refused(names, rows):
    text = ",".join(names) + "\n"
    text += "".join(",".join('"' + c.replace('"', '""') + '"' for c in row[: len(names)]) + "\n" for row in rows)
    try:
        clean(tidy(parse_csv(text), "fuzz", Given()))
    except MuScalingError as error:
        assert str(error)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_csv_or_refused(text):
    try:
        clean(tidy(parse_csv(text), "fuzz", Given(N=1e6, D=1e8)))
    except MuScalingError as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=JSON)
def test_any_json_is_read_or_refused(tmp_path, document):
    (tmp_path / "f.json").write_text(json.dumps(document))
    for format in (None, "trainer", "tracker", "colpret", "series"):
        try:
            clean(read_runs(tmp_path / "f.json", format=format))
        except MuScalingError as error:
            assert str(error)


def test_steps_of_finished_runs_are_no_checkpoints(tmp_path):
    """`S` says how long a run was; only `step` makes rows of one size checkpoints of one run."""
    path = write_csv(tmp_path / "t.csv", ["N", "S", "B", "loss"], [[1e6, 100, 10, 3.0], [1e6, 200, 10, 2.9]])
    table = read_runs(path)
    assert "step" not in table and table["D"].tolist() == [1000, 2000]


def test_a_trackers_own_counter_is_pointed_out(chart, tmp_path):
    """wandb's Step may count log calls; a column of true steps wins, and where there is none the notes warn."""
    assert any("own counter" in note for note in read_runs(chart, N=N_OF, B=1).notes)
    path = write_csv(tmp_path / "h.csv", ["_step", "train/global_step", "loss"], [[1, 100, 3.0], [2, 200, 2.9]])
    table = read_runs(path, N=1e6, B=10)
    assert table["D"].tolist() == [1000, 2000] and not any("own counter" in note for note in table.notes)


def test_total_tokens_are_spread_over_checkpoints(tmp_path):
    rows = [["a", 10, 3.0], ["a", 20, 2.9], ["b", 40, 2.8]]
    path = write_csv(tmp_path / "h.csv", ["run", "global_step", "loss"], rows)
    assert read_runs(path, N=1e6, D={"a": 1000, "b": 800})["D"].tolist() == [500, 1000, 800]


def test_where_knows_the_usual_names(tmp_path):
    rows = [["m", "x", 1e6, 1e8, 3.0], ["n", "y", 1e6, 1e8, 2.9]]
    path = write_csv(tmp_path / "t.csv", ["model_name", "scaled_set", "num_params", "tokens_seen", "loss"], rows)
    assert read_runs(path, where={"family": "y"})["loss"].tolist() == [2.9]


def test_a_wandb_table_of_runs(tmp_path):
    """The table view's export with an index column: a row a run, final values, N as the Trainer's callback logs it."""
    tokens = "train/num_input_tokens_seen"
    header = ["", "Name", "State", "Group", "model/num_parameters", tokens, "train/loss", "eval/loss"]
    rows = [[i, name, "finished", "", n, curve[-1][1], 9.0, curve[-1][2]] for i, (name, n, curve) in enumerate(RUNS)]
    table = read_runs(write_csv(tmp_path / "runs.csv", header, rows))
    assert table["N"].tolist() == SIZES and "family" not in table
    assert table["loss"].tolist() == [curve[-1][2] for _, _, curve in RUNS]


HEAD = "N,D,loss\n"
BARE = "1e7,1e9,3.0\n1e8,1e9,2.8\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + '"50,000,000",1e9,3\n', "without thousands separators"),
        (HEAD + "1e7,1e9,37.5%\n", "without a percent sign"),
        (HEAD.replace(",", ";") + "1e7;1e9;3,7545\n", "with a decimal point, not a comma"),
        (HEAD + "1e7,1e9,\n1e8,1e9,\n", "column 'loss' is empty in every row"),
        (HEAD + ",1e9,3\n,1e9,2\n", "column 'N' is empty in every row"),
        ('N,B,step,loss\n1e7,512,"1,024",3\n', "'step' cannot be read: '1,024', expected numbers without thousands"),
        ("run_id,N,D,loss\nx,1e7,1e9,3\nx,1e8,1e9,2\n", r"run_id 'x' has 2 different N \(1e\+07 to 1e\+08\)"),
        ("N,loss\n1e7,3\n", "--law power"),
    ],
)
def test_the_error_names_the_cause(tmp_path, text, said):
    (path := tmp_path / "runs.csv").write_text(text)
    with pytest.raises((RecordError, UnknownQuantityError), match=said):
        read_runs(path)


def test_one_name_for_checkpoints_and_own_names_for_sizes_are_right(tmp_path):
    (path := tmp_path / "runs.csv").write_text("run_id,N,D,loss\na,1e7,1e9,3\na,1e7,2e9,2.9\nb,1e8,1e9,2\n")
    assert read_runs(path).n_rows == 3

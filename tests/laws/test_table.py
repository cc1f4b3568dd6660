"""Every layout is read; every bad table is named."""

import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.laws import ChinchillaLaw, PowerLaw
from hf_muscaling.laws.table import read_table
from hf_muscaling.runs import Run, Series

COLUMNS = {"N": [1e6, 2e6, 4e6], "loss": [3.0, 2.8, 2.7]}
ROWS = [{"N": n, "loss": loss} for n, loss in zip(COLUMNS["N"], COLUMNS["loss"], strict=True)]


class Rows:
    """The part of `hf_muscaling.runs.Series` that laws use."""

    def to_rows(self):
        return [dict(row, run_id=f"w{i}", seed=i, family=None) for i, row in enumerate(ROWS)]


def layouts():
    pandas, pyarrow, datasets = (pytest.importorskip(m) for m in ("pandas", "pyarrow", "datasets"))
    yield from (
        COLUMNS,
        ROWS,
        tuple(ROWS),
        Rows(),
        pandas.DataFrame(COLUMNS),
        pandas.DataFrame(COLUMNS, index=[7, 7, 9]),
        pyarrow.table(COLUMNS),
        datasets.Dataset.from_dict(COLUMNS),
        {k: np.array(v) for k, v in COLUMNS.items()},
        np.rec.fromarrays(list(COLUMNS.values()), names=list(COLUMNS)),
        {"N": [1000000, 2000000, 4000000], "loss": np.float32([3.0, 2.8, 2.7])},
    )


def test_layouts():
    seen = 0
    for table in layouts():
        out = read_table(table, ["N", "loss"])
        np.testing.assert_allclose(out["N"], COLUMNS["N"])
        np.testing.assert_allclose(out["loss"], COLUMNS["loss"], rtol=1e-6)
        seen += 1
    assert seen == 11


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": [3.0, float("nan"), 2.7]}, r"'loss', row 1: .*diverged"),
        ({"loss": [3.0, 2.8, float("inf")]}, "row 2"),
        ({"loss": [3.0, -2.8, 2.7]}, "> 0"),
        ({"loss": [3.0, 0, 2.7]}, "> 0"),
        ({"N": [0, 1e6, 2e6]}, "'N', row 0"),
        ({"N": [-1, 1e6, 2e6]}, "parameters with embeddings"),
        ({"N": ["1M", 1e6, 2e6]}, "'1M'"),
        ({"N": ["1e6", "2e6", "3e6"]}, "expected a number"),
        ({"loss": [3.0, None, 2.7]}, "found None"),
        ({"loss": [True, 2.8, 2.7]}, "found True"),
        ({"loss": [3.0, 2.8]}, "different lengths"),
        ({"loss": [[3.0], [2.0], [1.0]]}, r"found \[3.0\]"),
        ({"loss": 3.0}, "one value per run"),
        ({"loss": "3.0"}, "one value per run"),
        ({"N": [], "loss": []}, "no rows"),
        ({"N": [10**400, 1, 2]}, "expected a number"),
        ({"N": [1 + 2j, 1, 2]}, "expected a number"),
        ({"weight": [0, 0, 0]}, "weight is 0"),
        ({"weight": [1, -1, 1]}, "'weight', row 1"),
    ],
)
def test_bad_columns(change, message):
    with pytest.raises(FitError, match=message):
        PowerLaw().fit(COLUMNS | change)


@pytest.mark.parametrize(
    "table, message",
    [
        (None, "NoneType"),
        (3, "int"),
        ("runs.csv", "pandas.read_csv"),
        ([], "no column|no rows"),
        ([1, 2], "list"),
        ({}, "no column 'N'"),
        ({"params": [1], "loss": [3]}, "Rename 'params' to 'N'"),
        ({"N": [1e6], "eval_loss": [3]}, "Rename 'eval_loss'"),
    ],
)
def test_bad_layouts(table, message):
    with pytest.raises(FitError, match=message):
        PowerLaw().fit(table)


def test_error_names_the_run():
    with pytest.raises(FitError, match=r"row 2 \(run 'w256'\)"):
        read_table({"N": [1, 2, 3], "loss": [1, 1, float("nan")], "run_id": ["w64", "w128", "w256"]}, ["N", "loss"])


def test_missing_non_embedding_column():
    with pytest.raises(FitError, match='count="total"'):
        PowerLaw(count="non_embedding").fit(COLUMNS)


def test_repeated_rows_warn_and_seeds_do_not():
    with pytest.warns(UserWarning, match="1 rows repeat"):
        read_table({"N": [1e6, 1e6, 2e6], "loss": [3.0, 3.0, 2.8]}, ["N", "loss"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table({"N": [1e6, 1e6, 2e6], "loss": [3.0, 3.01, 2.8]}, ["N", "loss"])


def test_rows_that_differ_elsewhere_are_no_copies():
    rows = {"N": [1e6, 1e6, 2e6, 4e6, 4e6], "loss": [3.0, 3.0, 2.8, 2.7, 2.7]}
    other = {"D": [1e9, 2e9, 1e9, 1e9, 3e9], "seed": [0, 1, 0, 0, 1], "run_id": list("abcde"), "C": [None, 1, 1, 1, 2]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, values in other.items():
            read_table(rows | {name: values}, ["N", "loss"])
    with pytest.warns(UserWarning, match=r"1 rows repeat .*\(same N, loss, D\).*copies count as if .* independent"):
        read_table(rows | {"D": [1e9, 1e9, 1e9, 1e9, 3e9]}, ["N", "loss"])
    with pytest.warns(UserWarning, match=r"2 rows repeat another row exactly \(same N, loss\)"):
        read_table(rows | {"note": list("abcde")}, ["N", "loss"])  # a column of unknown meaning


def test_a_stored_law_and_a_summary_repeat_no_warning():
    rows = {"N": [1e6, 1e6, 2e6, 4e6, 8e6], "D": [1e9, 1.01e9, 1e9, 1e9, 1e9], "loss": [3.0, 3.0, 2.8, 2.67, 2.6]}
    law = PowerLaw().fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law.summary()
        PowerLaw.from_json(law.to_json())


def test_mixed_units_warn():
    with pytest.warns(UserWarning, match="one token per 1000"):
        read_table({"N": [1e9], "D": [20], "loss": [3.0]}, ["N", "D", "loss"])


def test_a_law_says_that_its_runs_mix_precisions(recwarn):
    from hf_muscaling import PowerLaw

    table = {"N": [1e6, 2e6, 4e6, 8e6, 1.6e7], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6, 1.6e7)]}
    for same in (["fp32"] * 5, ["", "fp32", "fp32", "", "fp32"]):
        assert "precision" not in PowerLaw(objective="least_squares").fit(table | {"precision": same}).summary()
    assert not [w for w in recwarn if "precision" in str(w.message)]
    mixed = table | {"precision": ["fp32", "fp32", "fp32", "bf16", "bf16"]}
    with pytest.warns(UserWarning, match=r"mixes precisions \(2 in bf16, 3 in fp32\).*one precision"):
        law = PowerLaw(objective="least_squares").fit(mixed)
    assert "mixed precisions: 2 in bf16, 3 in fp32" in law.summary()
    assert "mixed precisions" in PowerLaw.from_json(law.to_json()).summary()


def test_a_row_in_another_unit_is_pointed_out():
    runs = [
        {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37}
        for n in (5e7, 2e8, 8e8, 3e9)
        for d in (1e9, 4e9, 1.6e10, 6e10)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChinchillaLaw().fit(runs)  # the control: nothing is said of sound runs
    runs[12]["N"] = 1000.0  # millions by mistake
    with pytest.warns(UserWarning, match=r"The run at N = 1000, D = 1e\+09 has loss .*check its units"):
        ChinchillaLaw().fit(runs)


def test_arguments_of_the_wrong_kind():
    table = {"N": [1e7, 2e7, 4e7, 8e7], "loss": [4.0, 3.7, 3.5, 3.35]}
    with pytest.raises(ConfigurationError, match="prior='x' must be a mapping"):
        ChinchillaLaw(prior="x")
    with pytest.raises(ConfigurationError, match="level=None must lie between 0 and 1"):
        PowerLaw().fit(table).predict(N=1e9, level=None)
    grid = [(n, d) for n in (5e7, 4e8, 3e9) for d in (1e9, 8e9, 6e10)]
    runs = [{"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37} for n, d in grid]
    with pytest.raises(ConfigurationError, match=r"arrays that do not go together: N \(3,\), D \(2,\)"):
        ChinchillaLaw().fit(runs).predict(N=[1e9, 2e9, 3e9], D=[1e9, 2e9])
    with pytest.raises(FitError, match="is no irreducible loss of these runs"):
        ChinchillaLaw(fixed={"E": 50}).fit(runs)


def test_a_list_of_runs_is_read_as_their_series():
    def run(n, loss):
        at = {"N": n, "N_non_embedding": n, "D": 10, "S": 1, "B": 10, "C": 1.0, "width": 1, "seed": 0, "lr": 0.1}
        return Run(f"n{n}", "diverged" if loss is None else "finished", loss=loss, **at)

    runs = [run(1_000_000, 3.0), run(2_000_000, 2.8), run(3_000_000, None), run(4_000_000, 2.7)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PowerLaw().fit(runs).params_ == PowerLaw().fit(Series(runs)).params_ == PowerLaw().fit(ROWS).params_
    with pytest.raises(FitError, match="a list of Runs"):
        PowerLaw().fit([*runs, {"N": 1}])
    with pytest.raises(FitError, match="no rows|no column"):
        PowerLaw().fit([run(1_000_000, None)])

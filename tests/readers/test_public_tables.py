"""Public tables of real runs go through the readers as they lie; skipped where they are not at hand."""

from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.errors import RecordError, UnknownQuantityError
from hf_muscaling.readers import read_runs

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the public tables are not at hand")


@pytest.mark.parametrize(
    ("name", "options", "rows", "runs"),
    [
        ("chinchilla_epoch.csv", {}, 245, 245),
        ("batchsize_nqs_train.csv", {}, 73, 73),
        ("datablations_c4_finals.csv", {"where": {"note": "single_epoch"}}, 33, 33),
        ("datablations_c4_curves.csv.gz", {}, 2344, 24),
        ("mpl_curves_25M.csv.gz", {"B": 1e6}, 2059, 9),
        ("seed_noise_gpt2s.csv.gz", {"count": "non_embedding"}, 900, 75),
        ("porian_rw.csv", {"where": {"note": "count=kaplan"}, "count": "non_embedding"}, 211, None),
    ],
)
def test_every_table_is_read(name, options, rows, runs):
    table = read_runs(DATA / name, **options)
    assert table.n_rows == rows and (runs is None or len(set(table["run_id"])) == runs)
    assert all(np.isfinite(table[c]).all() and (table[c] > 0).all() for c in ("N", "D", "loss"))


def test_what_they_do_not_say_is_asked_for():
    with pytest.raises(UnknownQuantityError, match="B=…"):
        read_runs(DATA / "mpl_curves_25M.csv.gz")
    with pytest.raises(UnknownQuantityError, match="count='non_embedding'"):
        read_runs(DATA / "seed_noise_gpt2s.csv.gz")
    with pytest.raises(RecordError, match="where="):
        read_runs(DATA / "porian_rw.csv")

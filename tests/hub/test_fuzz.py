"""500 damaged or malicious law and series files: read, or refused with RecordError; nothing written, nothing run."""

import copy
import json
import pickle
import random

import pytest

from hf_muscaling import PowerLaw, ScalingLaw, Series
from hf_muscaling.errors import RecordError
from hf_muscaling.hub.laws import law_files
from hf_muscaling.hub.series import series_parquet
from tests.hub.helpers import small_law, small_series

pytestmark = pytest.mark.filterwarnings("ignore")
JUNK = [
    None, True, -1, 0, 1e308, 5e-324, 10**400, "", "x", "../../evil", "<script>", "\ud800", [], [1], {}, {"a": 1},
    float("nan"), float("inf"), [[[[]]]], -0.0, "a\n---\nb", ["me/x"] * 5000, {"proxies": "me/x"}, "x" * 10**6,
]  # fmt: skip


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


def guarded(read, folder):
    """Whether a folder was refused; anything but RecordError is a failure, and so is a file more than before."""
    before = sorted(folder.parent.rglob("*"))
    try:
        found = read(folder)
    except RecordError as error:
        assert 20 < len(str(error)) < 1000
        refused = True
    else:
        refused = False
        if isinstance(found, PowerLaw):
            found.predict(N=1e6)
            found.summary()
        else:
            assert all(run.N > 0 for run in found)
    assert sorted(folder.parent.rglob("*")) == before
    return refused


def edited(record, rng):
    """A JSON record with one value, at any depth, replaced by junk, or removed."""
    record = copy.deepcopy(record)
    place, key = record, rng.choice(list(record))
    while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    place[key] = rng.choice(JUNK)
    if rng.random() < 0.1:
        del place[key]
    return record


def damaged(content, rng):
    """Bytes cut, overwritten or repeated somewhere."""
    i, n = rng.randrange(len(content)), rng.randrange(1, 40)
    return rng.choice([
        content[:i], content[:i] + rng.randbytes(n) + content[i + n :], content[:i] + content[i + n :],
        content[: i + n] + content[i:], content[:i] + b"\x00" * n + content[i + n :],
    ])  # fmt: skip


def test_laws(tmp_path, no_pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    folder = tmp_path / "inside" / "law"
    folder.mkdir(parents=True)
    good = law_files(small_law(), "me/law", series="me/s@0123456", proxies=["me/a@0123456"])["config.json"]
    record = json.loads(good)
    files = [json.dumps(edited(record, rng)).encode() for _ in range(150)]
    files += [damaged(good, rng) for _ in range(92)]
    many = record | {"rows": {"N": [1] * 600_000, "loss": [1] * 600_000}}
    files += [pickle.dumps(record), pickle.dumps(Evil()), b"[" * 10**6, b'{"a":' * 10**5, b"", b"\xff\xfe{}"]
    files += [b"9" * 10**5, json.dumps(many).encode()]
    assert len(files) == 250
    refused = 0
    for content in files:
        (folder / "config.json").write_bytes(content)
        refused += guarded(ScalingLaw.from_pretrained, folder)
    assert 200 < refused < 250
    (folder / "config.json").write_bytes(good)
    assert not guarded(ScalingLaw.from_pretrained, folder)


def test_series(tmp_path, monkeypatch):
    """Half are valid parquet with hostile values, written as an attacker would, half are damaged bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hf_muscaling.hub import series as module

    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    folder = tmp_path / "inside" / "series"
    folder.mkdir(parents=True)
    good = series_parquet(small_series())
    rows = [module._row(run) for run in small_series()]
    files = []
    while len(files) < 120:
        changed = copy.deepcopy(rows)
        row = rng.choice(changed)
        name = rng.choice(list(row))
        if name in module.OBJECTS:
            row[name] = json.dumps(rng.choice(JUNK))
        elif name in module.TEXTS:
            row[name] = rng.choice([None, "", "../../evil", "<script>", "a\n---\nb", "x" * 10**6])
        elif name == "curve":
            row[name] = rng.choice([None, [], [None], [{"loss": rng.choice([float("nan"), -1.0, 1e308])}]])
        else:
            extremes = [float("nan"), float("inf"), 5e-324, 1e308] if name in module.NUMBERS else [2**62, -(2**62)]
            row[name] = rng.choice([None, 0, -1, *extremes])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(changed, schema=module.series_schema("x")), sink)
        files.append(sink.getvalue().to_pybytes())
    files += [damaged(good, rng) for _ in range(127)]
    files += [pickle.dumps(rows), pickle.dumps(Evil()), b""]
    assert len(files) == 250
    refused = 0
    for content in files:
        (folder / "runs.parquet").write_bytes(content)
        refused += guarded(Series.from_hub, folder)
    assert 120 < refused < 250
    (folder / "runs.parquet").write_bytes(good)
    assert not guarded(Series.from_hub, folder)

"""JSON round trips to the last bit, and refuses everything else cleanly."""

import copy
import json
import random

import pytest

from hf_muscaling.errors import RecordError
from hf_muscaling.laws import PowerLaw, Prediction, ScalingLaw

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def law(nanolm):
    n, loss = nanolm["gpt64"]
    return PowerLaw().fit({"N": n[:8] * 1e9, "loss": loss[:8], "weight": [1, 1, 1, 1, 2, 1, 1, 1]})


@pytest.mark.parametrize("objective", ["bayes", "huber", "least_squares", "lad"])
def test_round_trip_is_exact(nanolm, tmp_path, objective):
    n, loss = nanolm["gpt12"]
    law = PowerLaw(objective).fit({"N": n * 1e6, "loss": loss})
    path = tmp_path / "law.json"
    text = law.to_json(path)
    for back in (
        PowerLaw.from_json(path),
        PowerLaw.from_json(str(path)),
        PowerLaw.from_json(text),
        ScalingLaw.from_json(json.loads(text)),
    ):
        assert back.predict(N=1.3e9, level=0.8) == law.predict(N=1.3e9, level=0.8)
        assert back.summary() == law.summary() and back.settings() == law.settings() and back.to_json() == text
    assert [p.name for p in tmp_path.iterdir()] == ["law.json"]


def test_prediction_is_one_of_the_fit(law):
    """The control of the round trip: another table gives another prediction."""
    other = PowerLaw.from_json(law.to_json()).fit({"N": [1e9, 2e9, 4e9, 8e9], "loss": [3.4, 3.1, 2.95, 2.9]})
    assert isinstance(other.predict(N=1e10), Prediction) and other.predict(N=1e10) != law.predict(N=1e10)


def test_record_says_what_it_is(law):
    record = json.loads(law.to_json())
    assert record["format_version"] == 1 and record["law"] == "PowerLaw" and record["settings"]["count"] == "total"
    assert record["units"] == {"loss": "nats per token", "N": "parameters with embeddings"}
    assert record["range"]["N"] == [0.077e9, 3.432e9] and len(record["rows"]["loss"]) == 8


EDITS = [
    (("format",), "pickle"),
    (("format_version",), 2),
    (("format_version",), True),
    (("format_version",), "1"),
    (("equation",), 7),
    (("equation",), None),
    (("equation",), "x" * 1000),
    (("units",), "nats"),
    (("units",), None),
    (("units", "N"), 3),
    (("units", "N"), {"a": 1}),
    (("law",), "EvilLaw"),
    (("law",), ["PowerLaw"]),
    (("settings",), {"objective": "bayes", "__class__": 1}),
    (("settings",), []),
    (("settings", "count"), "all"),
    (("settings", "objective"), 3),
    (("params", "a"), "1"),
    (("params", "b"), 0.5),
    (("params", "c"), -1),
    (("params", "c"), 2.0),
    (("params", "a"), 10**400),
    (("params", "a"), True),
    (("params",), {"a": 1}),
    (("params",), {"a": 1, "b": -1, "c": 1, "d": 1}),
    (("rows",), {}),
    (("rows", "loss"), [1, 2]),
    (("rows", "N"), "1e9"),
    (("rows", "loss"), {"0": 3}),
    (("rows",), [1]),
    (("objective_value",), None),
    (("objective_value",), 0.5),
    (("range", "N"), [1, 2]),
    (("range", "N"), None),
]


@pytest.mark.parametrize("path, value", EDITS, ids=[f"{'.'.join(p)}={str(v)[:12]}" for p, v in EDITS])
def test_edited_records_are_refused(law, path, value):
    record = json.loads(law.to_json())
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RecordError, match="to_json"):
        ScalingLaw.from_json(record)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "[1, 2]",
        '{"format": NaN}',
        '{"format": "hf_muscaling.law", "format_version": 1e999}',
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"format": ' + "9" * 10_000 + "}",
        '{"format": "\\ud800"}',
        "{\x00}",
        '{"format": "hf_muscaling.law", "format_version": -Infinity}',
    ],
)
def test_hostile_text(text):
    with pytest.raises(RecordError):
        PowerLaw.from_json(text)


@pytest.mark.parametrize("source", [None, 3, b"{}", [], "no/such/file.json", "a\x00b", "x" * 10_000])
def test_hostile_sources(source):
    with pytest.raises(RecordError):
        PowerLaw.from_json(source)


def test_folders_and_binary_files(tmp_path):
    (tmp_path / "law.json").write_bytes(b"\x80\x04\x95")
    for source in (tmp_path, tmp_path / "law.json"):
        with pytest.raises(RecordError):
            PowerLaw.from_json(source)
    with pytest.raises(RecordError, match="writable"):
        PowerLaw().fit({"N": [1, 2, 4], "loss": [4, 3, 2.6]}).to_json(tmp_path / "missing" / "law.json")


def test_a_file_that_is_not_there_is_called_that(tmp_path):
    with pytest.raises(RecordError, match=r"There is no file '.*nope.json'") as said:
        ScalingLaw.from_json(tmp_path / "nope.json")
    assert "Errno" not in str(said.value) and "Write it again" not in str(said.value)


def test_fuzz_never_crashes(law):
    """Random edits of the parsed record and of the text: each is read or refused with `RecordError`, nothing else."""
    rng = random.Random(0)
    record, text = json.loads(law.to_json()), law.to_json()
    junk = [None, True, -1, 0, 1e308, 5e-324, 10**400, "", "x", [], [1], {}, {"a": 1}, float("nan"), [[[]]], -0.0]
    refused = 0
    for _ in range(400):
        edited = copy.deepcopy(record)
        place, key = edited, rng.choice(list(edited))
        while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        place[key] = rng.choice(junk)
        if rng.random() < 0.1:
            del place[key]
        refused += _read(edited)
    for _ in range(400):
        i = rng.randrange(len(text))
        refused += _read(text[:i] + rng.choice(["", "}", "\x00", "9", '"', "-"]) + text[i + rng.randrange(1, 30) :])
    assert refused > 600


def _read(source):
    try:
        ScalingLaw.from_json(source).predict(N=1e10)
    except RecordError:
        return 1
    return 0

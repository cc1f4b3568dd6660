import bz2
import gzip
import json
import lzma

import pytest

from hf_muscaling.data import DataConfig
from hf_muscaling.data import sources as module
from hf_muscaling.data.corpus import Document
from hf_muscaling.data.sources import FileSource, HubSource, find_files, open_source, shuffled
from hf_muscaling.errors import ConfigurationError, DataError

from .conftest import make_texts

TEXTS = make_texts(60, seed=1)


def write(folder, name):
    """Write TEXTS in the format of the ending."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / name
    lines = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS)).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": TEXTS, "n": list(range(len(TEXTS)))}), path)
    elif name.endswith((".csv", ".tsv")):
        separator = "\t" if name.endswith(".tsv") else ","
        path.write_text(f"n{separator}text\n" + "".join(f"{i}{separator}{t}\n" for i, t in enumerate(TEXTS)), "utf-8")
    elif name.endswith(".json"):
        path.write_text(json.dumps([json.loads(line) for line in lines.splitlines()]), "utf-8")
    else:
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(name.rsplit(".", 1)[1], bytes)
        path.write_bytes(compress(lines))
    return path


def everything(source):
    return [d.text for part in ("train", "heldout") for d in source.documents(part, seed=0)]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json.bz2", "a.ndjson.xz", "a.json", "a.parquet", "a.csv", "a.tsv", "A.JSONL"]
)
def test_every_format_gives_the_same_documents(tmp_path, name):
    source = FileSource(find_files([str(write(tmp_path, name))]))
    assert sorted(everything(source)) == sorted(TEXTS)


def test_text_files_are_cut_where_paragraphs_end(tmp_path):
    paragraphs = [f"Paragraph {i} of the text.\n" + "A line of words. \n" * 40 for i in range(100)]
    text = "\n".join(paragraphs)
    (tmp_path / "a.txt").write_text(text, "utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(("word " * 20 + "\n").encode() * 2000))  # no empty line
    by_paragraph = everything(FileSource(find_files([str(tmp_path / "a.txt")])))
    assert 5 < len(by_paragraph) < 15 and all(piece.startswith("Paragraph") for piece in by_paragraph)
    assert sorted("".join(by_paragraph).split()) == sorted(text.split())
    by_line = list(FileSource(find_files([str(tmp_path / "b.txt.gz")]))._read(tmp_path / "b.txt.gz"))
    assert sum(len(d.text.split()) for d in by_line) == 40_000 and all(len(d.text) < 17_000 for d in by_line)


def test_parts_are_disjoint_complete_and_without_repeats(tmp_path):
    texts = make_texts(400) * 2
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    source = FileSource((path,))
    train, heldout = ([d.text for d in source.documents(part, 3)] for part in ("train", "heldout"))
    assert len(heldout) > 5 and not set(train) & set(heldout)
    assert len(train) + len(heldout) == 400 and set(train) | set(heldout) == set(texts)


def test_the_order_is_of_the_seed_and_a_prefix_of_a_stream_stays():
    stream = [Document(f"{i}", "text") for i in range(1000)]
    orders = {seed: [d.name for d in shuffled(stream, seed, window=100)] for seed in (0, 1)}
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(d.name for d in stream)
    assert orders[0] == [d.name for d in shuffled(iter(stream), 0, window=100)]
    assert orders[0][:200] == [d.name for d in shuffled(stream[:200], 0, window=100)]
    assert orders[0][:100] != [d.name for d in stream[:100]]


def test_odd_texts(tmp_path):
    rows = ["", "   \n", None, "naïve 模型 🙂", "a\0b"]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    read = everything(FileSource((path,)))
    assert sorted(read) == ["a\0b", "naïve 模型 🙂"]
    assert module.document_of("half \ud83d of a pair").text == "half ? of a pair"  # it has no UTF-8


def test_find_files_globs_once_sorted(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("text")
    assert [path.name for path in find_files([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "missing.txt", "missing.txt' does not exist"),
        (b"", "empty.txt", "empty.txt is empty"),
        (b"x", "image.png", "image.png has an unknown ending.*jsonl"),
        (b"x", "noending", "unknown ending"),
    ],
)
def test_missing_empty_and_unknown_files(tmp_path, content, name, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_files([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("content", "name", "column", "message"),
    [
        (
            b'{"body": "x", "n": 1}\n',
            "a.jsonl",
            "text",
            "a.jsonl has no column 'text'; it has 'body', 'n': set text_column",
        ),
        (b'{"text": "x", "n": 1}\n', "a.jsonl", "n", "column 'n' of a.jsonl holds int, not text"),
        (b"\n \n\n", "blank.txt", "text", "blank.txt holds no text"),
        (b'{"text": ""}\n', "blank.jsonl", "text", "blank.jsonl holds no text"),
        (b"this is no parquet", "a.parquet", "text", "a.parquet cannot be read as parquet"),
        (b"this is no gzip", "a.txt.gz", "text", "a.txt.gz cannot be read as text"),
        (b"\xff\xfe\xfa words", "latin.txt", "text", "latin.txt cannot be read as text.*UTF-8"),
    ],
)
def test_unreadable_content(tmp_path, content, name, column, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        everything(FileSource(find_files([str(tmp_path / name)]), column))


def test_identity_follows_the_content_and_descriptions_hold_no_folder(tmp_path):
    path = write(tmp_path, "a.jsonl")
    source = FileSource((path,))
    before = source.identity()
    assert str(tmp_path) not in json.dumps([source.describe(), before])
    path.write_text(path.read_text() + '{"text": "more"}\n')
    assert source.identity() != before


def test_conflicting_settings():
    with pytest.raises(ConfigurationError, match="both given"):
        open_source(DataConfig(dataset="allenai/c4", data_files=("a.txt",)))
    with pytest.raises(ConfigurationError, match="heldout_split"):
        open_source(DataConfig(heldout_split="validation", data_files=("a.txt",)))
    with pytest.raises(ConfigurationError, match="prose, code"):
        DataConfig(domains=("poems",))
    with pytest.raises(ConfigurationError, match="block_size"):
        DataConfig(block_size=0)
    with pytest.raises(ConfigurationError, match="less than one block"):
        DataConfig(block_size=64, heldout_tokens=32)
    assert DataConfig(data_files=["a.txt"]).data_files == ("a.txt",) and DataConfig(domains="code").domains == ("code",)


@pytest.fixture
def folder(tmp_path):
    """A data set as `datasets` finds it in a folder: a training and a validation split that share three documents."""
    root = tmp_path / "corpus"
    root.mkdir()
    for name, texts in (("train", TEXTS), ("validation", [*make_texts(20, seed=2), *TEXTS[:3]])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in texts), "utf-8")
    return str(root)


def test_a_streamed_data_set_and_its_splits(folder):
    source = HubSource(folder, heldout_split="validation")
    assert sorted(d.text for d in source.documents("train", 0)) == sorted(TEXTS)
    assert [d.text for d in source.documents("heldout", 0)] == [*make_texts(20, seed=2), *TEXTS[:3]]
    assert source.describe()["source"] == "corpus" and folder not in json.dumps(source.describe())
    whole = HubSource(folder)
    train, heldout = ({d.text for d in whole.documents(part, 0)} for part in ("train", "heldout"))
    assert train | heldout == set(TEXTS) and not train & heldout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_column": "content"}, "has no column 'content'; it has 'n', 'text'.*text_column"),
        ({"text_column": "n"}, "holds int, not text"),
        ({"split": "test"}, "split 'test'"),
        ({"config": "xx"}, "xx.*dataset_config"),
    ],
)
def test_wrong_settings_of_a_data_set(folder, settings, message):
    with pytest.raises(DataError, match=message):
        list(HubSource(folder, **settings).documents("train", 0))


def test_the_hub_is_asked_for_one_commit_and_failures_say_what_to_do(monkeypatch):
    import datasets
    import huggingface_hub

    asked = []

    def load(name, config, revision, split, streaming):
        asked.append((name, config, revision, split, streaming))
        return [{"text": f"document {i}"} for i in range(30)]

    class Information:
        sha = "c0ffee"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: Information)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HubSource("allenai/c4", "en", revision="main")
    assert len(everything(source)) == 30
    assert asked == [("allenai/c4", "en", "c0ffee", "train", True)] * 2
    assert source.describe()["revision"] == "c0ffee" and source.identity()["hub"][2] == "main"

    def broken(*args, **kwargs):
        yield {"text": "document"}
        raise ConnectionResetError("in the middle of the stream")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(DataError, match="cannot be reached.*allenai/c4.*--data-files.*embedded"):
        everything(source)


def test_an_unreachable_and_a_missing_data_set(monkeypatch):
    import datasets
    import huggingface_hub
    from datasets.exceptions import DatasetNotFoundError

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="Hub cannot be reached.*--data-files.*embedded"):
        everything(HubSource("nobody/nothing"))

    def missing(*args, **kwargs):
        raise DatasetNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    monkeypatch.setattr(module.HubSource, "commit", None)
    with pytest.raises(DataError, match="is not on the Hub, is private.*hf auth login"):
        everything(HubSource("nobody/nothing"))

import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import hf_muscaling.data
from hf_muscaling.data import DataConfig, prepare_data, tokenizer_hash
from hf_muscaling.data import prepare as module
from hf_muscaling.errors import ConfigurationError, DataError

from .conftest import make_texts


@pytest.fixture(scope="module")
def config(jsonl):
    return DataConfig(data_files=(str(jsonl),), vocab_size=300, block_size=32, heldout_tokens=1000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(config, cache):
    return prepare_data(config, 20_001, cache_dir=cache, progress=False)


def numbers(blocks, tokenizer):
    """The documents that stand in the blocks, by their numbers."""
    return re.findall(r"document(\d+)x", tokenizer.decode(blocks.blocks.reshape(-1).tolist()))


def test_exactly_the_blocks_that_are_needed(data):
    assert len(data.train) == 626 and data.train.block_size == 32  # ⌈20,001 / 32⌉
    assert len(data.heldout) == 1000 // 32
    assert data.tokenizer_hash == tokenizer_hash(data.tokenizer) and len(data.tokenizer) == 300


def test_no_document_twice_and_none_on_both_sides(data):
    train, heldout = numbers(data.train, data.tokenizer), numbers(data.heldout, data.tokenizer)
    assert len(train) > 40 and len(heldout) >= 3
    assert len(set(train)) == len(train) and not set(train) & set(heldout)


def test_info_is_plain_and_without_paths(data, jsonl):
    text = json.dumps(data.info)
    assert str(jsonl.parent) not in text and os.path.expanduser("~") not in text
    assert data.info["source"] == "files" and data.info["files"][0]["name"] == "texts.jsonl"
    assert data.info["train"]["tokens"] == data.train.tokens and data.info["train"]["sha256"] == data.train.sha256
    assert 1 < data.info["bytes_per_token"] < 6 and data.info["versions"]["numpy"] == np.__version__


def test_a_longer_run_extends_a_shorter_one_and_the_heldout_set_is_fixed(config, cache, data):
    short = prepare_data(config, 5_000, cache_dir=cache, progress=False)
    assert len(short.train) == 157 and np.array_equal(short.train.blocks, data.train.blocks[:157])
    assert short.heldout.sha256 == data.heldout.sha256 and short.tokenizer_hash == data.tokenizer_hash
    assert short.data_hash != data.data_hash
    other = prepare_data(module.DataConfig(**{**vars(config), "seed": 1}), 5_000, cache_dir=cache, progress=False)
    assert other.train.sha256 != short.train.sha256 and other.heldout.sha256 == data.heldout.sha256


def test_a_second_call_reads_the_cache(config, cache, data, monkeypatch):
    monkeypatch.setattr(module, "_pack", lambda *args: pytest.fail("packed although it was cached"))
    again = prepare_data(config, 20_001, cache_dir=cache, progress=False)
    assert (again.data_hash, again.tokenizer_hash, again.info) == (data.data_hash, data.tokenizer_hash, data.info)
    assert isinstance(again.train.blocks, np.memmap)


def change_token(folder):
    array = np.load(folder / "train" / "blocks.npy")
    array[0, 0] ^= 1
    np.save(folder / "train" / "blocks.npy", array)


def change_tokenizer(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        change_token,
        change_tokenizer,
        lambda folder: (folder / "data.json").write_text("{}"),
        lambda folder: (folder / "heldout" / "blocks.npy").unlink(),
    ],
)
def test_a_damaged_cache_is_packed_again_with_a_message(config, cache, data, caplog, damage):
    short = prepare_data(config, 3_000, cache_dir=cache, progress=False)
    (folder,) = [
        path.parent
        for path in (cache / "packed").glob("*/data.json")
        if json.loads(path.read_text())["data_hash"] == short.data_hash
    ]
    damage(folder)
    with caplog.at_level(logging.WARNING):
        again = prepare_data(config, 3_000, cache_dir=cache, progress=False)
    assert again.data_hash == short.data_hash and again.tokenizer_hash == short.tokenizer_hash
    assert "packed again" in caplog.text
    assert not [path for path in (cache / "packed").iterdir() if path.name.startswith(".")]


def test_processes_at_the_same_moment_with_other_hash_seeds_agree(config, cache, data, tmp_path):
    script = (
        "import sys; from hf_muscaling.data import DataConfig, prepare_data\n"
        "c = DataConfig(data_files=(sys.argv[1],), vocab_size=300, block_size=32, heldout_tokens=1000)\n"
        "d = prepare_data(c, 20_001, cache_dir=sys.argv[2], progress=False); print(d.data_hash, d.tokenizer_hash)"
    )
    run = [sys.executable, "-c", script, config.data_files[0], str(tmp_path)]
    started = [
        subprocess.Popen(run, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True)
        for seed in ("1", "2")
    ]
    answers = [process.communicate()[0].split() for process in started]
    assert answers == [[data.data_hash, data.tokenizer_hash]] * 2
    assert len(list((tmp_path / "packed").iterdir())) == 1  # one folder, nothing temporary


def test_a_folder_that_another_process_wrote_first_stays(tmp_path):
    from hf_muscaling.data.cache import new_folder

    with new_folder(tmp_path / "made") as mine:
        (mine / "a").write_text("mine")
        with new_folder(tmp_path / "made") as other:
            (other / "a").write_text("other")
    assert (tmp_path / "made" / "a").read_text() == "other" and len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_nothing_in_the_cache(config, tmp_path):
    with pytest.raises(DataError):
        prepare_data(config, 10**7, cache_dir=tmp_path, progress=False)
    assert not (tmp_path / "packed").exists()


def test_too_little_text_says_how_much_there_is(config, cache, data):
    with pytest.raises(DataError, match=r"training part has [\d,]+ tokens .* 10,000,000 are needed.*--data-files"):
        prepare_data(config, 10**7, cache_dir=cache, progress=False)
    many = DataConfig(**{**vars(config), "heldout_tokens": 10**6})
    with pytest.raises(DataError, match=r"held-out part has [\d,]+ tokens .* 1,000,000 are needed.*heldout_tokens"):
        prepare_data(many, 100, cache_dir=cache, progress=False)
    with pytest.raises(ConfigurationError, match="train_tokens"):
        prepare_data(config, 0, cache_dir=cache)


def test_repeated_documents_do_not_count_as_text(tmp_path, cache, config, texts):
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 3), "utf-8")
    tripled = DataConfig(**{**vars(config), "data_files": (str(path),)})
    counts = []
    for one in (config, tripled):
        with pytest.raises(DataError) as error:
            prepare_data(one, 10**7, cache_dir=cache, progress=False)
        counts.append(re.search(r"training part has ([\d,]+) tokens", str(error.value))[1])
    assert counts[0] == counts[1]


def test_a_changed_file_is_packed_anew(config, tmp_path, texts):
    path = tmp_path / "texts.jsonl"
    hashes = []
    for chosen in (texts, make_texts(300, seed=9)):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), "utf-8")
        one = DataConfig(**{**vars(config), "data_files": (str(path),)})
        hashes.append(prepare_data(one, 1000, cache_dir=tmp_path / "cache", progress=False).data_hash)
    assert hashes[0] != hashes[1]


def test_a_ready_tokenizer_and_a_validation_split(tmp_path, data, texts, config):
    root = tmp_path / "corpus"
    root.mkdir()
    for name, chosen in (("train", texts), ("validation", [*make_texts(40, seed=5), *texts[:30]])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in chosen), "utf-8")
    data.tokenizer.save_pretrained(tmp_path / "tokenizer")
    split = DataConfig(
        dataset=str(root), heldout_split="validation", tokenizer=str(tmp_path / "tokenizer"), block_size=16,
        heldout_tokens=24_000,
    )  # fmt: skip
    packed = prepare_data(split, 95_000, cache_dir=tmp_path, progress=False)
    assert packed.tokenizer_hash == data.tokenizer_hash and packed.info["source"] == "corpus"
    train = packed.tokenizer.decode(packed.train.blocks.reshape(-1).tolist())
    heldout = packed.tokenizer.decode(packed.heldout.blocks.reshape(-1).tolist())
    # The validation split repeats 30 training documents: they are held out, and not trained on.
    shared = [text for text in texts[:30] if text in heldout]
    assert len(shared) > 5 and not [text for text in shared if text in train]


def test_a_cache_that_cannot_be_written_says_what_to_set(config, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="HF_MUSCALING_CACHE"):
        prepare_data(config, 1000, cache_dir=tmp_path / "file" / "cache", progress=False)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    from hf_muscaling.data.cache import cache_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_MUSCALING_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "hf_muscaling"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hf_muscaling"
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" and cache_folder("given").name == "given"


def test_the_front_door_imports_lazily():
    code = "import sys, hf_muscaling.data; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(name for names in hf_muscaling.data._MODULES.values() for name in names) == hf_muscaling.data.__all__
    assert all(getattr(hf_muscaling.data, name).__name__ == name for name in hf_muscaling.data.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = hf_muscaling.data.nothing_here

"""A mix as blocks: exact in tokens, the same after a kill at any block, the same for any number of ranks.

Local JSONL and parquet files stand in for the Hub's data sets; the Hub itself was never read.
"""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hf_muscaling.configuration import parse_experiment
from hf_muscaling.data import DataConfig, MixtureStream, merge_states, prepare_data, read_mixture
from hf_muscaling.data import mixture_packing as packing
from hf_muscaling.data import mixture_stream as module
from hf_muscaling.errors import ConfigurationError, DataError

from .conftest import WORDS

SIZE = 16
WORDS_IN = {"books": 1500, "web": 60, "code": 12}  # in a document: shares of documents are not shares of tokens
SHARES = {"books": 20, "web": 50, "code": 30}


def document(domain, number):
    words = random.Random(f"{domain}{number}").choices(WORDS, k=WORDS_IN[domain])
    return f"{domain}{number}x " + " ".join(words)


def write_rows(path, domain, numbers):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [document(domain, number) for number in numbers]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"content": texts}), path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps({"text": text, "meta": {"n": 1}}) + "\n" for text in texts), "utf-8")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Books in one file, web pages in five, code in three parquet files."""
    folder = tmp_path_factory.mktemp("mix")
    write_rows(folder / "books.jsonl", "books", range(40))
    for part in range(5):
        write_rows(folder / f"web{part}.jsonl", "web", range(200 * part, 200 * (part + 1)))
    for part in range(3):
        write_rows(folder / f"code{part}.parquet", "code", range(600 * part, 600 * (part + 1)))
    domains = (
        f"  books: {{proportion: {SHARES['books']}, files: books.jsonl}}\n"
        f"  web: {{proportion: {SHARES['web']}, files: ['web*.jsonl']}}\n"
        f"  code: {{proportion: {SHARES['code']}, files: ['code*.parquet'], text_column: content}}\n"
    )
    for shards in (1, 4):
        (folder / f"mix{shards}.yaml").write_text(f"shards: {shards}\ntracks: {{short: 20000}}\ndomains:\n{domains}")
    return folder


@pytest.fixture(scope="session")
def open_stream(root, tokenizer):
    def make(shards=1, **options):
        return MixtureStream(read_mixture(str(root / f"mix{shards}.yaml")), tokenizer, SIZE, window=50, **options)

    return make


def take(stream, count):
    return [(n, d, ids.tolist()) for n, d, ids in itertools.islice(stream.blocks(), count)]


def markers(tokenizer, blocks):
    return found_in(tokenizer, [i for _, _, ids in blocks for i in ids])


def found_in(tokenizer, ids):
    """The documents that stand in tokens, by domain and number."""
    return re.findall(r"(books|web|code)(\d+)x", tokenizer.decode(ids))


def test_weights_count_tokens_not_documents(open_stream, tokenizer):
    stream = open_stream()
    blocks = take(stream, 2000)
    names = list(SHARES)
    for count in (7, 100, 999, 2000):
        for index, name in enumerate(names):
            assert abs(sum(d == index for _, d, _ in blocks[:count]) - SHARES[name] / 100 * count) < 1
    # The blocks hold their domains' text: what was read for a domain is what its blocks hold, up to the last document.
    counts = stream.counts()
    for index, name in enumerate(names):
        held = sum(len(ids) for _, d, ids in blocks if d == index)
        assert held == counts[name]["blocks"] * SIZE and 0 <= counts[name]["tokens"] - held <= 20 * WORDS_IN[name]
        one = markers(tokenizer, [b for b in blocks if b[1] == index])
        assert {found for found, _ in one} == {name} and len(one) == len(set(one))
    # Were documents drawn in these proportions, books would be most of the tokens.
    documents = {name: counts[name]["documents"] for name in names}
    per_document = {name: counts[name]["tokens"] / documents[name] for name in names}
    drawn = {name: SHARES[name] * per_document[name] for name in names}
    assert drawn["books"] / sum(drawn.values()) > 0.8 and documents["code"] > 10 * documents["books"]


@pytest.mark.parametrize("shards", [1, 4])
def test_the_same_stream_after_a_stop_at_any_block(open_stream, shards):
    whole = take(open_stream(shards, seed=3), 160)
    assert whole != take(open_stream(shards, seed=4), 160)
    stream = open_stream(shards, seed=3)
    running = stream.blocks()
    states = [json.dumps(stream.state_dict())]
    for _ in range(120):
        next(running)
        states.append(json.dumps(stream.state_dict()))
    for place in (0, 1, 2, 3, 17, 41, 77, 120):
        again = open_stream(shards, seed=3)
        again.load_state_dict(json.loads(states[place]))
        assert again.state_dict()["shards"] == json.loads(states[place])["shards"]
        assert take(again, 40) == whole[place : place + 40], place


def test_the_stop_may_lie_deep_in_the_files(open_stream):
    whole = take(open_stream(), 1500)
    stream = open_stream()
    running = stream.blocks()
    for _ in range(1400):
        next(running)
    again = open_stream()
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert take(again, 100) == whole[1400:] and again.counts()["web"]["blocks"] == 750


def test_a_place_in_another_stream_is_refused(open_stream, root, tokenizer):
    state = open_stream(seed=1).state_dict()
    with pytest.raises(ConfigurationError, match="the stream's state has seed=1, the stream 0"):
        open_stream().load_state_dict(state)
    with pytest.raises(ConfigurationError, match="has mixture="):
        open_stream(4, seed=1).load_state_dict(state)


def test_ranks_read_disjoint_parts_of_the_same_whole(open_stream, tokenizer):
    whole = take(open_stream(4), 240)
    assert [n for n, _, _ in whole] == list(range(240))
    for ranks in (2, 4):
        parts = [take(open_stream(4, rank=r, world_size=ranks), 240 // ranks) for r in range(ranks)]
        assert [[n for n, _, _ in part] for part in parts] == [list(range(r, 240, ranks)) for r in range(ranks)]
        assert sorted(block for part in parts for block in part) == whole
        found = [set(markers(tokenizer, part)) for part in parts]
        assert all(found) and sum(map(len, found)) == len(set().union(*found))
    with pytest.raises(ConfigurationError, match="rank 0 of 3 cannot read .* 4 shards: set shards"):
        open_stream(4, rank=0, world_size=3)


def test_every_row_is_of_one_shard(root):
    (books, web, code) = read_mixture(str(root / "mix4.yaml")).domains
    for domain, total in ((books, 40), (web, 1000), (code, 1800)):  # fewer files than shards, more, fewer
        parts = [
            [d.name for w in module.DomainReader(domain, part, 0, v, 4, window=30).windows() for d in w]
            for v in range(4) for part in ("train", "heldout")
        ]  # fmt: skip
        names = [name for part in parts for name in part]
        assert len(names) == len(set(names)) == total and min(map(len, parts[::2])) > total / 8


def test_states_of_ranks_merge_for_another_number_of_ranks(open_stream):
    whole = take(open_stream(4), 120)
    states = []
    for rank in range(2):
        stream = open_stream(4, rank=rank, world_size=2)
        take(stream, 33)  # 66 blocks together
        states.append(stream.state_dict())
    merged = json.loads(json.dumps(merge_states(states)))
    alone = open_stream(4)
    alone.load_state_dict(merged)
    assert take(alone, 40) == whole[66:106]
    for rank in range(4):
        stream = open_stream(4, rank=rank, world_size=4)
        stream.load_state_dict(merged)
        assert take(stream, 8) == [block for block in whole[66:] if block[0] % 4 == rank][:8]
    with pytest.raises(ConfigurationError, match=r"lacks the shards \[1, 3\].*merge_states"):
        open_stream(4, rank=1, world_size=2).load_state_dict(states[0])
    late = open_stream(4, rank=1, world_size=2)
    take(late, 40)
    with pytest.raises(ConfigurationError, match="not taken at the same place"):
        merge_states([states[0], late.state_dict()])
    with pytest.raises(ConfigurationError, match="different streams"):
        merge_states([states[0], open_stream(1).state_dict()])


def test_a_data_loader_reads_the_stream(open_stream):
    import torch

    loader = torch.utils.data.DataLoader(open_stream(), batch_size=4)
    batches = list(itertools.islice(loader, 3))
    assert torch.cat([b["input_ids"] for b in batches]).tolist() == [ids for _, _, ids in take(open_stream(), 12)]
    two = torch.utils.data.DataLoader(open_stream(), batch_size=4, num_workers=2)
    with pytest.raises(ConfigurationError, match="one worker at most"):
        next(iter(two))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_reads_the_stream(open_stream, tokenizer, tmp_path):
    """And sees the stream's own blocks in their order."""
    from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM, MuTrainer, MuTrainingArguments

    config = MuLlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=SIZE,
    )  # fmt: skip
    seen = []

    class Watching(MuTrainer):
        def compute_loss(self, model, inputs, *args, **options):
            seen.extend(inputs["input_ids"].tolist())
            return super().compute_loss(model, inputs, *args, **options)

    args = MuTrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trained = Watching(MuLlamaForCausalLM(config), args, train_dataset=open_stream()).train()
    assert trained.training_loss > 0 and seen == [ids for _, _, ids in take(open_stream(), 20)]


def test_a_domain_that_ends_is_named(root, tokenizer, tmp_path):
    (tmp_path / "mix.yaml").write_text(
        f"domains: {{few: {{proportion: 9, files: few.jsonl}}, books: {{proportion: 91, files: {root}/books.jsonl}}}}"
    )
    write_rows(tmp_path / "few.jsonl", "code", range(20))
    with pytest.raises(DataError, match=r"domain 'few' \(1 local files\) has ended after \d+ tokens .*proportion"):
        take(MixtureStream(read_mixture(str(tmp_path / "mix.yaml")), tokenizer, SIZE), 10**6)


def test_the_hub_is_asked_for_the_pinned_commit_and_files(monkeypatch, tokenizer):
    import datasets

    asked = []

    def load(path, config=None, **options):
        asked.append((path, config, options))
        column = "content" if "refinedweb" in path else "text"
        rows = [{column: f"{path} {i} " + "word " * (5 + i % 9)} for i in range(3000)]
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("nanolm:2T", "nanodata", "c4", "mc4"):
        asked.clear()
        mixture = read_mixture(name)
        blocks = take(MixtureStream(mixture, tokenizer, SIZE), 300)
        assert len(blocks) == 300
        assert {(a[0], a[1], a[2]["revision"], a[2]["split"], tuple(a[2]["data_files"] or ())) for a in asked} == {
            (d.dataset, d.config, d.revision, "train", d.files) for d in mixture.domains
        }
        assert all(a[2]["streaming"] for a in asked)
    take(MixtureStream(read_mixture("c4"), tokenizer, SIZE, part="heldout"), 3)
    assert asked[-1][2]["split"] == "validation"

    def broken(*args, **options):
        raise ConnectionResetError("no route")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(DataError, match="the Hub cannot be reached for the domain 'c4'"):
        take(MixtureStream(read_mixture("c4"), tokenizer, SIZE), 1)


def test_a_file_that_is_not_what_its_ending_says(tmp_path, tokenizer):
    (tmp_path / "bad.jsonl").write_bytes(b"\x00\xff not json\n")
    (tmp_path / "mix.yaml").write_text("domains: {bad: {proportion: 1, files: bad.jsonl}}")
    with pytest.raises(DataError, match="the domain 'bad' .* cannot be read"):
        take(MixtureStream(read_mixture(str(tmp_path / "mix.yaml")), tokenizer, SIZE), 1)


# -- packed ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def config(root):
    return DataConfig(mixture=str(root / "mix4.yaml:short"), vocab_size=300, block_size=SIZE, heldout_tokens=960)


@pytest.fixture(scope="session")
def packed(config, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return prepare_data(config, 12_800, cache_dir=cache, progress=False), cache


def test_a_packed_mix(packed, config, root):
    data, cache = packed
    assert len(data.train) == 800 and data.train.domain_names == tuple(SHARES)
    # Four shards, each less than a block off.
    assert all(abs(data.info["train"]["blocks_per_domain"][name] - 8 * SHARES[name]) < 4 for name in SHARES)
    assert all(abs(data.info["heldout"]["blocks_per_domain"][name] - 0.6 * SHARES[name]) < 1 for name in SHARES)
    train, held = (set(found_in(data.tokenizer, b.blocks.reshape(-1))) for b in (data.train, data.heldout))
    assert len(train) > 60 and len(held) > 5 and not train & held
    assert data.info["mixture"]["sha256"] == read_mixture(config.mixture).sha256
    assert str(root) not in json.dumps(data.info) and data.info["train"]["documents_read"]["web"]["documents"] > 30
    short = prepare_data(config, 3_200, cache_dir=cache, progress=False)
    assert np.array_equal(short.train.blocks, data.train.blocks[:200]) and short.heldout.sha256 == data.heldout.sha256
    again = prepare_data(config, 12_800, cache_dir=cache, progress=False)
    assert (again.data_hash, again.info) == (data.data_hash, data.info)
    assert isinstance(again.train.blocks, np.memmap) and not [p for p in (cache / "packing").iterdir() if p.is_dir()]


def test_bytes_per_token_is_of_the_blocks(packed):
    """What the held-out blocks hold, counted; the books' documents reach far beyond their blocks."""
    data, _ = packed
    text = data.tokenizer.decode(data.heldout.blocks.reshape(-1), skip_special_tokens=True)
    held = len(text.encode()) / data.heldout.tokens
    assert data.info["bytes_per_token"] == pytest.approx(held, rel=0.02)
    counts = {
        "books": {"blocks": 10, "documents": 1, "bytes": 900_000, "tokens": 100_000},  # a tenth of the blocks
        "code": {"blocks": 90, "documents": 9, "bytes": 1440, "tokens": 1440},
    }
    assert packing.bytes_per_token(counts) == 1.8  # over the documents it would be 8.9


def test_the_data_hash_of_every_record_covers_the_mix(packed, config, root, tmp_path):
    from hf_muscaling.data.prepare import data_hash

    data, _ = packed
    info = {**data.info, "mixture": {**data.info["mixture"], "sha256": "0" * 64}}
    assert data_hash(data.train, data.heldout, data.info) == data.data_hash
    assert data_hash(data.train, data.heldout, info) != data.data_hash
    assert data_hash(data.train, data.heldout, {}) not in (data.data_hash, data_hash(data.train, data.heldout, info))


@pytest.mark.parametrize("stop", [1, 32, 33, 799])
def test_packing_goes_on_where_it_was_stopped(packed, config, tmp_path, monkeypatch, stop):
    data, _ = packed
    monkeypatch.setattr(packing, "JOURNAL_BLOCKS", 32)
    monkeypatch.setattr(packing.os, "fsync", lambda number: None)
    blocks = MixtureStream.blocks

    def stopping(stream):
        for number, block in enumerate(blocks(stream)):
            if stream._identity["part"] == "train" and number == stop:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(MixtureStream, "blocks", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare_data(config, 12_800, cache_dir=tmp_path, progress=False)
    (working,) = [path for path in (tmp_path / "packing").iterdir() if path.is_dir()]
    with open(working / "tokens.bin", "ab") as file:
        file.write(b"torn")  # half a block, as a kill leaves it
    read = []

    def counting(stream):
        for block in blocks(stream):
            read.append(stream._identity["part"])
            yield block

    monkeypatch.setattr(MixtureStream, "blocks", counting)
    assert prepare_data(config, 12_800, cache_dir=tmp_path, progress=False).data_hash == data.data_hash
    assert read.count("train") == 800 - stop // 32 * 32


def test_a_damaged_journal_begins_anew(packed, config, tmp_path, monkeypatch, caplog):
    data, _ = packed
    key = [p.name for p in (packed[1] / "packed").iterdir() if json.loads((p / "data.json").read_text())["data_hash"]
           == data.data_hash]  # fmt: skip
    folder = tmp_path / "packing" / key[0]
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text('{"blocks": 64, "stream": {}, "counts": {}}')
    assert prepare_data(config, 12_800, cache_dir=tmp_path, progress=False).data_hash == data.data_hash
    assert "begins anew" in caplog.text


@pytest.mark.slow
def test_packing_survives_kills(packed, config, tmp_path):
    script = (
        "import sys, time; from hf_muscaling.data import DataConfig, MixtureStream, mixture_packing, prepare_data\n"
        "mixture_packing.JOURNAL_BLOCKS = 16; blocks = MixtureStream.blocks\n"
        "def slow(stream):\n"
        "    for block in blocks(stream):\n"
        "        time.sleep(0.01); yield block\n"
        "MixtureStream.blocks = slow\n"
        f"c = DataConfig(mixture=sys.argv[1], vocab_size=300, block_size={SIZE}, heldout_tokens=960)\n"
        "print(prepare_data(c, 12_800, cache_dir=sys.argv[2], progress=False).data_hash)"
    )
    run = [sys.executable, "-c", script, config.mixture, str(tmp_path)]
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.2)
            journals = list((tmp_path / "packing").glob("*/journal.json"))
            if journals and json.loads(journals[0].read_text())["blocks"] > reached + 100:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = json.loads(journals[0].read_text())["blocks"]
    assert 200 < reached < 800
    finished = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
    assert finished.stdout.split()[-1] == packed[0].data_hash


def test_conflicts_and_tracks(config, tmp_path):
    with pytest.raises(ConfigurationError, match="the track short .* 20,000 tokens"):
        prepare_data(config, 20_001, cache_dir=tmp_path)
    for further in ({"dataset": "allenai/c4"}, {"data_files": ("a.jsonl",)}, {"heldout_split": "validation"}):
        with pytest.raises(ConfigurationError, match="a mixture names its own"):
            prepare_data(DataConfig(mixture="c4", **further), 100, cache_dir=tmp_path)


def test_a_held_out_split_is_not_trained_on(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "train.jsonl", "web", range(200))
    write_rows(folder / "validation.jsonl", "web", range(150, 230))  # 50 of them are in both
    (tmp_path / "mix.yaml").write_text("domains: {web: {proportion: 1, dataset: set, heldout_split: validation}}")
    config = DataConfig(mixture=str(tmp_path / "mix.yaml"), vocab_size=300, block_size=SIZE, heldout_tokens=8000)
    data = prepare_data(config, 28_000, cache_dir=tmp_path, progress=False)
    train, held = (set(found_in(data.tokenizer, b.blocks.reshape(-1))) for b in (data.train, data.heldout))
    shared = {number for _, number in held if int(number) < 200}
    assert len(shared) > 10 and len(train) > 130 and not train & held


def test_the_experiment_takes_a_mix(tmp_path):
    (tmp_path / "e.yaml").write_text("mixture: nanolm:100B\n")
    from_file, _ = parse_experiment(["--config", str(tmp_path / "e.yaml")])
    by_flag, _ = parse_experiment(["--config", str(tmp_path / "e.yaml"), "--mixture", "c4"])
    assert from_file.data_config().mixture == "nanolm:100B" and by_flag.data_config().mixture == "c4"
    assert parse_experiment([])[0].data_config().mixture is None

import json

import numpy as np
import pytest
import torch

from hf_muscaling.data import Document, PackedBlocks, collate_blocks, pack_documents
from hf_muscaling.errors import ConfigurationError, DataError


def documents(texts, domain="text"):
    return [Document(f"{domain}{i}", text, domain) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def blocks(texts, tokenizer):
    return pack_documents(documents(texts), tokenizer, 32)[0]


def test_blocks_are_the_documents_joined_by_eos(texts, tokenizer, blocks):
    expected = []
    for text in texts:
        expected += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert blocks.blocks.dtype == np.uint16 and blocks.block_size == 32
    assert blocks.tokens == len(blocks) * 32 == len(expected) // 32 * 32
    assert blocks.blocks.reshape(-1).tolist() == expected[: blocks.tokens]


def test_counts_are_of_whole_documents(texts, tokenizer):
    packed, count = pack_documents(documents(texts[:3]), tokenizer, 16)
    assert count.documents == 3 and count.bytes == sum(len(text.encode()) for text in texts[:3])
    assert count.tokens == sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts[:3])
    assert packed.tokens == count.tokens // 16 * 16


def test_more_blocks_extend_fewer(texts, tokenizer, blocks):
    short, count = pack_documents(documents(texts), tokenizer, 32, blocks=17)
    assert len(short) == 17 and count.documents < len(texts)
    assert np.array_equal(short.blocks, blocks.blocks[:17])
    assert short.sha256 != blocks.sha256


def test_a_text_that_spells_a_special_token_does_not_end_a_document(tokenizer):
    packed, _ = pack_documents(documents(["before <|endoftext|> after"]), tokenizer, 1)
    assert (packed.blocks == tokenizer.eos_token_id).sum() == 1 and packed.blocks[-1, 0] == tokenizer.eos_token_id


def test_a_tokenizer_that_pads_and_truncates_packs_the_same(texts, tokenizer, blocks):
    tokenizer(["a", "a b"], padding="max_length", truncation=True, max_length=4)
    assert pack_documents(documents(texts), tokenizer, 32)[0].sha256 == blocks.sha256


def test_empty_documents_give_their_eos_only_and_none_gives_no_block(tokenizer):
    packed, count = pack_documents(documents(["", ""]), tokenizer, 1)
    assert packed.blocks.tolist() == [[0], [0]] and count.bytes == 0
    assert len(pack_documents([], tokenizer, 8)[0]) == 0


def test_single_and_batched_fetch_agree(blocks):
    example = blocks[5]
    assert example["input_ids"].dtype == torch.int64 and torch.equal(example["input_ids"], example["labels"])
    order = [5, 0, 5, len(blocks) - 1]
    batch = collate_blocks(blocks.__getitems__(order))
    listed = collate_blocks([blocks[i] for i in order])
    assert torch.equal(batch["input_ids"], listed["input_ids"]) and torch.equal(batch["labels"], listed["labels"])
    assert batch["input_ids"].shape == (4, 32)
    batch["labels"][:] = -100
    assert batch["input_ids"].min() >= 0  # labels have memory of their own
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_torch_and_trainer_style_collators_read_a_batch(blocks):
    from torch.utils.data import DataLoader, Subset

    loader = DataLoader(Subset(blocks, range(10)), batch_size=4, collate_fn=collate_blocks)
    assert [batch["input_ids"].shape[0] for batch in loader] == [4, 4, 2]
    # What Trainer's column remover does: a new dictionary for each example.
    features = [dict(example) for example in blocks.__getitems__([1, 2])]
    assert torch.equal(collate_blocks(features)["labels"][1], blocks[2]["labels"])
    assert collate_blocks([{"input_ids": [1, 2]}])["labels"].tolist() == [[1, 2]]


def test_hash_is_of_the_tokens_not_of_the_storage(blocks):
    wide = PackedBlocks(np.asarray(blocks.blocks, dtype=np.int32))
    assert wide.sha256 == blocks.sha256
    assert PackedBlocks(blocks.blocks.reshape(-1, 16)).sha256 != blocks.sha256
    changed = blocks.blocks.copy()
    changed[3, 3] ^= 1
    assert PackedBlocks(changed).sha256 != blocks.sha256


def test_save_load_and_dataset(blocks, tmp_path):
    blocks.save(tmp_path / "blocks")
    loaded = PackedBlocks.load(tmp_path / "blocks")
    assert isinstance(loaded.blocks, np.memmap) and loaded.sha256 == blocks.sha256 and loaded.domains is None
    assert sorted(path.name for path in (tmp_path / "blocks").iterdir()) == ["blocks.json", "blocks.npy"]
    dataset = loaded.to_dataset()
    assert len(dataset) == len(blocks) and torch.equal(dataset[7]["labels"], blocks[7]["labels"])


def damage_tokens(folder):
    array = np.load(folder / "blocks.npy")
    array[0, 0] ^= 1
    np.save(folder / "blocks.npy", array)


def damage_record(folder):
    record = json.loads((folder / "blocks.json").read_text())
    (folder / "blocks.json").write_text(json.dumps({**record, "sha256": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_tokens,
        damage_record,
        lambda folder: (folder / "blocks.json").unlink(),
        lambda folder: (folder / "blocks.npy").write_bytes((folder / "blocks.npy").read_bytes()[:-100]),
        lambda folder: np.save(folder / "blocks.npy", np.array([{}], dtype=object), allow_pickle=True),
    ],
)
def test_damaged_blocks_are_refused(blocks, tmp_path, damage):
    blocks.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match="pack them again"):
        PackedBlocks.load(tmp_path)


def test_domains_of_blocks(texts, tokenizer, tmp_path):
    mixed = documents(texts[:4], "prose") + documents(texts[4:8], "code")
    packed, _ = pack_documents(mixed, tokenizer, 8)
    boundary = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts[:4])
    assert packed.domain_names == ("prose", "code")
    assert packed.domains.tolist() == [int(i * 8 >= boundary) for i in range(len(packed))]
    packed.save(tmp_path)
    assert PackedBlocks.load(tmp_path).domains.tolist() == packed.domains.tolist()
    np.save(tmp_path / "domains.npy", 1 - packed.domains)
    with pytest.raises(DataError):
        PackedBlocks.load(tmp_path)


def test_arrays_of_another_kind_are_refused(tokenizer):
    with pytest.raises(ConfigurationError, match="uint16 or int32"):
        PackedBlocks(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(ConfigurationError, match="uint16 or int32"):
        PackedBlocks(np.zeros(4, dtype=np.uint16))
    with pytest.raises(ConfigurationError, match="domains"):
        PackedBlocks(np.zeros((2, 2), dtype=np.uint16), np.array([0, 1], dtype=np.uint8), ("one",))
    with pytest.raises(ConfigurationError, match="block_size"):
        pack_documents([], tokenizer, 0)

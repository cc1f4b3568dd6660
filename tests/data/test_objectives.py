"""Objectives: exact proportions and lengths, nothing lost, and masks that depend on the seed and the block alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling

from hf_muscaling.data import (
    DataConfig,
    MaskedLM,
    ObjectiveBlocks,
    PackedBlocks,
    SpanCorruption,
    collate_blocks,
    objective_blocks,
    prepare_data,
    span_lengths,
    special_tokens_for,
    train_tokenizer,
)
from hf_muscaling.data.objectives import HELDOUT_SEED, IGNORED, objective_for, raw_tokens_for
from hf_muscaling.errors import ConfigurationError

VOCABULARY, EOS, MASK = 100, 0, 1
SENTINELS = tuple(range(VOCABULARY, VOCABULARY + 60))


def packed(count, tokens=64, seed=0, eos_share=0.05):
    """Return blocks of ordinary tokens with some ends of text among them."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(2, VOCABULARY, (count, tokens))
    ids[generator.random(ids.shape) < eos_share] = EOS
    return PackedBlocks(ids.astype(np.uint16))


def masked(density=0.15):
    return MaskedLM(MASK, (EOS, MASK), VOCABULARY, density)


def spans(density=0.15, mean_span=3.0):
    return SpanCorruption(SENTINELS, EOS, density, mean_span)


def whole(data):
    """Return inputs and labels of a whole data set."""
    batch = collate_blocks(data.__getitems__(range(len(data))))
    return batch["input_ids"].numpy(), batch["labels"].numpy()


def restored(inputs, labels):
    """Return the raw tokens of one example, read off its inputs and labels as a person would."""
    assert inputs[-1] == labels[-1] == EOS
    hidden, current = {}, None
    for token in labels[:-1]:
        if token in SENTINELS:
            current = hidden.setdefault(int(token), [])
        else:
            current.append(int(token))
    used = [int(token) for token in inputs if token in SENTINELS]
    assert used == list(hidden) == list(SENTINELS[: len(used)])  # in order, each once in both
    out = []
    for token in inputs[:-1]:
        out += hidden[int(token)] if token in SENTINELS else [int(token)]
    return out, list(hidden.values())


class TestMaskedLM:
    @given(st.integers(4, 200), st.floats(0.01, 0.9), st.integers(0, 2**32 - 1))
    @settings(max_examples=60, deadline=None)
    def test_every_block_has_exactly_as_many_targets(self, tokens, density, seed):
        blocks = packed(5, tokens, eos_share=0.0)
        inputs, labels = whole(ObjectiveBlocks(blocks, masked(density), seed))
        target = labels != IGNORED
        assert (target.sum(1) == max(round(density * tokens), 1)).all()
        assert (labels[target] == blocks.blocks[target]).all()
        assert (inputs[~target] == blocks.blocks[~target]).all()  # and nothing else is touched

    def test_the_three_treatments(self):
        """80/10/10 in every block to within one token, and on average where that is no whole number."""
        blocks = packed(3000, 48, eos_share=0.0)  # 7 targets a block: 5.6 masked, 0.7 random, 0.7 left
        inputs, labels = whole(ObjectiveBlocks(blocks, masked(), 0))
        target = labels != IGNORED
        hidden = ((inputs == MASK) & target).sum(1)
        left = ((inputs == labels) & target).sum(1)
        assert set(hidden) <= {5, 6} and hidden.mean() == pytest.approx(5.6, abs=0.05)  # 4 standard errors or more
        assert set(left) <= {0, 1, 2} and left.mean() == pytest.approx(0.7 + 0.7 / 98, abs=0.05)

    def test_agrees_with_transformers_collator_on_average(self, texts):
        tokenizer = train_tokenizer(texts, 300, extra_special_tokens=special_tokens_for("masked", 64))
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)
        ids = np.random.default_rng(0).integers(3, 300, (1500, 40)).astype(np.uint16)
        theirs = collator([{"input_ids": torch.from_numpy(row.astype(np.int64))} for row in ids])
        theirs = theirs["input_ids"].numpy(), theirs["labels"].numpy()
        ours = whole(ObjectiveBlocks(PackedBlocks(ids), objective_for("masked", tokenizer, 40)))
        shares = []
        for inputs, labels in (theirs, ours):
            target = labels != IGNORED
            mask = inputs[target] == tokenizer.mask_token_id
            kept = inputs[target] == labels[target]
            shares.append([target.mean(), mask.mean(), kept.mean()])
        assert shares[1] == pytest.approx(shares[0], abs=0.02)

    def test_special_tokens_are_never_touched(self):
        blocks = packed(2000, 32, eos_share=0.3)
        inputs, labels = whole(ObjectiveBlocks(blocks, masked(0.3), 0))
        special = blocks.blocks == EOS
        assert special.any(1).mean() > 0.9
        assert (labels[special] == IGNORED).all() and (inputs[special] == EOS).all()
        assert not np.isin(inputs[~special], [EOS]).any()  # no random replacement becomes one

    def test_a_block_with_too_few_ordinary_tokens_has_fewer_targets(self):
        ids = np.full((1, 20), EOS, np.uint16)
        ids[0, 7] = 50
        inputs, labels = whole(ObjectiveBlocks(PackedBlocks(ids), masked(0.5)))
        assert (labels != IGNORED).sum() == 1 and labels[0, 7] == 50 and (np.delete(inputs, 7) == EOS).all()

    def test_positions_are_uniform(self):
        _, labels = whole(ObjectiveBlocks(packed(4000, 20, eos_share=0.0), masked(), 3))
        shares = (labels != IGNORED).mean(0)
        assert shares == pytest.approx(np.full(20, 0.15), abs=0.03)  # 4 standard errors or more

    def test_random_replacements_are_uniform_over_ordinary_tokens(self):
        blocks = PackedBlocks(np.full((6000, 40), 7, np.uint16))
        inputs, labels = whole(ObjectiveBlocks(blocks, masked(), 0))
        drawn = inputs[(labels != IGNORED) & (inputs != MASK) & (inputs != 7)]
        counts = np.bincount(drawn, minlength=VOCABULARY)[2:]
        assert len(drawn) > 3000 and counts.max() < 3 * counts.mean() and (np.delete(counts, 5) > 0).all()

    def test_impossible(self):
        for bad in ({"density": 0.0}, {"density": 1.0}, {"mask_id": 200}, {"special_ids": tuple(range(VOCABULARY))}):
            fields = {"mask_id": MASK, "special_ids": (EOS,), "vocab_size": VOCABULARY, "density": 0.15} | bad
            with pytest.raises(ConfigurationError, match="between 0 and 1|do not fit a vocabulary"):
                MaskedLM(**fields)


class TestSpanCorruption:
    @given(st.integers(2, 300), st.floats(0.01, 0.5), st.floats(1.0, 10.0), st.integers(0, 2**32 - 1))
    @settings(max_examples=100, deadline=None)
    def test_exact_lengths_and_nothing_is_lost(self, tokens, density, mean_span, seed):
        lengths = span_lengths(tokens, density, mean_span)
        assert lengths.inputs + lengths.targets == tokens + 2 * lengths.spans + 2
        if lengths.spans > len(SENTINELS):
            return
        blocks = packed(4, tokens)
        inputs, labels = whole(ObjectiveBlocks(blocks, spans(density, mean_span), seed))
        assert inputs.shape == (4, lengths.inputs) and labels.shape == (4, lengths.targets)
        for row, (i, y) in enumerate(zip(inputs, labels, strict=True)):
            text, hidden = restored(i, y)
            assert text == blocks.blocks[row].tolist()
            assert len(hidden) == lengths.spans and sum(map(len, hidden)) == lengths.noise
            assert i[0] not in SENTINELS  # the first span is kept, as in T5

    def test_t5s_own_numbers(self):
        """T5: 512 inputs of 568 raw tokens, 114 targets (`random_spans_helper`)."""
        assert span_lengths(568) == (85, 28, 512, 114)
        assert raw_tokens_for(512) == 568 and span_lengths(569).inputs > 512

    @given(st.integers(4, 400), st.floats(0.01, 0.6), st.floats(1.0, 8.0))
    @settings(max_examples=100, deadline=None)
    def test_the_raw_length_is_the_largest(self, inputs, density, mean_span):
        tokens = raw_tokens_for(inputs, density, mean_span)
        assert span_lengths(tokens, density, mean_span).inputs <= inputs
        assert span_lengths(tokens + 1, density, mean_span).inputs > inputs

    def test_lengths_of_spans_are_those_of_a_uniform_segmentation(self):
        """Of C(n-1, s-1) ways to cut 9 tokens in 3, each length's share is known: P(l) = (8 - l)/C(8, 2)."""
        _, labels = whole(ObjectiveBlocks(packed(4000, 60), spans(), 0))
        lengths = np.array([[len(h) for h in restored(np.array([*SENTINELS[:3], EOS]), y)[1]] for y in labels])
        expected = [(8 - length) / 28 for length in range(1, 8)]
        for span in range(3):  # the same law for the first, the second and the last
            shares = np.bincount(lengths[:, span], minlength=8)[1:8] / 4000
            assert shares == pytest.approx(expected, abs=0.04)  # 4 standard errors or more
        assert lengths.mean() == 3

    def test_too_few_sentinels(self):
        with pytest.raises(ConfigurationError, match="has 3 hidden spans but there are 2 sentinels"):
            ObjectiveBlocks(packed(1, 64), SpanCorruption((100, 101), EOS))[0]

    def test_impossible(self):
        for bad in ((1, 0.15, 3), (64, 0.15, 0.5), (64, 0.0, 3), (64, 1.0, 3), (64, float("nan"), 3)):
            with pytest.raises(ConfigurationError, match="at least|between 0 and 1"):
                span_lengths(*bad)
        with pytest.raises(ConfigurationError, match="No block gives as few as 2 inputs"):
            raw_tokens_for(2)


@pytest.mark.parametrize("objective", [masked(), spans()], ids=["masked", "seq2seq"])
class TestDeterminism:
    def test_masks_depend_on_seed_and_block_alone(self, objective):
        """Not on the batch size, the order of calls, or the other blocks of a batch."""
        blocks = packed(50)
        inputs, labels = whole(ObjectiveBlocks(blocks, objective, 7))
        again = ObjectiveBlocks(blocks, objective, 7)
        for index in (49, 0, 17, -1):
            assert torch.equal(again[index]["input_ids"], torch.from_numpy(inputs[index]))
        for size in (1, 3, 16):
            loader = DataLoader(again, batch_size=size, collate_fn=collate_blocks)
            rows = torch.cat([batch["labels"] for batch in loader])
            assert np.array_equal(rows.numpy(), labels)
        picked = [31, 2, 31]
        assert np.array_equal(again.__getitems__(picked).ids.numpy(), inputs[picked])
        prefix = ObjectiveBlocks(PackedBlocks(blocks.blocks[:10]), objective, 7)
        assert np.array_equal(whole(prefix)[0], inputs[:10])  # a longer run's masks begin with a shorter one's

    def test_in_worker_processes(self, objective):
        data = ObjectiveBlocks(packed(12), objective, 7)
        loader = DataLoader(data, batch_size=4, collate_fn=collate_blocks, num_workers=2)
        rows = torch.cat([batch["input_ids"] for batch in loader])
        assert np.array_equal(rows.numpy(), whole(data)[0])

    def test_different_seeds_and_blocks_differ(self, objective):
        same_text = PackedBlocks(np.tile(packed(1).blocks, (40, 1)))
        a, b = (whole(ObjectiveBlocks(same_text, objective, seed))[1] for seed in (0, 1))
        assert (a != b).any(1).mean() > 0.9
        assert len({row.tobytes() for row in a}) > 35

    def test_the_first_example_is_what_it_always_was(self, objective):
        """Masks must not change with a release of NumPy or ours: finished series would no longer compare."""
        data = ObjectiveBlocks(PackedBlocks(np.arange(2, 42, dtype=np.uint16)[None]), objective, 5)
        labels = data[0]["labels"]
        expected = {"masked": [11, 12, 14, 23, 29, 33], "seq2seq": [100, 29, 30, 31, 101, 39, 40, 41, 0]}[
            data.record["name"]
        ]
        assert labels[labels != IGNORED].tolist() == expected

    def test_no_such_example_or_seed(self, objective):
        data = ObjectiveBlocks(packed(3), objective)
        with pytest.raises(IndexError):
            data[3]
        with pytest.raises(ConfigurationError, match="seed of the masks"):
            ObjectiveBlocks(packed(3), objective, -1)


class TestPreparation:
    @pytest.mark.parametrize("name", ["masked", "seq2seq"])
    def test_from_text_to_examples(self, jsonl, tmp_path, name):
        config = DataConfig(
            data_files=(str(jsonl),), vocab_size=300, block_size=32, heldout_tokens=640,
            special_tokens=special_tokens_for(name, 32),
        )  # fmt: skip
        data = prepare_data(config, 3200, cache_dir=tmp_path, progress=False)
        assert data.tokenizer.pad_token_id not in (None, data.tokenizer.eos_token_id)
        train, heldout = objective_blocks(data, name, seed=3)
        other, same_heldout = objective_blocks(data, name, seed=4)
        assert (whole(train)[1] != whole(other)[1]).any()
        assert (whole(heldout)[1] == whole(same_heldout)[1]).all() and heldout.seed == HELDOUT_SEED
        assert train.record == {
            "masked": {
                "name": "masked", "density": 0.15, "mask_random_keep": [0.8, 0.1, 0.1], "inputs": 32, "targets": 5,
                "seed": 3,
            },
            "seq2seq": {
                "name": "seq2seq", "density": 0.15, "mean_span": 3.0, "inputs": 30, "targets": 8, "seed": 3,
            },
        }[name]  # fmt: skip
        example = heldout[0]
        text = data.tokenizer.decode(example["input_ids"])
        assert ("<mask>" if name == "masked" else "<extra_id_0>") in text
        assert max(example["input_ids"].max(), example["labels"].max()) < len(data.tokenizer)

    def test_causal_is_the_packed_data_itself(self, jsonl, tmp_path):
        config = DataConfig(data_files=(str(jsonl),), vocab_size=300, block_size=32, heldout_tokens=640)
        data = prepare_data(config, 3200, cache_dir=tmp_path, progress=False)
        assert objective_blocks(data, "causal") == (data.train, data.heldout)
        assert special_tokens_for("causal", 32) == ()
        with pytest.raises(ConfigurationError, match="needs a mask token.*has none"):
            objective_blocks(data, "masked")
        with pytest.raises(ConfigurationError, match=r"needs 2 sentinels.*lacks <extra_id_0> and 1 more"):
            objective_blocks(data, "seq2seq")


def test_random_numbers_are_those_of_a_generator_for_each_block():
    from hf_muscaling.data.objectives import _random_numbers

    for seed in (0, 3, 2**64 - 1):
        for indices in ([0, 1, 2], [7, 7, 2**40, 5]):
            for count in (1, 5, 64):
                found = _random_numbers(seed, indices, count)
                keys = [np.array([seed, i], dtype=np.uint64) for i in indices]
                assert np.array_equal(found, [np.random.Philox(key=key).random_raw(count) for key in keys])


def test_masking_takes_no_longer_with_a_large_vocabulary():
    """Data never wait: 32 sequences are masked in a fraction of a step, whatever the vocabulary."""
    import timeit

    def seconds(vocabulary):
        blocks = PackedBlocks(np.random.default_rng(0).integers(5, 300, (32, 64), dtype=np.uint16))
        objective = MaskedLM(mask_id=2, special_ids=(0, 1, 2), vocab_size=vocabulary)
        data = ObjectiveBlocks(blocks, objective, seed=0)
        return min(timeit.repeat(lambda: data.__getitems__(range(32)), number=10, repeat=5))

    assert seconds(50_000) < 3 * seconds(300)

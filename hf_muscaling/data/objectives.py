"""Training objectives over packed blocks: causal, masked and span corruption, each a function of (seed, block) alone.

Which tokens of a block are hidden does not depend on the batch, the order, the process or the width, so that all runs
of a series see the same masks, a resumed run the same as an undisturbed one, and a held-out set never changes. Every
block gives the same number of inputs and of targets: no padding, and no noise from a varying number of targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hf_muscaling.data.packing import BlockBatch, PackedBlocks
from hf_muscaling.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from hf_muscaling.data.prepare import PackedData

ObjectiveName = Literal["causal", "masked", "seq2seq"]
IGNORED = -100
"""The label of a token that is no target (transformers' convention)."""
HELDOUT_SEED = 2**32
"""The seed of every held-out set's masks; no run can have it, as transformers' seeds are below 2**32."""
PAD, MASK, SENTINEL = "<pad>", "<mask>", "<extra_id_{}>"


class Objective(Protocol):
    """What turns blocks of raw tokens into inputs and labels."""

    def draws(self, tokens: int) -> int:
        """Return how many random numbers a block of so many tokens takes."""

    def corrupt(self, ids: NDArray[np.int64], draws: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs and labels, [blocks, …] each, of ids [blocks, tokens] and draws [blocks, numbers]."""

    def record(self, tokens: int) -> dict[str, Any]:
        """Return the settings for a run's record, with the inputs and targets that a block of so many tokens gives."""


@dataclass(frozen=True)
class MaskedLM:
    """BERT's objective: predict the tokens at random positions, 80 % of them masked, 10 % random, 10 % left.

    Exactly round(density·T) tokens of a block of T are targets (BERT's own count, not a Bernoulli draw a token), drawn
    uniformly among those that are not special. Their three treatments have exact proportions in expectation and within
    one token in each block. Source: Devlin et al. 2019, §3.1.

    Args:
        mask_id: the token that stands for a masked one.
        special_ids: never masked, and never what a random replacement becomes.
        vocab_size: ids are below it.
        density: share of a block's tokens that are targets.

    Raises:
        ConfigurationError: the density is not between 0 and 1, or no ordinary token is left.

    Example:
        >>> objective = MaskedLM(mask_id=2, special_ids=(0, 1, 2), vocab_size=50)
        >>> blocks = PackedBlocks(np.arange(10, 50, dtype=np.uint16).reshape(1, 40))
        >>> example = ObjectiveBlocks(blocks, objective, seed=0)[0]
        >>> int((example["labels"] != IGNORED).sum()), int((example["input_ids"] == 2).sum())
        (6, 5)
    """

    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    density: float = 0.15

    def __post_init__(self) -> None:
        _check_density(self.density)
        if not 0 <= self.mask_id < self.vocab_size or not len(self._ordinary):
            raise ConfigurationError(
                f"MaskedLM: mask_id={self.mask_id} and special_ids={self.special_ids} do not fit a vocabulary of "
                f"{self.vocab_size}; give the tokenizer's mask_token_id, all_special_ids and length."
            )

    @cached_property
    def _ordinary(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(self.vocab_size), np.array([self.mask_id, *self.special_ids]))

    @cached_property
    def _is_ordinary(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(self.vocab_size), self._ordinary)

    def targets(self, tokens: int) -> int:
        """Return the number of targets of a block: round(density·T), at least 1."""
        return max(round(self.density * tokens), 1)

    def draws(self, tokens: int) -> int:
        """Return how many random numbers a block takes: a position and a replacement a token, and an offset."""
        return 2 * tokens + 1

    def corrupt(self, ids: NDArray[np.int64], draws: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs and labels, [blocks, T] each."""
        tokens = ids.shape[1]
        targets = self.targets(tokens)
        ordinary = self._ordinary
        may_hide = self._is_ordinary[ids]
        keys = np.where(may_hide, draws[:, :tokens], np.iinfo(np.uint64).max)  # special tokens sort last
        chosen = np.argsort(keys, axis=1, kind="stable")[:, :targets]
        original = np.take_along_axis(ids, chosen, axis=1)
        random = ordinary[np.take_along_axis(draws[:, tokens:-1], chosen, axis=1) % len(ordinary)]
        # The chosen come in random order, so the first 80 % of them are masked; the offset makes the share exact on
        # average where 80 % is no whole number of tokens.
        offset = (draws[:, -1:] >> np.uint64(11)) * 2.0**-53
        share = (np.arange(targets) + offset) / targets
        shown = np.where(share < 0.8, self.mask_id, np.where(share < 0.9, random, original))
        is_target = np.take_along_axis(may_hide, chosen, axis=1)  # all, but in a block with too few ordinary tokens
        inputs, labels = ids.copy(), np.full_like(ids, IGNORED)
        np.put_along_axis(inputs, chosen, np.where(is_target, shown, original), axis=1)
        np.put_along_axis(labels, chosen, np.where(is_target, original, IGNORED), axis=1)
        return inputs, labels

    def record(self, tokens: int) -> dict[str, Any]:
        """Return the settings for a run's record."""
        return {
            "name": "masked", "density": self.density, "mask_random_keep": [0.8, 0.1, 0.1],
            "inputs": tokens, "targets": self.targets(tokens),
        }  # fmt: skip


class SpanLengths(NamedTuple):
    """What span corruption makes of a block, in tokens: hidden ones, spans, inputs and targets with sentinels, eos."""

    noise: int
    spans: int
    inputs: int
    targets: int


def span_lengths(tokens: int, density: float = 0.15, mean_span: float = 3.0) -> SpanLengths:
    """Return the exact lengths that span corruption gives a block of raw tokens.

    noise = round(density·T), spans = round(noise/mean_span), inputs = T − noise + spans + 1, targets = noise + spans +
    1: a sentinel a span in both, and eos. Source: Raffel et al. 2020, §3.3.4 and T5's `random_spans_helper`.

    Raises ConfigurationError for fewer than 2 tokens, a density outside (0, 1) or a mean span below 1.

    >>> span_lengths(568)
    SpanLengths(noise=85, spans=28, inputs=512, targets=114)
    """
    _check_density(density)
    if tokens < 2 or not mean_span >= 1:
        raise ConfigurationError(
            f"Span corruption needs blocks of at least 2 tokens and a mean span of at least 1, got {tokens} and "
            f"{mean_span}."
        )
    noise = min(max(round(tokens * density), 1), tokens - 1)
    spans = min(max(round(noise / mean_span), 1), noise, tokens - noise)
    return SpanLengths(noise, spans, tokens - noise + spans + 1, noise + spans + 1)


def raw_tokens_for(inputs: int, density: float = 0.15, mean_span: float = 3.0) -> int:
    """Return the largest block of raw tokens whose corrupted inputs are no longer than `inputs` tokens.

    Raises ConfigurationError if no block is that short.

    >>> raw_tokens_for(512)
    568
    """
    tokens = 2
    while span_lengths(tokens + 1, density, mean_span).inputs <= inputs:
        tokens += 1
    if span_lengths(tokens, density, mean_span).inputs > inputs:
        raise ConfigurationError(f"No block gives as few as {inputs} inputs; span corruption needs at least 3.")
    return tokens


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective: replace random spans by one sentinel each, and predict the sentinels and what they hide.

    A block of T tokens is cut into alternating kept and hidden spans, kept first: `noise` hidden tokens in `spans`
    spans, both numbers fixed by T (`span_lengths`), the cuts uniform among all segmentations into non-empty spans.
    Inputs are kept spans and sentinels, labels sentinels and hidden spans, both end with eos. Source: Raffel et al.
    2020, §3.1.4 and §3.3.4, as T5's `random_spans_noise_mask`.

    Args:
        sentinel_ids: in their order of use, at least one a span.
        eos_id: ends inputs and labels.
        density: share of a block's tokens that are hidden.
        mean_span: mean length of a hidden span, tokens.

    Raises:
        ConfigurationError: density or mean span are impossible, or a block has more spans than there are sentinels.

    Example:
        >>> objective = SpanCorruption(sentinel_ids=(101, 102), eos_id=100)
        >>> blocks = PackedBlocks(np.arange(20, dtype=np.uint16).reshape(1, 20))
        >>> example = ObjectiveBlocks(blocks, objective, seed=0)[0]
        >>> example["input_ids"].tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 101, 100]
        >>> example["labels"].tolist()
        [101, 17, 18, 19, 100]
    """

    sentinel_ids: tuple[int, ...]
    eos_id: int
    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        self.lengths(2)  # checks density and mean span

    def lengths(self, tokens: int) -> SpanLengths:
        """Return the exact lengths for a block of so many tokens; see `span_lengths`."""
        return span_lengths(tokens, self.density, self.mean_span)

    def draws(self, tokens: int) -> int:
        """Return how many random numbers a block takes: one for each place where a span of either kind may end."""
        return tokens - 2

    def corrupt(self, ids: NDArray[np.int64], draws: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs and labels, [blocks, inputs] and [blocks, targets]."""
        count, tokens = ids.shape
        noise, spans, *_ = self.lengths(tokens)
        if spans > len(self.sentinel_ids):
            raise ConfigurationError(
                f"A block of {tokens} tokens has {spans} hidden spans but there are {len(self.sentinel_ids)} sentinels;"
                f" give {spans} (special_tokens_for('seq2seq', {tokens}) names them), or shorter blocks."
            )
        hidden_spans = _segment(draws[:, : noise - 1], noise, spans)
        kept_spans = _segment(draws[:, noise - 1 :], tokens - noise, spans)
        starts = np.cumsum(np.stack([kept_spans, hidden_spans], axis=2).reshape(count, -1), axis=1)[:, :-1]
        boundary = np.zeros_like(ids)
        np.put_along_axis(boundary, starts, 1, axis=1)
        span = np.cumsum(boundary, axis=1)  # 0 the first kept span, 1 the first hidden one, …
        hidden = span % 2 == 1
        boundary[:, 0] = 1
        sentinels = np.array(self.sentinel_ids)[span // 2]
        eos = np.full((count, 1), self.eos_id)

        def replaced(here: NDArray[np.bool_]) -> NDArray[np.int64]:
            """Return the tokens with each span of `here` replaced by its sentinel."""
            first = here & (boundary == 1)
            tokens = np.where(first, sentinels, ids)[~here | first]  # as many in every row
            return np.concatenate([tokens.reshape(count, -1), eos], axis=1)

        return replaced(hidden), replaced(~hidden)

    def record(self, tokens: int) -> dict[str, Any]:
        """Return the settings for a run's record."""
        lengths = self.lengths(tokens)
        return {
            "name": "seq2seq", "density": self.density, "mean_span": self.mean_span,
            "inputs": lengths.inputs, "targets": lengths.targets,
        }  # fmt: skip


class ObjectiveBlocks(torch.utils.data.Dataset):
    """Packed blocks under an objective: example i is a function of the seed, i and the block's tokens.

    Every epoch shows the same masks, so train for one: a data set as large as the training budget (`prepare_data`).

    Args:
        blocks: the raw tokens.
        objective: `MaskedLM` or `SpanCorruption`; causal language modelling trains on the blocks themselves.
        seed: of the masks, from 0 to 2**64 - 1; the same seed and block give the same masks everywhere.

    Example:
        >>> blocks = PackedBlocks(np.arange(60, dtype=np.uint16).reshape(3, 20))
        >>> data = ObjectiveBlocks(blocks, SpanCorruption(sentinel_ids=(61,), eos_id=60), seed=1)
        >>> data.record
        {'name': 'seq2seq', 'density': 0.15, 'mean_span': 3.0, 'inputs': 19, 'targets': 5, 'seed': 1}
    """

    def __init__(self, blocks: PackedBlocks, objective: Objective, seed: int = 0) -> None:
        if not 0 <= seed < 2**64:
            raise ConfigurationError(f"The seed of the masks must lie between 0 and 2**64 - 1, got {seed}.")
        self.blocks = blocks
        self.objective = objective
        self.seed = seed

    @property
    def block_size(self) -> int:
        """Raw tokens in a block: what an example counts for in D, whatever its inputs and targets."""
        return self.blocks.block_size

    @property
    def record(self) -> dict[str, Any]:
        """The objective, its settings and the seed, for a run's record."""
        return {**self.objective.record(self.block_size), "seed": self.seed}

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]  # -1 is the last block, and one past the end an IndexError
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> BlockBatch:
        """Return many examples at once; torch's DataLoader calls it with a whole batch of indices."""
        ids = self.blocks.blocks[np.asarray(indices, dtype=np.int64)].astype(np.int64)
        draws = _random_numbers(self.seed, indices, self.objective.draws(self.block_size))
        inputs, labels = self.objective.corrupt(ids, draws)
        return BlockBatch(torch.from_numpy(inputs), torch.from_numpy(labels))


def special_tokens_for(
    objective: ObjectiveName, block_size: int, *, density: float = 0.15, mean_span: float = 3.0
) -> tuple[str, ...]:
    """Return the special tokens that an objective needs besides `<|endoftext|>`, in the order of their ids.

    Padding is a token of its own, as BERT keeps the embedding of its padding token at zero.

    >>> special_tokens_for("masked", 64)
    ('<pad>', '<mask>')
    >>> special_tokens_for("seq2seq", 64)
    ('<pad>', '<extra_id_0>', '<extra_id_1>', '<extra_id_2>')
    """
    if objective == "causal":
        return ()
    if objective == "masked":
        return PAD, MASK
    spans = span_lengths(block_size, density, mean_span).spans
    return PAD, *(SENTINEL.format(k) for k in range(spans))


def objective_for(
    objective: ObjectiveName,
    tokenizer: PreTrainedTokenizerFast,
    block_size: int,
    *,
    density: float = 0.15,
    mean_span: float = 3.0,
) -> Objective | None:
    """Return an objective with the ids of a tokenizer's special tokens; None for causal language modelling.

    Raises ConfigurationError if the tokenizer lacks the mask token or the sentinels.
    """
    if objective == "causal":
        return None
    if objective == "masked":
        if tokenizer.mask_token_id is None:
            raise ConfigurationError(
                f"Masked language modelling needs a mask token, and the tokenizer {tokenizer.name_or_path!r} has none: "
                "use one that has, or none to train one on the data."
            )
        special = tuple(sorted(tokenizer.all_special_ids))
        return MaskedLM(tokenizer.mask_token_id, special, len(tokenizer), density)
    names = [SENTINEL.format(k) for k in range(span_lengths(block_size, density, mean_span).spans)]
    known = tokenizer.get_vocab()
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigurationError(
            f"Span corruption of blocks of {block_size} tokens needs {len(names)} sentinels, and the tokenizer "
            f"{tokenizer.name_or_path!r} lacks {missing[0]} and {len(missing) - 1} more: use T5's, or none to train "
            "one on the data, or shorter blocks."
        )
    return SpanCorruption(tuple(known[name] for name in names), tokenizer.eos_token_id, density, mean_span)


def objective_blocks(
    data: PackedData, objective: ObjectiveName, *, seed: int = 0, density: float = 0.15, mean_span: float = 3.0
) -> tuple[PackedBlocks | ObjectiveBlocks, PackedBlocks | ObjectiveBlocks]:
    """Return the training and the held-out set of packed data under an objective; `collate_blocks` collates all.

    The training masks follow `seed`; those of the held-out set are fixed, so that losses of different seeds compare.

    Raises ConfigurationError if the tokenizer lacks the objective's special tokens: give `special_tokens_for(…)` to
    `DataConfig(special_tokens=…)`.
    """
    made = objective_for(objective, data.tokenizer, data.train.block_size, density=density, mean_span=mean_span)
    if made is None:
        return data.train, data.heldout
    return ObjectiveBlocks(data.train, made, seed), ObjectiveBlocks(data.heldout, made, HELDOUT_SEED)


def _random_numbers(seed: int, indices: Sequence[int], count: int) -> NDArray[np.uint64]:
    """Return [indices, count] random 64-bit numbers, each row a function of (seed, index).

    Philox is keyed by both; the raw numbers of a bit generator, unlike `Generator`'s methods, never change with NumPy.
    """
    # One generator, set to the start of each row's stream: making one takes as long as a few hundred numbers.
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    start: Any = generator.state
    rows = np.empty((len(indices), count), np.uint64)
    for row, index in zip(rows, indices, strict=True):
        start["state"]["key"][1] = int(index)
        generator.state = start
        row[:] = generator.random_raw(count)
    return rows


def _segment(keys: NDArray[np.uint64], items: int, segments: int) -> NDArray[np.int64]:
    """Return the lengths, [rows, segments], of uniformly random non-empty segments of so many items."""
    cuts = np.sort(np.argsort(keys, axis=1, kind="stable")[:, : segments - 1], axis=1) + 1
    edges = np.pad(cuts, ((0, 0), (1, 1)))
    edges[:, -1] = items
    return np.diff(edges, axis=1)


def _check_density(density: float) -> None:
    if not 0 < density < 1:
        raise ConfigurationError(f"The density of targets must lie between 0 and 1, got {density}.")

"""Near-duplicate removal by 8-grams of words: most of a repeated paragraph's 8-grams stand in an earlier one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

N = 8  # words; the usual length in corpus reports
_WORD = re.compile(r"\w+")
_NAME = re.compile(r".*[\d_]|.[a-z]*[A-Z]")


def new_paragraphs(paragraphs: Sequence[str], *, names_alike: bool = True, most_seen: float = 0.3) -> NDArray[np.bool_]:
    """Return for each paragraph whether it is new: at most `most_seen` of its 8-grams stand earlier in the sequence.

    Words are compared in lower case. With `names_alike` every name (digits, underscores, CamelCase) counts as the same
    word, so that "the BertModel with 768 units" repeats "the GPT2Model with 1024 units"; code, which is made of names,
    must not have it. A paragraph shorter than eight words is one gram.

    Example:
        >>> new_paragraphs(["Return the BertModel of this size", "Return the GPT2Model of this size"]).tolist()
        [True, False]
    """
    if not paragraphs:
        return np.zeros(0, dtype=bool)
    grams, lengths = _grams(paragraphs, names_alike)
    ends = np.cumsum(lengths)
    seen = np.concatenate([[0], np.cumsum(~_first_occurrence(grams))])
    repeated = seen[ends] - seen[ends - lengths]
    return repeated <= most_seen * lengths


def repeated_share(paragraphs: Sequence[str]) -> float:
    """Return the share of word 8-grams (lower case, exact) that occurred before: 0 means that none repeats."""
    if not paragraphs:
        return 0.0
    grams, _ = _grams(paragraphs, False)
    return 1 - len(np.unique(grams)) / len(grams)


def shared_share(paragraphs: Sequence[str], others: Sequence[str]) -> float:
    """Return the share of the word 8-grams of `paragraphs` that stand in `others` too, a measure of leakage."""
    grams, lengths = _grams([*paragraphs, *others], False)
    cut = int(lengths[: len(paragraphs)].sum())
    return float(np.isin(grams[:cut], grams[cut:]).mean()) if cut else 0.0


def _grams(paragraphs: Sequence[str], names_alike: bool) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of all 8-grams, paragraph after paragraph, and how many each paragraph has."""
    ids: dict[str, int] = {"": 0}  # by first appearance: no dependence on PYTHONHASHSEED
    flat: list[int] = []
    words_in: list[int] = []
    for paragraph in paragraphs:
        words = _WORD.findall(paragraph)
        if names_alike:
            words = ["#" if _NAME.match(word) else word.lower() for word in words]
        else:
            words = [word.lower() for word in words]
        flat.extend([ids.setdefault(word, len(ids)) for word in words])
        flat.extend([0] * (N - len(words)))
        words_in.append(max(N, len(words)))
    numbers = np.array(flat, dtype=np.uint64)
    lengths = np.array(words_in, dtype=np.int64)
    hashes = np.zeros(len(numbers) - N + 1, dtype=np.uint64)
    for i in range(N):  # a polynomial hash modulo 2^64; odd multiplier, mixed at each step
        hashes = (hashes ^ numbers[i : len(numbers) - N + 1 + i]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    starts = np.cumsum(lengths) - lengths
    within = np.arange(len(numbers)) - np.repeat(starts, lengths) <= np.repeat(lengths, lengths) - N
    return hashes[within[: len(hashes)]], lengths - N + 1


def _first_occurrence(grams: NDArray[np.uint64]) -> NDArray[np.bool_]:
    first = np.zeros(len(grams), dtype=bool)
    first[np.unique(grams, return_index=True)[1]] = True
    return first

"""What the columns of other people's tables are called, and how their numbers are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

ALIASES: dict[str, tuple[str, ...]] = {
    "N": (
        "N", "params", "n_params", "num_params", "num_parameters", "n_parameters", "parameters", "total_params",
        "model/num_parameters", "model_size", "model size", "size",
    ),
    "N_non_embedding": (
        "N_non_embedding", "params_non_embed", "params_non_embedding", "non_embedding_params", "n_non_embedding",
        "num_params_non_embedding", "params_without_embeddings", "num_non_embedding_params",
    ),
    "D": (
        "D", "tokens", "tokens_seen", "n_tokens", "num_tokens", "total_tokens", "train_tokens", "training_tokens",
        "token_num", "consumed_tokens", "num_input_tokens_seen", "train/num_input_tokens_seen",
        "throughput/total_tokens", "train/tokens", "train/tokens_seen",
    ),
    "unique_tokens": ("unique_tokens", "tokens_unique", "dataset_tokens"),
    "C": ("C", "flops", "flop", "training_flops", "training flop", "compute"),
    "step": ("train/global_step", "global_step", "step", "_step", "iteration", "iter"),
    "S": ("S", "steps", "n_steps", "num_steps", "train_steps"),
    "B": (
        "B", "batch_tokens", "batch_size_in_tokens", "tokens_per_batch", "tokens_per_step",
        "tokens_per_training_batch", "batch_size_tokens",
    ),
    "run_id": ("run_id", "run", "run_name", "name", "model_name", "model"),
    "seed": ("seed", "random_seed"),
    "family": ("family", "scaled_set", "model_type", "group"),
    "weight": ("weight",),
    "lr": ("lr", "learning_rate", "train/learning_rate", "train/lr"),
    "score": ("score", "acc_norm,none", "acc,none", "acc_norm", "acc", "accuracy", "exact_match", "exact_match,none"),
    "chance": ("chance", "random_baseline"),
    "items": ("items", "n_items", "num_questions", "n_samples"),
    "task": ("task", "benchmark"),
}  # fmt: skip
"""Canonical column → what it may be called, the surest name first; matched without regard to case."""

LOSSES: tuple[str, ...] = (
    "eval_loss", "eval/loss", "val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss",
    "validation/loss", "eval/ce_loss", "test_loss", "test/loss", "final_loss", "loss", "L", "train/loss",
    "train_loss", "train/ce_loss", "train/cross_entropy",
)  # fmt: skip
"""Losses in the order in which they are preferred: held-out before training."""

PERPLEXITY = re.compile(r"(^|[^a-z])(ppl|perplexity)$", re.IGNORECASE)
MISSING = frozenset({"", "na", "n/a", "null", "none", "-"})
_SUFFIX = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SHORT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmbt])", re.IGNORECASE)
_IN_NAME = re.compile(r"(?<![0-9a-z.])([0-9]+(?:[.][0-9]+)?)([kmb])(?![0-9a-z])", re.IGNORECASE)


def find_column(names: Iterable[str], aliases: Iterable[str]) -> str | None:
    """The first alias that is a column: its exact spelling, else whatever differs in case only.

    One-letter names must match exactly, since `n` and `N` differ in most tables.

    >>> find_column(["Step", "Tokens"], ALIASES["D"])
    'Tokens'
    """
    names = list(names)
    lower = {name.lower(): name for name in reversed(names)}
    for alias in aliases:
        if alias in names:
            return alias
        if len(alias) > 1 and alias.lower() in lower:
            return lower[alias.lower()]
    return None


def number(cell: Any, short: bool = False) -> float | None:
    """A cell as a float, None when it is empty; `short` admits "125M" and "1.4T". Raises ValueError for other text.

    >>> number("1.4T", short=True), number(" 3e-4 "), number("NA")
    (1400000000000.0, 0.0003, None)
    """
    if cell is None:
        return None
    if isinstance(cell, bool):
        raise ValueError("a truth value")
    if isinstance(cell, (int, float)):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    text = str(cell).strip()
    if text.lower() in MISSING:
        return None
    if short and (match := _SHORT.fullmatch(text)):
        return float(match[1]) * _SUFFIX[match[2].lower()]
    return float(text)


def numbers(cells: list[Any]) -> np.ndarray | None:
    """All cells as floats at once, None when one of them needs a closer look; for tables of a million rows.

    >>> numbers(["1", "2.5"]), numbers(["1", "NA"])
    (array([1. , 2.5]), None)
    """
    kinds = set(map(type, cells))
    if kinds <= {str} or kinds <= {int, float}:
        try:
            return np.array(cells).astype(float) if kinds == {str} else np.array(cells, float)
        except (ValueError, OverflowError):
            pass  # an empty cell, a suffix, a word: `number` says which
    return None


def size_in_name(name: str) -> float | None:
    """The model size that a run's name states, such as 190e6 in "190M-1xC"; None without or with several.

    >>> size_in_name("peteish-1.3B-10xC"), size_in_name("baseline")
    (1300000000.0, None)
    """
    found = {float(digits) * _SUFFIX[unit.lower()] for digits, unit in _IN_NAME.findall(name)}
    return found.pop() if len(found) == 1 else None

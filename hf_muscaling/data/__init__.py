"""Text to blocks of tokens, offline by default: `prepare_data(DataConfig(), train_tokens=…)` is the front door.

Example:
    >>> from hf_muscaling.data import DataConfig, prepare_data
    >>> data = prepare_data(DataConfig(block_size=64), train_tokens=1_000_000)  # doctest: +SKIP
    >>> data.train[0]["input_ids"].shape  # doctest: +SKIP
    torch.Size([64])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Corpus",
    "DataConfig",
    "Document",
    "MaskedLM",
    "Mixture",
    "MixtureStream",
    "ObjectiveBlocks",
    "PackedBlocks",
    "PackedData",
    "SpanCorruption",
    "collate_blocks",
    "load_corpus",
    "load_tokenizer",
    "merge_states",
    "objective_blocks",
    "pack_documents",
    "prepare_data",
    "preset_mixtures",
    "read_mixture",
    "span_lengths",
    "special_tokens_for",
    "tokenizer_hash",
    "train_tokenizer",
]

_MODULES = {
    "corpus": ("Corpus", "Document", "load_corpus"),
    "mixture": ("Mixture", "preset_mixtures", "read_mixture"),
    "mixture_stream": ("MixtureStream", "merge_states"),
    "objectives": (
        "MaskedLM",
        "ObjectiveBlocks",
        "SpanCorruption",
        "objective_blocks",
        "span_lengths",
        "special_tokens_for",
    ),
    "packing": ("PackedBlocks", "collate_blocks", "pack_documents"),
    "prepare": ("DataConfig", "PackedData", "prepare_data"),
    "tokenizer": ("load_tokenizer", "tokenizer_hash", "train_tokenizer"),
}

if TYPE_CHECKING:
    from hf_muscaling.data.corpus import Corpus, Document, load_corpus
    from hf_muscaling.data.mixture import Mixture, preset_mixtures, read_mixture
    from hf_muscaling.data.mixture_stream import MixtureStream, merge_states
    from hf_muscaling.data.objectives import (
        MaskedLM,
        ObjectiveBlocks,
        SpanCorruption,
        objective_blocks,
        span_lengths,
        special_tokens_for,
    )
    from hf_muscaling.data.packing import PackedBlocks, collate_blocks, pack_documents
    from hf_muscaling.data.prepare import DataConfig, PackedData, prepare_data
    from hf_muscaling.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

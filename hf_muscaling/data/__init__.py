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

_MODULES = {
    "Corpus": "corpus",
    "DataConfig": "prepare",
    "Document": "corpus",
    "PackedBlocks": "packing",
    "PackedData": "prepare",
    "collate_blocks": "packing",
    "load_corpus": "corpus",
    "load_tokenizer": "tokenizer",
    "pack_documents": "packing",
    "prepare_data": "prepare",
    "tokenizer_hash": "tokenizer",
    "train_tokenizer": "tokenizer",
}
__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    from hf_muscaling.data.corpus import Corpus, Document, load_corpus
    from hf_muscaling.data.packing import PackedBlocks, collate_blocks, pack_documents
    from hf_muscaling.data.prepare import DataConfig, PackedData, prepare_data
    from hf_muscaling.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

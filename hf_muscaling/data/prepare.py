"""From a configuration to blocks: split the source, train a tokenizer, pack the documents, hash and cache them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.data.cache import cache_folder, digest, make_folder, new_folder, remove_folder
from hf_muscaling.data.corpus import DOMAINS, Document
from hf_muscaling.data.mixture_packing import (
    MixtureSource,
    bytes_per_token,
    heldout_mixture,
    pack_mixture,
    packed_counts,
    total,
)
from hf_muscaling.data.mixture_stream import MixtureStream
from hf_muscaling.data.packing import PackedBlocks, PackingCount, pack_documents
from hf_muscaling.data.sources import Source, open_source
from hf_muscaling.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from hf_muscaling.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same configuration comes to other blocks


@dataclass(frozen=True)
class DataConfig:
    """What text a series is trained on, and how it becomes blocks.

    Args:
        dataset: "embedded", the name of a data set on the Hub, or a folder `datasets` can load.
        dataset_config: its configuration, as "en" of "allenai/c4".
        dataset_revision: its commit, branch or tag; give a commit to pin it.
        split, heldout_split: its splits; without a held-out one, one document in 20 is held out, by its hash.
        text_column: the column that holds the text.
        data_files: local files or globs instead of a data set.
        domains: of the embedded corpus, "prose" and "code".
        vocab_size: tokens of the byte-level BPE that is trained on the training part.
        tokenizer: a folder or Hub name of a ready tokenizer instead.
        mixture: domains in exact proportions of tokens instead: "nanolm:100B", "nanodata", "c4", "mc4" or a YAML file
            (`hf_muscaling.data.read_mixture`).
        special_tokens: further special tokens of the trained tokenizer, as an objective needs (`special_tokens_for`).
        block_size: tokens in a block.
        heldout_tokens: tokens of the held-out set; it does not depend on seed or training length.
        seed: of the order of the training documents.

    Raises:
        ConfigurationError: a number is not positive or a domain unknown.

    Example:
        >>> DataConfig(dataset="allenai/c4", dataset_config="en", heldout_split="validation").block_size
        64
    """

    dataset: str = "embedded"
    dataset_config: str | None = None
    dataset_revision: str | None = None
    split: str = "train"
    heldout_split: str | None = None
    text_column: str = "text"
    data_files: tuple[str, ...] = ()
    domains: tuple[str, ...] = ("prose",)
    vocab_size: int = 1024
    tokenizer: str | None = None
    block_size: int = 64
    heldout_tokens: int = 131_072
    seed: int = 0
    special_tokens: tuple[str, ...] = ()
    mixture: str | None = None

    def __post_init__(self) -> None:
        for name in ("data_files", "domains", "special_tokens"):  # YAML and argparse give lists
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(str(item) for item in value))
        for name in ("vocab_size", "block_size", "heldout_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be a positive number of tokens, got {getattr(self, name)}")
        if self.heldout_tokens < self.block_size:
            raise ConfigurationError(
                f"heldout_tokens={self.heldout_tokens} is less than one block of {self.block_size}; raise it"
            )
        if not self.domains or not set(self.domains) <= set(DOMAINS):
            raise ConfigurationError(f"domains must be some of {', '.join(DOMAINS)}, got {self.domains}")


@dataclass(frozen=True)
class PackedData:
    """Training and held-out blocks, their tokenizer, the hashes, and where they come from (`info`, JSON-able)."""

    train: PackedBlocks
    heldout: PackedBlocks
    tokenizer: PreTrainedTokenizerFast
    data_hash: str
    tokenizer_hash: str
    info: dict[str, Any]


def prepare_data(
    config: DataConfig,
    train_tokens: int,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PackedData:
    """Return ⌈train_tokens/block_size⌉ training blocks without repeats, and held-out blocks of other documents.

    A longer run's blocks begin with a shorter one's. The result is cached, checked by its hash when read again, and may
    be asked for by several processes at once.

    Args:
        train_tokens: tokens the longest run needs.
        cache_dir: None is `$HF_MUSCALING_CACHE`, else `$XDG_CACHE_HOME/hf_muscaling`, else `~/.cache/hf_muscaling`.

    Raises:
        ConfigurationError: the settings are in conflict.
        DataError: the source cannot be read or has too few tokens.

    Example:
        >>> data = prepare_data(DataConfig(), train_tokens=1_000_000)  # doctest: +SKIP
        >>> data.train.tokens, data.info["bytes_per_token"]  # doctest: +SKIP
    """
    if train_tokens < 1:
        raise ConfigurationError(f"train_tokens must be a positive number of tokens, got {train_tokens}")
    cache = cache_folder(cache_dir)
    make_folder(cache)
    source = open_source(config, cache_dir=cache, progress=progress)
    blocks = -(-train_tokens // config.block_size)
    if isinstance(source, MixtureSource):
        source.mixture.require_tokens(train_tokens)
    key = _key(config, source, blocks)[:32]
    folder = cache / "packed" / key
    if folder.exists():
        try:
            return _load(folder)
        except (DataError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the packed data in the cache cannot be used (%s); it is packed again", error)
            remove_folder(folder)
    if isinstance(source, MixtureSource):
        return _prepare_mixture(config, source, blocks, folder, cache, progress)
    packed = _pack(config, source, blocks, cache, progress)
    with new_folder(folder) as temporary:
        _save(temporary, *packed)
    return _load(folder)  # what a second caller gets, memory-mapped


def _prepare_mixture(
    config: DataConfig, source: MixtureSource, blocks: int, folder: Path, cache: Path, progress: bool
) -> PackedData:
    """Pack a mix in a folder of its own, where an interrupted call goes on; one process at a time."""
    from filelock import FileLock

    working = cache / "packing" / folder.name
    make_folder(working.parent)
    with FileLock(working.parent / f"{folder.name}.lock"):
        if not folder.exists():  # another process may have packed it meanwhile
            packed = _pack_mixture(config, source, blocks, cache, working, progress)
            with new_folder(folder) as temporary:
                _save(temporary, *packed)
            remove_folder(working)
    return _load(folder)


def _pack_mixture(
    config: DataConfig, source: MixtureSource, blocks: int, cache: Path, working: Path, progress: bool
) -> tuple[PackedBlocks, PackedBlocks, PreTrainedTokenizerFast, dict[str, Any]]:
    tokenizer = _tokenizer(config, source, cache, progress)
    # The held-out set is the same whatever the shards and the seed.
    whole = replace(source.mixture, shards=1)
    other = MixtureStream(whole, tokenizer, config.block_size, part="heldout")
    heldout = heldout_mixture(other, config.heldout_tokens // config.block_size)
    apart = any(domain.heldout_split for domain in source.mixture.domains)  # else the hash of a document decides
    stream = MixtureStream(
        source.mixture, tokenizer, config.block_size, seed=config.seed, exclude=other.document_names() if apart else ()
    )
    train = pack_mixture(stream, blocks, working, "Training" if progress else None)
    train_counts, heldout_counts = packed_counts(working), other.counts()
    info = _info(config, source, tokenizer, train, total(train_counts), heldout, total(heldout_counts))
    info["bytes_per_token"] = bytes_per_token(heldout_counts)
    info["train"]["documents_read"], info["heldout"]["documents_read"] = train_counts, heldout_counts
    return train, heldout, tokenizer, info


def _pack(
    config: DataConfig, source: Source, blocks: int, cache: Path, progress: bool
) -> tuple[PackedBlocks, PackedBlocks, PreTrainedTokenizerFast, dict[str, Any]]:
    tokenizer = _tokenizer(config, source, cache, progress)
    heldout_blocks = config.heldout_tokens // config.block_size
    heldout_names: set[str] = set()

    def heldout_documents() -> Iterator[Document]:
        for document in source.documents("heldout", seed=0):  # fixed: the same for every seed
            heldout_names.add(document.name)
            yield document

    heldout, heldout_count = pack_documents(
        heldout_documents(),
        tokenizer,
        config.block_size,
        blocks=heldout_blocks,
        progress="Held-out" if progress else None,
    )
    _require(
        heldout, heldout_count, heldout_blocks, "held-out", "lower heldout_tokens (--heldout-tokens), or give more text"
    )
    train, train_count = pack_documents(
        # A separate held-out split may hold documents of the training split.
        (document for document in source.documents("train", config.seed) if document.name not in heldout_names),
        tokenizer,
        config.block_size,
        blocks=blocks,
        progress="Training" if progress else None,
    )
    _require(
        train, train_count, blocks, "training",
        "train for fewer tokens, give more text (--data-files, --dataset, or more --domains), or lower --vocab-size",
    )  # fmt: skip
    return train, heldout, tokenizer, _info(config, source, tokenizer, train, train_count, heldout, heldout_count)


def _tokenizer(config: DataConfig, source: Source, cache: Path, progress: bool) -> PreTrainedTokenizerFast:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    texts = (document.text for document in source.sample())
    return train_tokenizer(
        texts, config.vocab_size, extra_special_tokens=config.special_tokens, cache_dir=cache, progress=progress
    )


def _info(
    config: DataConfig,
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    train: PackedBlocks,
    train_count: PackingCount,
    heldout: PackedBlocks,
    heldout_count: PackingCount,
) -> dict[str, Any]:
    return {
        **source.describe(),
        "block_size": config.block_size,
        "vocab_size": len(tokenizer),
        "seed": config.seed,
        "train": _count(train, train_count),
        "heldout": _count(heldout, heldout_count),
        # Of the held-out set, with its end-of-text tokens: what turns a loss into bits per byte.
        "bytes_per_token": round(heldout_count.bytes / heldout_count.tokens, 4),
        "versions": _versions(),
    }


def _require(packed: PackedBlocks, count: PackingCount, blocks: int, part: str, remedies: str) -> None:
    if len(packed) < blocks:
        raise DataError(
            f"too little text: the {part} part has {count.tokens:,} tokens ({count.documents:,} documents), "
            f"{blocks * packed.block_size:,} are needed without repeating any; {remedies}"
        )


def _count(packed: PackedBlocks, count: PackingCount) -> dict[str, Any]:
    record: dict[str, Any] = {
        "blocks": len(packed),
        "tokens": packed.tokens,
        "documents": count.documents,
        "bytes": count.bytes,
        "sha256": packed.sha256,
    }
    if packed.domains is not None:
        record["blocks_per_domain"] = {
            name: int((packed.domains == index).sum()) for index, name in enumerate(packed.domain_names)
        }
    return record


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("numpy", "tokenizers", "transformers", "datasets")}


def _key(config: DataConfig, source: Source, blocks: int) -> str:
    settings = asdict(config)
    del settings["data_files"]  # their names, sizes and times are in the source's identity
    del settings["mixture"]  # its content is in the source's identity
    if not settings["special_tokens"]:
        del settings["special_tokens"]  # what was packed before there were any keeps its key
    if config.tokenizer is not None and Path(config.tokenizer).is_dir():
        files = sorted(path for path in Path(config.tokenizer).glob("*.json"))
        settings["tokenizer"] = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return digest([FORMAT, settings, source.identity(), blocks, _versions()])


def _save(
    folder: Path, train: PackedBlocks, heldout: PackedBlocks, tokenizer: PreTrainedTokenizerFast, info: dict[str, Any]
) -> None:
    train.save(folder / "train")
    heldout.save(folder / "heldout")
    tokenizer.save_pretrained(folder / "tokenizer")
    record = {
        "data_hash": data_hash(train, heldout, info),
        # Of what is read back: some tokenizers of the Hub change a little on their way through a folder.
        "tokenizer_hash": tokenizer_hash(load_tokenizer(str(folder / "tokenizer"))),
        "info": info,
    }
    (folder / "data.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _load(folder: Path) -> PackedData:
    record = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    train, heldout = PackedBlocks.load(folder / "train"), PackedBlocks.load(folder / "heldout")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    hashes = (data_hash(train, heldout, record["info"]), tokenizer_hash(tokenizer))
    if hashes != (record["data_hash"], record["tokenizer_hash"]):
        raise DataError("its blocks or its tokenizer are not those that were written")
    return PackedData(train, heldout, tokenizer, *hashes, record["info"])


def data_hash(train: PackedBlocks, heldout: PackedBlocks, info: dict[str, Any]) -> str:
    """Return the hash that every record of a run keeps: of the blocks, and of the mix that they come from."""
    mixture = f" {info['mixture']['sha256']}" if "mixture" in info else ""
    return hashlib.sha256(f"{train.sha256} {heldout.sha256}{mixture}".encode()).hexdigest()

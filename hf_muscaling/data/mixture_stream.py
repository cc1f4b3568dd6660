"""A mix of domains as a stream of blocks: exact in tokens, resumable at any block, readable in parts.

Every block is of one domain, so that the domains' shares are shares of tokens however long documents are; a document
runs on in its domain's next block. `schedule` decides which domain comes next. With V shards (the mix's `shards`)
block i is of shard i mod V, and each shard has documents of its own: rank r of R reads the shards r, r + R, …, and so
the blocks r, r + R, …. The order of the whole is a matter of the mix and the seed, never of the number of ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_muscaling.data.corpus import Document
from hf_muscaling.data.mixture import Domain, Mixture, schedule
from hf_muscaling.data.packing import encode_documents, token_dtype
from hf_muscaling.data.sources import (
    SHUFFLE_WINDOW,
    column_texts,
    document_of,
    file_format,
    hub_errors,
    is_heldout,
    shuffled,
    without_repeats,
)
from hf_muscaling.data.tokenizer import tokenizer_hash
from hf_muscaling.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

STATE_FORMAT = 1


def open_rows(domain: Domain, part: str = "train") -> datasets.IterableDataset:
    """Return a domain's rows, streamed. Raises DataError as a Hub source does."""
    import datasets

    with _source_errors(domain):
        if not domain.dataset:
            files = domain.local_files
            return datasets.load_dataset(
                file_format(files[0]), data_files=[str(path) for path in files], split="train", streaming=True
            )
        split = domain.heldout_split if part == "heldout" and domain.heldout_split else domain.split
        return datasets.load_dataset(
            domain.dataset, domain.config, revision=domain.revision, split=split, streaming=True,
            data_files=list(domain.files) or None,
        )  # fmt: skip


@contextmanager
def _source_errors(domain: Domain) -> Iterator[None]:
    if domain.dataset:
        with hub_errors(domain.where, domain.split):
            yield
        return
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # datasets raises what its readers raise: pyarrow, pandas, zlib, Unicode, …
        raise DataError(
            f"{domain.where} cannot be read ({type(error).__name__}: {str(error)[:300]}); check its files and endings"
        ) from error


class DomainReader:
    """The documents of one domain that belong to one shard and part, as windows of rows shuffled by the seed.

    `state` says where the current window of rows begins; reading goes on from there after a restart. Repeats are left
    out within a window only: remembering every document of a trillion tokens is not possible.
    """

    def __init__(
        self,
        domain: Domain,
        part: str,
        seed: int,
        shard: int,
        shards: int,
        window: int = SHUFFLE_WINDOW,
        exclude: Collection[str] = (),
        rows: datasets.IterableDataset | None = None,
    ) -> None:
        self.domain, self.part, self.seed, self.window, self.exclude = domain, part, seed, window, exclude
        self._shard, self._shards, self._rows = shard, shards, rows
        self.state: dict[str, Any] = {"rows": None, "row": 0}

    def windows(self, state: dict[str, Any] | None = None) -> Iterator[list[Document]]:
        """Yield window after window of this shard's documents, from the window that `state` begins."""
        domain = self.domain
        rows = open_rows(domain, self.part) if self._rows is None else self._rows
        with _source_errors(domain):
            every = self._shards if rows.num_shards < self._shards else 1
            # Whole files where there are enough; else one row in V of all. Either way an iterator of its own.
            rows = rows.shard(self._shards // every, self._shard // every, contiguous=False)
            row = 0
            if state is not None:
                row = state["row"]
                if state["rows"] is not None:
                    rows.load_state_dict(copy.deepcopy(state["rows"]))
            place = None if state is None else state["rows"]
            remaining = iter(rows)
            while True:
                self.state = {"rows": place, "row": row}
                batch = list(islice(remaining, self.window))
                if not batch:
                    return
                place = copy.deepcopy(rows.state_dict())
                mine = [r for i, r in enumerate(batch, row) if i % every == self._shard % every]
                row += len(batch)
                yield list(self._documents(mine))

    def _documents(self, rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
        texts = column_texts(rows, self.domain.text_column, self.domain.where)
        documents = (document_of(text) for text in texts)
        if not self.domain.heldout_split:
            documents = (d for d in documents if is_heldout(d.name) == (self.part == "heldout"))
        kept = without_repeats(d for d in documents if d.name not in self.exclude)
        return shuffled((Document(d.name, d.text, self.domain.name) for d in kept), self.seed, max(1, self.window))


class _Tokens:
    """A reader's documents as one run of tokens, read piece by piece, with a place that can be kept."""

    def __init__(self, reader: DomainReader, tokenizer: PreTrainedTokenizerFast, state: dict[str, Any] | None) -> None:
        self._reader, self._tokenizer, self._dtype = reader, tokenizer, token_dtype(tokenizer)
        self.documents, self.bytes, self.tokens = 0, 0, 0
        self.names: set[str] = set()
        self._document = -1  # in its window
        self._used = 0
        self._ids: NDArray[Any] = np.zeros(0, self._dtype)
        self._windows = reader.windows(state and state["window"])
        self._encoded: Iterator[tuple[Document, NDArray[Any]]] = iter(())
        if state is not None:
            self.documents, self.bytes, self.tokens = state["documents"], state["bytes"], state["tokens"]
            if state["document"] >= 0:
                self._open(skip=state["document"])
                self._ids, self._document = next(self._encoded)[1], state["document"]
                self._used = state["used"]

    def state(self) -> dict[str, Any]:
        """Return the place before the next token, JSON-able."""
        return {
            "window": self._reader.state, "document": self._document, "used": self._used,
            "documents": self.documents, "bytes": self.bytes, "tokens": self.tokens,
        }  # fmt: skip

    def read(self, count: int) -> NDArray[Any]:
        """Return the next `count` tokens. Raises DataError when the documents have ended."""
        pieces = []
        while count:
            while self._used == len(self._ids):
                self._advance()
            pieces.append(self._ids[self._used : self._used + count])
            self._used += len(pieces[-1])
            count -= len(pieces[-1])
        return np.concatenate(pieces)

    def _open(self, skip: int = 0) -> None:
        documents = next(self._windows, None)
        if documents is None:
            raise DataError(
                f"{self._reader.domain.where} has ended after {self.tokens:,} tokens ({self.documents:,} documents), "
                "and the mix needs more of it without repeating any: train for fewer tokens, give the domain more "
                "text, or lower its proportion"
            )
        self._encoded = encode_documents(documents[skip:], self._tokenizer, self._dtype)
        self._document = skip - 1

    def _advance(self) -> None:
        while (item := next(self._encoded, None)) is None:
            self._open()
        document, self._ids = item
        self._document += 1
        self._used = 0
        self.documents += 1
        self.bytes += len(document.text.encode())
        self.tokens += len(self._ids)
        if self._reader.part == "heldout":
            self.names.add(document.name)


class MixtureStream(torch.utils.data.IterableDataset):
    """Blocks of a mix, one after another: {"input_ids": [block_size], "labels": [block_size]}, int64.

    Args:
        mixture: what `read_mixture` returns.
        tokenizer: a fast one with an end-of-text token.
        block_size: tokens.
        seed: of the order of the documents.
        part: "train" or "heldout".
        rank, world_size: this process reads the blocks rank, rank + world_size, …; the mix's `shards` must be a
            multiple of world_size.
        window: rows that are shuffled together.
        exclude: names (sha256 of the text) of documents that are left out, as those of a held-out split.

    Raises:
        ConfigurationError: the shards cannot be shared among the ranks, or a state belongs to another stream.
        DataError: a source cannot be read, or a domain has ended.

    `state_dict()` is the place after the last block yielded, JSON-able; `load_state_dict` makes the next iteration go
    on there. The states of all ranks at the same step, merged by `merge_states`, fit any number of ranks. In a
    DataLoader use no workers (num_workers=0): a worker keeps the state to itself. Ranks are for loops of your own: a
    Trainer shares out the batches of one stream by itself (leave rank and world_size alone), and resumes by reading
    past what was seen.

    Example:
        >>> stream = MixtureStream(read_mixture("c4"), tokenizer, 2048)  # doctest: +SKIP
        >>> next(iter(stream))["input_ids"].shape  # doctest: +SKIP
        torch.Size([2048])
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: PreTrainedTokenizerFast,
        block_size: int,
        *,
        seed: int = 0,
        part: str = "train",
        rank: int = 0,
        world_size: int = 1,
        window: int = SHUFFLE_WINDOW,
        exclude: Collection[str] = (),
    ) -> None:
        if part not in ("train", "heldout"):
            raise ConfigurationError(f"part must be 'train' or 'heldout', got {part!r}")
        if block_size < 1 or window < 1:
            raise ConfigurationError(f"block_size={block_size} and window={window} must be positive")
        if not 0 <= rank < world_size or mixture.shards % world_size:
            raise ConfigurationError(
                f"rank {rank} of {world_size} cannot read the mix {mixture.name!r}, which has {mixture.shards} shards: "
                "set shards in its file to a multiple of the number of ranks"
            )
        self.mixture, self.tokenizer, self.block_size = mixture, tokenizer, block_size
        self._settings = (part, seed, window)
        self._exclude = exclude
        self._mine = range(rank, mixture.shards, world_size)
        self._identity = {
            "format": STATE_FORMAT, "mixture": mixture.sha256, "tokenizer": tokenizer_hash(tokenizer),
            "block_size": block_size, "part": part, "seed": seed, "window": window,
        }  # fmt: skip
        self._resume: dict[str, Any] = {}
        self._shards: dict[int, _Shard] = {}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigurationError("a stream is read by one worker at most: set dataloader_num_workers to 0 or 1")
        for _, _, tokens in self.blocks():
            ids = torch.from_numpy(tokens.astype(np.int64))
            yield {"input_ids": ids, "labels": ids.clone()}

    def blocks(self) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Yield (number of the block, index of its domain, token ids), from the state that was loaded or the start."""
        part, seed, window = self._settings
        proportions = [domain.proportion for domain in self.mixture.domains]
        self._shards = {}
        opened = [open_rows(domain, part) for domain in self.mixture.domains]  # once: the Hub is asked for its files
        for shard in self._mine:
            readers = [
                DomainReader(domain, part, seed, shard, self.mixture.shards, window, self._exclude, rows)
                for domain, rows in zip(self.mixture.domains, opened, strict=True)
            ]
            self._shards[shard] = _Shard(readers, self.tokenizer, proportions, self._resume.get(str(shard)))
        self._resume = {}
        while True:
            shard = min(self._mine, key=lambda v: (self._shards[v].blocks, v))
            number = self._shards[shard].blocks * self.mixture.shards + shard
            yield number, *self._shards[shard].next_block(self.block_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last block that was yielded; it is a copy, and JSON-able."""
        shards = {str(shard): reader.state() for shard, reader in self._shards.items()} or self._resume
        return copy.deepcopy({**self._identity, "shards": shards})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place in the next iteration.

        Raises:
            ConfigurationError: the state is of another mix, tokenizer, seed or block size, or lacks this rank's shards.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ConfigurationError(f"the stream's state has {name}={state.get(name)!r}, the stream {value!r}")
        missing = [shard for shard in self._mine if str(shard) not in state["shards"]]
        if state["shards"] and missing:
            raise ConfigurationError(
                f"the stream's state lacks the shards {missing}, which another rank read: merge the states of all "
                "ranks (merge_states)"
            )
        self._resume = {str(v): copy.deepcopy(state["shards"][str(v)]) for v in self._mine} if state["shards"] else {}
        self._shards = {}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each domain the blocks yielded, and documents, bytes (UTF-8) and tokens read for them."""
        names = [domain.name for domain in self.mixture.domains]
        found = {name: {"blocks": 0, "documents": 0, "bytes": 0, "tokens": 0} for name in names}
        for shard in self._shards.values():
            for name, blocks, tokens in zip(names, shard.counts, shard.domains, strict=True):
                found[name]["blocks"] += blocks
                for field in ("documents", "bytes", "tokens"):
                    found[name][field] += getattr(tokens, field)
        return found

    def document_names(self) -> set[str]:
        """Return the names of the documents read, of a held-out stream."""
        return {name for shard in self._shards.values() for tokens in shard.domains for name in tokens.names}


def merge_states(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return one state of all ranks' states, which a stream of any number of ranks can load.

    Raises:
        ConfigurationError: they are of different streams, or were not taken after the same number of blocks.
    """
    states = list(states)
    first = {name: value for name, value in states[0].items() if name != "shards"}
    merged: dict[str, Any] = {}
    for state in states:
        if {name: value for name, value in state.items() if name != "shards"} != first:
            raise ConfigurationError("the states are of different streams; merge those of the ranks of one run")
        merged |= state["shards"]
    # Block i is of shard i mod V: of a beginning of the stream, no shard has more blocks than one before it, and the
    # first has at most one more than the last.
    blocks = [sum(merged[shard]["counts"]) for shard in sorted(merged, key=int)]
    if blocks != sorted(blocks, reverse=True) or blocks and blocks[0] > blocks[-1] + 1:
        raise ConfigurationError(
            "the states were not taken at the same place: every rank must have read as many blocks as the others, and "
            "the ranks together a beginning of the stream"
        )
    return {**first, "shards": merged}


class _Shard:
    """One shard of the stream: its own schedule and a run of tokens a domain."""

    def __init__(
        self,
        readers: list[DomainReader],
        tokenizer: PreTrainedTokenizerFast,
        proportions: list[Any],
        state: dict[str, Any] | None,
    ) -> None:
        places = state["domains"] if state else [None] * len(readers)
        self.counts = list(state["counts"]) if state else [0] * len(readers)
        self.domains = [_Tokens(reader, tokenizer, place) for reader, place in zip(readers, places, strict=True)]
        self._schedule = schedule(proportions, self.counts)

    @property
    def blocks(self) -> int:
        return sum(self.counts)

    def next_block(self, size: int) -> tuple[int, NDArray[Any]]:
        domain = next(self._schedule)
        tokens = self.domains[domain].read(size)
        self.counts[domain] += 1
        return domain, tokens

    def state(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "domains": [tokens.state() for tokens in self.domains]}

"""A mix packed to blocks on disk: what `prepare_data` does for `DataConfig(mixture=…)`.

The blocks are appended to a file beside a journal of the stream's place. Killed at any moment, the next call goes on
there; what was written after the last entry of the journal is cut off. Memory does not grow with the number of blocks.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hf_muscaling.data.cache import make_folder, write_atomically
from hf_muscaling.data.corpus import Document
from hf_muscaling.data.mixture import Mixture
from hf_muscaling.data.mixture_stream import DomainReader, MixtureStream
from hf_muscaling.data.packing import PackedBlocks, PackingCount, token_dtype
from hf_muscaling.errors import ConfigurationError, DataError

logger = logging.getLogger(__name__)

JOURNAL_BLOCKS = 2048  # between two entries of the journal


class MixtureSource:
    """A mix as a source of documents; as blocks it is packed by `pack_mixture`."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def documents(self, part: str, seed: int) -> Iterator[Document]:
        """Yield whole documents, always of the domain that is furthest behind its share of the bytes."""
        readers = [DomainReader(domain, part, seed, 0, 1).windows() for domain in self.mixture.domains]
        streams = [(document for window in reader for document in window) for reader in readers]
        used = [0] * len(streams)
        while True:
            behind = min(range(len(used)), key=lambda i: used[i] / self.mixture.domains[i].proportion)
            document = next(streams[behind], None)
            if document is None:
                return
            used[behind] += len(document.text.encode()) + 1
            yield document

    def sample(self) -> Iterator[Document]:
        """Yield training documents in the order of seed 0, for the tokenizer."""
        return self.documents("train", seed=0)

    def identity(self) -> dict[str, Any]:
        """Return what decides the documents: the mix's hash, and sizes and modification times of local files."""
        stats = [(path.name, path.stat()) for domain in self.mixture.domains for path in domain.local_files]
        return {
            "mixture": self.mixture.sha256,
            "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        }

    def describe(self) -> dict[str, Any]:
        """Return the mix with its hash, no folders."""
        return {"source": "mixture", "mixture": self.mixture.record()}


def pack_mixture(stream: MixtureStream, blocks: int, folder: Path, progress: str | None) -> PackedBlocks:
    """Return the first blocks of a stream, memory-mapped from `folder`, where an interrupted call goes on.

    Raises:
        DataError: a domain has ended, or the folder cannot be written.
    """
    from tqdm.auto import tqdm

    make_folder(folder)
    dtype = np.dtype(token_dtype(stream.tokenizer))
    size = stream.block_size * dtype.itemsize
    done = _resume(stream, folder, size)
    names = [domain.name for domain in stream.mixture.domains]
    with (
        open(folder / "tokens.bin", "ab") as tokens_file,
        open(folder / "domains.bin", "ab") as domains_file,
        tqdm(
            total=blocks * stream.block_size, initial=done * stream.block_size, desc=progress, unit="token",
            unit_scale=True, disable=progress is None,
        ) as bar,
    ):  # fmt: skip
        for number, domain, tokens in stream.blocks() if done < blocks else ():
            tokens_file.write(tokens.tobytes())
            domains_file.write(bytes([domain]))
            bar.update(stream.block_size)
            done = number + 1
            if done % JOURNAL_BLOCKS == 0 or done == blocks:
                for file in (tokens_file, domains_file):
                    file.flush()
                    os.fsync(file.fileno())
                entry = {"blocks": done, "stream": stream.state_dict(), "counts": stream.counts()}
                write_atomically(folder / "journal.json", json.dumps(entry).encode())
            if done == blocks:
                break
    array = np.memmap(folder / "tokens.bin", dtype, "r", shape=(blocks, stream.block_size))
    domains = np.fromfile(folder / "domains.bin", np.uint8, blocks)
    return PackedBlocks(array, domains, names) if len(names) > 1 else PackedBlocks(array, None, names)


def heldout_mixture(stream: MixtureStream, blocks: int) -> PackedBlocks:
    """Return the first blocks of a held-out stream, in memory."""
    read = [(domain, tokens) for _, domain, tokens in islice(stream.blocks(), blocks)]
    names = [domain.name for domain in stream.mixture.domains]
    array = np.stack([tokens for _, tokens in read])
    domains = np.array([domain for domain, _ in read], np.uint8)
    return PackedBlocks(array, domains, names) if len(names) > 1 else PackedBlocks(array, None, names)


def total(counts: dict[str, dict[str, int]]) -> PackingCount:
    """Return the sum over the domains."""
    return PackingCount(*(sum(domain[name] for domain in counts.values()) for name in ("documents", "bytes", "tokens")))


def bytes_per_token(counts: dict[str, dict[str, int]]) -> float:
    """Return the mean over the blocks of their domains' bytes per token.

    The sums over the documents would be wrong: a long document counts there wholly that reaches beyond its last block.
    """
    used = [domain for domain in counts.values() if domain["blocks"]]
    bytes_ = sum(domain["blocks"] * domain["bytes"] / domain["tokens"] for domain in used)
    return round(bytes_ / sum(domain["blocks"] for domain in used), 4)


def packed_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Return what went into the blocks that `pack_mixture` wrote, by domain."""
    return json.loads((folder / "journal.json").read_text(encoding="utf-8"))["counts"]


def _resume(stream: MixtureStream, folder: Path, size: int) -> int:
    """Load the journal's place into the stream, cut the files there, and return how many blocks there are."""
    journal, files = folder / "journal.json", {"tokens.bin": size, "domains.bin": 1}
    done = 0
    try:
        entry: dict[str, Any] = {"blocks": 0, "stream": None}
        if journal.exists():
            entry = json.loads(journal.read_text(encoding="utf-8"))
        done = int(entry["blocks"])
        if done and any((folder / name).stat().st_size < done * each for name, each in files.items()):
            raise DataError("its files are shorter than its journal says")
        if entry["stream"] is not None:
            stream.load_state_dict(entry["stream"])
    except (OSError, ValueError, KeyError, TypeError, DataError, ConfigurationError) as error:
        logger.warning("the packing that was interrupted cannot go on (%s); it begins anew", error)
        journal.unlink(missing_ok=True)
        done = 0
    for name, each in files.items():
        with open(folder / name, "ab") as file:
            file.truncate(done * each)
    if done:
        logger.info("Packing goes on after %d blocks.", done)
    return done

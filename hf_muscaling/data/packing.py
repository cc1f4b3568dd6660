"""Documents to blocks: texts are encoded, joined by the end-of-text token and cut into blocks of one length."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_muscaling.data.cache import write_atomically
from hf_muscaling.data.corpus import Document
from hf_muscaling.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

DOCUMENTS_AT_ONCE = 256


class PackedBlocks(torch.utils.data.Dataset):
    """Fixed-length token blocks in one array, possibly memory-mapped: the map-style data set of a series' runs.

    Args:
        blocks: token ids, [blocks, block size], uint16 or int32.
        domains: the domain of each block's first token, as an index into `domain_names`; None when there is one domain.

    Example:
        >>> blocks = PackedBlocks(np.arange(8, dtype=np.uint16).reshape(2, 4))
        >>> len(blocks), blocks.tokens, blocks[1]["input_ids"].tolist()
        (2, 8, [4, 5, 6, 7])
    """

    def __init__(
        self, blocks: NDArray[Any], domains: NDArray[np.uint8] | None = None, domain_names: Sequence[str] = ()
    ) -> None:
        if blocks.ndim != 2 or blocks.dtype not in (np.uint16, np.int32):
            raise ConfigurationError(
                f"blocks must be [blocks, tokens] of uint16 or int32, got {blocks.shape} {blocks.dtype}"
            )
        if domains is not None and (
            domains.shape != (len(blocks),) or len(domains) and int(domains.max()) >= len(domain_names)
        ):
            raise ConfigurationError(
                f"domains must hold one index into {tuple(domain_names)} for each of {len(blocks)} blocks"
            )
        self.blocks = blocks
        self.domains = domains
        self.domain_names = tuple(domain_names)

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.blocks.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens in all blocks."""
        return int(self.blocks.size)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the block size and the token ids; not of how the array stores them."""
        sha256 = hashlib.sha256(f"{self.block_size}\n".encode())
        for start in range(0, len(self), 65536):
            sha256.update(np.ascontiguousarray(self.blocks[start : start + 65536], dtype="<i4").tobytes())
        return sha256.hexdigest()

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.blocks[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}

    def __getitems__(self, indices: Sequence[int]) -> BlockBatch:
        """Return many blocks at once; torch's DataLoader calls it with a whole batch of indices."""
        return BlockBatch(torch.from_numpy(self.blocks[np.asarray(indices, dtype=np.int64)].astype(np.int64)))

    def to_dataset(self) -> datasets.Dataset:
        """Return a `datasets.Dataset` with the columns input_ids and labels, in torch format."""
        import datasets

        ids = np.asarray(self.blocks, dtype=np.int32)
        return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids}).with_format("torch")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder: `blocks.npy`, `domains.npy` when there are domains, and `blocks.json` with the sha256."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        _save_array(folder / "blocks.npy", self.blocks)
        if self.domains is not None:
            _save_array(folder / "domains.npy", self.domains)
        record = {
            "sha256": self.sha256,
            "blocks": len(self),
            "block_size": self.block_size,
            "tokens": self.tokens,
            "domain_names": list(self.domain_names),
            "domains_sha256": None if self.domains is None else hashlib.sha256(self.domains.tobytes()).hexdigest(),
        }
        write_atomically(
            folder / "blocks.json", json.dumps(record, indent=1).encode()
        )  # last: it vouches for the arrays

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, memory_map: bool = True) -> PackedBlocks:
        """Read blocks that `save` wrote, and check them against their recorded sha256.

        Raises:
            DataError: a file is missing, unreadable, or not what was recorded.
        """
        folder = Path(path)
        try:
            record = json.loads((folder / "blocks.json").read_text(encoding="utf-8"))
            blocks = np.load(folder / "blocks.npy", mmap_mode="r" if memory_map else None, allow_pickle=False)
            domains = None
            if record["domains_sha256"] is not None:
                domains = np.load(folder / "domains.npy", allow_pickle=False)
            loaded = cls(blocks, domains, record["domain_names"])
            found = (loaded.sha256, None if domains is None else hashlib.sha256(domains.tobytes()).hexdigest())
            expected = (record["sha256"], record["domains_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"the packed blocks in {folder.name} cannot be read ({error}); pack them again") from error
        if found != expected:
            raise DataError(
                f"the packed blocks in {folder.name} are not what was recorded: sha256 {found[0][:12]}… instead of "
                f"{str(expected[0])[:12]}…; pack them again"
            )
        return loaded


class BlockBatch(Sequence):
    """A batch held as tensors, [batch, tokens] each, which also reads as a list of examples; labels default to ids."""

    def __init__(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        self.ids = ids
        self.labels = ids.clone() if labels is None else labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return BlockBatch(self.ids[index], self.labels[index])
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def collate_blocks(examples: BlockBatch | Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return {"input_ids": [B, T], "labels": [B, T]} of what blocks give under any objective, a whole batch or a list.

    Example:
        >>> blocks = PackedBlocks(np.zeros((3, 4), dtype=np.uint16))
        >>> collate_blocks(blocks.__getitems__([0, 2]))["labels"].shape
        torch.Size([2, 4])
    """
    if isinstance(examples, BlockBatch):
        return {"input_ids": examples.ids, "labels": examples.labels}
    ids = torch.stack([torch.as_tensor(example["input_ids"], dtype=torch.int64) for example in examples])
    labels = torch.stack(
        [torch.as_tensor(example.get("labels", example["input_ids"]), dtype=torch.int64) for example in examples]
    )
    return {"input_ids": ids, "labels": labels}


@dataclass
class PackingCount:
    """What went into blocks: documents, their bytes (UTF-8) and their tokens, each with its end-of-text token."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0


def pack_documents(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    block_size: int,
    *,
    blocks: int | None = None,
    progress: str | None = None,
) -> tuple[PackedBlocks, PackingCount]:
    """Encode documents in their order, join them by eos and cut them into blocks; a remainder at the end is dropped.

    Args:
        block_size: tokens.
        blocks: stop after so many, or fewer when the documents end; None packs them all. More blocks extend fewer.
        progress: the label of a progress bar; None shows none.

    Raises:
        ConfigurationError: the block size is not positive.
    """
    from tqdm.auto import tqdm

    if block_size < 1:
        raise ConfigurationError(f"block_size must be at least 1 token, got {block_size}")
    dtype = token_dtype(tokenizer)
    need = None if blocks is None else blocks * block_size
    names: dict[str, int] = {}
    count = PackingCount()
    encoded: list[NDArray[Any]] = []
    starts: list[int] = []  # of each document, in tokens
    of: list[int] = []  # the domain of each document
    with tqdm(total=need, desc=progress, unit="token", unit_scale=True, disable=progress is None) as bar:
        for document, ids in encode_documents(documents, tokenizer, dtype):
            starts.append(count.tokens)
            of.append(names.setdefault(document.domain, len(names)))
            encoded.append(ids)
            count.documents += 1
            count.bytes += len(document.text.encode())
            count.tokens += len(ids)
            bar.update(len(ids))
            if need is not None and count.tokens >= need:
                break
    ids = np.concatenate(encoded) if encoded else np.zeros(0, dtype)
    packed = len(ids) // block_size if blocks is None else min(blocks, len(ids) // block_size)
    array = ids[: packed * block_size].reshape(packed, block_size)
    if len(names) < 2:
        return PackedBlocks(array, None, tuple(names)), count
    document_of_block = np.searchsorted(starts, np.arange(packed) * block_size, side="right") - 1
    return PackedBlocks(array, np.array(of, dtype=np.uint8)[document_of_block], tuple(names)), count


def token_dtype(tokenizer: PreTrainedTokenizerFast) -> type:
    """Return the smallest type that blocks are kept in which holds every token."""
    return np.uint16 if len(tokenizer) <= 2**16 else np.int32


def encode_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, dtype: type
) -> Iterator[tuple[Document, NDArray[Any]]]:
    """Yield each document with its tokens, end-of-text included."""
    from tokenizers import Tokenizer

    # A copy, as the caller's may pad or truncate; and a text that spells "<|endoftext|>" must not end a document.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    eos: NDArray[Any] = np.array([tokenizer.eos_token_id], dtype=dtype)
    remaining = iter(documents)
    while batch := list(islice(remaining, DOCUMENTS_AT_ONCE)):
        encodings = backend.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            yield document, np.concatenate([np.array(encoding.ids, dtype=dtype), eos])


def _save_array(path: Path, array: NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Where text comes from: the embedded corpus, any data set of the Hub (streamed), or local files."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_muscaling.data.corpus import Corpus, Document, corpus_key, load_corpus
from hf_muscaling.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from hf_muscaling.data.prepare import DataConfig

HELDOUT_SHARE = 0.05  # of the documents
SHUFFLE_WINDOW = 10_000  # documents of a stream that are shuffled together
PIECE = 8_000  # characters: a text file is cut into documents of about this length, where a paragraph ends
FORMATS = {
    ".txt": "text", ".text": "text", ".md": "text", ".rst": "text",
    ".jsonl": "json", ".json": "json", ".ndjson": "json",
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
EVERYWHERE = "pass --data-files with local files, or use the embedded corpus (--dataset embedded)"


class Source(Protocol):
    """A text source, split by document into two parts that share none."""

    def documents(self, part: str, seed: int) -> Iterator[Document]:
        """Yield the documents of "train" or "heldout", shuffled by the seed and without repeats."""

    def sample(self) -> Iterator[Document]:
        """Yield training documents in an order that depends on nothing but the source, for the tokenizer."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the documents, for the key of the cache; it reads no document."""

    def describe(self) -> dict[str, Any]:
        """Return a JSON-able description for records, without paths of this machine."""


def open_source(config: DataConfig, *, cache_dir: Any = None, progress: bool = True) -> Source:
    """Return the source that a configuration names.

    Raises:
        ConfigurationError: both files and a data set are named, or a setting belongs to another source.
        DataError: a file is missing or of an unknown format.
    """
    if config.mixture is not None:
        from hf_muscaling.data.mixture import read_mixture
        from hf_muscaling.data.mixture_packing import MixtureSource

        chosen = (config.dataset_config, config.dataset_revision, config.heldout_split)
        if config.data_files or config.dataset != "embedded" or any(chosen):
            raise ConfigurationError(
                "a mixture names its own data sets, files and splits: give mixture (--mixture) or those, not both"
            )
        return MixtureSource(read_mixture(config.mixture))
    if config.data_files:
        if config.dataset != "embedded":
            raise ConfigurationError(
                f"data_files and dataset={config.dataset!r} are both given; give one (the default is 'embedded')"
            )
        if config.heldout_split:
            raise ConfigurationError("heldout_split needs dataset=…; of local files one document in 20 is held out")
        return FileSource(find_files(config.data_files), config.text_column)
    if config.dataset == "embedded":
        return EmbeddedSource(config.domains, cache_dir, progress)
    return HubSource(
        config.dataset,
        config.dataset_config,
        config.dataset_revision,
        config.split,
        config.heldout_split,
        config.text_column,
    )


def is_heldout(name: str, share: float = HELDOUT_SHARE) -> bool:
    """Say whether a document is held out, by the hash of its name alone: never by its place."""
    return int.from_bytes(hashlib.sha256(b"held-out\0" + name.encode()).digest()[:8], "big") < share * 2**64


def shuffled(documents: Iterable[Document], seed: int, window: int = SHUFFLE_WINDOW) -> Iterator[Document]:
    """Yield documents in windows, each ordered by a hash of seed and name: a prefix depends on no later window."""
    remaining = iter(documents)
    while batch := list(islice(remaining, window)):
        yield from sorted(batch, key=lambda document: hashlib.sha256(f"{seed}\0{document.name}".encode()).digest())


@dataclass(frozen=True)
class EmbeddedSource:
    """The corpus that every installation carries; see `hf_muscaling.data.corpus`."""

    domains: tuple[str, ...]
    cache_dir: Any = None
    progress: bool = True

    @cached_property
    def _corpora(self) -> list[Corpus]:
        return [
            load_corpus(domain, cache_dir=self.cache_dir, progress=self.progress) for domain in sorted(self.domains)
        ]

    def documents(self, part: str, seed: int) -> Iterator[Document]:
        """Yield one part of the files' texts, wholly shuffled."""
        documents = [document for corpus in self._corpora for document in corpus.documents]
        # The same file is on one side in every domain: its code and its docstrings are about the same things.
        side = [document for document in documents if is_heldout(document.name) == (part == "heldout")]
        return shuffled(side, seed, window=max(1, len(side)))

    def sample(self) -> Iterator[Document]:
        """Yield training documents in the order of seed 0."""
        return self.documents("train", seed=0)

    def identity(self) -> dict[str, Any]:
        """Return the keys of the corpora: their format and versions."""
        return {"embedded": {domain: corpus_key(domain) for domain in sorted(self.domains)}}

    def describe(self) -> dict[str, Any]:
        """Return the sha256, size, repetition and versions of each corpus."""
        return {
            "source": "embedded",
            "domains": sorted(self.domains),
            "corpus": {
                corpus.domain: {
                    "sha256": corpus.sha256,
                    "documents": len(corpus.documents),
                    "bytes": corpus.bytes,
                    "repeated_8grams": corpus.repeated_8grams,
                    "versions": corpus.versions,
                }
                for corpus in self._corpora
            },
        }


@dataclass(frozen=True)
class FileSource:
    """Local text, JSONL, parquet or CSV files, plain or compressed, read one after another through `datasets`."""

    files: tuple[Path, ...]
    text_column: str = "text"

    def documents(self, part: str, seed: int) -> Iterator[Document]:
        """Yield one part of the files' documents, shuffled in windows."""
        return shuffled(_side(chain.from_iterable(map(self._read, self.files)), part), seed)

    def sample(self) -> Iterator[Document]:
        """Yield training documents in the order of seed 0."""
        return self.documents("train", seed=0)

    def identity(self) -> dict[str, Any]:
        """Return names, sizes and modification times."""
        stats = [(path.name, path.stat()) for path in self.files]
        return {"files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats], "column": self.text_column}

    def describe(self) -> dict[str, Any]:
        """Return names and sizes, no folders."""
        return {"source": "files", "files": [{"name": path.name, "bytes": path.stat().st_size} for path in self.files]}

    def _read(self, path: Path) -> Iterator[Document]:
        import datasets

        kind = file_format(path)
        options: dict[str, Any] = {"keep_linebreaks": True} if kind == "text" else {}
        if kind == "csv" and ".tsv" in path.suffixes:
            options["sep"] = "\t"
        try:
            rows = datasets.load_dataset(kind, data_files=[str(path)], split="train", streaming=True, **options)
            texts = (row["text"] for row in rows) if kind == "text" else column_texts(rows, self.text_column, path.name)
            empty = True
            for text in _pieces(texts) if kind == "text" else texts:
                empty = False
                yield document_of(text)
        except (DataError, GeneratorExit):
            raise
        except Exception as error:  # datasets raises what its readers raise: pyarrow, pandas, zlib, Unicode, …
            raise DataError(
                f"{path.name} cannot be read as {kind} ({type(error).__name__}: {_first_line(error)}); check that its "
                f"ending ({', '.join(FORMATS)}) says what it is and that text is UTF-8"
            ) from error
        if empty:
            raise DataError(f"{path.name} holds no text; remove it from data_files, or name another text column")


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hub, streamed: nothing but the documents that are needed is downloaded."""

    dataset: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    heldout_split: str | None = None
    text_column: str = "text"

    def documents(self, part: str, seed: int) -> Iterator[Document]:
        """Yield one part of the stream; only training documents are shuffled."""
        if part == "heldout":
            # In the order of the stream: shuffling one document in 20 would read 200,000 of them.
            if self.heldout_split:
                return without_repeats(self._read(self.heldout_split))
            return _side(self._read(self.split), "heldout")
        if self.heldout_split:
            return shuffled(without_repeats(self._read(self.split)), seed)
        return shuffled(_side(self._read(self.split), "train"), seed)

    def sample(self) -> Iterator[Document]:
        """Yield training documents in the order of seed 0."""
        return self.documents("train", seed=0)

    def identity(self) -> dict[str, Any]:
        """Return the settings; a revision that is not pinned is looked up when the data is packed."""
        return {"hub": [self.dataset, self.config, self.revision, self.split, self.heldout_split, self.text_column]}

    def describe(self) -> dict[str, Any]:
        """Return the settings with the commit that was read."""
        local = Path(self.dataset).is_dir()
        return {
            "source": Path(self.dataset).name if local else self.dataset,
            "config": self.config,
            "revision": self.commit,
            "split": self.split,
            "heldout_split": self.heldout_split,
        }

    @property
    def _where(self) -> str:
        return f"the data set {self.dataset!r}" + (f" ({self.config})" if self.config else "")

    @cached_property
    def commit(self) -> str | None:
        """The commit that the revision names now, so that every pass reads the same one; None for a folder."""
        if Path(self.dataset).exists():
            return None
        from huggingface_hub import HfApi

        with hub_errors(self._where, self.split):
            return HfApi().dataset_info(self.dataset, revision=self.revision).sha

    def _read(self, split: str) -> Iterator[Document]:
        import datasets

        with hub_errors(self._where, split):
            rows = datasets.load_dataset(self.dataset, self.config, revision=self.commit, split=split, streaming=True)
            for text in column_texts(rows, self.text_column, self._where):
                yield document_of(text)


@contextmanager
def hub_errors(where: str, split: str) -> Iterator[None]:
    """Turn what `datasets` and the Hub's client raise into errors that say what to do."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except (DatasetNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"{where} is not on the Hub, is private, or its revision does not exist ({_first_line(error)}); check the "
            f"name, log in with `hf auth login`, or {EVERYWHERE}"
        ) from error
    except Exception as error:  # of datasets, the Hub's client, its HTTP library, and the readers of every format
        client = type(error).__module__.partition(".")[0]
        if isinstance(error, ConnectionError | TimeoutError) or client.startswith(("http", "requests", "aiohttp")):
            raise DataError(f"the Hub cannot be reached for {where} ({type(error).__name__}); {EVERYWHERE}") from error
        raise DataError(
            f"{where}, split {split!r}, cannot be loaded ({type(error).__name__}: {_first_line(error)}); check "
            f"dataset_config and split, or {EVERYWHERE}"
        ) from error


def find_files(patterns: Iterable[str]) -> tuple[Path, ...]:
    """Return the files that paths and globs name, sorted, each once.

    Raises:
        DataError: a path or pattern matches no file, a file is empty, or its ending is unknown.
    """
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(match) for match in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
        matches = [path for path in matches if path.is_file()]
        if not matches:
            raise DataError(
                f"data file {pattern!r} does not exist and matches no file; check the path or quote the glob"
            )
        found.update(matches)
    for path in sorted(found):
        file_format(path)
        if path.stat().st_size == 0:
            raise DataError(f"data file {path.name} is empty (0 bytes); remove it from data_files")
    return tuple(sorted(found))


def file_format(path: Path) -> str:
    """Return the builder of `datasets` that reads a file. Raises DataError for an unknown ending."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise DataError(
            f"data file {path.name} has an unknown ending; known are {', '.join(FORMATS)}, also followed by "
            f"{', '.join(COMPRESSIONS)}"
        )
    return FORMATS[suffixes[-1]]


def column_texts(rows: Iterable[dict[str, Any]], column: str, where: str) -> Iterator[str]:
    """Yield the texts of one column; empty ones and nulls are left out."""
    for row in rows:
        if column not in row:
            raise DataError(
                f"{where} has no column {column!r}; it has {', '.join(map(repr, sorted(row)))}: set text_column "
                "(--text-column)"
            )
        text = row[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(
                f"column {column!r} of {where} holds {type(text).__name__}, not text; set text_column (--text-column) "
                f"to another of {', '.join(map(repr, sorted(row)))}"
            )
        if text.strip():
            yield text


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Cut a text file into documents of about `PIECE` characters where a paragraph ends or, failing that, a line."""
    piece: list[str] = []
    size = 0
    for line in lines:
        if size >= PIECE and (not line.strip() or size >= 2 * PIECE):
            yield "".join(piece).strip("\n")
            piece, size = [], 0
        if piece or line.strip():
            piece.append(line)
            size += len(line)
    if piece:
        yield "".join(piece).strip("\n")


def document_of(text: str) -> Document:
    """Return a text as a document that is named by its own hash."""
    # A lone surrogate, which JSON can spell, has no UTF-8.
    content = text.encode("utf-8", errors="replace")
    return Document(hashlib.sha256(content).hexdigest(), content.decode())


def _side(documents: Iterable[Document], part: str) -> Iterator[Document]:
    return without_repeats(document for document in documents if is_heldout(document.name) == (part == "heldout"))


def without_repeats(documents: Iterable[Document]) -> Iterator[Document]:
    """Leave out documents that came before; a document without a name of its own is named by the hash of its text."""
    seen: set[int] = set()
    for document in documents:
        key = int(document.name[:16], 16)
        if key not in seen:
            seen.add(key)
            yield document


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

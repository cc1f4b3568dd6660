"""A mix of domains: which data sets, at which commits, in which proportions of tokens. Read from YAML, checked, hashed.

A file names its domains; each is a data set of the Hub at a pinned commit, a folder, or local files:

    name: mine
    shards: 4                        # parts that ranks can read independently; 1 if not given
    tracks: {short: 1_000_000_000}   # `mine.yaml:short` allows runs of so many tokens
    domains:
      web:  {proportion: 80, dataset: allenai/c4, config: en, revision: 1588ec4…, text_column: text}
      code: {proportion: 20, files: [code/*.jsonl]}
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_muscaling.data.cache import digest
from hf_muscaling.data.sources import FORMATS, file_format, find_files
from hf_muscaling.errors import ConfigurationError

logger = logging.getLogger(__name__)

PRESETS = Path(__file__).parent / "mixtures"
TOLERANCE = Fraction(1, 200)  # of the sum of the proportions: published tables are rounded, nanoLM's sums to 99.98
MAX_DOMAINS = 256  # their indices are kept in a byte a block
ROW_FORMATS = ("json", "parquet", "csv")


@dataclass(frozen=True)
class Domain:
    """One domain of a mix: its share of the tokens, and where its text is.

    Args:
        name: of the domain.
        proportion: its exact share; those of a mix sum to 1.
        dataset: a data set of the Hub, or a folder that `datasets` can load; None for local `files`.
        config: the data set's configuration.
        revision: the data set's commit (40 hexadecimal digits).
        split, heldout_split: its splits; without a held-out one, one document in 20 is held out, by its hash.
        text_column: the column that holds the text.
        files: globs inside the data set; without a data set, local files of rows (JSONL, parquet, CSV).
        note: for people.
    """

    name: str
    proportion: Fraction
    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    heldout_split: str | None = None
    text_column: str = "text"
    files: tuple[str, ...] = ()
    note: str = ""

    @property
    def local_files(self) -> tuple[Path, ...]:
        """The local files, sorted; empty for a data set."""
        return () if self.dataset else find_files(self.files)

    @property
    def where(self) -> str:
        """What errors call it."""
        source = repr(self.dataset) if self.dataset else f"{len(self.local_files)} local files"
        return f"the domain {self.name!r} ({source}{f', {self.config}' if self.config else ''})"

    def record(self) -> dict[str, Any]:
        """Return what decides the text, JSON-able and without folders of this machine."""
        dataset = self.dataset and (Path(self.dataset).name if Path(self.dataset).is_dir() else self.dataset)
        files = [path.name for path in self.local_files] if not self.dataset else list(self.files)
        return {
            "proportion": str(self.proportion), "dataset": dataset, "config": self.config, "revision": self.revision,
            "split": self.split, "heldout_split": self.heldout_split, "text_column": self.text_column, "files": files,
        }  # fmt: skip


@dataclass(frozen=True)
class Mixture:
    """Domains in exact proportions of tokens, the parts that can be read independently, and a limit of tokens.

    Example:
        >>> mixture = read_mixture("nanolm:100B")
        >>> len(mixture.domains), mixture.tokens, round(float(mixture.domains[0].proportion), 4)
        (8, 100000000000, 0.0604)
    """

    name: str
    domains: tuple[Domain, ...]
    shards: int = 1
    track: str | None = None
    tokens: int | None = None
    given_sum: str = "1"

    @cached_property
    def sha256(self) -> str:
        """The sha256 of what decides the stream; not of names, notes and tracks."""
        return digest([[[d.name, d.record()] for d in self.domains], self.shards])

    def require_tokens(self, tokens: int) -> None:
        """Raise ConfigurationError if a run would go beyond the track."""
        if self.tokens is not None and tokens > self.tokens:
            raise ConfigurationError(
                f"the track {self.track} of {self.name} has {self.tokens:,} tokens, {tokens:,} are asked for; take a "
                "longer track, or train for fewer"
            )

    def record(self) -> dict[str, Any]:
        """Return a JSON-able description for records, without what was not given."""
        track = {"track": self.track} if self.track else {}
        domains = {d.name: {k: v for k, v in d.record().items() if v not in (None, [])} for d in self.domains}
        return {
            "name": self.name, "sha256": self.sha256, **track, "shards": self.shards,
            "proportions_given_sum_to": self.given_sum, "domains": domains,
        }  # fmt: skip


def preset_mixtures() -> list[str]:
    """Return the names of the mixes that come with the package.

    >>> preset_mixtures()
    ['c4', 'mc4', 'nanodata', 'nanolm']
    """
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_mixture(name: str) -> Mixture:
    """Read a mix: a preset's name or a YAML file, either followed by `:TRACK`. Files are relative to the YAML's folder.

    Proportions sum to 1 or 100; a rounded table (within 0.5 %) is normalised, with a note, anything else refused.

    Raises:
        ConfigurationError: there is no such mix or track, a key is unknown, or a value is impossible; a data set of the
            Hub without a pinned commit is refused.
        DataError: a local file is missing.
    """
    file, track = _find(name)
    given = _load(file)
    _known(given, ("name", "shards", "tracks", "domains"), str(file.name))
    entries = given.get("domains")
    if not isinstance(entries, dict) or not entries or len(entries) > MAX_DOMAINS:
        raise ConfigurationError(f"{file.name}: domains must map up to {MAX_DOMAINS} names to their sources")
    domains = [_domain(str(key), value, file) for key, value in entries.items()]
    total = sum((d.proportion for d in domains), Fraction(0))
    scale = 100 if total > 2 else 1
    if abs(total / scale - 1) > TOLERANCE:
        raise ConfigurationError(
            f"{file.name}: the proportions sum to {float(total):g}; they must sum to 1, or to 100 as percentages"
        )
    if total not in (1, 100):
        logger.info("The proportions of %s sum to %g; they are divided by that.", file.name, float(total))
    shards = given.get("shards", 1)
    if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
        raise ConfigurationError(f"{file.name}: shards must be a positive number, got {shards!r}")
    tracks = given.get("tracks") or {}
    if not isinstance(tracks, dict) or any(not isinstance(n, int) or n < 1 for n in tracks.values()):
        raise ConfigurationError(f"{file.name}: tracks must map names to numbers of tokens, got {tracks!r}")
    if track is not None and track not in tracks:
        raise ConfigurationError(f"{file.name} has no track {track!r}; it has {', '.join(tracks) or 'none'}")
    return Mixture(
        str(given.get("name", file.stem)),
        tuple(replace(d, proportion=d.proportion / total) for d in domains),
        shards,
        track,
        tracks.get(track),
        f"{float(total):g}",
    )


def _find(name: str) -> tuple[Path, str | None]:
    base, _, track = name.rpartition(":")
    for stem, chosen in ((name, None), (base, track)):
        if stem in preset_mixtures():
            return PRESETS / f"{stem}.yaml", chosen
        if stem and Path(stem).expanduser().is_file():
            return Path(stem).expanduser(), chosen
    raise ConfigurationError(
        f"there is no mixture {name!r}: give a YAML file or one of {', '.join(preset_mixtures())}, either followed by "
        "':TRACK'"
    )


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file.name} is not valid YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigurationError(f"{file.name} must hold 'key: value' lines with 'domains'")
    return given


def _known(given: dict[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigurationError(f"{where}: unknown key {key!r}; {hint}")


def _domain(name: str, given: Any, file: Path) -> Domain:
    where = f"{file.name}, domain {name!r}"
    if not isinstance(given, dict):
        raise ConfigurationError(f"{where}: must be a mapping with proportion and dataset or files")
    _known(given, tuple(f.name for f in fields(Domain) if f.name != "name"), where)
    for key in ("dataset", "config", "revision", "split", "heldout_split", "text_column", "note"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise ConfigurationError(f"{where}: {key} must be text, got {given[key]!r}; put it in quotes")
    try:
        proportion = Fraction(Decimal(str(given.get("proportion"))))  # as written: 6.04 is 604/100
    except (InvalidOperation, ValueError, OverflowError):
        proportion = Fraction(0)
    if proportion <= 0:
        raise ConfigurationError(f"{where}: proportion must be a positive number, got {given.get('proportion')!r}")
    files = given.get("files") or ()
    files = (files,) if isinstance(files, str) else tuple(str(item) for item in files)
    domain = Domain(**{"name": name, **given, "proportion": proportion, "files": files})
    if domain.dataset:
        folder = file.parent / domain.dataset
        if folder.is_dir():
            return replace(domain, dataset=str(folder))
        if not re.fullmatch(r"[0-9a-f]{40}", domain.revision or ""):
            raise ConfigurationError(
                f"{where}: revision must be a commit of {domain.dataset}, 40 hexadecimal digits, got "
                f"{domain.revision!r}: a branch changes under a series. Its commits are listed at "
                f"https://huggingface.co/datasets/{domain.dataset}/commits/main"
            )
        return domain
    if not files:
        raise ConfigurationError(f"{where}: give dataset (with revision) or files")
    if domain.heldout_split or domain.config or domain.revision:
        raise ConfigurationError(f"{where}: local files have no config, revision or heldout_split")
    domain = replace(domain, files=tuple(str(file.parent / pattern) for pattern in files))
    kinds = {file_format(path) for path in domain.local_files}
    if len(kinds) > 1 or not kinds <= set(ROW_FORMATS):
        endings = ", ".join(ending for ending, kind in FORMATS.items() if kind in ROW_FORMATS)
        raise ConfigurationError(f"{where}: files must all be of one format with rows ({endings})")
    return domain


def schedule(proportions: list[Fraction], counts: list[int] | None = None) -> Iterator[int]:
    """Yield the domain of block after block so that no domain is ever a whole block off its share.

    Tijdeman's solution of the chairman assignment problem (Discrete Mathematics 32, 1980): with k domains, after any n
    blocks, |blocks of i − λ_i·n| ≤ 1 − 1/(2k − 2). Exact: whole numbers only.

    Args:
        proportions: λ, summing to 1.
        counts: blocks that each domain had already; the schedule goes on from there.

    Example:
        >>> from itertools import islice
        >>> list(islice(schedule([Fraction(3, 4), Fraction(1, 4)]), 8))
        [0, 0, 1, 0, 0, 0, 1, 0]
    """
    from math import lcm

    size = len(proportions)
    had = list(counts or [0] * size)
    if size == 1:
        while True:
            yield 0
    unit = lcm(*(p.denominator for p in proportions))
    weights = [int(p * unit) for p in proportions]
    common, slack = lcm(*weights), 2 * size - 2
    deadline = [(had[i] * slack + slack - 1) * (common // weights[i]) for i in range(size)]
    n = sum(had)
    while True:
        n += 1
        ready = [i for i in range(size) if slack * (weights[i] * n - unit * had[i]) >= unit]
        chosen = min(ready, key=deadline.__getitem__)
        had[chosen] += 1
        deadline[chosen] += slack * (common // weights[chosen])
        yield chosen

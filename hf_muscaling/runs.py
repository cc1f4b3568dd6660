"""The plain record where training and laws meet: one `Run` a training run, a `Series` of them. Standard library only.

Units: N in parameters, D in tokens, B in tokens per optimizer step, S in optimizer steps, C in FLOPs, losses in nats
per token.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.errors import RecordError

if TYPE_CHECKING:
    from hf_muscaling.hub.client import Pushed

FORMAT_VERSION = 1
STATUSES = ("finished", "diverged")


@dataclass
class Run:
    """One training run: what was trained, on what, at what cost, and the held-out loss it reached.

    `curve` holds one row per logged step: `step`, `tokens`, `loss` (training, averaged since the row before), `lr` (at
    base width) and `grad_norm`. `loss` is the held-out loss in nats per token, None for a diverged run. `layout` says
    on how many processes and threads, and what device, it was trained: the same layout gives the same last digits.
    """

    run_id: str
    status: str
    N: int
    N_non_embedding: int
    D: int
    S: int
    B: int
    C: float
    loss: float | None
    width: int
    seed: int
    lr: float
    role: str = "proxy"
    family: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data_hash: str = ""
    tokenizer_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("N", "N_non_embedding", "D", "S", "B", "C", "width", "lr"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise RecordError(f"Run {self.run_id!r}: {name} must be a positive number, got {value!r}.")
        if self.status not in STATUSES:
            raise RecordError(f"Run {self.run_id!r}: status must be one of {STATUSES}, got {self.status!r}.")
        if self.status == "finished" and not (
            isinstance(self.loss, (int, float)) and math.isfinite(self.loss) and self.loss > 0
        ):
            raise RecordError(f"Run {self.run_id!r} is finished but its loss is {self.loss!r}, not a positive number.")

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step."""
        return self.status == "finished"

    @property
    def precision(self) -> str:
        """Return "bf16" or "fp16" for mixed precision, "fp32" without, "" where the settings do not say."""
        if "bf16" not in self.settings:
            return ""
        return "bf16" if self.settings["bf16"] else "fp16" if self.settings.get("fp16") else "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Run":
        """Rebuild a run. Raises RecordError if a field is missing, unknown or out of range."""
        if not isinstance(record, dict):
            raise RecordError(f"A run record must be a JSON object, got {type(record).__name__}.")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(record) - known)
        if unknown:
            raise RecordError(f"Run record {record.get('run_id')!r} has unknown fields: {', '.join(unknown)}.")
        try:
            return cls(**record)
        except TypeError as error:
            raise RecordError(f"Run record {record.get('run_id')!r} is incomplete: {error}.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record with a checksum, atomically: it is there whole or not at all."""
        body = self.to_dict()
        write_json(path, {"format_version": FORMAT_VERSION, "sha256": _digest(body), "run": body})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Read a record. Raises RecordError if it is damaged or was changed since it was written."""
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
            raise RecordError(
                f"{path} is not a run record of format {FORMAT_VERSION}; move it away to train the run again."
            )
        if document.get("sha256") != _digest(document.get("run")):
            raise RecordError(
                f"{path} was changed after the run finished (its checksum does not match). Restore the file, or move "
                "the run's folder away so that it is trained again; all other finished runs stay as they are."
            )
        return cls.from_dict(document["run"])


@dataclass
class Series(Sequence[Run]):
    """Runs of one design at several widths, trained on the same batches in the same order."""

    runs: list[Run]
    name: str = ""

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index):
        return self.runs[index]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the finished runs as the table that laws fit: one dict a run."""
        keys = (
            "N", "N_non_embedding", "D", "S", "B", "C", "loss", "run_id", "seed", "width", "lr", "family", "precision",
        )  # fmt: skip
        return [{key: getattr(run, key) for key in keys} for run in self.runs if run.finished]

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one run a line, atomically."""
        write_text(
            path, "".join(json.dumps(run.to_dict(), sort_keys=True, allow_nan=False) + "\n" for run in self.runs)
        )

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str], name: str = "") -> "Series":
        """Read what `to_jsonl` wrote. Raises RecordError naming the line that is damaged."""
        runs = []
        for number, line in enumerate(_read_text(path).splitlines(), 1):
            try:
                runs.append(Run.from_dict(json.loads(line)))
            except (json.JSONDecodeError, RecursionError, RecordError) as error:
                raise RecordError(f"{path}, line {number}: {error}") from error
        return cls(runs, name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        message: str | None = None,
        **card: Any,
    ) -> "Pushed":
        """Push the runs as a dataset repository, parquet that the viewer shows, with a card; return where it is.

        `private` makes a new repository private (and refuses a public one). The card's options: `title`, `license`,
        `tags`, `landscape` (a PNG of the search at base width). Home folders and tokens in the records are blotted out.

        Raises HubError with the reason and how to continue; the files are kept.
        """
        from hf_muscaling.hub.series import push_series

        return push_series(self, repo_id, private=private, revision=revision, token=token, message=message, **card)

    @classmethod
    def from_hub(
        cls, source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
    ) -> "Series":
        """Read what `push_to_hub` wrote, from a dataset repository or a folder; every number to the last bit.

        Raises RecordError for what is no series or holds impossible values, HubError if the Hub refuses.
        """
        from hf_muscaling.hub.series import load_series

        return load_series(source, revision=revision, token=token)


def mean_losses(runs: Iterable[Run]) -> dict[int, float]:
    """Return width → mean held-out loss over seeds (nats per token), by rising width."""
    losses: dict[int, list[float]] = {}
    for run in runs:
        if run.finished and run.loss is not None:
            losses.setdefault(run.width, []).append(run.loss)
    return {width: sum(v) / len(v) for width, v in sorted(losses.items())}


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file atomically: under another name first, then moved into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON. Raises RecordError naming the file if it is not JSON."""
    try:
        return json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{path} is not valid JSON ({error}); restore it or move it away.") from error


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text ({error}); restore it or move it away.") from error


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

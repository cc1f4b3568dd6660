"""A series as a dataset repository: one parquet file, a row a run, which the dataset viewer shows.

Numbers are plain columns; a run's config, settings and versions are JSON text; its loss curve is a list of rows.
Reading trusts nothing: sizes, columns and types are checked before values, and every value becomes a checked `Run`.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.errors import RecordError
from hf_muscaling.hub import cards, text
from hf_muscaling.hub.client import Pushed, check_repo_id, fetch, push_files
from hf_muscaling.runs import Run, Series

if TYPE_CHECKING:
    import pyarrow

FILE = "runs.parquet"
FORMAT, FORMAT_VERSION = "hf_muscaling.series", 1
MAX_BYTES, MAX_UNPACKED, MAX_RUNS = 64 * 2**20, 1024 * 2**20, 100_000
MAX_TEXT, MAX_ROWS, MAX_VALUES = 100_000, 1_000_000, 50_000_000
BATCH = 64
LIMITS: dict[str, Any] = {
    "page_checksum_verification": True,
    "thrift_string_size_limit": 2**24,
    "thrift_container_size_limit": 2**18,
}
TEXTS = ("run_id", "status", "role", "family", "data_hash", "tokenizer_hash")
COUNTS = ("N", "N_non_embedding", "D", "S", "B", "width", "seed")
NUMBERS = ("C", "loss", "lr", "seconds")
OBJECTS = ("config", "settings", "versions")
CURVE = {"step": "int64", "tokens": "int64", "loss": "float64", "lr": "float64", "grad_norm": "float64"}


def series_schema(name: str = "") -> "pyarrow.Schema":
    """Return the columns of the parquet file, in the order a reader looks for them."""
    import pyarrow as pa

    types = {n: pa.string() for n in (*TEXTS, *OBJECTS)} | {n: pa.int64() for n in COUNTS}
    types |= {n: pa.float64() for n in NUMBERS}
    types["curve"] = pa.list_(pa.struct([(n, pa.type_for_alias(kind)) for n, kind in CURVE.items()]))
    order = ("run_id", "role", "status", "width", "seed", "lr", "N", "N_non_embedding", "D", "S", "B", "C", "loss",
             "seconds", "family", "data_hash", "tokenizer_hash", "curve", *OBJECTS)  # fmt: skip
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "name": name}
    return pa.schema([(n, types[n]) for n in order], metadata=metadata)


def series_parquet(series: Series) -> bytes:
    """Return a series as parquet. Raises RecordError for a run that the columns cannot hold exactly."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_row(run) for run in series]
    schema = series_schema(text.plain(series.name))
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise RecordError(f"The series {series.name!r} cannot be stored: {text.plain(error, 200)}.") from error
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _row(run: Run) -> dict[str, Any]:
    record = text.public_record(run.to_dict())
    for name in OBJECTS:
        record[name] = json.dumps(record[name], sort_keys=True, allow_nan=False)
    for row in record["curve"]:
        if not set(row) <= set(CURVE):
            raise RecordError(f"Run {run.run_id!r}: its curve has columns other than {', '.join(CURVE)}.")
    for name in COUNTS:
        if record[name] != int(record[name]):
            raise RecordError(f"Run {run.run_id!r}: {name} must be a whole number, got {record[name]!r}.")
    return record | {name: int(record[name]) for name in COUNTS}


# -- reading -----------------------------------------------------------------------------------------------------------


def read_parquet(path: Path) -> Series:
    """Return the series of a parquet file of unknown origin. Raises RecordError for whatever is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = text.public(str(path.name))
    try:
        with pq.ParquetFile(path, **LIMITS) as file:
            name = _check_file(file, where)
        # a text repeated in every run stays one text until its length is checked
        with pq.ParquetFile(path, read_dictionary=[*TEXTS, *OBJECTS], **LIMITS) as file:
            runs = [run for batch in file.iter_batches(BATCH) for run in _runs(batch, where)]
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{where} is not a series: {text.plain(error, 200)}.") from error
    seen: set[str] = set()
    for run in runs:
        if run.run_id in seen:
            raise RecordError(f"{where} holds the run {text.plain(run.run_id)!r} twice.")
        seen.add(run.run_id)
    return Series(runs, name)


def _check_file(file: Any, where: str) -> str:
    """Check what the file says of itself before any value is read, and return the series' name."""
    about = file.metadata
    expected = series_schema()
    notes = {k.decode("utf-8", "replace"): v for k, v in (file.schema_arrow.metadata or {}).items()}
    if notes.get("format", b"").decode("utf-8", "replace") != FORMAT:
        raise RecordError(f"{where} is not a series written by Series.push_to_hub.")
    if notes.get("format_version") != str(FORMAT_VERSION).encode():
        version = text.plain(notes.get("format_version", b"").decode("utf-8", "replace"), 20)
        raise RecordError(
            f"{where} has format_version {version!r}, not {FORMAT_VERSION}; upgrade hf_muscaling to read it."
        )
    types = [field.type.value_type if _is_dictionary(field) else field.type for field in file.schema_arrow]
    if (file.schema_arrow.names, types) != (expected.names, expected.types):
        raise RecordError(f"{where} has other columns or types than a series: {', '.join(expected.names)}.")
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    values = sum(max(0, group.column(k).num_values) for group in groups for k in range(group.num_columns))
    if about.num_rows > MAX_RUNS or not 0 <= unpacked <= MAX_UNPACKED or values > MAX_VALUES:
        raise RecordError(f"{where} holds {about.num_rows:,} runs of {unpacked:,} bytes, more than a series may.")
    return text.plain(notes.get("name", b"").decode("utf-8", "replace"))


def _is_dictionary(field: Any) -> bool:
    return hasattr(field.type, "value_type") and hasattr(field.type, "index_type")


def _runs(batch: Any, where: str) -> Iterator[Run]:
    """Yield the checked runs of one batch; the length of its texts is looked at before they are copied."""
    import pyarrow.compute as pc

    for name in (*TEXTS, *OBJECTS):
        texts = batch.column(name)
        texts = texts.dictionary if hasattr(texts, "dictionary") else texts
        longest = pc.max(pc.binary_length(texts)).as_py() or 0
        if longest > 4 * MAX_TEXT:  # bytes; characters are counted below
            raise RecordError(f"{where}: {name} must be a text of at most {MAX_TEXT:,} characters in every run.")
    for record in batch.to_pylist():
        for name in (*TEXTS, *OBJECTS):
            if not isinstance(record[name], str) or len(record[name]) > MAX_TEXT:
                raise RecordError(f"{where}: {name} must be a text of at most {MAX_TEXT:,} characters in every run.")
        for name in OBJECTS:
            record[name] = _object(record[name], f"{where}: {name} of run {text.plain(record['run_id'])!r}")
        curve = record["curve"] or []
        if len(curve) > MAX_ROWS or any(row is None for row in curve):
            raise RecordError(f"{where}: the curve of run {text.plain(record['run_id'])!r} is broken or too long.")
        record["curve"] = [{k: v for k, v in row.items() if v is not None} for row in curve]
        numbers = [value for row in record["curve"] for value in row.values()] + [record["seconds"], record["seed"]]
        if any(value is None or not math.isfinite(value) for value in numbers):
            raise RecordError(f"{where}: run {text.plain(record['run_id'])!r} holds a number that is not finite.")
        yield Run.from_dict(record)


def _object(value: str, where: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise RecordError(f"{where} contains {name}.")

    try:
        record = json.loads(value, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{where} is not JSON, or too deep.") from error
    if not isinstance(record, dict):
        raise RecordError(f"{where} must be a JSON object.")
    return record


# -- push and pull -----------------------------------------------------------------------------------------------------


def series_files(
    series: Series,
    repo_id: str,
    *,
    title: str | None = None,
    landscape: bytes | None = None,
    license: str | None = None,
    tags: Any = cards.TAGS,
) -> dict[str, bytes]:
    """Return the repository of a series as name → content."""
    from hf_muscaling.plotting import plot_loss_curves

    if not len(series):
        raise RecordError("The series holds no runs: there is nothing to share.")
    name = text.plain(title or series.name or repo_id.split("/")[-1])
    drawn = [run for run in series if any("loss" in row for row in run.curve)]
    files = {FILE: series_parquet(series)}
    if drawn:
        files["curves.png"] = cards.png(plot_loss_curves(drawn))
    if landscape is not None:
        files["landscape.png"] = landscape
    files["README.md"] = _card(series, repo_id, name, set(files), license, tags).encode()
    return files


def push_series(series: Series, repo_id: str, *, private, revision, token, message, **card: Any) -> Pushed:
    """Push a series; see `Series.push_to_hub`."""
    files = series_files(series, check_repo_id(repo_id), **card)
    message = message or f"Upload a series of {len(series)} runs"
    return push_files(
        repo_id, files, repo_type="dataset", private=private, revision=revision, token=token, message=message
    )


def load_series(source: str | os.PathLike[str], *, revision: str | None, token: str | bool | None) -> Series:
    """Read a series from a dataset repository or a folder; see `Series.from_hub`."""
    path = fetch(source, [FILE], repo_type="dataset", revision=revision, token=token, limit=MAX_BYTES)
    return read_parquet(path)


def _card(series: Series, repo_id: str, name: str, there: set[str], license: str | None, tags: Any) -> str:
    hashes = {n: sorted({getattr(run, n) for run in series} - {""}) for n in ("data_hash", "tokenizer_hash")}
    runs = sorted(series, key=lambda run: (run.role, run.width, run.seed, run.lr))
    body = cards.render(
        "series.md",
        title=name,
        repo_id=repo_id,
        runs=runs[:200],
        total=len(runs),
        finished=sum(run.finished for run in runs),
        widths=sorted({run.width for run in runs}),
        architectures=sorted({text.plain(run.config.get("model_type", "")) for run in runs} - {""}),
        objectives=sorted({_objective(run) for run in runs}),
        drawn="curves.png" in there,
        landscape="landscape.png" in there,
        roles=sorted({run.role for run in runs}),
        **hashes,
    )
    return cards.dataset_card(body, name=name, files={"default": FILE}, tags=tags, license=license)


def _objective(run: Run) -> str:
    objective = run.settings.get("objective")
    name = objective.get("name") if isinstance(objective, dict) else "causal"
    return {"masked": "masked token", "seq2seq": "target token"}.get(str(name), "token")

"""Files that may come from anywhere → raw columns of cells: bounded in size, text and numbers only, never a pickle.

A raw table is a dict of equally long lists; a cell is a string, a number or None. What a cell means is decided in
`readers.tidy`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import RecordError

MAX_BYTES = 512 * 2**20  #: of one file, decompressed
MAX_ROWS = 5_000_000
MAX_COLUMNS = 50_000
MAX_FILES = 10_000

RawTable = dict[str, list[Any]]


def refuse(path: Any, why: str, remedy: str) -> NoReturn:
    """Raise RecordError for a file that is not what it should be."""
    raise RecordError(f"Cannot read runs from {str(path)!r}: {why}. {remedy}")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file, decompressed when it ends in .gz; a file that would exceed `limit` bytes is refused."""
    _check_there(path, limit)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            data = handle.read(limit + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        refuse(path, f"it cannot be opened ({str(error)[:100]})", "Check the file and its permissions.")
    if len(data) > limit:
        refuse(path, f"it unpacks to more than {limit >> 20} MB", "Export fewer columns or every n-th step.")
    return data


def _check_there(path: Path, limit: int = MAX_BYTES) -> None:
    try:
        there, size = path.is_file(), path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError) as error:
        refuse(path, f"it cannot be opened ({str(error)[:100]})", "Check the path.")
    if not there:
        refuse(path, "there is no such file", "Check the path.")
    if size > limit:
        refuse(path, f"it is larger than {limit >> 20} MB", "Export fewer columns or every n-th step.")


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped)."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(path, f"it is not UTF-8 text ({error.reason} at byte {error.start})", "Save it as UTF-8 CSV or JSON.")


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """A JSON document; NaN is let through as a number, since Trainer writes it for a diverged run."""
    try:
        return json.loads(read_text(path, limit))
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        refuse(path, f"it is not valid JSON ({str(error)[:80]})", "Restore the file or export it again.")


def read_table_file(path: Path) -> RawTable:
    """Raw columns of a .csv, .tsv, .jsonl, .json or .parquet file (the text formats also with .gz)."""
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in _PARSERS:
        refuse(path, f"its ending {suffix!r} is none of .csv, .tsv, .jsonl, .json, .parquet", "Convert it to CSV.")
    raw = _PARSERS[suffix](path)
    if not raw or not next(iter(raw.values())):
        refuse(path, "it holds no columns or no rows", "Export the runs again.")
    return raw


def parse_csv(text: str, path: Any = "the text") -> RawTable:
    """Raw columns of CSV text with a header; comma, tab or semicolon, whichever the header uses most."""
    if "\x00" in text:
        refuse(path, "it contains NUL bytes", "Save it as plain CSV.")
    header = text.split("\n", 1)[0]
    delimiter = max(",\t;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not any(names):
            refuse(path, "its first line is empty", "The first line must name the columns.")
        if len(names) > MAX_COLUMNS:
            refuse(path, f"it has more than {MAX_COLUMNS} columns", "Export fewer.")
        _check_distinct(path, names)
        rows = []
        for cells in reader:
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            if len(cells) != len(names):
                refuse(
                    path,
                    f"line {reader.line_num} has {len(cells)} cells and the header {len(names)}",
                    "Every line needs one cell a column; quote text that holds the separator.",
                )
            rows.append(cells)
            if len(rows) > MAX_ROWS:
                refuse(path, f"it has more than {MAX_ROWS} rows", "Export every n-th step.")
    except csv.Error as error:
        refuse(path, f"it is not CSV (line {reader.line_num}: {error})", "Export it again.")
    if not rows:
        refuse(path, "it has a header and no rows", "Export the runs again.")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True) if name}


def _check_distinct(path: Any, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            refuse(path, f"two columns are called {name!r}", "Rename one of them.")
        seen.add(name)


def column_names(path: Path) -> list[str]:
    """The columns of a table file; of a CSV only the first line is read."""
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in (".csv", ".tsv", ".txt"):
        return list(read_table_file(path))
    _check_there(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            line = handle.readline(1 << 24).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        refuse(path, f"it cannot be opened as text ({str(error)[:100]})", "Save it as UTF-8 CSV.")
    delimiter = max(",\t;", key=line.count)
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        refuse(path, f"its first line is not CSV ({error})", "Export it again.")


def columns_of(records: list[Any], path: Any) -> RawTable:
    """Raw columns of a list of JSON objects; nested objects and lists are left out."""
    if not records:
        refuse(path, "it holds no rows", "Export the runs again.")
    if len(records) > MAX_ROWS:
        refuse(path, f"it has more than {MAX_ROWS} rows", "Export every n-th step.")
    names: dict[str, None] = {}
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            refuse(path, f"row {number} is a {type(record).__name__}, not an object", "Write one JSON object a row.")
        names.update(dict.fromkeys(k for k, v in record.items() if not isinstance(v, (Mapping, list))))
        if len(names) > MAX_COLUMNS:
            refuse(path, f"it has more than {MAX_COLUMNS} columns", "Export fewer.")
    return {name: [_flat(record.get(name)) for record in records] for name in names}


def _flat(cell: Any) -> Any:
    return None if isinstance(cell, (Mapping, list)) else cell


def _jsonl(path: Path) -> RawTable:
    records = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            refuse(path, f"line {number} is not valid JSON ({str(error)[:80]})", "Write one JSON object a line.")
    return columns_of(records, path)


def _json_table(path: Path) -> RawTable:
    document = read_json(path)
    if isinstance(document, list):
        return columns_of(document, path)
    if isinstance(document, Mapping) and document and all(isinstance(v, list) for v in document.values()):
        if len({len(v) for v in document.values()}) > 1:
            refuse(path, "its columns have different lengths", "Give every column one value a row.")
        return {str(name): [_flat(cell) for cell in values] for name, values in document.items()}
    refuse(path, "it is neither a list of objects nor an object of columns", 'Write [{"N": …, "loss": …}, …].')


def _parquet(path: Path) -> RawTable:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        refuse(path, "parquet needs pyarrow", "Run `pip install pyarrow`, or export CSV.")
    _check_there(path)
    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            if meta.num_rows > MAX_ROWS or size > MAX_BYTES:
                refuse(path, f"it unpacks to {meta.num_rows} rows and {size >> 20} MB", "Export every n-th step.")
            schema = file.schema_arrow
            plain = [
                field.name
                for field in schema
                if pa.types.is_integer(field.type)
                or pa.types.is_floating(field.type)
                or pa.types.is_string(field.type)
                or pa.types.is_large_string(field.type)
                or pa.types.is_boolean(field.type)
            ]
            table = file.read(columns=plain)
    except (OSError, pa.ArrowException) as error:
        refuse(path, f"it is not a parquet file ({str(error)[:80]})", "Export it again.")
    return {name: table[name].to_pylist() for name in plain}


_PARSERS: dict[str, Callable[[Path], RawTable]] = {
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json_table,
    ".csv": lambda path: parse_csv(read_text(path), path),
    ".tsv": lambda path: parse_csv(read_text(path), path),
    ".txt": lambda path: parse_csv(read_text(path), path),
}


def find(folder: Path, pattern: str, depth: int = 4) -> list[Path]:
    """Files below a folder whose name matches, sorted; symbolic links to folders are not followed."""
    found: list[Path] = []
    top = len(folder.parts)
    for here, folders, names in os.walk(folder):
        if len(Path(here).parts) - top >= depth:
            folders.clear()
        folders.sort()
        found += [Path(here, name) for name in sorted(names) if Path(name).match(pattern)]
        if len(found) > MAX_FILES:
            refuse(folder, f"it holds more than {MAX_FILES} files {pattern}", "Point at the folder of one series.")
    return found

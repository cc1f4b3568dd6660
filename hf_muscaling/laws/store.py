"""Fitted laws as JSON, checked on the way in: types, finite numbers, ranges, and that parameters and rows belong
together.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import MuScalingError, RecordError
from .table import read_table, short

if TYPE_CHECKING:
    from .base import ScalingLaw

FORMAT = "hf_muscaling.law"
FORMAT_VERSION = 1
KINDS = {"hf_muscaling.learning_rate_law": "LearningRateLaw", "hf_muscaling.downstream_law": "DownstreamLaw"}
"""Formats of laws of something else than the loss, and the classes that read them."""
MAX_BYTES = 256 * 2**20
LONGEST = 400  #: letters of a text for people to read
_KEYS = {
    "format",
    "format_version",
    "law",
    "equation",
    "settings",
    "units",
    "params",
    "objective_value",
    "range",
    "rows",
}


def write(law: ScalingLaw, path: str | os.PathLike[str] | None) -> str:
    """JSON text of a fitted law; written to `path` in one step when given, so a reader never sees half of it."""
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "law": type(law).__name__,
        "equation": law.equation_text,
        "settings": law.settings(),
        "units": law.units,
        "params": law.params_,
        "objective_value": law.objective_value_,
        "selection": law.selection_,
        "range": {name: list(ends) for name, ends in law.range_.items()},
        "rows": lists(law._columns),
    }
    return written(record, path)


def lists(columns: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Columns as JSON holds them."""
    return {
        name: [str(v) for v in values] if values.dtype == object else values.tolist()
        for name, values in columns.items()
    }


def written(record: Mapping[str, Any], path: str | os.PathLike[str] | None) -> str:
    """JSON text of a record, written to `path` in one step when given."""
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    if path is not None:
        write_text(path, text)
    return text


def check_format(record: Any, where: str, form: str, version: int, keys: Collection[str]) -> None:
    """`RecordError` unless a record is an object of that format and version with all its keys, of which `equation` and
    `units`, for people to read, are short texts.
    """
    if not isinstance(record, Mapping):
        refuse(where, f"expected a JSON object, found {type(record).__name__}")
    if record.get("format") != form:
        if stored := kind(record):
            wanted = KINDS.get(form, "law of the loss")
            raise RecordError(
                f"{where} holds a {stored}, expected a {wanted} (its 'format' says so). Read it with "
                f"{stored}.from_json, or give the file of a {wanted}."
            )
        refuse(where, f"its 'format' is {str(record.get('format'))[:40]!r}, not {form!r}")
    if record.get("format_version") != version or isinstance(record["format_version"], bool):
        refuse(
            where,
            f"format_version {str(record.get('format_version'))[:20]} is not {version}; upgrade hf_muscaling to read "
            f"newer files",
        )
    missing = sorted(set(keys) - set(record))
    if missing:
        refuse(where, f"it lacks {', '.join(map(repr, missing))}")
    if "equation" in keys and not _is_text(record["equation"]):
        refuse(where, f"'equation' must be a short text, found {short(record['equation'])}")
    if "units" in keys and not all(map(_is_text, mapping(record, "units", where).values())):
        refuse(where, f"'units' must be short texts, found {short(dict(record['units']))}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def kind(record: Any) -> str:
    """The class of a stored law, by its format and by what it says; empty for what is none."""
    form = record.get("format") if isinstance(record, Mapping) else None
    name = record.get("law") if form == FORMAT else KINDS.get(form) if isinstance(form, str) else None
    return name[:40] if isinstance(name, str) and name.isidentifier() else ""


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a record in one step, so that a reader never sees half of it; `RecordError` says why it cannot."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True) if draft.parent.is_dir() else None
        raise RecordError(
            f"Cannot write the law to {str(target)!r}: {error.strerror or error}. Choose a folder that exists and is "
            f"writable."
        ) from error


def read(
    cls: type[ScalingLaw], source: str | os.PathLike[str] | Mapping[str, Any], where: str | None = None
) -> ScalingLaw:
    """The law of a record, an instance of `cls` or, from the base class, of whichever law was stored.

    Errors call it `where`, by default the path or what kind of thing was given.
    """
    record, where = parse(source, where)
    check_format(record, where, FORMAT, FORMAT_VERSION, _KEYS)
    law = _law_class(cls, record["law"], where)
    settings, params = mapping(record, "settings", where), mapping(record, "params", where)
    try:
        fitted = law(**settings)
    except (TypeError, MuScalingError) as error:
        refuse(where, f"its settings {str(dict(settings))[:80]} are not those of a {law.__name__} ({error})")
    if set(params) != set(fitted.parameters):
        refuse(
            where,
            f"its params are {sorted(map(str, params))[:8]}, those of a {law.__name__} are {sorted(fitted.parameters)}",
        )
    values = {name: number(params[name], f"params[{name!r}]", where) for name in fitted.parameters}
    for name, value in values.items():
        low, high = fitted.bounds.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            refuse(where, f"params[{name!r}] = {value:g} lies outside [{low:g}, {high:g}]")
    _fill(fitted, record, values, where)
    return fitted


def _fill(law: ScalingLaw, record: Mapping[str, Any], values: dict[str, float], where: str) -> None:
    """Rows, objective and range, each checked against the others."""
    rows = mapping(record, "rows", where)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", UserWarning)  # of the table: `fit` saw all its columns, and said so
            columns = read_table(dict(rows), [*law.columns.values(), "loss"], ["weight", *law.labels])
            score = law._score(columns, values)
    except (MuScalingError, ValueError, OverflowError, TypeError) as error:
        refuse(where, f"its rows are not a table of runs ({error})")
    stored = number(record["objective_value"], "objective_value", where)
    if not abs(score - stored) <= 1e-6 * (abs(score) + abs(stored)) + 1e-12:
        refuse(
            where,
            f"params do not go with the rows: the objective is {score:.6g} and not {stored:.6g}, so something was "
            f"edited",
        )
    law._set(columns, values, stored)
    law.selection_ = record.get("selection", f"finals: all {law.n_runs_} rows")
    if not _is_text(law.selection_):
        refuse(where, "'selection' must be a short text")
    ends = mapping(record, "range", where)
    for name, own in law.range_.items():
        pair = ends.get(name)
        if not isinstance(pair, list) or [number(v, f"range[{name!r}]", where) for v in pair] != list(own):
            refuse(where, f"range[{name!r}] is {str(pair)[:60]}, the rows span {list(own)}")


def parse(source: Any, where: str | None = None) -> tuple[Any, str]:
    """The parsed record and how to call it in an error: `where`, if it is given."""
    if isinstance(source, Mapping):
        return source, where or "the dict"
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        text, where = source, where or "the text"
    elif isinstance(source, (str, os.PathLike)):
        where = where or repr(str(source)[:200])
        try:
            if Path(source).stat().st_size > MAX_BYTES:
                refuse(where, f"it is larger than {MAX_BYTES >> 20} MB")
            text = Path(source).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecordError(
                f"There is no file {where}. A law is written by law.to_json(path) or by muscaling fit --save law.json."
            ) from None
        except (OSError, ValueError) as error:
            refuse(where, f"it cannot be read ({error})")
    else:
        refuse(type(source).__name__, "pass a path, JSON text or a dict")
    if len(text) > MAX_BYTES:
        refuse(where, f"it is larger than {MAX_BYTES >> 20} MB")
    try:
        return json.loads(text, parse_constant=lambda name: refuse(where, f"it contains {name}")), where
    except RecursionError:
        refuse(where, "it is nested too deeply")
    except ValueError as error:
        if isinstance(error, RecordError):
            raise
        refuse(where, f"it is not JSON ({str(error)[:80]})")


def _law_class(cls: type[ScalingLaw], name: Any, where: str) -> type[ScalingLaw]:
    known = {c.__name__: c for c in _subclasses(cls)}
    if isinstance(name, str) and name.isidentifier() and name not in {c.__name__ for c in _laws()}:
        raise RecordError(
            f"Cannot read the law, {where}: it is a {name[:40]!r}, which no imported module defines. Import the module "
            "that defines the class first; if there is none, the file was edited: write it again with "
            "law.to_json(path)."
        )
    if isinstance(name, str) and name.isidentifier() and name not in known:
        raise RecordError(
            f"{where} holds a {name[:40]!r}, expected {' or '.join(sorted(known))}. Read it with {name[:40]}.from_json "
            "or ScalingLaw.from_json, or give another file."
        )
    if not isinstance(name, str) or name not in known:
        refuse(where, f"it holds a {str(name)[:40]!r}, expected {' or '.join(sorted(known))}")
    return known[name]


def _laws() -> list[type[ScalingLaw]]:
    from .base import ScalingLaw

    return _subclasses(ScalingLaw)  # type: ignore[type-abstract]


def _subclasses(cls: type[ScalingLaw]) -> list[type[ScalingLaw]]:
    found = [cls] if cls.equation else []
    for child in cls.__subclasses__():
        found += _subclasses(child)
    return found


def mapping(record: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """An entry that must be an object with text keys."""
    value = record[key]
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        refuse(where, f"{key!r} must be an object, found {str(value)[:40]}")
    return value


def number(value: Any, name: str, where: str) -> float:
    """A finite number, or `RecordError`."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    refuse(
        where,
        f"{name} must be a finite number, found "
        f"{str(value)[:40] if not isinstance(value, int) else 'a number too large'}",
    )


def refuse(where: str, why: str) -> NoReturn:
    """Raise the `RecordError` of this record; what it quotes of a hostile one stays short and printable."""
    why = "".join(c if c.isprintable() else "?" for c in why[:600])
    raise RecordError(f"Not a stored law, {where}: {why}. Write it again with law.to_json(path).")

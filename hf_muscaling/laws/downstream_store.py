"""A fitted `DownstreamLaw` as JSON, checked on the way in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MuScalingError
from .store import check_format, lists, mapping, number, parse, refuse, written

if TYPE_CHECKING:
    from .downstream import DownstreamLaw

FORMAT = "hf_muscaling.downstream_law"
FORMAT_VERSION = 1
_KEYS = ("format", "format_version", "equation", "settings", "units", "params", "objective_value", "selection", "rows")


def write(law: DownstreamLaw, path: str | os.PathLike[str] | None) -> str:
    """JSON text of a fitted law, written to `path` in one step when given."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "equation": law.equation_text,
        "settings": law.settings(),
        "units": law.units,
        "params": law.params_,
        "objective_value": law.objective_value_,
        "selection": law.selection_,
        "rows": lists(law._columns),
    }
    return written(values, path)


def read(cls: type[DownstreamLaw], source: str | os.PathLike[str] | Mapping[str, Any]) -> DownstreamLaw:
    """The law of a record, or `RecordError`."""
    record, where = parse(source)
    check_format(record, where, FORMAT, FORMAT_VERSION, _KEYS)
    settings, params = mapping(record, "settings", where), mapping(record, "params", where)
    try:
        law = cls(**settings)
    except (TypeError, MuScalingError) as error:
        refuse(where, f"its settings are not those of a DownstreamLaw ({error})")
    if set(params) != set(law.parameters):
        refuse(where, f"its params are not {', '.join(law.parameters)}")
    values = {name: number(params[name], f"params[{name!r}]", where) for name in law.parameters}
    if not 0 <= values["chance"] < values["ceiling"] <= 1 or values.get("k", 1.0) <= 0:
        refuse(where, "its params are impossible: 0 ≤ chance < ceiling ≤ 1 and k > 0")
    rows = mapping(record, "rows", where)
    try:
        columns = law._read(dict(rows))
        with np.errstate(all="ignore"):
            score = law._score(columns, values)
    except (MuScalingError, ValueError, OverflowError, TypeError) as error:
        refuse(where, f"its rows are not a table of scores ({error})")
    stored = number(record["objective_value"], "objective_value", where)
    if len(columns["loss"]) < 4 or not abs(score - stored) <= 1e-6 * (abs(score) + abs(stored)) + 1e-12:
        refuse(where, f"params do not go with the rows: the objective is {score:.6g} and not {stored:.6g}")
    if not isinstance(record["selection"], str) or len(record["selection"]) > 400:
        refuse(where, "'selection' must be a short text")
    law.selection_ = record["selection"]
    law._set(columns, values, stored)
    return law

"""Files of task scores → a `ScoreTable`: lm-evaluation-harness, `evaluate.save`, CSV and the like."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, RecordError, UnknownQuantityError
from .files import RawTable, find, read_json, read_table_file, refuse
from .names import ALIASES, MISSING, find_column, number
from .scores import CHECKPOINT, Score, ScoreTable

METRICS = ("acc_norm", "acc", "accuracy", "exact_match", "f1", "pass@1", "score")
"""Metrics in the order in which they are preferred when none is named."""
_FILES = ("results*.json", "result-*.json", "*_results.json")
_NO_METRICS = ("alias", "sample_len")  # what the harness writes beside a task's metrics


@dataclass
class _Asked:
    """What is to be read of every file: these tasks (None: all) in this metric (None: the first known one)."""

    metric: str | None
    tasks: Sequence[str] | None
    seen: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def wants(self, task: str) -> bool:
        """Whether the task is to be read; either way it has been seen."""
        self.seen[task] = None
        return not self.tasks or task in self.tasks


def read_scores(
    path: str | os.PathLike[str],
    *,
    tasks: Sequence[str] | None = None,
    metric: str | None = None,
    chance: float | Mapping[str, float] | None = None,
    percent: bool = False,
    drop_bad: bool = False,
) -> ScoreTable:
    """Read task scores: a folder of lm-evaluation-harness results or `evaluate.save` files, one of them, or a table.

    * the harness: `results_*.json`, with `results: {task: {"acc,none": …, "acc_stderr,none": …}}`; the model is its
      `model_name`, else `pretrained` of `model_args`; of several results of one model the last file counts;
    * `evaluate.save(folder, model=…, task=…, **scores)`: `result-*.json`;
    * CSV, JSON, JSONL or parquet: columns `model` (or `run_id`, `name`), `task`, `metric`, `score`, `stderr`, `items`,
      `chance`; or one column a metric, as `acc`.

    `tasks` keeps these; `metric` names one (by default the first of `METRICS` that a task has), `chance` the score of
    guessing (a number, or {task: number}); `percent` says that scores run to 100; `drop_bad` leaves out unusable scores
    instead of refusing them. Raises RecordError for files that are damaged or hold no scores, UnknownQuantityError and
    ConfigurationError for what has to be stated.

    >>> import json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> found = {"results": {"piqa": {"acc,none": 0.61, "acc_stderr,none": 0.011}}, "model_name": "runs/w64"}
    >>> _ = (folder / "results_2024-05-01.json").write_text(json.dumps(found))
    >>> [(s.model, s.metric, s.score, round(s.questions)) for s in read_scores(folder)]
    [('runs/w64', 'acc', 0.61, 1966)]
    """
    path = Path(path)
    asked = _Asked(metric, tasks)
    notes = asked.notes
    if path.is_dir():
        files = sorted({file for pattern in _FILES for file in find(path, pattern)}, key=lambda f: (f.name, str(f)))
        if not files:
            refuse(
                path, "it holds no results_*.json or result-*.json", "Point at lm_eval's --output_path, or at a CSV."
            )
        found = [score for file in files for score in _document(read_json(file), file, asked)]
    elif path.suffix.lower() == ".json" and isinstance(document := read_json(path), Mapping) and _is_result(document):
        found = _document(document, path, asked)
    else:
        found = _table(read_table_file(path), path, asked)
    if tasks:
        found = _chosen(found, tasks, asked.seen, path)
    found = _latest(found, notes)
    if percent:
        _check_percent(found, path, notes)
    scores = []
    for score in found:
        try:
            scores.append(_checked(score, percent))
        except RecordError as error:
            if not drop_bad:
                raise
            notes.append(f"left out: {str(error).split(': ', 1)[-1][:120]}")
    if not scores:
        refuse(path, "none of its scores is usable", "Name the metric, or evaluate again.")
    return _with_chance(ScoreTable(scores, path.name, notes), chance)


# -- files -------------------------------------------------------------------------------------------------------------


def _is_result(document: Mapping[str, Any]) -> bool:
    return isinstance(document.get("results"), Mapping) or "_evaluate_version" in document


def _document(document: Any, path: Path, wanted: _Asked) -> list[Score]:
    """The scores of one result file, of either kind."""
    if not isinstance(document, Mapping):
        refuse(path, "it is not a JSON object", "Restore the file.")
    if "_evaluate_version" in document and "results" not in document:
        return _saved(document, path, wanted)
    results = document.get("results")
    if not isinstance(results, Mapping) or not results:
        refuse(path, "it has no 'results' of tasks", "Point at results_*.json of lm_eval.")
    model = _model(document, path)
    asked = document.get("n-samples")
    out = []
    for task, values in results.items():
        if not isinstance(values, Mapping):
            refuse(path, f"the results of {str(task)[:40]!r} are no object", "Restore the file.")
        if not wanted.wants(str(task)):
            continue
        if (picked := _metric(values, wanted.metric)) is None:
            if names := _metrics(values):  # else a group without scores of its own
                _without(str(task), names, path, wanted)
            continue
        key, value = picked
        base, comma, which = key.partition(",")
        error = values.get(f"{base}_stderr{comma}{which}")
        count = asked.get(task) if isinstance(asked, Mapping) else None
        count = count.get("effective") if isinstance(count, Mapping) else count
        out.append(Score(model, str(task), base, value, _or_nan(error), _or_nan(count), source=str(path)))
    return out


def _without(task: str, names: list[str], path: Path, wanted: _Asked) -> None:
    """A task without the metric: refused where either was named, else left out with a note."""
    has = f"it has {', '.join(names)[:200]}"
    if wanted.metric is not None:
        remedy = "Name one of these with metric= (--metric)"
        remedy += "." if wanted.tasks else ", or the tasks that have it with tasks= (--task)."
        raise ConfigurationError(f"{path}: {task!r} has no {wanted.metric!r}; {has}. {remedy}")
    if wanted.tasks:
        raise ConfigurationError(
            f"{path}: {task!r} has none of {', '.join(METRICS)}; {has}. Name a share of 1 with metric= (--metric), or "
            "leave the task out: a perplexity or a loss is no score."
        )
    wanted.notes.append(f"{task} is left out: {has}, none of {', '.join(METRICS[:4])}, … (metric=, --metric names one)")


def _metrics(values: Mapping[str, Any]) -> list[str]:
    """The names of a task's metrics: what is a number, but no standard error."""
    keys = [k for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    names = {str(key).partition(",")[0] for key in keys if "_stderr" not in str(key)}
    return sorted(names - set(_NO_METRICS))


def _saved(document: Mapping[str, Any], path: Path, wanted: _Asked) -> list[Score]:
    """The score of an `evaluate.save` file."""
    names = {key: document.get(key) for key in ("model", "task")}
    for key, name in names.items():
        if not isinstance(name, str) or not name:
            raise UnknownQuantityError(
                f"{path} does not say which {key} it is of: save it with evaluate.save(…, model=…, task=…, **scores)."
            )
    if not wanted.wants(str(names["task"])):
        return []
    if (picked := _metric(document, wanted.metric)) is None:
        refuse(path, f"it has no {wanted.metric or 'score of ' + ', '.join(METRICS[:4])}", "Name the metric.")
    key, value = picked
    error = document.get(f"{key}_stderr", document.get("stderr"))
    items = document.get("items", document.get("n_samples"))
    return [
        Score(str(names["model"]), str(names["task"]), key, value, _or_nan(error), _or_nan(items), source=str(path))
    ]


def _metric(values: Mapping[str, Any], metric: str | None) -> tuple[str, float] | None:
    """The key and value of the metric named, else of the first known one; a filter `none` goes before others."""
    wanted = METRICS if metric is None else (metric,)
    for name in wanted:
        keys = [k for k in values if isinstance(k, str) and (k == name or k.partition(",")[0] == name)]
        for key in sorted(keys, key=lambda k: (k != f"{name},none", k)):
            if isinstance(values[key], (int, float)) and not isinstance(values[key], bool):
                return key, float(values[key])
    return None


def _model(document: Mapping[str, Any], path: Path) -> str:
    config = document.get("config")
    given = config.get("model_args") if isinstance(config, Mapping) else None
    if isinstance(given, str):
        given = dict(part.partition("=")[::2] for part in given.split(","))
    given = given if isinstance(given, Mapping) else {}
    revision = given.get("revision")
    suffix = f"/{revision}" if isinstance(revision, str) and CHECKPOINT.search(revision) else ""
    for name in (given.get("pretrained"), given.get("model"), document.get("model_name")):
        if isinstance(name, str) and name.strip():
            return name.strip().rstrip("/")[:500] + suffix
    raise UnknownQuantityError(
        f"{path} does not say which model it is of: it needs 'model_name', or 'pretrained' in config.model_args."
    )


def _table(raw: RawTable, path: Path, wanted: _Asked) -> list[Score]:
    metric = wanted.metric
    columns = {name: find_column(raw, ALIASES[name]) for name in ("run_id", "task", "score", "chance", "items")}
    columns["stderr"] = find_column(raw, ("stderr", "score_stderr", "acc_stderr", "acc_norm_stderr", "std_err"))
    columns["metric"] = find_column(raw, ("metric",))
    if columns["metric"] is None and metric is not None:
        columns["score"] = metric if metric in raw else None
    for name in ("run_id", "score"):
        if columns[name] is None:
            raise UnknownQuantityError(
                f"{path} has no column of the {'model' if name == 'run_id' else metric or 'score'}; its columns are "
                f"{', '.join(list(raw)[:12])}."
            )
    cells = {name: raw[column] for name, column in columns.items() if column is not None}
    out = []
    for row in range(len(cells["score"])):
        kind = str(cells["metric"][row]) if "metric" in cells else str(columns["score"])
        task = (str(cells["task"][row]).strip() if "task" in cells else "") or "score"
        if not wanted.wants(task) or (metric is not None and kind != metric):
            continue
        values = {}
        for name in ("score", "stderr", "items", "chance"):
            cell = cells[name][row] if name in cells else None
            try:
                value = number(cell)
            except ValueError:
                refuse(path, f"{name} in row {row + 1} is {str(cell)[:40]!r}, not a number", "Correct the cell.")
            values[name] = math.nan if value is None else value
        model = str(cells["run_id"][row]).strip()
        if model.lower() in MISSING:
            refuse(path, f"row {row + 1} names no model", "Name it.")
        out.append(Score(model, task, kind, values["score"], values["stderr"], values["items"],
                         values["chance"], str(path)))  # fmt: skip
    if metric is None and len(kinds := {score.metric for score in out}) > 1:
        raise ConfigurationError(f"{path} holds the metrics {', '.join(sorted(kinds))}: name one with metric=.")
    return out


# -- checks ------------------------------------------------------------------------------------------------------------


def _or_nan(value: Any) -> float:
    """A number, or nan: the harness writes "N/A" for an error it does not know."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _chosen(found: list[Score], tasks: Sequence[str], seen: Mapping[str, None], path: Path) -> list[Score]:
    there = {score.task for score in found}
    if missing := [task for task in tasks if task not in there]:
        if missing[0] in seen:
            refuse(path, f"its task {missing[0]!r} has no score of the metric", "Name another metric (--metric).")
        raise ConfigurationError(f"{path} has no task {missing[0]!r}; it has {', '.join(list(seen)[:12]) or 'none'}.")
    return [score for task in tasks for score in found if score.task == task]


def _latest(found: list[Score], notes: list[str]) -> list[Score]:
    last = {(score.model, score.task): score for score in found}
    if len(last) < len(found):
        notes.append(f"{len(found) - len(last)} scores are repeated for a model and task: the last file counts")
    return list(last.values())


def _check_percent(found: list[Score], path: Path, notes: list[str]) -> None:
    """Refuse `percent` for scores none of which is above 1; note the tasks of which none is."""
    low = list(dict.fromkeys(score.task for score in found))
    for score in found:
        if score.score > 1 and score.task in low:
            low.remove(score.task)
    if low and len(low) == len({score.task for score in found}):
        raise ConfigurationError(
            f"{path}: no score is above 1, so these are shares already: leave out percent=True (--percent). Scores "
            "that are all below 1 % must be divided by 100 in the file."
        )
    notes += [f"no score in {task} is above 1: read as less than 1 %" for task in low]


def _checked(score: Score, percent: bool) -> Score:
    where = f"the {score.metric} of {score.model!r} in {score.task!r}"
    if percent:
        score = replace(score, score=score.score / 100, error=score.error / 100)
    if not math.isfinite(score.score):
        refuse(score.source, f"{where} is {score.score}", "Evaluate again, or pass drop_bad (--drop_bad).")
    if not 0 <= score.score <= 1:
        remedy = "Pass percent=True (--percent) if scores run to 100; a perplexity or a loss is no score."
        refuse(score.source, f"{where} is {score.score:g}, no share of 1", remedy)
    if score.error < 0 or score.items <= 0:
        refuse(score.source, f"{where} has error {score.error:g} and {score.items:g} questions", "Correct them.")
    return score


def _with_chance(table: ScoreTable, chance: float | Mapping[str, float] | None) -> ScoreTable:
    if chance is None:
        return table
    named = dict(chance) if isinstance(chance, Mapping) else dict.fromkeys(table.tasks, chance)
    if unknown := sorted(set(named) - set(table.tasks)):
        raise ConfigurationError(f"chance names {unknown[0]!r}, which is no task of {', '.join(table.tasks[:8])}.")
    for task, value in named.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise ConfigurationError(
                f"chance of {task!r} must be a share of 1, 0.25 for four answers; found {value!r}."
            )
    scores = [replace(s, chance=float(named[s.task])) if s.task in named else s for s in table]
    return ScoreTable(scores, table.source, table.notes)

"""Curves written while training: folders of Trainer checkpoints, TensorBoard event files, this package's own runs.

Each becomes rows (run, step, losses, tokens) with N counted from the config that lies beside them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordError, UnknownQuantityError
from ..runs import Run
from .configs import Counted, count_config
from .events import Events, finite, read_events
from .files import RawTable, columns_of, find, read_json, refuse
from .names import ALIASES, LOSSES, MISSING, find_column
from .table import Given, RunTable
from .tidy import tidy

CONFIG_BYTES = 16 * 2**20
_AVERAGED = ("train_loss", "train/train_loss")  #: Trainer's last log row: the mean over all of training, no checkpoint
_ORDER = tuple(name for name in LOSSES if name not in _AVERAGED)


def read_trainer(folder: str | os.PathLike[str], **options: Any) -> RunTable:
    """Read runs of transformers' Trainer: every `trainer_state.json` below a folder, with its `config.json`.

    A run is a folder with checkpoints; of several states the furthest counts. N is counted from `config.json` on the
    `meta` device. D comes from `num_input_tokens_seen` when it was tracked, else from `total_flos` = 6·D·(parameters
    outside embeddings), else it is asked for as `B`, tokens per optimizer step. `training_args.bin` is a pickle and is
    never opened. The loss is `eval_loss` where every run has one, else the training loss (mean since the last log).

    `options` are those of `read_runs`. Raises RecordError for a damaged file, UnknownQuantityError when N or D is not
    to be had.
    """
    given, root = Given.of(options), Path(folder)
    states = find(root, "trainer_state.json") if root.is_dir() else [root]
    if not states:
        refuse(root, "there is no trainer_state.json in it", "Point at the output_dir of a Trainer, or above.")
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for run, state, config in _furthest(root, states):
        name = _relative(run, root)
        history = state.get("log_history")
        if not isinstance(history, list):
            refuse(run, "its trainer_state.json has no log_history", "Point at a folder that Trainer wrote.")
        counted = _count(config, name, given, notes)
        known = {"run_id": name} | _sizes(counted)
        logged = [r for r in history if isinstance(r, Mapping) and any(k.endswith("loss") for k in r)]
        batch = None
        if given.B is None and not any(_positive(row.get("num_input_tokens_seen")) for row in logged):
            batch = _batch(state.get("total_flos"), state.get("global_step"), counted, notes)
        rate = _rates({row.get("step"): row.get("learning_rate") for row in logged})
        for row in logged:
            kept = {k: v for k, v in row.items() if isinstance(k, str) and (k.endswith("loss") or k == "step")}
            if _positive(row.get("num_input_tokens_seen")):
                kept["D"] = row["num_input_tokens_seen"]
            elif batch is not None and _positive(row.get("step")):
                kept["D"] = batch * row["step"]
            if _positive(row.get("step")):
                kept |= rate(row["step"])
            rows.append({k: v for k, v in kept.items() if k not in _AVERAGED} | known)
    return _finish(rows, root, given, notes)


def read_tensorboard(folder: str | os.PathLike[str], **options: Any) -> RunTable:
    """Read TensorBoard event files: each folder that holds `events.out.tfevents.*` is a run, its name the `run_id`.

    The files are parsed here, without TensorBoard. The Trainer's callback also writes the model's config as text, from
    which N is counted; D comes from `num_input_tokens_seen` or `total_flos` as in `read_trainer`. Other writers leave N
    and B to the options (those of `read_runs`). `loss` names a tag; by default `eval/loss`, then `train/loss` and the
    like.
    """
    given, root = Given.of(options), Path(folder)
    files = find(root, "*tfevents*") if root.is_dir() else [root]
    if not files:
        refuse(root, "there are no event files in it", "Point at a log folder of TensorBoard.")
    runs: dict[Path, Events] = {}
    for path in files:
        runs.setdefault(path.parent, Events()).merge(read_events(path))
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for run, events in runs.items():
        tags = {tag: values for tag, values in events.scalars.items() if _wanted(tag, given)}
        if not tags:
            continue
        name = _relative(run, root)
        if events.truncated:
            notes[f"the last record of {name} is cut short and was left out"] = None
        counted = _count(events.texts.get("model_config"), name, given, notes)
        known = {"run_id": name} | _sizes(counted)
        flos = events.scalars.get("train/total_flos") or {}
        tokens = find_column(events.scalars, ALIASES["D"])
        batch = None
        if given.B is None and tokens is None and flos:
            batch = _batch(flos[max(flos)], max(flos), counted, notes)
        rate = _rates(events.scalars.get("train/learning_rate") or {})
        for step in sorted({step for values in tags.values() for step in values}):
            row = {tag: values[step] for tag, values in tags.items() if step in values}
            if tokens is not None and finite(events.scalars[tokens].get(step)):
                row["D"] = events.scalars[tokens][step]
            elif batch is not None:
                row["D"] = batch * step
            rows.append(row | known | rate(step) | {"step": step})
    return _finish(rows, root, given, notes)


def read_series(folder: str | os.PathLike[str], **options: Any) -> RunTable:
    """Read the finished runs that this package trained: every `run.json` below a folder, final held-out losses.

    Raises RecordError when a record was changed since it was written (`Run.load`).
    """
    root = Path(folder)
    paths = find(root, "run.json") if root.is_dir() else [root]
    runs = [Run.load(path) for path in paths]
    if not (finished := [run for run in runs if run.finished]):
        refuse(root, "it holds no finished run", "Train the series to its end.")
    keys = ("run_id", "N", "N_non_embedding", "D", "S", "B", "C", "loss", "lr", "seed", "family")
    rows = [{key: getattr(run, key) for key in keys} for run in finished]
    if not any(row["family"] for row in rows):
        rows = [{k: v for k, v in row.items() if k != "family"} for row in rows]
    notes = [f"{len(runs) - len(finished)} diverged runs were left out"] if len(finished) < len(runs) else []
    table = tidy(columns_of(rows, root), str(root), Given.of(options), notes)
    precisions = {run.run_id: run.precision for run in finished}
    if any(precisions.values()):  # a law says so when they differ
        table["precision"] = np.array([precisions[str(name)] for name in table["run_id"]], object)
    return table


# -- shared ------------------------------------------------------------------------------------------------------------


def _furthest(root: Path, states: Iterable[Path]) -> Iterable[tuple[Path, Mapping[str, Any], Path | None]]:
    """Each run folder with the state of most steps and a config that lies beside one of its states."""
    best: dict[Path, tuple[float, Mapping[str, Any]]] = {}
    configs: dict[Path, Path] = {}
    for path in states:
        run = path.parent.parent if path.parent.name.startswith("checkpoint-") else path.parent
        state = read_json(path)
        if not isinstance(state, Mapping):
            refuse(path, "it is not a JSON object", "Restore the file.")
        step = state.get("global_step")
        step = float(step) if isinstance(step, int) and not isinstance(step, bool) else -1.0
        if run not in best or step > best[run][0]:
            best[run] = (step, state)
        for folder in (path.parent, run):
            if run not in configs and (folder / "config.json").is_file():
                configs[run] = folder / "config.json"
    for run, (_, state) in sorted(best.items()):
        yield run, state, configs.get(run)


def _count(config: Path | str | None, name: str, given: Given, notes: dict[str, None]) -> Counted | None:
    """The parameters of a run's config; None when there is none, or when the user's N makes it dispensable."""
    if config is None:
        return None
    try:
        if isinstance(config, Path):
            return count_config(read_json(config, CONFIG_BYTES), str(config))
        return count_config(json.loads(config), f"the model_config of {name!r}")
    except (UnknownQuantityError, ValueError, RecursionError) as error:
        if given.N is None and isinstance(error, RecordError):
            raise
        notes[f"the config of {name} could not be counted"] = None
        return None


def _sizes(counted: Counted | None) -> dict[str, Any]:
    return {} if counted is None else {"N": counted.N, "N_non_embedding": counted.N_non_embedding}


def _batch(flos: Any, step: Any, counted: Counted | None, notes: dict[str, None]) -> float | None:
    """Tokens per optimizer step from Trainer's `total_flos` at a step, None when that is not possible."""
    if counted is None or not _positive(flos) or not _positive(step):
        return None
    notes["tokens per step from total_flos = 6·tokens·(parameters outside embeddings), as Trainer counts them"] = None
    return counted.tokens(float(flos)) / float(step)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _rates(logged: Mapping[Any, Any]) -> Callable[[float], dict[str, float]]:
    """The column lr at any step from the rates logged at some: evaluations fall between the training logs."""
    known = {float(s): float(v) for s, v in logged.items() if _positive(s) and (_positive(v) or v == 0)}
    steps = sorted(known)
    if len(steps) < 2:
        return lambda step: {}
    rates = [known[step] for step in steps]
    return lambda step: {"lr": float(np.interp(step, steps, rates))}


def _wanted(tag: str, given: Given) -> bool:
    if tag in _AVERAGED:
        return False
    return tag == given.loss or find_column([tag], _ORDER) is not None


def _relative(run: Path, root: Path) -> str:
    try:
        name = run.relative_to(root).as_posix()
    except ValueError:
        name = run.name
    return run.resolve().name if name in (".", "") else name


def _finish(rows: list[dict[str, Any]], root: Path, given: Given, notes: Iterable[str]) -> RunTable:
    if not rows:
        refuse(root, "no run in it has logged a loss", "Point at finished runs, or name the tag with loss=.")
    raw = columns_of(rows, root)
    return tidy(raw, str(root), given, list(notes), losses_of_every_run(raw, _ORDER))


def losses_of_every_run(raw: RawTable, order: Iterable[str]) -> tuple[str, ...]:
    """The losses that every run has logged, in order of preference; the whole order when runs share none.

    Otherwise a run without held-out losses would vanish from the table because the others have them.
    """
    order = tuple(order)
    runs_of = raw["run_id"]
    runs = set(runs_of)
    shared = []
    for alias in order:
        column = find_column(raw, [alias])
        if column is not None:
            cells = zip(runs_of, raw[column], strict=True)
            have = {run for run, cell in cells if cell is not None and str(cell).strip().lower() not in MISSING}
            if have == runs:
                shared.append(alias)
    return tuple(shared) or order

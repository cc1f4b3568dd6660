"""`muscaling fit --law downstream`: task scores over losses, from one table or from results and runs joined."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.laws import ChinchillaLaw, DownstreamLaw, PowerLaw, ScalingLaw, ScorePrediction, TwoStage
from hf_muscaling.readers import ScoreTable, read_runs, read_scores

from .law_flags import as_notes, assignments, mark, one_family, points, read_columns, split

Drawing = Callable[[], Any]
FIRST: dict[tuple[str, ...], Callable[[], ScalingLaw]] = {
    ("N",): PowerLaw,
    ("D",): lambda: PowerLaw(variable="D"),
    ("D", "N"): ChinchillaLaw,
}
"""First stage fitted to the runs when --first gives none, by the variables that --predict names."""


def fit_downstream(
    args: argparse.Namespace, point: Callable[[ScalingLaw, Sequence[str]], dict[str, Any]]
) -> list[tuple[str, DownstreamLaw, Drawing]]:
    """Fit and print a law for every task (and one for their mean); return each with its task and drawing."""
    first = ScalingLaw.from_json(args.first) if args.first else None
    if args.runs is None and not Path(args.path).is_dir():
        return [_from_one_table(args, first, point)]
    scores = read_scores(args.path, tasks=args.task, metric=args.metric, chance=_chances(args.chance),
                         percent=args.percent, drop_bad=args.drop_bad)  # fmt: skip
    if args.runs is None:
        raise ConfigurationError(
            f"{args.path} holds scores and no losses: give --runs, the table of the runs (run_id, N, D, loss)."
        )
    for task in scores.tasks:
        scores.chance(task)  # ask for all that is not known before anything is fitted
    runs = read_runs(args.runs, need=("loss",))
    asked = points(args.predict, "--predict")
    places = [assignments(words, "--predict") if first is None else point(first, words) for words in asked]
    with as_notes():
        first = first or _first_stage(args.runs, places)
    print(f"{scores}\n{runs}")
    if first is not None:
        print(f"\n{first.summary()}")
    parts = [(task, scores) for task in scores.tasks]
    if len(scores.tasks) > 1:
        mean = scores.average()
        parts.append((mean.tasks[0], mean))
    return [_one_task(task, part, runs, first, places, args) for task, part in parts]


def _one_task(
    task: str, scores: ScoreTable, runs: Any, first: ScalingLaw | None, places: list[dict], args: argparse.Namespace
) -> tuple[str, DownstreamLaw, Drawing]:
    law = DownstreamLaw(args.form or "sigmoid", ceiling=args.ceiling)
    table = scores.join(runs, task, args.drop_bad)
    print(f"\n--- {task} (chance {scores.chance(task):.3g})")
    predictions = []
    with as_notes():
        law.fit(table)
        print(law.summary())
        for at in places:
            if set(at) == {"loss"}:
                predictions.append(law.predict(at["loss"], args.level))
            elif first is not None:
                predictions.append(TwoStage(first, law).predict(level=args.level, **at))
        for prediction in predictions:
            print(prediction)
    return task, law, lambda: _figure(law, predictions, task, args.level)


def _figure(law: DownstreamLaw, predictions: Sequence[ScorePrediction], task: str, level: float) -> Any:
    """The law's own plot under the task's name, drawn far enough to hold the predictions, each marked."""
    furthest = max([float(p.extrapolation) for p in predictions] or [0.0])
    figure = law.plot(level=level, reach=max(1.0, 1.2 * furthest))
    axes = figure.axes[0]
    if task:
        axes.set_title(f"{task}\n{axes.get_title()}")
    for p in predictions:
        words = [f"{name} {float(value):.3g}" for name, value in p.at.items() if name not in ("S1", "S2")]
        place = ", ".join(words or [f"loss {float(p.loss):.4g}"])
        mark(axes, place, float(p.loss), float(p.score), (float(p.low), float(p.high)), ".3f")
    return figure


def _first_stage(path: str, places: list[dict]) -> ScalingLaw | None:
    """The law of the loss that the places' variables ask for, fitted to the runs; None where they name losses."""
    asked = {tuple(sorted(at)) for at in places} - {("loss",)}
    if not asked:
        return None
    if len(asked) > 1 or (names := asked.pop()) not in FIRST:
        raise ConfigurationError(
            "--predict takes N=…, D=…, N=… D=… (a first stage is then fitted to --runs) or loss=…; for another first "
            "stage give --first law.json."
        )
    runs = read_runs(path, need=(*names, "loss"))
    for same, other in zip(names, reversed(names), strict=True):
        if same != other and np.ptp(runs[same]) <= 1e-9 * runs[same].max():
            at = next(place[other] for place in places if other in place)
            raise ConfigurationError(
                f"All runs of {path} have {same} = {runs[same][0]:.4g}: they do not say how the loss moves with "
                f"{same}. Predict from {other} alone (--predict {other}={at:.4g}), or add runs of another {same}."
            )
    return FIRST[names]().fit(runs)


def _from_one_table(args: argparse.Namespace, first: ScalingLaw | None, point: Callable) -> tuple[str, Any, Drawing]:
    """Scores and losses in one table."""
    chances = _chances(args.chance)
    if isinstance(chances, dict):
        raise ConfigurationError("--chance takes one number here: TASK=NUMBER goes with --runs.")
    if args.percent or args.metric:
        raise ConfigurationError("--percent and --metric go with --runs; a table with losses holds shares of 1.")
    if args.task:
        if len(args.task) > 1:
            raise ConfigurationError("One table with losses: name one --task. Several go with --runs.")
        args.where = [*args.where, f"task={args.task[0]}"]
    law = DownstreamLaw(args.form or "sigmoid", chances, args.ceiling)
    table = read_columns(args, ["score"])
    one_family(table)
    asked = points(args.predict, "--predict")
    places = [point(first, words) if first else assignments(words, "--predict") for words in asked]
    for at in places:
        if first is None and set(at) != {"loss"}:
            raise ConfigurationError(
                "--predict takes loss=VALUE here; give --first law.json or --runs runs.csv to predict from N or D."
            )
    with as_notes():
        law.fit(table)
        stages = TwoStage(first, law) if first else None
        predictions = [
            stages.predict(level=args.level, **at) if stages else law.predict(at["loss"], args.level) for at in places
        ]
    print(f"{table}\n\n{stages.summary() if stages else law.summary()}")
    for prediction in predictions:
        print(f"\n{prediction}")
    return "", law, lambda: _figure(law, predictions, args.task[0] if args.task else "", args.level)


def _chances(words: Sequence[str] | None) -> float | dict[str, float] | None:
    """What --chance says: one number for all tasks, or TASK=NUMBER for each."""
    if not words:
        return None
    if len(words) == 1 and "=" not in words[0]:
        try:
            return float(words[0])
        except ValueError:
            raise ConfigurationError(f"--chance {words[0]!r} is no number; 0.25 for four answers.") from None
    return assignments([f"{name}={value}" for name, value in (split(word, "--chance") for word in words)], "--chance")

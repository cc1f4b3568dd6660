"""`muscaling fit`: a table of last year's runs in, a prediction with its interval out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.laws import (
    AnnealingLaw,
    LearningRateLaw,
    Prediction,
    ScalingLaw,
    constant_schedule,
    cosine_schedule,
    wsd_schedule,
)
from hf_muscaling.laws.base import check_level

from .downstream import fit_downstream
from .law_flags import (
    ONE_MODEL,
    as_notes,
    assignments,
    law_parser,
    make_law,
    mark,
    one_family,
    points,
    read,
    read_columns,
    split,
    writable,
)

_SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant_schedule,
    "cosine": cosine_schedule,
    "wsd": wsd_schedule,
}

_OWN_FLAGS = {
    "downstream": ("chance", "form", "ceiling", "first", "runs", "task", "metric", "percent"),
    "learning-rate": ("gamma", "delta"),
}
"""Laws that are fitted to something else than losses over N and D, and the flags that only they take."""


def run(arguments: Sequence[str]) -> None:
    """Read runs, fit a law, print its summary and the predictions asked for; plot and save it on request."""
    parser = law_parser(
        "muscaling fit",
        "Fit a scaling law to runs you already have and predict a larger one.",
        "examples: muscaling fit runs.csv --law chinchilla --predict N=7e9 D=2e12 --plot law.png --save law.json; "
        "muscaling fit curves.csv --law annealing --predict schedule=cosine steps=72000 peak=3e-4 warmup=2000; "
        "muscaling fit scores.csv --law downstream --chance 0.25 --first law.json --predict N=7e9 D=2e12; "
        "muscaling fit results/ --law downstream --runs runs.csv --task arc_easy piqa --predict N=7e9 D=2e12; "
        "muscaling fit sweep.csv --law learning-rate --predict D=1e12 B=4e6",
        extra=(*ONE_MODEL, *_OWN_FLAGS),
    )
    parser.add_argument(
        "--predict", nargs="+", action="append", metavar="X=VALUE", default=[],
        help="a run to predict, one value a variable of the law (N=7e9 D=2e12); may be repeated, and so may a name "
        "in it: N=7e9 N=7e10 D=2e12",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="PNG", help="draw the fit and the predictions")
    parser.add_argument("--save", metavar="JSON", help="store the fitted law; the law's from_json reads it")
    add = parser.add_argument_group("law downstream: task score from loss").add_argument
    add("--runs", metavar="PATH", help="the runs that the models of PATH are (run_id, N, D, loss): scores are joined")
    add("--task", nargs="+", help="tasks to fit, each alone and their mean; by default all")
    add("--metric", help="acc_norm, acc, …; by default the first of these that a task has")
    add("--chance", nargs="+", metavar="[TASK=]VALUE", help="score of guessing, 0.25 for four answers; by default the "
        "column chance, what is known of the task, or 0 in a table with losses")  # fmt: skip
    add("--percent", action="store_true", default=None, help="scores run to 100")
    add("--ceiling", type=float, help="highest score, if it shall not be estimated")
    add("--form", help="sigmoid (default) or linear")
    add("--first", metavar="JSON", help="a stored law of the loss: --predict takes its variables, intervals add up")
    add = parser.add_argument_group("law learning-rate: the best rate over horizon and batch size").add_argument
    add("--gamma", type=float, help="exponent of the horizon, if it shall not be estimated")
    add("--delta", type=float, help="exponent of the batch size likewise; 0.5 is the square-root rule for Adam")
    args = parser.parse_args(list(arguments))
    check_level(args.level)
    known = _OWN_FLAGS.get(args.law, ("objective", "window"))
    for flag in ("objective", "window", *(flag for own in _OWN_FLAGS.values() for flag in own)):
        if flag not in known and getattr(args, flag) is not None:
            raise ConfigurationError(f"--{flag} does not go with --law {args.law}. Leave it out.")
    save = writable(args.save, ".json") if args.save else None
    plot = writable(args.plot, ".png") if args.plot else None
    if args.law == "downstream":
        fits = fit_downstream(args, _point)
    else:
        fits = [("", *(_learning_rate if args.law == "learning-rate" else _loss)(args))]
    for task, law, figure in fits:
        suffix = "".join(c if c.isalnum() else "_" for c in task) if len(fits) > 1 else ""
        if save:
            law.to_json(path := _named(save, suffix))
            print(f"\nLaw: {path}")
        if plot:
            from hf_muscaling.plotting import save_figure

            save_figure(figure(), path := _named(plot, suffix))
            print(f"\nPlot: {path}")


def _named(path: Path, suffix: str) -> Path:
    """The path of one of several results: law.json → law-arc_easy.json."""
    return path.with_stem(f"{path.stem}-{suffix}") if suffix else path


def _loss(args: argparse.Namespace) -> tuple[Any, Any]:
    """Fit a law of the loss and print it with its predictions; the law, and what draws it."""
    law = make_law(args.law, args)
    table = read(args, law)
    one_family(table)
    places = [_point(law, words) for words in points(args.predict, "--predict")]
    with as_notes():
        law.fit(table)
        predictions = [law.predict(level=args.level, **place) for place in places]
    print(f"{table}\n\n{law.summary()}")
    for prediction in predictions:
        print(f"\n{prediction}")
    return law, lambda: _figure(law, predictions, args.level)


def _learning_rate(args: argparse.Namespace) -> tuple[Any, Any]:
    """Fit the best learning rates over horizons and batch sizes; predict another pair of them."""
    law = LearningRateLaw(args.gamma, args.delta)
    table = read_columns(args, ["lr", "D", "B"])
    one_family(table)
    places = [assignments(words, "--predict") for words in points(args.predict, "--predict")]
    for place in places:
        if set(place) != {"D", "B"}:
            raise ConfigurationError("--predict takes D=TOKENS B=TOKENS here: the horizon and the tokens per step.")
    with as_notes():
        law.fit(table)
        predictions = [law.predict(D=place["D"], B=place["B"], level=args.level) for place in places]
    print(f"{table}\n\n{law.summary()}")
    for prediction in predictions:
        print(f"\n{prediction}")

    def figure() -> Any:
        furthest = max([float(p.D) / law.range_["D"][1] for p in predictions] or [1.0])
        drawn = law.plot(level=args.level, reach=max(4.0, 1.5 * furthest))
        for p in predictions:
            place = f"D {float(p.D):.3g}, B {float(p.B):.3g}"
            mark(drawn.axes[0], place, float(p.D), float(p.lr), (float(p.low), float(p.high)), ".3g")
        return drawn

    return law, figure


def _point(law: ScalingLaw, words: Sequence[str]) -> dict[str, Any]:
    """What --predict says: numbers, or for a law of curves a schedule and its numbers, predicted at its last step."""
    if not isinstance(law, AnnealingLaw):
        return assignments(words, "--predict")
    given = dict(split(word, "--predict") for word in words)
    kind = given.pop("schedule", None)
    if kind not in _SCHEDULES:
        raise ConfigurationError(
            f"--predict needs schedule={'|'.join(_SCHEDULES)} for this law, with steps=, peak= and, where it has them, "
            f"final=, warmup=, decay= and shape=; found schedule={kind}."
        )
    text = {"shape": given.pop("shape")} if "shape" in given else {}
    numbers = assignments([f"{name}={value}" for name, value in given.items()], "--predict")
    try:
        rates = _SCHEDULES[kind](**numbers, **text)
    except TypeError as error:
        raise ConfigurationError(f"--predict schedule={kind}: {error}.".replace("_schedule()", "")) from None
    return {"schedule": rates, "step": len(rates)}


def _figure(law: ScalingLaw, predictions: Sequence[Prediction], level: float) -> Any:
    """The law's own plot, drawn far enough to hold the predictions, each marked with its interval."""
    axis, last = next(iter(law.range_.items()))
    end = last[1]
    if isinstance(law, AnnealingLaw):
        axis, end = "step", float(law._columns["step"].max())
    furthest = max([float(p.at[axis]) / end for p in predictions] or [1.0])
    figure = law.plot(level=level, reach=max(3.0, 1.5 * furthest))
    axes = figure.axes[0]
    for p in predictions:
        place = ", ".join(f"{name} {float(value):.3g}" for name, value in p.at.items() if name not in ("S1", "S2"))
        mark(axes, place, float(p.at[axis]), float(p.loss), (float(p.low), float(p.high)))
    return figure

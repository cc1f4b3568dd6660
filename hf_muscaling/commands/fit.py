"""`muscaling fit`: a table of last year's runs in, a prediction with its interval out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_muscaling.laws import Prediction, ScalingLaw

from .law_flags import as_notes, assignments, law_parser, make_law, one_family, read, writable


def run(arguments: Sequence[str]) -> None:
    """Read runs, fit a law, print its summary and the predictions asked for; plot and save it on request."""
    parser = law_parser(
        "muscaling fit",
        "Fit a scaling law to runs you already have and predict a larger one.",
        "example: muscaling fit runs.csv --law chinchilla --predict N=7e9 D=2e12 --plot law.png --save law.json",
    )
    parser.add_argument(
        "--predict", nargs="+", action="append", metavar="X=VALUE", default=[],
        help="a run to predict, one value a variable of the law (N=7e9 D=2e12); may be repeated",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="PNG", help="draw the fit, its residuals and the predictions")
    parser.add_argument("--save", metavar="JSON", help="store the fitted law; ScalingLaw.from_json reads it")
    args = parser.parse_args(list(arguments))
    law = make_law(args.law, args)
    table = read(args, law)
    one_family(table)
    points = [assignments(words, "--predict") for words in args.predict]
    save = writable(args.save, ".json") if args.save else None
    plot = writable(args.plot, ".png") if args.plot else None
    with as_notes():
        law.fit(table)
        predictions = [law.predict(level=args.level, **point) for point in points]
    print(f"{table}\n\n{law.summary()}")
    for prediction in predictions:
        print(f"\n{prediction}")
    if save:
        law.to_json(save)
        print(f"\nLaw: {args.save}")
    if plot:
        from hf_muscaling.plotting import save_figure

        save_figure(_figure(law, predictions, args.level), plot)
        print(f"\nPlot: {args.plot}")


def _figure(law: ScalingLaw, predictions: Sequence[Prediction], level: float) -> Any:
    """The law's own plot, drawn far enough to hold the predictions, each marked with its interval."""
    axis = next(iter(law.columns))
    furthest = max([float(p.at[axis]) / law.range_[axis][1] for p in predictions] or [1.0])
    figure = law.plot(level=level, reach=max(3.0, 1.5 * furthest))
    axes = figure.axes[0]
    for p in predictions:
        place = ", ".join(f"{name} {float(value):.3g}" for name, value in p.at.items())
        ends = [[p.loss - p.low], [p.high - p.loss]]
        axes.errorbar(
            float(p.at[axis]), float(p.loss), ends, fmt="D", ms=6, capsize=4, color="black",
            label=f"{place}: {p.loss:.4f}",
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    return figure

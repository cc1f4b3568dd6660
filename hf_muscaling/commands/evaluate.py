"""`muscaling evaluate`: how well a law fitted on the small runs of a table predicts the large ones."""

from __future__ import annotations

from collections.abc import Sequence

from hf_muscaling.errors import FitError
from hf_muscaling.laws.evaluation import evaluate_extrapolation

from .law_flags import as_notes, law_parser, make_law, number_or_text, read


def run(arguments: Sequence[str]) -> None:
    """Read runs and print how well a law fitted on the small ones predicts the large ones, a family at a time."""
    parser = law_parser(
        "muscaling evaluate",
        "Fit on the small runs, score at the large ones: ARE, coverage and width of the interval.",
        "example: muscaling evaluate runs.csv --law chinchilla --target rolling",
    )
    parser.add_argument(
        "--target",
        default="largest",
        help="largest (default), largest_compute, rolling, a number of parameters, a run_id",
    )
    parser.add_argument("--seen", type=float, default=1.0, help="fit on this first share of each small run's training")
    parser.add_argument("--models", type=int, help="fit on this many of the smallest models")
    parser.add_argument("--last", type=float, default=0.3, help="score this last share of a target's training")
    args = parser.parse_args(list(arguments))
    law = make_law(args.law, args)
    table = read(args, law)
    print(table)
    families: list[str | None] = [*table.families()] or [None]
    reasons = []
    for family in families:
        part = table if family is None else table.take(table["family"] == family)
        try:
            with as_notes():
                found = evaluate_extrapolation(
                    part, law, number_or_text(args.target), seen=args.seen, models=args.models, last=args.last,
                    level=args.level,
                )  # fmt: skip
        except FitError as error:
            reasons.append(error)
            if family is not None:
                print(f"\n{family}: {error}")
            continue
        print(f"\n{f'{family}: ' if family else ''}{found}")
    if len(reasons) == len(families):
        raise reasons[0]

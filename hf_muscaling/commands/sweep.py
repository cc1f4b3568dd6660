"""`muscaling sweep`: search hyperparameters at base width; any number of workers share one study."""

import os
from collections.abc import Sequence

from .parser import Parser, take_config

DESCRIPTION = """Search learning rate, initial std and output multiplier at base width. Start the same command as often
as you like, on one machine or on many that share the output folder: every cell is done once, that of a killed worker is
done again by another, and the same command continues. Any other flag is one of run-series; its lists learning_rates,
init_stds and output_multipliers are the grid, or for TPE the two ends of a range."""


def run(arguments: Sequence[str] | None, description: str | None = None) -> int:
    """Work on the sweep that the flags describe; returns 0 if every cell is done, 3 if some are with other workers."""
    parser = Parser(
        prog="muscaling sweep", usage="%(prog)s [CONFIG.yaml] [flags]", description=description or DESCRIPTION,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--sampler", choices=["grid", "tpe"], default="grid", help="every cell, or points that TPE chooses")
    add("--trials", type=int, default=24, help="points that TPE tries")
    add("--storage", metavar="URL", default=os.environ.get("MUSCALING_STORAGE"),
        help="SQLAlchemy URL of the study; default: $MUSCALING_STORAGE (where a password is safer than in a command), "
        "or sweep.db in the output folder")  # fmt: skip
    add("--study", default="sweep", help="name of the study in its storage")
    add("--no_pruning", action="store_true", help="train hopeless runs to their end too")
    add("--heartbeat", type=int, default=10, help="seconds between a worker's signs of life")
    add("--grace", type=int, default=60, help="seconds without one after which its cell is handed out again")
    given, rest = parser.parse_known_args(take_config(list(_words(arguments))))

    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.study import SweepOptions
    from hf_muscaling.sweep import run_sweep

    experiment, _ = parse_experiment(rest)
    options = SweepOptions(
        given.sampler, given.trials, given.storage, given.study, not given.no_pruning, given.heartbeat, given.grace
    )
    result = run_sweep(experiment, options)
    print(f"\n{result}")
    if result.best is None:
        print(
            "\nSome cells are with other workers, or failed: the last worker writes best.yaml; this command continues."
        )
        return 3
    print(f"\nBest settings: {experiment.output_dir}/best.yaml (muscaling run-series --config takes it)")
    return 0


def _words(arguments: Sequence[str] | None) -> Sequence[str]:
    import sys

    return sys.argv[1:] if arguments is None else arguments

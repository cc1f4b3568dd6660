"""The console script `muscaling`, and what recipes share with it: errors as one paragraph, no traceback."""

import argparse
import sys
from collections.abc import Callable, Sequence

from hf_muscaling import __version__
from hf_muscaling.errors import MuScalingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch `muscaling COMMAND …`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="muscaling", description="μP series and scaling laws for Hugging Face models."
    )
    parser.add_argument("--version", action="version", version=f"hf_muscaling {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run-series", help="train a series, fit its law, predict a larger model", add_help=False)
    commands.add_parser("fit", help="fit a law to runs you already have, predict a larger one", add_help=False)
    commands.add_parser("evaluate", help="score a law at the largest of the runs you already have", add_help=False)
    namespace, rest = parser.parse_known_args(arguments)
    return {"run-series": run_series, "fit": fit, "evaluate": evaluate}[namespace.command](rest)


def run_series(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the experiment that the flags describe and print its prediction; returns the exit status."""
    return guarded(lambda: _run_series(arguments, description))


def fit(arguments: Sequence[str]) -> int:
    """Fit a law to a file or folder of runs and predict larger ones; returns the exit status."""
    from hf_muscaling import law_commands

    return guarded(lambda: law_commands.fit(arguments))


def evaluate(arguments: Sequence[str]) -> int:
    """Score a law at the largest runs of a file or folder; returns the exit status."""
    from hf_muscaling import law_commands

    return guarded(lambda: law_commands.evaluate(arguments))


def guarded(job: Callable[[], None]) -> int:
    """Run a job; an error that the user can act on is printed as one paragraph, with exit status 2."""
    try:
        job()
    except MuScalingError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished runs are kept; the same command continues.", file=sys.stderr)
        return 130
    return 0


def _run_series(arguments: Sequence[str] | None, description: str | None) -> None:
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.experiment import run_experiment
    from hf_muscaling.report import headline

    config, _ = parse_experiment(arguments, description)
    result = run_experiment(config)
    if result.is_main_process:
        print(f"\n{headline(result)}\nReport: {config.output_dir}/report.md")

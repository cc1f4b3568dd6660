"""The console script `muscaling`, and what recipes share with it: errors as one paragraph, no traceback."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from hf_muscaling import __version__
from hf_muscaling.errors import MuScalingError, Preempted

COMMANDS = {
    "run-series": ("run_series", "train a series, fit its law, predict a larger model"),
    "compare": ("compare", "which of several designs wins at the target, from proxies, and how sure that is"),
    "plan": ("plan", "parameters, FLOPs and memory of every run, and what fits, before anything runs"),
    "sweep": ("sweep", "search hyperparameters at base width, with any number of workers on one study"),
    "fit": ("fit", "fit a law to runs you already have, predict a larger one"),
    "evaluate": ("evaluate", "score a law at the largest of the runs you already have"),
    "trajectory": ("trajectory", "steps, tokens, critical batch size and whole loss curves of a larger model"),
    "coord-check": ("coord_check", "check a parametrisation over width: status 0 passed, 1 failed"),
    "export": ("export", "fold a saved μP model into a stock transformers model"),
    "push": ("hub:push", "share an experiment on the Hub: proxies, series, law and plots"),
    "pull": ("hub:pull", "fetch a shared experiment from the Hub"),
    "space": ("space", "a page that predicts in the browser, from laws; --push publishes it"),
    "docs": ("docs", "list the pages of the documentation, or print one"),
}
"""Each command's module in `hf_muscaling.commands` and function there (`run` unless named), and what it is for."""

PREEMPTED = 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch `muscaling COMMAND …`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="muscaling", description="μP series and scaling laws for Hugging Face models."
    )
    parser.add_argument("--version", action="version", version=f"hf_muscaling {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    namespace, rest = parser.parse_known_args(arguments)
    module, _, function = COMMANDS[namespace.command][0].partition(":")
    return guarded(lambda: getattr(import_module(f"hf_muscaling.commands.{module}"), function or "run")(rest))


def run_series(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the experiment that the flags describe and print its prediction; returns the exit status."""
    from hf_muscaling.commands.run_series import run

    return guarded(lambda: run(arguments, description))


def compare(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Compare the designs that the arguments name and print the verdict; returns the exit status."""
    from hf_muscaling.commands.compare import run

    return guarded(lambda: run(arguments, description))


def guarded(job: Callable[[], int | None]) -> int:
    """Run a job; its status is 0 unless it says otherwise, and 2 for an error the user can act on, in a paragraph.

    After SIGTERM it is 75 (EX_TEMPFAIL of sysexits.h): the same command continues. After Ctrl-C it is 130.
    """
    try:
        return job() or 0
    except Preempted as error:
        print(f"\n{error}", file=sys.stderr)
        return PREEMPTED
    except MuScalingError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished runs are kept; the same command continues.", file=sys.stderr)
        return 130

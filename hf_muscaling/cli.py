"""The console script `muscaling`, and what recipes share with it: errors as one paragraph, no traceback."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_muscaling import __version__
from hf_muscaling.errors import ConfigurationError, MuScalingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch `muscaling COMMAND …`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="muscaling", description="μP series and scaling laws for Hugging Face models."
    )
    parser.add_argument("--version", action="version", version=f"hf_muscaling {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run-series", help="train a series, fit its law, predict a larger model", add_help=False)
    commands.add_parser("coord-check", help="check a parametrisation over width: status 0 passed", add_help=False)
    namespace, rest = parser.parse_known_args(arguments)
    return {"run-series": run_series, "coord-check": coord_check}[namespace.command](rest)


def run_series(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the experiment that the flags describe and print its prediction; returns the exit status."""
    return guarded(lambda: _run_series(arguments, description))


def coord_check(arguments: Sequence[str] | None = None) -> int:
    """Check the coordinates of the config that the flags name; returns 0 if it passed, 1 if not, 2 for bad input."""
    return guarded(lambda: _coord_check(arguments))


def guarded(job: Callable[[], int | None]) -> int:
    """Run a job and return its status, 0 unless it says otherwise; an error the user can act on is a paragraph, 2."""
    try:
        return job() or 0
    except MuScalingError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished runs are kept; the same command continues.", file=sys.stderr)
        return 130


def _run_series(arguments: Sequence[str] | None, description: str | None) -> None:
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.experiment import run_experiment
    from hf_muscaling.report import headline

    config, _ = parse_experiment(arguments, description)
    result = run_experiment(config)
    if result.is_main_process:
        print(f"\n{headline(result)}\nReport: {config.output_dir}/report.md")


def _coord_check(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="muscaling coord-check",
        description="Does every activation keep its size, and every change its size, as width grows?",
    )
    parser.add_argument("config", help="YAML of an experiment, or a μP config: a model folder or its config.json")
    parser.add_argument("--widths", type=int, nargs="+", help="default: 1, 2, 4 and 8 times the base width")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--judged_step", type=int, default=6, help="updates after which changes are judged")
    parser.add_argument("--learning_rate", type=float, default=2**-8, help="at base width")
    parser.add_argument("--tolerance", type=float, default=0.2, help="largest slope that passes")
    parser.add_argument("--no_control", action="store_true", help="leave out standard parametrisation")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG")
    parser.add_argument("--json", metavar="FILE", help="write all measurements; '-' prints them instead of the table")
    flags = parser.parse_args(arguments)
    config = read_mu_config(flags.config)

    from hf_muscaling.checks.coordinate import coordinate_check

    check = coordinate_check(
        config,
        flags.widths,
        seeds=flags.seeds,
        steps=flags.steps,
        judged_step=flags.judged_step,
        learning_rate=flags.learning_rate,
        tolerance=flags.tolerance,
        tolerance_initial=flags.tolerance,
        control=not flags.no_control,
    )
    if flags.plot:
        check.plot(flags.plot)
    if flags.json == "-":
        print(json.dumps(check.to_dict(), allow_nan=False))
    else:
        print(check)
        if flags.json:
            check.to_json(flags.json)
    return 0 if check.passed else 1


def read_mu_config(path: str) -> Any:
    """Return the μP config that a file describes: an experiment's YAML (its base), a model folder or a config.json.

    Raises ConfigurationError if there is none.
    """
    from transformers import AutoConfig

    import hf_muscaling.models  # noqa: F401  registers the μP variants

    if path.endswith((".yaml", ".yml")):
        from hf_muscaling.configuration import parse_experiment

        return parse_experiment(["--config", path])[0].base_config()
    if not Path(path).exists():
        raise ConfigurationError(f"{path} does not exist; give an experiment's YAML, a model folder or a config.json.")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} holds no model config: {error}") from error

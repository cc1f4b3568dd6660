"""`muscaling coord-check`: does every activation keep its size, and every change its size, as width grows?"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_muscaling.errors import ConfigurationError


def run(arguments: Sequence[str] | None) -> int:
    """Check the coordinates of the config that the flags name; returns 0 if it passed, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="muscaling coord-check",
        description="Does every activation keep its size, and every change its size, as width grows?",
    )
    parser.add_argument("config", help="YAML of an experiment, or a μP config: a model folder or its config.json")
    parser.add_argument("--widths", type=int, nargs="+", help="default: 1, 2, 4 and 8 times the base width")
    parser.add_argument("--depths", type=int, nargs="+", help="check these numbers of layers instead of widths")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--judged_step", type=int, default=6, help="updates after which changes are judged")
    parser.add_argument("--learning_rate", type=float, default=2**-9, help="at base width")
    parser.add_argument("--tolerance", type=float, default=0.2, help="largest slope that passes")
    parser.add_argument("--no_control", action="store_true", help="leave out standard parametrisation")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG")
    parser.add_argument("--json", metavar="FILE", help="write all measurements; '-' prints them instead of the table")
    flags = parser.parse_args(arguments)
    if flags.depths and flags.widths:
        raise ConfigurationError("Give --widths or --depths, not both: one check changes one of them.")
    for path, suffix in ((flags.plot, ".png"), (flags.json if flags.json != "-" else None, ".json")):
        check_output(path, suffix)
    config = read_mu_config(flags.config)

    from hf_muscaling import coordinate_check, depth_check

    common = {"seeds": flags.seeds, "learning_rate": flags.learning_rate, "control": not flags.no_control}
    check: Any
    if flags.depths:
        if config.depth_parametrization == "none":
            raise ConfigurationError(
                f"{flags.config} has depth_parametrization='none', under which nothing follows the depth: set it to "
                "'completep' (in an experiment's YAML: model_fields: {depth_parametrization: completep})."
            )
        check = depth_check(config, flags.depths, steps=flags.judged_step, tolerance=flags.tolerance, **common)
    else:
        check = coordinate_check(
            config,
            flags.widths,
            steps=flags.steps,
            judged_step=min(flags.judged_step, flags.steps),
            tolerance=flags.tolerance,
            tolerance_initial=flags.tolerance,
            **common,
        )
    if flags.json == "-":
        print(json.dumps(check.to_dict(), allow_nan=False))
    else:
        print(check)
        if flags.json:
            check.to_json(flags.json)
    if flags.plot:
        check.plot(flags.plot)
    return 0 if check.passed else 1


def check_output(path: str | None, suffix: str) -> None:
    """Make sure that a result can be written, before it is computed. Raises ConfigurationError."""
    if path is None:
        return
    if Path(path).suffix != suffix:
        raise ConfigurationError(f"{path} must end in {suffix}.")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; choose another folder.") from error


def read_mu_config(path: str) -> Any:
    """Return the μP config that a file describes: an experiment's YAML (its base), a model folder or a config.json.

    Raises ConfigurationError if there is none.
    """
    from transformers import AutoConfig

    import hf_muscaling.models  # noqa: F401  registers the μP variants
    from hf_muscaling.convert.auto import register_saved

    if path.endswith((".yaml", ".yml")):
        from hf_muscaling.configuration import parse_experiment

        return parse_experiment(["--config", path])[0].base_config()
    if not Path(path).exists():
        raise ConfigurationError(f"{path} does not exist; give an experiment's YAML, a model folder or a config.json.")
    try:
        register_saved(path, local_files_only=True)
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} holds no model config: {error}") from error

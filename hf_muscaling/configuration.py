"""Read an experiment from a YAML file and the command line: unknown keys are refused, flags win over the file."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.experiment import ExperimentConfig


def parse_experiment(
    arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[ExperimentConfig, argparse.Namespace]:
    """Return the experiment that `--config FILE` and the other flags describe.

    Raises ConfigurationError for a file that is missing or not a mapping, an unknown key (with the nearest known one),
    or a value of the wrong type.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    given, rest = first.parse_known_args(arguments)
    parser = HfArgumentParser([ExperimentConfig], description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with any of these settings.")
    if given.config:
        parser.set_defaults(**_coerced(read_experiment_file(given.config)))
    try:
        config, extra = parser.parse_args_into_dataclasses(rest, look_for_args_file=False)[:2]
    except argparse.ArgumentError as error:
        raise ConfigurationError(str(error)) from error
    return config, extra


def read_experiment_file(path: str) -> dict[str, Any]:
    """Return the settings of a YAML file. Raises ConfigurationError as `parse_experiment` does."""
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"The configuration file {path} does not exist; check the path given to --config.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{path} must hold 'key: value' lines, got {type(settings).__name__}.")
    known = [f.name for f in fields(ExperimentConfig)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            raise ConfigurationError(f"{path}: unknown key {key!r}; {hint}")
    return settings


def _coerced(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn YAML's strings into the fields' types: YAML reads 2e-3 (no dot) as text."""
    types = {f.name: str(f.type) for f in fields(ExperimentConfig)}
    return {name: _coerce(name, value, types[name]) for name, value in settings.items()}


def _coerce(name: str, value: Any, kind: str) -> Any:
    if value is None and "None" in kind:
        return None
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise ConfigurationError(f"{name} must be a list, got {value!r}.")
        return [_coerce(name, item, kind[5:-1]) for item in value]
    wanted = {"<class 'int'>": int, "int": int, "<class 'float'>": float, "float": float, "<class 'bool'>": bool,
              "bool": bool, "<class 'str'>": str, "str": str}.get(kind.removesuffix(" | None"))  # fmt: skip
    if wanted is None:
        return value
    if wanted is bool or isinstance(value, bool):
        if not (wanted is bool and isinstance(value, bool)):
            raise ConfigurationError(f"{name} must be {wanted.__name__}, got {value!r}.")
        return value
    try:
        converted = wanted(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} must be {wanted.__name__}, got {value!r}.") from error
    if wanted is int and converted != float(value):
        raise ConfigurationError(f"{name} must be a whole number, got {value!r}.")
    return converted

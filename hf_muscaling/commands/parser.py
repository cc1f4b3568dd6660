"""The argument parser of the commands: its errors are the project's own, so that they read alike."""

import argparse
from typing import Any

from hf_muscaling.errors import ConfigurationError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises ConfigurationError instead of exiting with its usage."""

    def error(self, message: str) -> Any:
        """Raise ConfigurationError with the message and where the flags are listed."""
        raise ConfigurationError(f"{message}. `{self.prog} --help` lists the flags.")


def take_config(arguments: list[str]) -> list[str]:
    """Return an experiment's flags with a leading file name (`muscaling plan big.yaml …`) as `--config`.

    >>> take_config(["big.yaml", "--steps", "10"])
    ['--config', 'big.yaml', '--steps', '10']
    """
    if not arguments or arguments[0].startswith("-"):
        return arguments
    if "--config" in arguments:
        raise ConfigurationError(f"Give the experiment once: {arguments[0]} or --config, not both.")
    return ["--config", *arguments]

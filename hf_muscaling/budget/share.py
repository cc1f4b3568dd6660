"""Shares as people write them: "5%", "0.05"."""

from __future__ import annotations

import math

from ..errors import ConfigurationError


def read_share(name: str, text: str | float) -> float:
    """Return a positive share from "5%", "0.05" or a number. Raises ConfigurationError naming the setting.

    >>> read_share("budget", "5%"), read_share("budget", "0.05"), read_share("budget", 1.5)
    (0.05, 0.05, 1.5)
    """
    words = str(text).strip()
    try:
        value = float(words.removesuffix("%")) / (100.0 if words.endswith("%") else 1.0)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name}={text!r} must be a positive share, such as 5% or 0.05.")
    return value

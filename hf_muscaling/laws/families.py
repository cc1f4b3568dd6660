"""Parameters of model families, stored and shared, so that a new family can borrow what it cannot measure.

The Hitchhiker's Guide: with one model of a new family, take A and alpha from other families and fit E, B and beta.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from . import store
from .regression import RegressionLaw
from .table import short

FORMAT = "hf_muscaling.families"
FORMAT_VERSION = 1
Z90 = 1.6448536269514722


@dataclass(frozen=True)
class Family:
    """Fitted parameters of one family: `params` letter → value, `spread` letter → standard deviation (relative for
    scales such as A and E), and the units they refer to.
    """

    name: str
    law: str
    params: Mapping[str, float]
    spread: Mapping[str, float]
    units: Mapping[str, str]

    @classmethod
    def of(cls, law: RegressionLaw, name: str) -> Family:
        """The parameters of a fitted law, their spread from refits to resampled runs.

        Raises `FitError` when the law is not fitted or has no resampling (`PowerLaw`).
        """
        if not isinstance(law, RegressionLaw) or not hasattr(law, "bootstrap"):
            raise FitError(f"A {type(law).__name__} cannot be a family: use ChinchillaLaw, KaplanLaw or KaplanStepLaw.")
        draws = law.bootstrap(200)
        spread = {}
        for letter, values in draws.items():
            scale = np.log(np.maximum(values, 1e-300)) if letter not in law.weak_prior else values
            low, high = np.quantile(scale, (0.05, 0.95))
            spread[letter] = float(max((high - low) / (2 * Z90), 1e-6))
        return cls(str(name), type(law).__name__, dict(law.params_), spread, law.units)

    def fixed(self, *letters: str) -> dict[str, float]:
        """The values of some letters, for `ChinchillaLaw(fixed=…)`."""
        self._check(letters)
        return {letter: self.params[letter] for letter in letters}

    def _check(self, letters: Sequence[str]) -> None:
        for letter in letters:
            if letter not in self.params:
                raise ConfigurationError(f"Family {self.name!r} has no {letter!r}; it has {', '.join(self.params)}.")


def pooled_prior(families: Sequence[Family], *letters: str) -> dict[str, tuple[float, float]]:
    """A prior for a new family from others: centre the mean over families, variance that between families plus the
    mean of their own.

    Scales (E, A, …) are averaged as logarithms. With one family the spread between families is taken as a tenth of
    the value. For `ChinchillaLaw(prior=pooled_prior(families, "alpha", "beta"))`. Raises `ConfigurationError` for an
    unknown letter, no family, or families of different laws or units.
    """
    if not families:
        raise ConfigurationError("pooled_prior() needs at least one family.")
    first = families[0]
    for family in families:
        family._check(letters)
        if family.law != first.law or dict(family.units) != dict(first.units):
            raise ConfigurationError(
                f"Families {first.name!r} and {family.name!r} differ in law or units ({first.law}, {family.law}): "
                f"their parameters do not mean the same. Pool families of one law only."
            )
    scales = getattr(_law(first.law), "scales", ())
    prior = {}
    for letter in letters:
        values = np.array([family.params[letter] for family in families])
        own = np.array([family.spread[letter] for family in families])
        values = np.log(values) if letter in scales else values
        between = values.var(ddof=1) if len(values) > 1 else (0.1 * (1 if letter in scales else values[0])) ** 2
        centre = float(np.exp(values.mean()) if letter in scales else values.mean())
        prior[letter] = (centre, float(np.sqrt(between + np.mean(own**2))))
    return prior


def save_families(families: Sequence[Family], path: str | os.PathLike[str]) -> None:
    """Write families as JSON, in one step. Raises `ConfigurationError` for anything but a list of `Family`.

    >>> import tempfile
    >>> from hf_muscaling.laws import ChinchillaLaw
    >>> n, d = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
    >>> runs = {"N": n.ravel(), "D": d.ravel(), "loss": (1.8 + 480 / n**0.35 + 2100 / d**0.37).ravel()}
    >>> ours = Family.of(ChinchillaLaw().fit(runs), "ours")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_families([ours], f"{folder}/families.json")
    ...     load_families(f"{folder}/families.json") == [ours]
    True
    """
    if isinstance(families, (str, Mapping)) or not isinstance(families, Iterable):
        hint = " Pass a list of its values." if isinstance(families, Mapping) else ""
        raise ConfigurationError(f"save_families() takes a list of Family, not {type(families).__name__!r}.{hint}")
    families = list(families)
    for family in families:
        if not isinstance(family, Family):
            raise ConfigurationError(
                f"save_families() takes a list of Family, and found {short(family)} in it. Make one of a fitted "
                "law with Family.of(law, name)."
            )
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "families": [
            {"name": f.name, "law": f.law, "params": dict(f.params), "spread": dict(f.spread), "units": dict(f.units)}
            for f in families
        ],
    }
    store.write_text(path, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False))


def load_families(source: str | os.PathLike[str] | Mapping[str, Any]) -> list[Family]:
    """The families of a file, JSON text or parsed dict.

    Raises `RecordError` when it is not such a record or holds impossible values.
    """
    record, where = store.parse(source)
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        store.refuse(where, f"its 'format' is not {FORMAT!r}")
    if record.get("format_version") != FORMAT_VERSION or isinstance(record["format_version"], bool):
        store.refuse(where, f"format_version is not {FORMAT_VERSION}; upgrade hf_muscaling to read newer files")
    entries = record.get("families")
    if not isinstance(entries, list):
        store.refuse(where, "'families' must be a list")
    return [_family(entry, i, where) for i, entry in enumerate(entries)]


def _family(entry: Any, index: int, where: str) -> Family:
    keys = ("name", "law", "params", "spread", "units")
    if not isinstance(entry, Mapping) or set(entry) != set(keys):
        store.refuse(where, f"families[{index}] must have exactly the keys {', '.join(keys)}")
    name, law = entry["name"], entry["law"]
    if not isinstance(name, str) or not isinstance(law, str) or _law(law) is None:
        store.refuse(where, f"families[{index}] names no known law ({str(law)[:40]!r})")
    letters = _law(law).parameters_of()
    numbers = {}
    for key in ("params", "spread"):
        mapping = store.mapping(entry, key, where)
        if set(mapping) != set(letters):
            store.refuse(where, f"families[{index}].{key} must hold {', '.join(letters)}")
        numbers[key] = {n: store.number(mapping[n], f"families[{index}].{key}[{n!r}]", where) for n in letters}
        if any(v < 0 for v in numbers[key].values()):
            store.refuse(where, f"families[{index}].{key} holds a negative number")
    units = store.mapping(entry, "units", where)
    if not all(isinstance(v, str) for v in units.values()):
        store.refuse(where, f"families[{index}].units must be texts")
    return Family(name, law, numbers["params"], numbers["spread"], dict(units))


def _law(name: str) -> Any:
    """The regression law of that name, or None."""
    found = {cls.__name__: cls for cls in _all(RegressionLaw)}  # type: ignore[type-abstract]
    return found.get(name)


def _all(cls: type[RegressionLaw]) -> list[type[RegressionLaw]]:
    children = [grand for child in cls.__subclasses__() for grand in _all(child)]
    return ([cls] if getattr(cls, "equation", "") else []) + children

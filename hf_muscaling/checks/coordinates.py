"""The records of a coordinate check: sizes over width, their slopes, and the verdict. NumPy only, no torch."""

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_muscaling.runs import write_json

KINDS = ("logits", "embedding", "norm", "layer", "block")
"""What a module is, for the reader: a readout, an embedding, a norm, another leaf, or a block that contains some."""


@dataclass(frozen=True)
class Slope:
    """One line of the verdict: how a size moves with width, size ∝ width**slope.

    `quantity` is "initial" (activation before any update), "change" (of the activation after `step` updates) or
    "update" (of a weight after `step` updates, in units of what μP prescribes). `slope` is None where the size is
    zero at every width. `error` is the standard error over seeds. `low` and `high` bound what passes; a quantity
    that is not `judged` is shown only.
    """

    name: str
    kind: str
    quantity: str
    step: int
    slope: float | None
    error: float | None
    low: float | None
    high: float
    judged: bool = True

    @property
    def passed(self) -> bool:
        """Whether the slope is within its bounds; a slope that is not finite never is."""
        if self.slope is None or not self.judged:
            return True
        return self.slope <= self.high and (self.low is None or self.slope >= self.low)

    @property
    def excess(self) -> float:
        """Return how far the slope is from what theory expects: 0, or −0.5 to 0 for logits of a random readout."""
        if self.slope is None or not self.judged:
            return 0.0
        if not math.isfinite(self.slope):
            return math.inf
        below = 0.0 if self.low is None else -self.slope + self.low + self.high
        return max(self.slope, below, 0.0)


@dataclass(frozen=True)
class Coordinates:
    """What was measured under one parametrisation.

    `initial[module]` is [widths, seeds], RMS(x) before any update; `changes[module]` is [steps, widths, seeds],
    RMS(x_t − x_0); `updates[parameter]` is [steps, widths, seeds], RMS(W_t − W_0)·r^e with e the exponent of μP's
    learning rate (1 for matrix-like parameters, 0 for the others), so that theory says Θ(1) for all three.
    """

    parametrization: str
    widths: tuple[int, ...]
    kinds: dict[str, str]
    initial: dict[str, NDArray]
    changes: dict[str, NDArray]
    updates: dict[str, NDArray]
    matrices: frozenset[str] = frozenset()
    losses: NDArray = field(default_factory=lambda: np.empty((0, 0, 0)))

    @property
    def steps(self) -> int:
        """Return the number of updates that were measured."""
        return len(next(iter(self.changes.values())))

    def slopes(self, step: int, tolerance_initial: float, tolerance: float) -> list[Slope]:
        """Return the slopes of all modules at initialisation, and of all modules and weights after `step` updates."""
        found = []
        for name, sizes in self.initial.items():
            # A random readout sums w terms of random sign and divides by r: its logits shrink as r**-0.5, by design.
            low = None if self.kinds[name] == "logits" else -tolerance_initial
            found.append(self._slope(name, self.kinds[name], "initial", 0, sizes, low, tolerance_initial))
        for name, sizes in self.changes.items():
            # W_t·x_t − W_0·x_0 holds W_0·(x_t − x_0), whose part along directions not learnt shrinks in the same way.
            random = self.kinds[name] == "logits" and self.initial[name].any()
            low = -tolerance - (0.5 if random else 0.0)
            found.append(self._slope(name, self.kinds[name], "change", step, sizes[step - 1], low, tolerance))
        for name, sizes in self.updates.items():
            found.append(
                self._slope(
                    name, "weight", "update", step, sizes[step - 1], -tolerance, tolerance, name in self.matrices
                )
            )
        return found

    def _slope(self, name, kind, quantity, step, sizes, low, high, judged=True) -> Slope:
        slope, error = loglog_slope(self.widths, sizes)
        return Slope(name, kind, quantity, step, slope, error, low, high, judged)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as JSON types: [width][seed], or [step][width][seed]; not-finite sizes are None."""
        tables = ("initial", "changes", "updates")
        return {
            "parametrization": self.parametrization,
            "widths": list(self.widths),
            "losses": _plain(self.losses),
            **{table: {name: _plain(sizes) for name, sizes in getattr(self, table).items()} for table in tables},
        }


@dataclass(frozen=True)
class CoordinateCheck:
    """The verdict of `coordinate_check`; print it, `plot` it, write it with `to_json`.

    `step` is the number of updates after which changes are judged, `tolerance` the largest |slope| that passes there,
    `tolerance_initial` the same at initialisation; `control` holds standard parametrisation's measurements, if taken.
    """

    model: str
    mup: Coordinates
    control: Coordinates | None
    step: int
    tolerance: float
    tolerance_initial: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def slopes(self) -> list[Slope]:
        """Return every slope that the verdict rests on, and those that are shown only."""
        return self.mup.slopes(self.step, self.tolerance_initial, self.tolerance)

    @property
    def control_slopes(self) -> list[Slope]:
        """Return the control's slopes; empty without a control."""
        return self.control.slopes(self.step, self.tolerance_initial, self.tolerance) if self.control else []

    @property
    def passed(self) -> bool:
        """Whether every judged slope is within its bounds and at least one activation moved."""
        slopes = self.slopes
        return all(s.passed for s in slopes) and any(s.quantity == "change" and s.slope is not None for s in slopes)

    @property
    def failures(self) -> list[Slope]:
        """Return the slopes that are out of bounds, the worst first."""
        return sorted((s for s in self.slopes if not s.passed), key=lambda s: -s.excess)

    @property
    def worst(self) -> Slope:
        """Return the change of an activation with the largest |slope| after `step` updates."""
        return _worst(self.slopes, "change")

    @property
    def worst_initial(self) -> Slope:
        """Return the initial activation with the worst slope."""
        return _worst(self.slopes, "initial")

    @property
    def worst_update(self) -> Slope:
        """Return the matrix whose update has the worst slope."""
        return _worst(self.slopes, "update")

    @property
    def control_worst(self) -> Slope | None:
        """Return the control's change with the largest |slope|, None without a control."""
        return _worst(self.control_slopes, "change") if self.control else None

    def table(self) -> list[dict[str, Any]]:
        """Return one row a slope, with the control's beside it: what pandas.DataFrame takes."""
        other = {(s.quantity, s.name): s.slope for s in self.control_slopes}
        return [
            {**asdict(s), "passed": s.passed, "control_slope": other.get((s.quantity, s.name))} for s in self.slopes
        ]

    def __str__(self) -> str:
        rows = {(s.quantity, s.name): s for s in self.slopes}
        other = {(s.quantity, s.name): s.slope for s in self.control_slopes}
        heading = ["module", "initial", f"change, step {self.step}", *(["control"] if self.control else [])]
        lines = [heading]
        for name in self.mup.initial:
            cells = [_shown(rows["initial", name]), _shown(rows["change", name])]
            lines.append([name, *cells, *([_number(other["change", name])] if self.control else [])])
        size = [max(len(line[k]) for line in lines) for k in range(len(heading))]
        text = ["  ".join(c.ljust(n) if k == 0 else c.rjust(n) for k, (c, n) in enumerate(zip(line, size, strict=True)))
                for line in lines]  # fmt: skip
        return "\n".join([self.headline(), "", "Slope of log size over log width:", *text, *self._explanation()])

    def headline(self) -> str:
        """Return the verdict in a sentence or two."""
        worst, first, weight = self.worst, self.worst_initial, self.worst_update
        verdict = "PASSED" if self.passed else "FAILED"
        text = (
            f"Coordinate check of {self.model} {verdict}: widths {', '.join(map(str, self.mup.widths))}, "
            f"{self.mup.initial[first.name].shape[1]} seeds. Worst slope: at initialisation {_number(first.slope)} "
            f"({first.name}), of a change after step {self.step} {_number(worst.slope)} ({worst.name}), of a matrix's "
            f"update {_number(weight.slope)} ({weight.name}); tolerance {self.tolerance:g}."
        )
        control = self.control_worst
        if control is not None:
            text += f" Standard parametrisation: {_number(control.slope)} ({control.name})."
        return text

    def _explanation(self) -> list[str]:
        failures = self.failures
        if not failures and not self.passed:
            return ["", "No activation moved: does the optimizer update the model?"]
        if not failures:
            return []
        shown = [f"  {s.name}: {s.quantity} {_number(s.slope)}" for s in failures[:8]]
        more = [f"  … and {len(failures) - 8} more"] if len(failures) > 8 else []
        return ["", f"Out of bounds ({len(failures)}):", *shown, *more]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole check as JSON types."""
        rows = [{k: _finite(v) for k, v in row.items()} for row in self.table()]
        control = self.control_worst
        return {
            "model": self.model,
            "passed": self.passed,
            "step": self.step,
            "tolerance": self.tolerance,
            "tolerance_initial": self.tolerance_initial,
            "worst": {
                "initial": _finite(self.worst_initial.slope),
                "change": _finite(self.worst.slope),
                "update": _finite(self.worst_update.slope),
                "control": None if control is None else _finite(control.slope),
            },
            "settings": self.settings,
            "slopes": rows,
            "mup": self.mup.to_dict(),
            "control": None if self.control is None else self.control.to_dict(),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the whole check to a file, atomically."""
        write_json(path, self.to_dict())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Return the figure (sizes over width, μP beside the control), written to `path` as PNG if one is given."""
        from hf_muscaling.plotting import plot_coordinates, save_figure

        figure = plot_coordinates(self)
        if path is not None:
            save_figure(figure, path)
        return figure


def loglog_slope(widths: Any, sizes: Any) -> tuple[float | None, float | None]:
    """Return the least-squares slope of log size over log width, averaged over seeds, and its standard error.

    `sizes` is [widths, seeds]. Both are None if every size is zero; the slope is NaN or infinite if some are, or if
    one is not finite. The error is None with a single seed.

    >>> loglog_slope([64, 128, 256], [[8.0], [4.0], [2.0]])
    (-1.0, None)
    """
    sizes = np.asarray(sizes, dtype=float)
    if not sizes.any():
        return None, None
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        return math.inf, None
    x = np.log(np.asarray(widths, dtype=float))
    x -= x.mean()
    slopes = x @ np.log(sizes) / (x @ x)
    error = None if len(slopes) < 2 else float(slopes.std(ddof=1) / math.sqrt(len(slopes)))
    return round(float(slopes.mean()), 12), error


def _worst(slopes: list[Slope], quantity: str) -> Slope:
    return max((s for s in slopes if s.quantity == quantity), key=lambda s: s.excess)


def _shown(slope: Slope) -> str:
    return _number(slope.slope) + ("" if slope.passed else " !")


def _number(value: float | None) -> str:
    return "zero" if value is None else f"{value:+.2f}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(sizes: NDArray) -> Any:
    return [_plain(part) for part in sizes] if sizes.ndim else _finite(float(sizes))

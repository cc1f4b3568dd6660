"""The data of a page: laws with their intervals, designs, where to start, and test vectors for the browser."""

import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.hub import text
from hf_muscaling.space.designs import Design, stock_designs
from hf_muscaling.space.sources import Source, runs_cost

if TYPE_CHECKING:
    from hf_muscaling.laws.base import ScalingLaw
    from hf_muscaling.laws.interval_data import Neighbourhood

FORMAT, FORMAT_VERSION = "hf_muscaling.space", 2
LAWS = ("PowerLaw", "ChinchillaLaw", "KaplanLaw", "KaplanStepLaw")
SHOWN = 300
"""Rows of a law that a chart can show; of more an even sample."""
DIGITS = 12
"""Significant digits of the draws: a prediction then keeps ten."""
AHEAD = 10.0


def space_record(sources: list[Source], title: str, designs: list[Design] | None = None) -> dict[str, Any]:
    """Return everything that a page computes with, as JSON types.

    Raises ConfigurationError for a law whose interval a page cannot compute.
    """
    own = [source.design for source in sources if source.design is not None]
    designs = designs or own or stock_designs()
    laws = [_law(source, designs) for source in sources]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "title": text.plain(title),
        "laws": laws,
        "designs": [asdict(design) | {"name": text.plain(design.name)} for design in designs],
        "start": _start(sources, designs[0]),
        "vectors": {
            "laws": [vector for i, source in enumerate(sources) for vector in _vectors(i, source.law)],
            "designs": [vector for i, design in enumerate(designs) for vector in _design_vectors(i, design)],
        },
    }


def _law(source: Source, designs: list[Design]) -> dict[str, Any]:
    law = source.law
    if type(law).__name__ not in LAWS:
        raise ConfigurationError(
            f"{source.name!r} is a {type(law).__name__}; a page computes {', '.join(LAWS)}. Fit one of these."
        )
    data = law.interval_data()
    nearby = data.neighbourhood
    arrays: dict[str, np.ndarray | None]
    arrays = {} if nearby is None else {"covariance": nearby.covariance, "influence": nearby.misfit.influence}
    arrays |= {"sigma": data.sigma, "rho": data.rho, "tau": data.tau, **data.params}
    if not all(np.isfinite(values).all() for values in arrays.values() if values is not None):
        raise ConfigurationError(
            f"The interval of {source.name!r} is not finite: its runs leave a parameter open. Fit it to runs that "
            "differ more."
        )
    rows = law._columns
    keep = np.unique(np.linspace(0, law.n_runs_ - 1, min(law.n_runs_, SHOWN)).round().astype(int))
    columns = {name: rows[column][keep].tolist() for name, column in law.columns.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        residual = law.evaluate(rows).are
    return {
        "name": source.name,
        "law": type(law).__name__,
        "variables": list(law.variables),
        "equation": law.equation_text,
        "params": dict(law.params_),
        "count": _count(source),
        "units": law.units,
        "range": {name: list(ends) for name, ends in law.range_.items()},
        "interval": {
            "params": {name: _short(values) for name, values in data.params.items()},
            "sigma": _short(data.sigma),
            "rho": None if data.rho is None else _short(data.rho),
            "tau": _short(data.tau),
            "power": data.power,
            "span": {name: list(ends) for name, ends in data.span.items()},
            "neighbourhood": None if nearby is None else _neighbourhood(nearby),
        },
        "runs": columns | {"loss": rows["loss"][keep].tolist()},
        "targets": [{"N": run.N, "N_non_embedding": run.N_non_embedding, "D": run.D, "S": run.S, "B": run.B,
                     "C": run.C, "loss": run.loss} for run in source.targets],
        "cost": {"flops": source.flops, "nanolm": source.nanolm} if source.flops else runs_cost(law),
        "design": designs.index(source.design) if source.design in designs else None,
        "fitted": text.plain(law.selection_, 400),
        "objective": law.objective,
        "rows": law.n_runs_,
        "residual": residual,
        "notes": [text.plain(note, 600) for note in law.caveats()],
        "repository": source.repo_id,
    }  # fmt: skip


def _count(source: Source) -> str | None:
    """Which parameters the law's N counts: "total", "non_embedding", or None where only its author knows."""
    if type(source.law).__name__ == "PowerLaw":
        return str(source.law.settings()["count"])
    paper = type(source.law).__name__ in ("KaplanLaw", "KaplanStepLaw")
    return None if paper and not source.counts_all else "total"


def _neighbourhood(found: "Neighbourhood") -> dict[str, Any]:
    from hf_muscaling.laws.misfit import LENGTHS

    misfit = found.misfit
    return {
        "theta": found.theta.tolist(),
        "origin": {name: float(value) for name, value in found.origin.items()},
        "covariance": found.covariance.tolist(),
        "widest": found.widest,
        "points": misfit.points.tolist(),
        "influence": misfit.influence.tolist(),
        "gram": misfit.gram.tolist(),
        "lengths": list(LENGTHS),
        "length": found.length.tolist(),
    }


def _short(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values, float)]


def _start(sources: list[Source], design: Design) -> dict[str, float]:
    """Where the page's controls stand at first: ten times beyond the runs, or an experiment's own target."""
    ranges: dict[str, float] = {}
    for source in sources:
        for name, (_, high) in source.law.range_.items():
            ranges[name] = max(ranges.get(name, 0.0), high)
    run = next((source.run for source in sources if source.run is not None), None)
    width = next((source.target_width for source in sources if source.target_width), None)
    size = AHEAD * ranges.get("N", run.N if run else 1e8)
    depth = design.depth
    if width is None or width % design.width_step:
        stock = all(source.design is None for source in sources)
        options = [design.width_step * k for k in range(1, 16384 // design.width_step + 1)] or [design.width_step]
        depths = {w: max(1, min(128, round(w * design.depth / design.width))) if stock else depth for w in options}
        width = min(options, key=lambda w: abs(np.log(design.at("N", w, depths[w]) / size)))
        depth = depths[width]
    size = design.at("N", width, depth)
    tokens = ranges.get("D") or (ranges["S"] * ranges["B"] if {"S", "B"} <= ranges.keys() else None)
    batch = ranges.get("B") or (run.B if run else 2.0**19)
    tokens = float(run.D) if run else AHEAD * tokens if tokens else 20 * size
    if run is None:
        tokens, batch = _round(tokens), _round(batch)
    return {"width": width, "depth": depth, "D": max(tokens, batch), "B": batch, "N": _round(size)}


def _round(value: float) -> float:
    return float(f"{value:.2g}") if value >= 1e4 else float(round(value))


def _vectors(index: int, law: "ScalingLaw") -> list[dict[str, Any]]:
    """Return predictions inside, beyond and below the fitted range, each from `predict`, and what follows from them.

    Raises ConfigurationError if the exported interval is not the law's: then no page can be trusted.
    """
    from hf_muscaling.laws import KaplanStepLaw

    data, found = law.interval_data(), []
    ends = law.range_.items()
    middle = {n: float(np.sqrt(lo * hi)) for n, (lo, hi) in ends}
    points = [middle, *({n: factor * hi for n, (_, hi) in ends} for factor in (1.0, 4.0, 60.0))]
    points += [{n: lo / 3 for n, (lo, _) in ends}]
    points += [middle | {n: 7 * hi} for n, (_, hi) in ends if len(middle) > 1]
    for at in points:
        for level in (0.5, 0.9, 0.99):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                p = law.predict(level=level, **at)
            low, high = data.bounds(law.loss, at, level)
            low, high = min(low, float(p.loss)), max(high, float(p.loss))
            if not np.allclose([low, high], np.array([p.low, p.high]), rtol=1e-8):
                raise ConfigurationError(
                    f"The interval of {type(law).__name__} at {at} is [{p.low:.6g}, {p.high:.6g}], its data give "
                    f"[{low:.6g}, {high:.6g}]: `interval_data` does not follow `predict`. Please report it."
                )
            vector = {"law": index, "at": at, "level": level, "loss": p.loss, "low": p.low, "high": p.high,
                      "extrapolation": p.extrapolation}  # fmt: skip
            if isinstance(law, KaplanStepLaw):
                vector["critical_batch"] = law.critical_batch_size(p.loss)
                vector["minimal_steps"] = law.minimal_steps(p.loss, at["N"])
            found.append(vector)
    return found


def _design_vectors(index: int, design: Design) -> list[dict[str, Any]]:
    vectors = []
    for k, depth, sequences, precision, checkpointing in ((4, 2, 1, "fp32", False), (37, 48, 3, "bf16", True)):
        width = k * design.width_step
        counts = {name: design.at(name, width, depth) for name in ("N", "N_non_embedding", "step_flops")}
        vectors.append(
            {"design": index, "width": width, "depth": depth, "sequences": sequences, "precision": precision,
             "checkpointing": checkpointing, **counts,
             "memory": design.memory(width, depth, sequences, precision, checkpointing)}
        )  # fmt: skip
    return vectors

"""Learning-rate transfer: does the best learning rate stay put as width grows? (Tensor Programs V, Figure 1)"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, TrainingArguments

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.config import require_mu_config
from hf_muscaling.progress import SeriesProgress
from hf_muscaling.runs import Run, write_json
from hf_muscaling.series import Job, run_jobs
from hf_muscaling.workers import Workers

NAMES = {"mup": "μP", "sp": "standard parametrisation"}
Losses = dict[int, dict[float, float]]
"""width → learning rate at base width → held-out loss in nats per target, infinite for a diverged run"""


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one width.

    `learning_rate` is the grid's best, `interpolated` the vertex of the parabola through it and its neighbours in
    log lr (None at the edge of the grid or beside a diverged run), `near` lists every rate whose loss is within the
    tolerance of the best; `at_edge` says that the best is the grid's smallest or largest rate, so that the optimum may
    lie outside. `learning_rate` is None if every run diverged.
    """

    width: int
    learning_rate: float | None
    interpolated: float | None
    loss: float
    near: tuple[float, ...]
    at_edge: bool


@dataclass(frozen=True)
class TransferCheck:
    """The verdict of `transfer_check`; print it, `plot` it, write it with `to_json`.

    `losses` holds one table for each parametrisation, "mup" and perhaps "sp"; seeds are averaged in it.
    """

    model: str
    losses: dict[str, Losses]
    factor: float = 2.0
    tolerance: float = 0.0025
    runs: tuple[Run, ...] = ()

    def optima(self, parametrization: str = "mup") -> list[Optimum]:
        """Return the optimum of each width, by rising width."""
        return [find_optimum(w, row, self.tolerance) for w, row in sorted(self.losses[parametrization].items())]

    def moves_by(self, parametrization: str = "mup") -> float:
        """Return the factor by which the optimum moves over all widths, to within the tolerance.

        That is the narrowest range of learning rates, as high/low, that holds for every width a rate whose loss is
        within the tolerance of that width's best: 1 if one rate serves all. Infinite if every run of a width diverged.
        """
        near = [optimum.near for optimum in self.optima(parametrization)]
        if not all(near):
            return math.inf
        ranges = []
        for low in {lr for rates in near for lr in rates}:
            above = [[lr for lr in rates if lr >= low] for rates in near]
            if all(above):
                chosen = [min(rates) for rates in above]
                ranges.append(max(chosen) / min(chosen))
        return min(ranges)

    @property
    def passed(self) -> bool:
        """Whether μP's optimum moves by at most `factor`, and lies inside the grid at every width."""
        inside = not any(optimum.at_edge for optimum in self.optima())
        return inside and self.moves_by() <= self.factor * (1 + 1e-9)

    def headline(self) -> str:
        """Return the verdict in a few sentences."""
        lines = []
        for key in self.losses:
            best = {o.width: o.learning_rate for o in self.optima(key)}
            shown = ", ".join(f"{w}: {'diverged' if lr is None else f'{lr:g}'}" for w, lr in best.items())
            edge = [o.width for o in self.optima(key) if o.at_edge]
            text = f"{NAMES[key]}: best learning rate by width {shown}; it moves by a factor of {self.moves_by(key):g}"
            if edge:
                text += f" (or more: at width {', '.join(map(str, edge))} it is at the edge of the grid; extend it)"
            lines.append(f"{text}.")
        stays = self.moves_by() <= self.factor * (1 + 1e-9)
        verdict = "PASSED" if self.passed else "UNDECIDED" if stays else "FAILED"  # at the edge of the grid
        return "\n".join([f"Learning-rate transfer of {self.model} {verdict} (factor {self.factor:g}).", *lines])

    def __str__(self) -> str:
        rows = [f"{'':>26}{'width':>7}{'best lr':>10}{'parabola':>10}{'loss':>9}  within {self.tolerance:.2%}"]
        for key in self.losses:
            for o in self.optima(key):
                best, between = (f"{v:.4g}" if v is not None else "–" for v in (o.learning_rate, o.interpolated))
                near = ", ".join(f"{lr:g}" for lr in o.near)
                rows.append(f"{NAMES[key]:>26}{o.width:>7}{best:>10}{between:>10}{o.loss:>9.4f}  {near}")
        return "\n".join([self.headline(), "", *rows])

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON types; a diverged run's loss is None."""
        return {
            "model": self.model,
            "passed": self.passed,
            "factor": self.factor,
            "tolerance": self.tolerance,
            "moves_by": {key: _finite(self.moves_by(key)) for key in self.losses},
            "optima": {
                key: [{k: _finite(v) for k, v in asdict(o).items()} for o in self.optima(key)] for key in self.losses
            },
            "losses": [
                {"parametrization": key, "width": width, "lr": lr, "loss": _finite(loss)}
                for key, table in self.losses.items()
                for width, row in sorted(table.items())
                for lr, loss in sorted(row.items())
            ],
            "run_ids": [run.run_id for run in self.runs],
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the check to a file, atomically."""
        write_json(path, self.to_dict())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Return the figure (loss over learning rate, a line a width), written to `path` as PNG if one is given."""
        from hf_muscaling.plotting import plot_transfer, save_figure

        panels = {NAMES[key]: table for key, table in self.losses.items()}
        figure = plot_transfer(panels, f"{self.model}: learning-rate transfer")
        if path is not None:
            save_figure(figure, path)
        return figure


def transfer_check(
    config: PreTrainedConfig,
    widths: Sequence[int],
    learning_rates: Sequence[float],
    args: TrainingArguments,
    train_dataset: Any,
    eval_dataset: Any | None = None,
    *,
    seeds: int = 1,
    control: bool = False,
    factor: float = 2.0,
    tolerance: float = 0.0025,
    output_dir: str | os.PathLike[str] | None = None,
    model_class: Any = None,
    data_collator: Callable | None = None,
    hashes: dict[str, str] | None = None,
    progress: bool = True,
) -> TransferCheck:
    """Train every width at every learning rate, on the same batches, and return how far the best one moves.

    Under μP the loss as a function of the learning rate at base width has its minimum at the same place for all
    widths, lr*(w) = lr*(w_base); under standard parametrisation lr* falls as width grows. The check passes if the
    minimum moves by at most `factor` (one step of a grid that doubles) and lies inside the grid at every width. Losses
    within `tolerance` of a width's best (a share of it, 0.25 % by default: two seeds differ as much) are not told
    apart. A diverged run counts as an infinite loss.

    `config`'s base width counts, whatever its own width. `learning_rates` are those at base width, three or more.
    `seeds` counts initialisations from `args.seed`, whose losses are averaged; `control` trains standard
    parametrisation too. Runs land in `output_dir` (by default `args.output_dir`), where finished ones are read back
    and interrupted ones continued. The rest is as in `train_series`.

    Raises ConfigurationError before any training for fewer than two widths or three learning rates, rates that are not
    positive and distinct, or an impossible width. Source: Tensor Programs V (Yang et al. 2022), Figure 1 and §4.
    Example:

    >>> import torch
    >>> from hf_muscaling import MuLlamaConfig, MuTrainingArguments, transfer_check
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    >>> args = MuTrainingArguments(output_dir="out", max_steps=2, use_cpu=True, report_to="none")
    >>> check = transfer_check(base, [32, 64], [1e-3, 1e-2, 1e-1], args, data, progress=False)
    >>> sorted(check.losses["mup"][32])
    [0.001, 0.01, 0.1]
    """
    require_mu_config(config, "transfer_check")
    if len(set(widths)) < 2 or len(set(widths)) < len(widths):
        raise ConfigurationError(f"widths={list(widths)}: transfer needs two different widths or more.")
    if len(set(learning_rates)) < max(3, len(learning_rates)) or not all(lr > 0 for lr in learning_rates):
        raise ConfigurationError(
            f"learning_rates={list(learning_rates)}: give three different positive rates or more, or none can be a "
            "minimum inside the grid."
        )
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ConfigurationError(f"seeds must be a positive whole number, got {seeds!r}.")
    designs = {"mup": config, **({"sp": config.replace(parametrization="sp")} if control else {})}
    jobs = {
        key: [
            Job(design.at_width(width), args, seed=args.seed + k, learning_rate=lr)
            for width in widths
            for lr in learning_rates
            for k in range(seeds)
        ]
        for key, design in designs.items()
    }
    bar = SeriesProgress(
        [job.cost(1) for row in jobs.values() for job in row], "transfer", progress and args.process_index == 0
    )
    with Workers() as workers:
        runs = {
            key: run_jobs(
                row,
                train_dataset,
                train_dataset if eval_dataset is None else eval_dataset,
                output_dir or str(args.output_dir),
                progress=bar,
                workers=workers,
                model_class=model_class,
                data_collator=data_collator,
                hashes=hashes,
                role="grid",
                save_model=False,
            )
            for key, row in jobs.items()
        }
    bar.close()
    return TransferCheck(
        model=type(config).__name__.removesuffix("Config"),
        losses={key: tabulate(found) for key, found in runs.items()},
        factor=factor,
        tolerance=tolerance,
        runs=tuple(run for found in runs.values() for run in found),
    )


def tabulate(runs: Sequence[Run]) -> Losses:
    """Return width → learning rate → loss averaged over seeds (nats per target), infinite if a seed diverged."""
    seen: dict[int, dict[float, list[float]]] = {}
    for run in runs:
        loss = math.inf if run.loss is None else run.loss
        seen.setdefault(run.width, {}).setdefault(run.lr, []).append(loss)
    return {w: {lr: sum(values) / len(values) for lr, values in row.items()} for w, row in seen.items()}


def find_optimum(width: int, row: dict[float, float], tolerance: float = 0.0) -> Optimum:
    """Return the best learning rate of one width from its losses by learning rate.

    >>> find_optimum(64, {0.01: 3.2, 0.02: 3.0, 0.04: 3.1, 0.08: math.inf}).interpolated
    0.022...
    """
    rates = sorted(row)
    finite = [lr for lr in rates if math.isfinite(row[lr])]
    if not finite:
        return Optimum(width, None, None, math.inf, (), False)
    best = min(finite, key=row.__getitem__)
    near = tuple(lr for lr in finite if row[lr] <= row[best] * (1 + tolerance))
    place = rates.index(best)
    at_edge = place in (0, len(rates) - 1)
    between = None
    if not at_edge and all(math.isfinite(row[lr]) for lr in rates[place - 1 : place + 2]):
        x = np.log(rates[place - 1 : place + 2]) - math.log(best)
        curvature, slope, _ = np.polyfit(x, [row[lr] for lr in rates[place - 1 : place + 2]], 2)
        between = best if curvature <= 0 else best * math.exp(-slope / (2 * curvature))
    return Optimum(width, best, between, row[best], near, at_edge)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

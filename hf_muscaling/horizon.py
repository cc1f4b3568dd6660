"""How the best learning rate at base width moves with token horizon and batch size: the sweep that shows it.

`sweep_horizons` trains a lattice of rates in every cell (token horizon × batch size) and follows the minimum where it
lies; `LearningRateLaw` describes the minima; `hold_out` compares its prediction for the longest horizon with what was
trained there. `centred_rates` is where an experiment uses the law.
"""

import copy
import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import ConfigurationError, RecordError, TrainingError
from hf_muscaling.runs import Run

if TYPE_CHECKING:
    from hf_muscaling.experiment import ExperimentSetup
    from hf_muscaling.laws import LearningRateLaw

logger = logging.getLogger(__name__)

COARSE = (-2, 0, 2)
"""First rates of a cell, in half octaves around its centre."""
FINE = (-2, -1, 0, 1, 2)
"""Rates around the lowest of these, which every seed trains."""
EXTENSIONS = 6
"""How often a cell's grid is extended by an octave on a side where the loss has not risen yet."""
RISE = 0.03
"""Share of the loss by which it must rise on both sides of the minimum; what `LearningRateLaw` fits."""

REFINEMENTS = 3
"""How often the rates of all seeds are trained, where their lowest mean loss turns out to lie at an end."""


@dataclass(frozen=True)
class Cell:
    """One token horizon at one batch size: so many steps of so many sequences."""

    steps: int
    batch_size: int

    @property
    def sequences(self) -> int:
        """Sequences that a run sees; the horizon in tokens is this times the sequence length."""
        return self.steps * self.batch_size


def horizon_cells(config: ExperimentConfig, horizons: Sequence[int], factors: Sequence[float]) -> list[Cell]:
    """Return every horizon (in steps at the config's batch size) at every batch size (times the config's).

    Raises ConfigurationError if a batch is not a whole number of sequences or does not divide a horizon.
    """
    cells = []
    for horizon in sorted(horizons):
        for factor in sorted(factors):
            batch = config.batch_size * factor
            steps = horizon / factor
            if batch != int(batch) or steps != int(steps) or batch < 1 or steps < 2:
                raise ConfigurationError(
                    f"A horizon of {horizon} steps of {config.batch_size} sequences is {steps:g} steps at {factor:g} "
                    f"times the batch, {batch:g} sequences: both must be whole numbers. Choose other --horizons or "
                    "--batch_factors."
                )
            cells.append(Cell(int(steps), int(batch)))
    if len(set(cells)) < len(cells):
        raise ConfigurationError("--horizons and --batch_factors must not repeat a value.")
    return cells


class HorizonSweep:
    """Trains rates in cells at base width on one set of blocks; a run that is finished is not trained again.

    Every run has the config's schedule over its own length: warm-up is the same share of it. The lattice of rates is
    the middle of `config.learning_rates` times powers of √2; a cell starts at the rate of the square-root rule for its
    batch size and goes where the minimum is, so that the start decides the cost and not the result.
    """

    def __init__(self, config: ExperimentConfig, setup: "ExperimentSetup", workers: Any = None, progress: bool = True):
        self.config, self.setup, self.workers, self.progress = config, setup, workers, progress
        rates = sorted(config.learning_rates)
        self.middle = rates[len(rates) // 2]
        self.longest = config.steps * config.batch_size
        self.args = config.training_arguments()
        self.base = setup.base.at_width(config.base_width)
        self.runs: dict[tuple[Cell, float, int], Run] = {}

    def rate(self, k: int) -> float:
        """Return a rate of the lattice, k half octaves above the middle."""
        return float(f"{self.middle * 2 ** (k / 2):.4g}")

    def train(self, wanted: Iterable[tuple[Cell, float, int]]) -> None:
        """Train what is missing of these runs: (cell, learning rate, seed)."""
        from hf_muscaling.series import Job, run_jobs

        missing = [key for key in dict.fromkeys(wanted) if key not in self.runs]
        jobs = [
            Job(self.base, self._arguments(cell), seed=self.config.seed + seed, learning_rate=rate)
            for cell, rate, seed in missing
        ]
        options: dict[str, Any] = {"workers": self.workers, "placement": self.config.placement, "role": "grid"}
        options |= {"progress": self.progress, "save_model": False, "hashes": self.setup.hashes, "family": "horizon"}
        data = (self.setup.train_dataset, self.setup.heldout_dataset, Path(self.config.output_dir) / "runs")
        runs = run_jobs(jobs, *data, data_collator=self.setup.data_collator, **options)
        self.runs |= dict(zip(missing, runs, strict=True))

    def loss(self, cell: Cell, rate: float, seeds: Sequence[int] = (0,)) -> float:
        """Return the mean held-out loss of a cell at a rate; infinity if a run diverged."""
        losses = [self.runs[cell, rate, seed].loss for seed in seeds]
        return math.inf if None in losses else sum(x for x in losses if x is not None) / len(losses)

    def search(self, cells: Sequence[Cell]) -> list[Run]:
        """Find the minimum of every cell with one seed, then train the rates around it with all; return all runs."""
        start = {c: 2 * round(math.log2(math.sqrt(c.batch_size / self.config.batch_size))) for c in cells}
        grid = {cell: [start[cell] + k for k in COARSE] for cell in cells}
        best = {}
        for extension in range(EXTENSIONS + 1):
            self.train((cell, self.rate(k), 0) for cell in cells for k in grid[cell])
            best = {cell: self._lowest(cell, grid[cell]) for cell in cells}
            open_ends = {c: self._open_ends(c, grid[c]) for c in cells}
            if extension == EXTENSIONS or not any(open_ends.values()):
                break
            for cell, ends in open_ends.items():
                grid[cell] = sorted([*grid[cell], *ends])
        if all(self.loss(c, self.rate(k)) == math.inf for c, k in best.items()):
            raise TrainingError(
                f"Every run of the sweep diverged (rates around {self.middle:g}): lower --learning_rates or lengthen "
                "the warm-up; the records are kept."
            )
        around = {cell: [k + step for step in FINE] for cell, k in best.items()}
        for _ in range(REFINEMENTS):
            self.train((c, self.rate(k), seed) for c, near in around.items() for k in near for seed in self.seeds(c))
            edges = {c: self._lowest(c, near, self.seeds(c)) for c, near in around.items()}
            edges = {c: k for c, k in edges.items() if k in (around[c][0], around[c][-1])}
            if not edges:
                break
            for cell, k in edges.items():  # the one seed that chose the place was wrong
                near = around[cell]
                around[cell] = [k - 2, k - 1, *near] if k == near[0] else [*near, k + 1, k + 2]
        return list(self.runs.values())

    def seeds(self, cell: Cell) -> range:
        """Return the seeds of a cell: more for shorter runs, which are noisier and cost less, up to twice as many."""
        shorter = self.longest / cell.sequences
        return range(round(self.config.seeds * min(math.sqrt(max(shorter, 1.0)), 2.0)))

    def _open_ends(self, cell: Cell, grid: Sequence[int]) -> list[int]:
        """Return the next rates where the landscape does not rise by `RISE` yet: its minimum is seen from its sides."""
        high = min(self.loss(cell, self.rate(k)) for k in grid) * (1 + RISE)
        ends = [(grid[0], grid[0] - 2), (grid[-1], grid[-1] + 2)]
        return [following for k, following in ends if self.loss(cell, self.rate(k)) < high]

    def _lowest(self, cell: Cell, grid: Sequence[int], seeds: Sequence[int] = (0,)) -> int:
        return min(grid, key=lambda k: self.loss(cell, self.rate(k), seeds))

    def _arguments(self, cell: Cell) -> Any:
        args = copy.deepcopy(self.args)
        args.max_steps = cell.steps
        args.warmup_steps = max(round(cell.steps * self.config.warmup_steps / self.config.steps), 1)
        share, rest = divmod(cell.batch_size, args.world_size * args.gradient_accumulation_steps)
        if rest or not share:
            raise ConfigurationError(
                f"A batch of {cell.batch_size} sequences cannot be divided evenly among {args.world_size} processes "
                f"and {args.gradient_accumulation_steps} accumulation steps; use fewer, or other --batch_factors."
            )
        args.per_device_train_batch_size = share
        return args


def table_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return the finished runs as the table that `LearningRateLaw` fits, a dict a run."""
    keys = ("run_id", "D", "B", "lr", "seed", "loss", "N", "S")
    return [{key: getattr(run, key) for key in keys} for run in runs if run.finished]


@dataclass(frozen=True)
class HeldOut:
    """The longest horizon at one batch size, predicted from the shorter ones: learning rates and losses there.

    `predicted` is the law's rate, `kept` the best of the shortest horizon at this batch size (what transferring
    nothing would use), `optimum` the best of the longest one itself; the losses are means over seeds, nats per token.
    """

    D: float
    B: float
    predicted: float
    low: float
    high: float
    kept: float
    optimum: float
    predicted_loss: float
    kept_loss: float
    optimum_loss: float

    @property
    def inside(self) -> bool:
        """Whether the optimum lies in the interval."""
        return self.low <= self.optimum <= self.high


def hold_out(sweep: HorizonSweep, law: "LearningRateLaw", level: float = 0.9) -> list[HeldOut]:
    """Fit the law without the longest horizon, train that at the rates predicted, kept and best, and compare.

    `law` is fitted to all runs. Raises FitError if the shorter horizons alone do not identify the law.
    """
    from hf_muscaling.laws import LearningRateLaw

    rows = table_of(sweep.runs.values())
    longest = max(row["D"] for row in rows)
    shorter = LearningRateLaw(**law.settings()).fit([row for row in rows if row["D"] < longest])
    length = sweep.config.sequence_length
    pairs = []
    for found in law.cells_:
        if found.lr is None or abs(found.D / longest - 1) > 1e-6:
            continue
        same = [c for c in shorter.cells_ if abs(c.B / found.B - 1) < 1e-6 and c.lr is not None]
        if not same:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # being beyond the fitted horizons is the point
            p = shorter.predict(D=found.D, B=found.B, level=level)
        cell = Cell(round(found.D / found.B), round(found.B / length))
        kept = min(same, key=lambda c: c.D).lr or math.nan
        pairs.append((found, p, cell, [float(f"{lr:.3g}") for lr in (p.lr, kept, found.lr)]))
    seeds = range(sweep.config.seeds)
    sweep.train((cell, rate, seed) for _, _, cell, rates in pairs for rate in rates for seed in seeds)
    out = []
    for found, p, cell, rates in pairs:
        losses = [sweep.loss(cell, rate, seeds) for rate in rates]
        optimum = found.lr or math.nan
        out.append(HeldOut(found.D, found.B, float(p.lr), float(p.low), float(p.high), rates[1], optimum, *losses))
    return out


def centred_rates(config: ExperimentConfig) -> ExperimentConfig:
    """Return the config with its grid of learning rates moved to where its `learning_rate_law` expects the best one.

    The grid keeps its shape: its geometric middle goes to the law's rate for the experiment's horizon and batch size.
    A config without such a law comes back as it is. Raises RecordError for a file that holds no law of the learning
    rate; warns as the law does when the experiment lies outside its runs.
    """
    return moved_grid(config)[0]


def moved_grid(config: ExperimentConfig) -> tuple[ExperimentConfig, list[str]]:
    """Return what `centred_rates` does, and sentences for the report: what was moved where, and what the law warns of.

    Raises and warns as that does.
    """
    if not config.learning_rate_law:
        return config, []
    from hf_muscaling.laws import LearningRateLaw

    if not Path(config.learning_rate_law).is_file():
        raise RecordError(
            f"--learning_rate_law: there is no file {config.learning_rate_law!r}. Give the law.json that "
            "recipes/horizon.py or `muscaling fit --law learning-rate --save law.json` writes."
        )
    law = LearningRateLaw.from_json(config.learning_rate_law)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p = law.predict(D=config.tokens_per_run, B=config.batch_size * config.sequence_length, level=config.level)
    for one in caught:
        warnings.warn(one.message, one.category, stacklevel=3)
    middle = math.exp(sum(map(math.log, config.learning_rates)) / len(config.learning_rates))
    rates = [float(f"{p.lr * rate / middle:.3g}") for rate in config.learning_rates]
    logger.info("Learning rates around %.3g of %s: %s", p.lr, config.learning_rate_law, rates)
    given, moved = (", ".join(f"{rate:.3g}" for rate in grid) for grid in (config.learning_rates, rates))
    notes = [
        f"The learning rates {given} were moved to {moved}, around {p.lr:.3g} ({config.level:.0%} interval "
        f"[{p.low:.3g}, {p.high:.3g}]): what the law `{config.learning_rate_law}` expects at "
        f"D = {config.tokens_per_run:,} and B = {config.batch_size * config.sequence_length:,} tokens."
    ]
    return replace(config, learning_rates=rates), [*notes, *(str(one.message) for one in caught)]

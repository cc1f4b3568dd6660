"""The scaled-down twins: their configs, one folder of runs each, and laws with their errors."""

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_muscaling import PowerLaw, Run, Series, count_parameters
from hf_muscaling.configuration import ExperimentConfig, parse_experiment
from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.experiment import ExperimentResult, prepare_experiment, run_experiment
from hf_muscaling.progress import SeriesProgress
from hf_muscaling.runs import mean_losses
from hf_muscaling.series import Job, run_jobs

HERE = Path(__file__).parent
TWINS = ("gpt-12l", "llama-12l", "bert-12l", "t5-12l", "gpt-32l", "gpt-64l")
QUICK: dict[str, Any] = {
    "widths": [32, 48, 64], "target_width": 96, "seeds": 1, "target_seeds": 1, "learning_rates": [8e-3, 1.6e-2, 3.2e-2],
    "steps": 12, "warmup_steps": 4, "heldout_tokens": 8192,
}  # fmt: skip
"""A benchmark that only shows that everything runs: its losses say nothing."""


@dataclass(frozen=True)
class Options:
    """Where runs go and how they are placed; `threads` 0 shares the machine's cores."""

    output_dir: Path
    threads: int = 0
    placement: str = "apart"
    quick: bool = False
    progress: bool = True


class Twin:
    """One design of the benchmark: its experiment, and further runs of it in the same folder, each trained once."""

    def __init__(self, path: Path, options: Options):
        config, _ = parse_experiment(["--config", str(path)])
        self.name, self.options = path.stem, options
        # Every run has one thread: how many lie side by side then changes no digit.
        changes = {"output_dir": str(options.output_dir / self.name), "placement": options.placement}
        changes |= {"threads": options.threads or config.threads} | (QUICK if options.quick else {})
        self.config: ExperimentConfig = replace(config, verify=True, **changes)

    @cached_property
    def result(self) -> ExperimentResult:
        """The experiment: grid → transfer → proxies → law → prediction → target. Finished runs are read back."""
        return run_experiment(self.config, self.options.progress)

    @cached_property
    def setup(self) -> Any:
        """The base config with the searched initial std and multiplier, and the data."""
        setup = prepare_experiment(self.config, self.options.progress)
        best = self.result.best
        chosen = [*self.config.init_fields(1.0), "output_multiplier"]
        return replace(setup, base=setup.base.replace(**{name: best.config[name] for name in chosen}))

    @cached_property
    def _args(self) -> Any:
        return self.config.training_arguments()

    def job(self, width: int, learning_rate: float, seed: int = 0, parametrization: str = "mup") -> Job:
        """Return one run of this design; `learning_rate` is that at base width."""
        base = self.setup.base
        base = base if parametrization == "mup" else base.replace(parametrization=parametrization)
        return Job(base.at_width(width), self._args, seed=self.config.seed + seed, learning_rate=learning_rate)

    def train(self, jobs: Sequence[Job], what: str) -> list[Run]:
        """Train what is not there yet and return the runs in order."""
        setup, per_step = self.setup, self.config.batch_size * self.config.sequence_length
        bar = SeriesProgress([job.cost(per_step) for job in jobs], what, enabled=self.options.progress)
        try:
            return run_jobs(
                jobs, setup.train_dataset, setup.heldout_dataset, Path(self.config.output_dir) / "runs",
                progress=bar, placement=self.config.placement, data_collator=setup.data_collator,
                hashes=setup.hashes, save_model=False,
            )  # fmt: skip
        finally:
            bar.close()

    @property
    def target_N(self) -> int:
        """The target's parameters."""
        return count_parameters(self.setup.base.at_width(self.config.target_width))


def find_twin(name: str, options: Options) -> Twin:
    """Return one of the benchmark's own designs."""
    return Twin(HERE / "twin" / f"{name}.yaml", options)


@dataclass(frozen=True)
class Score:
    """A law against what was measured: all shares of a loss, None if no law could be fitted (`why` says why).

    `residual` is the mean |L_fit − L|/L over widths, seeds averaged; `error` (predicted − actual)/actual at the target.
    """

    residual: float | None
    error: float | None
    predicted: float | None
    actual: float | None
    low: float | None = None
    high: float | None = None
    inside: bool | None = None
    params: dict[str, float] | None = None
    why: str = ""

    @property
    def shown(self) -> str:
        """The error in words."""
        return self.why if self.error is None else f"{self.error:+.2%}"

    def beats(self, other: "Score") -> bool:
        """Whether the error at the target is smaller; no law at all is worse than any."""
        return self.error is not None and (other.error is None or abs(self.error) < abs(other.error))

    def fits_closer(self, other: "Score") -> bool:
        """Whether the law passes closer to its proxies; no law at all is worse than any."""
        return self.residual is not None and (other.residual is None or self.residual < other.residual)


def score_law(runs: Iterable[Run], targets: Iterable[Run], count: str = "total", level: float = 0.9) -> Score:
    """Fit L(N) = a·N^b + c by least squares, as nanoLM does, and compare it with the targets' mean loss."""
    runs, targets = list(runs), list(targets)
    size = "N_non_embedding" if count == "non_embedding" else "N"
    losses = [run.loss for run in targets if run.loss is not None]
    actual = sum(losses) / len(losses) if losses else None
    try:
        if len(mean_losses(runs)) < 3:
            raise FitError("fewer than three widths finished")
        law = PowerLaw(objective="least_squares", count=count).fit(Series(runs))
    except FitError as error:
        return Score(None, None, None, actual, why=f"no law: {re.split('[(:]', str(error))[0].strip()}")
    sizes = {run.width: getattr(run, size) for run in runs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # extrapolation is what is tested
        at = law.predict(N=getattr(targets[0], size), level=level)
        fitted = {w: float(law.predict(N=sizes[w]).loss) / mean for w, mean in mean_losses(runs).items()}
    residual = sum(abs(f - 1) for f in fitted.values()) / len(fitted)
    low, high, predicted = float(at.low), float(at.high), float(at.loss)
    error = None if actual is None else predicted / actual - 1
    inside = None if actual is None else low <= actual <= high
    why = "target diverged" if actual is None else ""
    return Score(residual, error, predicted, actual, low, high, inside, dict(law.params_), why)


def nearest_rates(best: float, factors: Sequence[float]) -> list[float]:
    """Return multiples of a learning rate. Raises ConfigurationError for a factor that is not a power of two.

    Only such multiples are the very numbers of a doubling grid, whose runs are then shared.
    """
    if any(math.log2(factor) % 1 for factor in factors):
        raise ConfigurationError(f"factors={list(factors)} must be powers of two, so that runs of the grid are reused.")
    return [best * factor for factor in factors]

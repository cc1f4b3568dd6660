"""Search hyperparameters at base width with any number of workers, on one machine or many, on one Optuna study.

Every worker runs the same command. The study's storage (SQLite, or any database of SQLAlchemy) hands out cells: each is
done once, one whose worker was killed is handed out again, and a finished sweep is done again by nobody. Runs are
written as `run_experiment` writes them, so that the series that follows finds its base-width run trained.
"""

import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import ConfigurationError, Preempted, TrainingError
from hf_muscaling.interruption import listening
from hf_muscaling.pruning import basin_pruner, require_optuna, rung_loss, rungs
from hf_muscaling.runs import Run, write_json, write_text

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

PARAMETERS = {"learning_rate": "learning_rates", "init_std": "init_stds", "output_multiplier": "output_multipliers"}
"""What a sweep searches, and the list of an experiment that holds its values (grid) or its two ends (TPE)."""
MOST_RETRIES = 3


@dataclass(frozen=True)
class SweepOptions:
    """How to search: `grid` tries every cell of the experiment's lists, `tpe` `trials` points between their ends.

    `storage` is an SQLAlchemy URL, by default an SQLite file in the output folder; it may hold a password and is never
    shown. A worker that has given no sign of life for `grace` seconds (it does every `heartbeat`) has died.
    """

    sampler: str = "grid"
    trials: int = 24
    storage: str | None = None
    study: str = "sweep"
    pruning: bool = True
    heartbeat: int = 10
    grace: int = 60

    def __post_init__(self) -> None:
        if self.sampler not in ("grid", "tpe"):
            raise ConfigurationError(f"sampler={self.sampler!r} is unknown; use 'grid' or 'tpe'.")
        if self.trials < 1:
            raise ConfigurationError(f"trials={self.trials} must be 1 or more.")
        if not 0 < self.heartbeat < self.grace:
            raise ConfigurationError(
                f"heartbeat={self.heartbeat} and grace={self.grace}: seconds, the first positive and below the second."
            )


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found so far: a row a cell, and the best run once every cell is done (else None)."""

    cells: list[dict[str, Any]]
    best: Run | None
    notes: list[str] = field(default_factory=list)
    """What to know of the grid: that a law moved it, and where from; that the best rate is at its edge."""

    @property
    def complete(self) -> bool:
        """Return whether every cell is done: finished, pruned or diverged."""
        return all(cell["state"] in ("finished", "pruned", "diverged") for cell in self.cells)

    def __str__(self) -> str:
        lines = [f"{'learning rate':>13}  {'init std':>9}  {'multiplier':>10}  held-out loss"]
        for cell in sorted(self.cells, key=lambda c: math.inf if c["loss"] is None else c["loss"]):
            values = [cell["params"].get(name) for name in PARAMETERS]
            shown = ["–" if v is None else f"{v:.4g}" for v in values]
            loss = cell["state"] if cell["loss"] is None else f"{cell['loss']:.4f}"
            lines.append(f"{shown[0]:>13}  {shown[1]:>9}  {shown[2]:>10}  {loss}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


Objective = Callable[[Mapping[str, float], Callable[[int, float], None]], tuple[float | None, str]]
"""Train with these hyperparameters, reporting (step, loss) on the way; returns loss (None: diverged) and run_id."""


class Study:
    """A shared study of one sweep: its cells, and `work`, which does those that nobody has done.

    A cell is an enqueued trial with an id of its own. Two workers may create the same cell at once; when such a trial
    is started, the one with the lower number is the cell and the other is left out. So nothing but the database is
    needed for a cell to be done once.
    """

    def __init__(self, config: ExperimentConfig, options: SweepOptions, folder: Path):
        self.config, self.options = config, options
        self.done_here = 0
        self.optuna = require_optuna()
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        url = options.storage or f"sqlite:///{folder.resolve() / 'sweep.db'}"
        with _quiet(self.optuna), FileLock(folder / ".sweep.lock"), _without_secrets(url):
            self.storage = _storage(self.optuna, url, options)
            self.study = self.optuna.create_study(
                study_name=options.study,
                storage=self.storage,
                direction="minimize",
                load_if_exists=True,
                sampler=_sampler(self.optuna, config, options),
                pruner=basin_pruner(config.steps) if options.pruning else self.optuna.pruners.NopPruner(),
            )
            self._check_identity()
            self._enqueue()

    def _check_identity(self) -> None:
        """Refuse a study of another experiment: its losses would be compared with this one's."""
        default = asdict(ExperimentConfig())
        ours = {k: v for k, v in asdict(self.config).items() if k not in _FREE and v != default[k]}
        theirs = self.study.user_attrs.get("experiment")
        if theirs is None:
            self.study.set_user_attr("experiment", ours)
        elif changed := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
            raise ConfigurationError(
                f"The study {self.options.study!r} belongs to another experiment (different: {', '.join(changed)}): "
                "name another one (--study), or use its settings."
            )

    def cells(self) -> dict[str, dict[str, float]]:
        """Return the cells by id with their hyperparameters; those of TPE are chosen when they are started."""
        if self.options.sampler == "tpe":
            return {f"tpe-{k}": {} for k in range(self.options.trials)}
        lists = [getattr(self.config, name) for name in PARAMETERS.values()]
        grid = [dict(zip(PARAMETERS, values, strict=True)) for values in itertools.product(*lists)]
        return {" ".join(f"{name}={value:.12g}" for name, value in cell.items()): cell for cell in grid}

    def _enqueue(self) -> None:
        known = {name for name, trials in self._trials().items() if any(not _failed(t) for t in trials)}
        for name, params in self.cells().items():
            if name not in known:  # new, or failed for good: the same command tries once more
                self.study.enqueue_trial(params, user_attrs={"cell": name})

    def _trials(self) -> dict[str, list["optuna.trial.FrozenTrial"]]:
        found: dict[str, list[Any]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            found.setdefault(trial.user_attrs.get("cell", ""), []).append(trial)
        return found

    def _count(self, state: str) -> int:
        wanted = self.optuna.trial.TrialState[state]
        return sum(trial.state == wanted for trial in self.study.get_trials(deepcopy=False))

    def work(self, train: Objective) -> int:
        """Do cells until none is left, and return how many this worker did.

        When the last cells are with other workers, wait until they are done or, where one died, take its cell over; a
        worker that gives signs of life is not waited for beyond the time that shows it.
        """
        before, empty_since = self.done_here, None
        patience = self.options.grace + 2 * self.options.heartbeat
        with _quiet(self.optuna):
            while True:
                self.optuna.storages.fail_stale_trials(self.study)  # and their cells are enqueued once more
                if self._count("WAITING"):
                    empty_since = None
                    try:
                        self.study.optimize(lambda trial: self._objective(trial, train), n_trials=1, catch=(_Surplus,))
                    except (Preempted, KeyboardInterrupt):  # this worker goes, its cell is another's at once
                        self._enqueue()
                        raise
                    continue
                empty_since = time.monotonic() if empty_since is None else empty_since
                if not self._count("RUNNING") or time.monotonic() - empty_since > patience:
                    return self.done_here - before
                time.sleep(min(1.0, self.options.heartbeat / 2))

    def _objective(self, trial: "optuna.Trial", train: Objective) -> float:
        cell = trial.user_attrs.get("cell")
        earlier = [t for t in self._trials().get(cell or "", []) if t.number < trial.number and not _failed(t)]
        if cell is None or earlier:
            raise _Surplus
        params = {name: _suggest(trial, name, getattr(self.config, of)) for name, of in PARAMETERS.items()}

        def report(step: int, loss: float) -> None:
            trial.report(loss, step)
            if trial.should_prune():
                self.done_here += 1
                raise self.optuna.TrialPruned(f"hopeless at step {step}")

        loss, run_id = train(params, report)
        self.done_here += 1
        trial.set_user_attr("run_id", run_id)
        if loss is None:
            raise self.optuna.TrialPruned("diverged")
        return loss

    def results(self) -> list[dict[str, Any]]:
        """Return a row a cell; its state is waiting, running, finished, pruned, diverged or failed."""
        rows = []
        trials = self._trials()
        for name in self.cells():
            of = trials.get(name, [])
            trial = min((t for t in of if not _failed(t)), key=lambda t: t.number, default=of[-1] if of else None)
            state = "waiting" if trial is None else _STATES[trial.state.name]
            params = {} if trial is None else {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            run_id = None if trial is None else trial.user_attrs.get("run_id")
            if state == "pruned" and run_id is not None:  # only a pruned run has no record
                state = "diverged"
            loss = trial.value if trial is not None and state == "finished" else None
            rows.append({"cell": name, "params": params, "state": state, "loss": loss, "run_id": run_id})
        return rows


_STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
# What may differ between the workers of one study, or grow between two calls, without changing what a cell's run is.
_FREE = {
    "output_dir", "threads", "verify", "widths", "target_width", "seeds", "target_seeds", "checkpoint_steps", "level",
    "objective", "count", "placement", *PARAMETERS.values(),
}  # fmt: skip


class _Surplus(Exception):
    """A trial that is not to be done: another one holds its cell, or it was drawn after the last cell was gone."""


def _failed(trial: Any) -> bool:
    return trial.state.name == "FAIL"


def _suggest(trial: "optuna.Trial", name: str, values: list[float]) -> float:
    return trial.suggest_float(name, min(values), max(values), log=True)


def _storage(optuna: Any, url: str, options: SweepOptions) -> Any:
    import inspect

    # both renamed in Optuna 5
    callbacks = optuna.storages
    retry = getattr(callbacks, "RetryHeartbeatStaleTrialCallback", None) or callbacks.RetryFailedTrialCallback
    names = inspect.signature(optuna.storages.RDBStorage.__init__).parameters
    name = "heartbeat_stale_trial_callback" if "heartbeat_stale_trial_callback" in names else "failed_trial_callback"
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(
        url,
        engine_kwargs=engine,
        heartbeat_interval=options.heartbeat,
        grace_period=options.grace,
        **{name: retry(max_retry=MOST_RETRIES)},
    )


def _sampler(optuna: Any, config: ExperimentConfig, options: SweepOptions) -> Any:
    if options.sampler == "grid":
        return optuna.samplers.RandomSampler(seed=config.seed)  # never asked: every cell is enqueued
    return tpe_by_number(optuna, config.seed, max(4, options.trials // 3))


def tpe_by_number(optuna: Any, seed: int, startup: int) -> Any:
    """Return TPE whose random numbers follow the trial: workers that start alike must not all suggest the same."""

    class SeededTPE(optuna.samplers.BaseSampler):
        """A TPE sampler seeded anew for every trial and parameter."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict:
            """Sample every parameter by itself."""
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict:
            """Sample nothing jointly."""
            return {}

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            """Sample one parameter."""
            number = (seed * 1_000_003 + trial.number) * len(PARAMETERS) + list(PARAMETERS).index(name)
            tpe = optuna.samplers.TPESampler(n_startup_trials=startup, constant_liar=True, seed=number % 2**32)
            return tpe.sample_independent(study, trial, name, distribution)

    return SeededTPE()


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's notes that heartbeats and retries are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def _without_secrets(url: str) -> Iterator[None]:
    """Turn an error of the database into one that does not show the URL, which may hold a password."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (ValueError, ImportError, SQLAlchemyError, OSError) as error:
        if isinstance(error, ConfigurationError):
            raise
        kind = type(getattr(error, "orig", None) or error).__name__
        raise ConfigurationError(
            f"The study's storage ({_dialect(url)}) cannot be opened ({kind}): check the SQLAlchemy URL given to "
            "--storage (sqlite:///path.db, postgresql://user@host/name), that the database runs and its driver is "
            "installed. The URL is not shown, since it may hold a password."
        ) from None  # the cause's message may hold the URL


def _dialect(url: str) -> str:
    word = url.partition(":")[0]
    return word if word.replace("+", "").replace("_", "").isalnum() and "://" in url else "not a URL"


def run_sweep(config: ExperimentConfig, options: SweepOptions | None = None, progress: bool = True) -> SweepResult:
    """Search the experiment's learning rates, initial stds and output multipliers at base width; returns the result.

    Any number of workers may call it with the same settings, at once or one after the other. Writes below
    `config.output_dir`: `runs/` (a folder a run, as `run_experiment` does), `sweep.json` (a row a cell, and
    notes: from where to where a `learning_rate_law` moved the grid, a best rate at its edge) and, once every cell is
    done, `best.yaml`: the experiment with the best settings, for run_series, the notes at its head. Of runs within
    0.25 % of the lowest loss the one with the smallest learning rate is the best (`best_of_grid`).

    Raises ConfigurationError for a storage that cannot be opened, a study of another experiment, or several processes
    under one launcher; TrainingError if every run diverged; Preempted on SIGTERM (another worker takes its cell).
    """
    require_optuna()
    from hf_muscaling.configuration import launched_processes
    from hf_muscaling.folders import writable_folder
    from hf_muscaling.horizon import moved_grid

    options = options or SweepOptions()
    if launched_processes() > 1:
        raise ConfigurationError(
            "A trial of a sweep trains in one process: start several workers (the same command, as often as you like, "
            "or a SLURM array) instead of one launcher with several processes."
        )
    config, notes = moved_grid(config)
    config = replace(config, learning_rate_law=None)  # best.yaml's rate is not to be moved again
    config.base_config()
    folder = writable_folder(config.output_dir)
    study = Study(config, options, folder)
    with listening():
        study.work(_trainer(config, folder, progress))
    return write_results(config, study, folder, notes)


def _trainer(config: ExperimentConfig, folder: Path, progress: bool) -> Objective:
    """Return what trains a cell; the data are prepared when the first one comes."""
    setup: Any = None

    def train(params: Mapping[str, float], report: Callable[[int, float], None]) -> tuple[float | None, str]:
        nonlocal setup
        from hf_muscaling.experiment import experiment_family, prepare_experiment
        from hf_muscaling.series import Job
        from hf_muscaling.training import train_run

        args = config.training_arguments()
        if setup is None:
            setup = prepare_experiment(config, progress)
        job = Job(
            cell_config(config, setup.base, params), args, seed=config.seed, learning_rate=params["learning_rate"]
        )
        if progress:
            print(f"training {', '.join(f'{name} {value:.4g}' for name, value in params.items())}", flush=True)
        run = train_run(
            job.config, job.args, setup.train_dataset, setup.heldout_dataset, folder / "runs", role="grid",
            hashes=setup.hashes, data_collator=setup.data_collator, family=experiment_family(config, setup.data),
            callbacks=[_reporter(config.steps, report)],
        )  # fmt: skip
        return run.loss, run.run_id

    return train


def cell_config(config: ExperimentConfig, base: Any, params: Mapping[str, float]) -> Any:
    """Return the base-width config with a cell's initial std and output multiplier, as `run_experiment` builds it."""
    std, tau = params["init_std"], params["output_multiplier"]
    return base.replace(**config.init_fields(std), output_multiplier=tau).at_width(config.base_width)


def _reporter(steps: int, report: Callable[[int, float], None]) -> Any:
    """Return a callback that reports the training loss at the rungs; the report may raise to stop the run."""
    from transformers import TrainerCallback

    left = rungs(steps)

    class Reporter(TrainerCallback):
        """Report at the first logged step at or past each rung."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            """Report every rung that was reached since."""
            while left and left[0] <= state.global_step:
                rung = left.pop(0)
                rows = [row for row in state.log_history if "loss" in row and "learning_rate" in row]
                loss = rung_loss(rows, rung)
                if loss is not None and math.isfinite(loss):  # a divergence ends the run by itself, with a record
                    report(rung, loss)

    return Reporter()


def write_results(config: ExperimentConfig, study: Study, folder: Path, notes: Sequence[str] = ()) -> SweepResult:
    """Write sweep.json and, when every cell is done, best.yaml; return the result."""
    from hf_muscaling.experiment import at_edge

    result = SweepResult(study.results(), None, list(notes))
    record = {"study": study.options.study, "sampler": study.options.sampler, "cells": result.cells}
    write_json(folder / "sweep.json", record | {"notes": result.notes})
    if not result.complete:
        return result
    rates = config.learning_rates if study.options.sampler == "grid" else []  # pruned ones too, which have no record
    best, params = _best_run(config, folder, result.cells, rates)
    result = replace(result, best=best, notes=[*notes, *filter(None, [at_edge(rates, best)])])
    write_json(folder / "sweep.json", record | {"notes": result.notes})
    write_text(folder / "best.yaml", best_yaml(config, best, params, result.notes))
    return result


def _best_run(
    config: ExperimentConfig, folder: Path, cells: list[dict[str, Any]], rates: Sequence[float]
) -> tuple[Run, dict[str, float]]:
    """Return the record of the best run and its hyperparameters."""
    from hf_muscaling.experiment import best_of_grid

    params = {cell["run_id"]: cell["params"] for cell in cells if cell["run_id"] is not None}
    paths = [folder / "runs" / run_id / "run.json" for run_id in params]
    if missing := [path for path in paths if not path.exists()]:
        raise TrainingError(
            f"The study has finished {len(paths)} runs, but {missing[0]} does not exist: all workers must share one "
            "output folder (--output_dir)."
        )
    best = best_of_grid([Run.load(path) for path in paths], config, rates)
    return best, params[best.run_id]


def best_yaml(config: ExperimentConfig, best: Run, params: Mapping[str, float], notes: Sequence[str] = ()) -> str:
    """Return the experiment with the best settings as YAML that run_series reads: what differs from the defaults, and
    the notes of the sweep as comments.
    """
    import yaml

    searched: dict[str, Any] = {of: [params[name]] for name, of in PARAMETERS.items()}
    chosen, default = replace(config, **searched), ExperimentConfig()
    kept = {
        f.name: getattr(chosen, f.name)
        for f in fields(chosen)
        if f.name in searched or getattr(chosen, f.name) != getattr(default, f.name)
    }
    head = f"# The best of a sweep at base width {config.base_width}: held-out loss {best.loss:.4f} ({best.run_id}).\n"
    head += "".join(f"# {' '.join(note.split())}\n" for note in notes)
    return head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)

"""An Optuna study that any number of workers share: its cells, each done once, that of a killed worker again.

The study's storage (SQLite, or any database of SQLAlchemy) is all that the workers need in common.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import ConfigurationError, Preempted
from hf_muscaling.pruning import basin_pruner, require_optuna

if TYPE_CHECKING:
    import optuna

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

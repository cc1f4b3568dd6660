"""The whole loss curve before training (Part I): small runs at several sizes and batch sizes → six constants → a larger
model's minimum loss, steps, tokens, critical batch size and curves → (verified) report.

Every run has a constant learning rate after warm-up, so that each of its steps is the end of a shorter run, reads the
same blocks in the same order, and none of them twice. The learning rate is searched at base width and one batch size;
μTransfer carries it to other widths, the square-root rule to other batch sizes: with lr ∝ √B, Adam's steps taken from
noisy gradients make the same progress per token, which is what "below the critical batch size" means.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_muscaling.configuration import ExperimentConfig, option
from hf_muscaling.curves import curve_table, steps_to_loss
from hf_muscaling.errors import ConfigurationError, FitError, TrainingError
from hf_muscaling.runs import Run, read_json, write_json

if TYPE_CHECKING:
    from hf_muscaling.experiment import ExperimentSetup
    from hf_muscaling.laws import KaplanStepLaw, StageWise
    from hf_muscaling.laws.forecasting import Curve, Estimate, Forecast

logger = logging.getLogger(__name__)

LATE = 0.3  #: share of a curve left out before it is scored
LEVEL_SHARES = (0.5, 0.65, 0.8)
"""Shares of a target's steps after which losses that nobody named are predicted to be reached. A target that needs 10 %
more steps than that still reaches them before its last window, at 95 %."""

UNUSED = {
    "warmup_steps": "set warmup_share instead: the warm-up is a share of each run",
    "logging_steps": "every run logs about 400 rows",
    "live": "follow the progress bar",
    "budget": "choose widths, batch_sizes and steps",
    "tolerance": "choose widths, batch_sizes and steps",
    "learning_rate_law": "give its rate as learning_rates",
    "push_to_hub": "push the folder afterwards",
    "hub_private_repo": "push the folder afterwards",
}
"""Settings of other experiments which a trajectory does not use, and what to do instead."""

NOT_PREDICTING = {"output_dir", "verify", "target_seeds", "placement", "threads", "checkpoint_steps", *UNUSED}
"""Settings that do not change the prediction."""


@dataclass
class TrajectoryConfig(ExperimentConfig):
    """An experiment on loss curves: `widths` at `batch_sizes` are trained, `target_width` at `target_batch_sizes` is
    predicted. `steps` and `learning_rates` are those at `batch_size`; every run sees as many tokens, unless that were
    fewer than `least_steps` steps.

    >>> config = TrajectoryConfig(steps=500, batch_size=32, least_steps=100)
    >>> [(config.steps_at(b), round(config.lr_at(0.008, b), 4)) for b in (8, 32, 512)]
    [(2000, 0.004), (500, 0.008), (100, 0.032)]
    """

    output_dir: str = option("runs/trajectory", "Folder for runs, prediction, report and plots; it continues.")
    vocab_size: int = option(512, "Vocabulary; small, so that embeddings do not outweigh the body of tiny models.")
    widths: list[int] = option([32, 48, 64, 96], "Widths of the fitted models.")
    target_width: int = option(160, "Width of the model to predict.")
    seeds: int = option(1, "Seeds (initialisations) per fitted width and batch size.")
    batch_size: int = option(32, "Batch size, in sequences, at which steps and learning_rates are meant.")
    batch_sizes: list[int] = option([8, 32, 128], "Batch sizes of the fitted runs, in sequences: three or more.")
    target_batch_sizes: list[int] = option([64, 4], "Batch sizes of the predicted curves, in sequences.")
    steps: int = option(1500, "Optimizer steps at batch_size; other batch sizes see as many tokens.")
    least_steps: int = option(500, "Fewest steps of a run, which gives the largest batches more tokens.")
    warmup_share: float = option(0.05, "Share of a run's steps with a rising learning rate, at least 10 steps.")
    learning_rates: list[float] = option([3e-3, 6e-3, 1.2e-2], "Grid at base width and batch_size; one: no search.")
    lr_exponent: float = option(0.5, "The learning rate grows as batch size to this power: 0.5 is Adam's rule.")
    lr_scheduler: str = option("constant_with_warmup", "A schedule without decay: every step is a valid end.")
    heldout_tokens: int = option(65_536, "Tokens of the held-out set.")
    loss_levels: list[float] = option([], "Losses whose steps, tokens and B_crit are predicted; three by default.")
    count: str = option("non_embedding", "Which N the law uses: non_embedding (Kaplan's) or total.")
    objective: str = option("bayes", "Fitting objective of the joint law: bayes, huber, least_squares or lad.")
    irreducible: str = option("auto", "Irreducible loss of the joint law: auto, yes or no (the paper's).")
    window: float = option(0.3, "Share of each run, by tokens, left out of the joint fit.")
    stage_window: float = option(
        0.05, "Share left out of the stage-wise fit: the warm-up, for it compares early losses."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for known in (f for f in fields(self) if f.name in UNUSED):
            if (value := getattr(self, known.name)) != known.default:
                raise ConfigurationError(
                    f"{known.name}={value!r} is not used by a trajectory experiment. Leave it out; "
                    f"{UNUSED[known.name]}."
                )
        for name in ("init_stds", "output_multipliers"):
            if len(getattr(self, name)) > 1:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)}: a trajectory experiment searches the learning rate only. Give one "
                    "value, the best of a series' grid."
                )
        for name in ("batch_sizes", "target_batch_sizes"):
            values = getattr(self, name)
            if not values or any(v <= 0 for v in values) or len(set(values)) != len(values):
                raise ConfigurationError(f"{name} must list distinct positive numbers of sequences, got {values}.")
        if len(self.batch_sizes) < 3:
            raise ConfigurationError(
                f"batch_sizes={self.batch_sizes}: the critical batch size needs three, below and above it."
            )
        if self.lr_scheduler not in ("constant", "constant_with_warmup"):
            raise ConfigurationError(
                f"lr_scheduler={self.lr_scheduler!r}: the steps of a decaying rate are no ends of shorter runs. "
                "Use constant_with_warmup."
            )
        if self.irreducible not in ("auto", "yes", "no"):
            raise ConfigurationError(f"irreducible={self.irreducible!r} is unknown; use auto, yes or no.")
        if not 0 <= self.warmup_share < 1 or self.least_steps <= 0:
            raise ConfigurationError("warmup_share must lie in [0, 1) and least_steps be positive.")
        if any(not loss > 0 for loss in self.loss_levels):
            raise ConfigurationError(f"loss_levels must be positive, got {self.loss_levels}.")

    @property
    def tokens_per_run(self) -> int:
        """Return the tokens of the longest run: so many the training set holds, and no run reads one twice."""
        every = {self.batch_size, *self.batch_sizes, *self.target_batch_sizes}
        return max(self.steps_at(b) * b for b in every) * self.sequence_length

    def steps_at(self, batch_size: int) -> int:
        """Return the steps of a run at a batch size (sequences)."""
        return max(round(self.steps * self.batch_size / batch_size), self.least_steps)

    def lr_at(self, lr: float, batch_size: int) -> float:
        """Return the learning rate at a batch size, given the one at `batch_size`."""
        return lr * (batch_size / self.batch_size) ** self.lr_exponent


@dataclass(frozen=True)
class CurveError:
    """How a predicted curve compares with the measured one at batch size B (tokens), after the first 30 % of it.

    `error` is the mean of |predicted - measured| / measured, `worst` the largest, `inside` the share of windows in the
    interval; `reaches` lists, for each loss, the measured steps, the predicted ones' relative error and whether their
    interval holds the measured. A loss that the run passed before its first window (`reached` None, `error` None) has
    that window's step as the most it can have taken: `inside` is None unless the interval lies beyond. A run that ended
    above a loss (`reached` false) gives the fewest steps it can take: predicted steps below that are off by `error` or
    more, and `inside` is None unless the interval ends before.
    """

    B: int
    seed: int
    error: float
    worst: float
    inside: float
    reaches: list[dict[str, Any]]


@dataclass
class TrajectoryResult:
    """The runs, the constants stage by stage (None if they do not suffice: `stage_note`) and jointly, the forecast, and
    what the targets did if they were trained.
    """

    config: TrajectoryConfig
    grid: list[Run]
    best: Run
    runs: list[Run]
    table: list[dict[str, Any]]
    law: "KaplanStepLaw"
    stages: "StageWise | None"
    stage_note: str
    forecast: "Forecast"
    targets: list[Run]
    errors: list[CurveError]
    data_info: dict[str, Any]

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Return the targets' curves: B (tokens), S, loss, seed."""
        found = []
        for run in self.targets:
            rows = curve_table([run], skip=self.config.warmup_share)
            found.append({"B": run.B, "seed": run.seed} | {k: np.array([r[k] for r in rows]) for k in ("S", "loss")})
        return found


def predict_trajectory(config: TrajectoryConfig, progress: bool = True) -> TrajectoryResult:
    """Train the small runs, fit both ways, write the prediction, then train the target if `config.verify`.

    Writes below `config.output_dir`: `runs/`, `curves.csv` (the table that was fitted), `law.json`, `prediction.json`,
    `prediction.md` and plots before the target is trained; `verification.json`, `verification.md` and `overlay.png`
    afterwards. The same command continues where it was interrupted.

    Once a target is trained, its prediction stays: settings that would predict otherwise are refused.

    Raises ConfigurationError or DataError early; TrainingError if too few runs finished; FitError with what is missing.
    """
    from accelerate import PartialState

    from hf_muscaling.experiment import best_of_grid, prepare_experiment
    from hf_muscaling.folders import writable_folder
    from hf_muscaling.interruption import listening
    from hf_muscaling.progress import SeriesProgress
    from hf_muscaling.series import run_jobs
    from hf_muscaling.trajectory_report import prediction_record, write_prediction, write_verification
    from hf_muscaling.workers import Workers

    config.base_config()
    folder = writable_folder(config.output_dir)
    check_settings(config, folder)
    with listening(), Workers() as workers:
        setup = prepare_experiment(config, progress)
        main = PartialState().is_main_process
        grid_jobs = [_job(config, setup, config.base_width, config.batch_size, lr) for lr in config.learning_rates]
        first = config.learning_rates[0]  # the rate does not change what a run costs
        planned = grid_jobs + _jobs(config, setup, first, config.widths, config.batch_sizes, config.seeds)
        planned += _target_jobs(config, setup, first) if config.verify else []
        costs = [job.cost(_batch(job.args) * config.sequence_length) for job in planned]
        bar = SeriesProgress(costs, "trajectory", enabled=progress and main)
        options: dict[str, Any] = {"hashes": setup.hashes, "progress": bar, "data_collator": setup.data_collator}
        options |= {"placement": config.placement, "workers": workers, "save_model": False}
        data = (setup.train_dataset, setup.heldout_dataset, folder / "runs")
        try:
            if main:
                write_json(folder / "experiment.json", {"config": asdict(config), "data": setup.data.info})
            grid = run_jobs(grid_jobs, *data, role="grid", **options)
            best = best_of_grid(grid, config)
            jobs = _jobs(config, setup, best.lr, config.widths, config.batch_sizes, config.seeds)
            runs = run_jobs(jobs, *data, role="proxy", **options)
            result = _predict(config, grid, best, runs, setup)
            check_prediction(prediction_record(result), folder)
            if main:
                write_prediction(result, folder)
            if config.verify:
                result.targets = run_jobs(_target_jobs(config, setup, best.lr), *data, role="target", **options)
                result.errors = [curve_error(result.forecast, curve) for curve in result.measured]
                if main:
                    write_verification(result, folder)
        finally:
            bar.close()
        PartialState().wait_for_everyone()
    return result


def check_settings(config: TrajectoryConfig, folder: Path) -> None:
    """Refuse, before anything is trained, settings that would change a prediction whose target is known."""
    if not (folder / "experiment.json").exists() or not _target_known(folder):
        return
    before, now = read_json(folder / "experiment.json").get("config", {}), asdict(config)
    changed = [name for name in now if name not in NOT_PREDICTING and name in before and before[name] != now[name]]
    if changed:
        what = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise ConfigurationError(f"{_KNOWN.format(folder)} {what}. {_ELSEWHERE}")


def check_prediction(record: dict[str, Any], folder: Path) -> None:
    """Refuse to replace a prediction by another one once its target is known."""
    file = folder / "prediction.json"
    if file.exists() and _target_known(folder) and read_json(file) != json.loads(json.dumps(record)):
        raise ConfigurationError(f"{_KNOWN.format(folder)} the fit now gives another prediction. {_ELSEWHERE}")


def _predict(
    config: TrajectoryConfig, grid: list[Run], best: Run, runs: list[Run], setup: "ExperimentSetup"
) -> TrajectoryResult:
    """Fit the constants both ways and answer for the target, which nobody has trained."""
    from hf_muscaling.counting import count_parameters

    finished = [run for run in runs if run.finished]
    if len({run.width for run in finished}) < 3 or len({run.B for run in finished}) < 3:
        raise TrainingError(
            f"Only {len(finished)} of {len(runs)} runs finished, the others diverged: the law needs three widths and "
            "three batch sizes. Lower the learning rate or lengthen the warm-up; finished runs are kept."
        )
    table = [row | {"N": row[_column(config.count)]} for row in curve_table(finished, skip=config.warmup_share)]
    law, stages, note = fit_constants(table, config)
    target = count_parameters(setup.base.at_width(config.target_width), "non_embedding" if _bare(config) else "total")
    found = predict_curves(law, target, config)
    return TrajectoryResult(
        config, grid, best, runs, table, law, stages, note, found, [], [], setup.data.info
    )  # fmt: skip


def fit_constants(
    table: Sequence[dict[str, Any]], config: TrajectoryConfig
) -> tuple["KaplanStepLaw", "StageWise | None", str]:
    """Fit the six constants jointly and stage by stage; the note says what the stages lack, if they do."""
    import warnings

    from hf_muscaling.laws import KaplanStepLaw, estimate_stages

    irreducible: Any = {"auto": "auto", "yes": True, "no": False}[config.irreducible]
    with warnings.catch_warnings():  # the summary repeats what the runs leave open
        warnings.simplefilter("ignore")
        law = KaplanStepLaw(config.objective, config.window, irreducible=irreducible).fit(table)
        try:
            return law, estimate_stages(table, config.stage_window, partial=True), ""
        except FitError as error:
            return law, None, str(error)


def predict_curves(law: "KaplanStepLaw", N: float, config: TrajectoryConfig) -> "Forecast":
    """Forecast the target at every target batch size, up to the tokens that it will be trained on."""
    from hf_muscaling.laws.forecasting import forecast

    batches = [b * config.sequence_length for b in config.target_batch_sizes]
    steps = [config.steps_at(b) for b in config.target_batch_sizes]
    tokens = [s * b for s, b in zip(steps, batches, strict=True)]
    losses = config.loss_levels or levels_within(law, N, steps, batches)
    return forecast(law, N, batches, losses=losses, tokens=tokens, level=config.level)


def levels_within(law: "KaplanStepLaw", N: float, steps: Sequence[int], batches: Sequence[int]) -> list[float]:
    """Return the losses predicted after each of `LEVEL_SHARES` of a run's steps, at the batch size (tokens) that is
    then least far: every run is long enough to tell whether the prediction of its steps was right.

    >>> from hf_muscaling import KaplanStepLaw
    >>> law = KaplanStepLaw()
    >>> law.params_ = dict(N_c=2e9, alpha_N=0.12, S_c=150, alpha_S=0.6, B_star=3e6, alpha_B=0.19, E=0)
    >>> levels_within(law, 1e6, [750, 12000], [4096, 256])
    [3.41, 3.31, 3.24]
    """
    ends = [[float(law.loss(N, share * s, b, **law.params_)) for share in LEVEL_SHARES]
            for s, b in zip(steps, batches, strict=True)]  # fmt: skip
    return list(dict.fromkeys(round(max(losses), 2) for losses in zip(*ends, strict=True)))


def curve_error(found: "Forecast", measured: dict[str, Any]) -> CurveError:
    """Compare a measured curve (B in tokens, S, loss, seed) with the forecast at its batch size."""
    curve: Curve = next(c for c in found.curves if round(c.B) == measured["B"])
    steps, loss = measured["S"], measured["loss"]
    late = steps > LATE * curve.S[-1]
    predicted, low, high = curve.at(steps[late])
    error = np.abs(predicted / loss[late] - 1)
    reaches = []
    for reach in (r for r in found.reaches if round(r.B) == measured["B"]):
        actual = steps_to_loss(steps, loss, reach.loss)
        if np.isnan(actual):  # passed before the first window, at a step that nothing tells
            missed = False if reach.steps.low > steps.min() else None
            reaches.append({
                "loss": reach.loss, "steps": float(steps.min()), "reached": None, "predicted": reach.steps.value,
                "error": None, "inside": missed,
            })  # fmt: skip
            continue
        reached = bool(np.isfinite(actual))
        least = actual if reached else float(steps[-1])  # a run that ended above the loss needs more steps than it had
        reaches.append({
            "loss": reach.loss, "steps": least, "reached": reached, "predicted": reach.steps.value,
            "error": reach.steps.value / least - 1, "inside": _inside(reach.steps, least, reached),
        })  # fmt: skip
    inside = float(np.mean((low <= loss[late]) & (loss[late] <= high)))
    return CurveError(measured["B"], measured["seed"], float(error.mean()), float(error.max()), inside, reaches)


# -- inside ------------------------------------------------------------------------------------------------------------

_KNOWN = "The target of the prediction in {} is trained, and a prediction is not changed after the fact:"
_ELSEWHERE = "Predict anew in another folder (--output_dir), or repeat the settings of experiment.json."


def _target_known(folder: Path) -> bool:
    if (folder / "verification.json").exists():
        return True
    return any(Run.load(path).role == "target" for path in folder.glob("runs/*/run.json"))


def _inside(steps: "Estimate", least: float, reached: bool) -> bool | None:
    if reached:
        return steps.holds(least)
    return False if steps.high < least else None


def _bare(config: TrajectoryConfig) -> bool:
    return config.count == "non_embedding"


def _column(count: str) -> str:
    return "N_non_embedding" if count == "non_embedding" else "N"


def _job(config: TrajectoryConfig, setup: "ExperimentSetup", width: int, batch: int, lr: float, seed: int = 0) -> Any:
    """A run at a batch size, its learning rate given for `config.batch_size`."""
    from hf_muscaling.series import Job

    steps = config.steps_at(batch)
    shared = {f.name: getattr(config, f.name) for f in fields(ExperimentConfig)}
    own = ExperimentConfig(**shared | {
        "batch_size": batch, "steps": steps, "warmup_steps": min(max(round(config.warmup_share * steps), 10), steps),
        "logging_steps": max(steps // 400, 1), "checkpoint_steps": max(steps // 4, config.checkpoint_steps),
    })  # fmt: skip
    return Job(
        setup.base.at_width(width), own.training_arguments(), seed=config.seed + seed,
        learning_rate=config.lr_at(lr, batch),
    )  # fmt: skip


def _jobs(
    config: TrajectoryConfig,
    setup: "ExperimentSetup",
    lr: float,
    widths: Sequence[int],
    batches: Sequence[int],
    seeds: int,
) -> list[Any]:
    return [_job(config, setup, w, b, lr, k) for w in sorted(widths) for b in sorted(batches) for k in range(seeds)]


def _target_jobs(config: TrajectoryConfig, setup: "ExperimentSetup", lr: float) -> list[Any]:
    return _jobs(config, setup, lr, [config.target_width], config.target_batch_sizes, config.target_seeds)


def _batch(args: Any) -> int:
    """Sequences a step over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

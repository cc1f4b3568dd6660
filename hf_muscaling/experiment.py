"""The main job: grid search at base width → μTransfer → proxies → law → prediction → (verified) report.

`run_experiment` does what an `ExperimentConfig` says and writes everything to one folder. Interrupted, the same command
continues.
"""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import TrainingError
from hf_muscaling.runs import Run, Series, mean_losses, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hf_muscaling.data import PackedData
    from hf_muscaling.laws.base import Prediction, ScalingLaw

logger = logging.getLogger(__name__)


@dataclass
class ExperimentResult:
    """What an experiment found: the runs of each phase, the law, the prediction for the target, and its actual loss."""

    config: ExperimentConfig
    grid: list[Run]
    best: Run
    proxies: Series
    law: "ScalingLaw"
    target_N: int
    prediction: "Prediction"
    targets: list[Run]
    cost_ratio: float
    data_info: dict[str, Any]
    is_main_process: bool = True

    @property
    def actual(self) -> float | None:
        """Return the target's held-out loss (mean over its seeds) if it was trained."""
        losses = [run.loss for run in self.targets if run.loss is not None]
        return sum(losses) / len(losses) if losses else None

    @property
    def relative_error(self) -> float | None:
        """Return (predicted − actual) / actual, if the target was trained."""
        return None if self.actual is None else float(self.prediction.loss) / self.actual - 1

    @property
    def inside(self) -> bool | None:
        """Whether the actual loss lies inside the interval, if the target was trained."""
        return None if self.actual is None else bool(self.prediction.low <= self.actual <= self.prediction.high)


def run_experiment(config: ExperimentConfig, progress: bool = True) -> ExperimentResult:
    """Do the whole experiment and write its report; finished runs are read back, an interrupted one is continued.

    Writes below `config.output_dir`: `runs/` (a folder a run), `runs.jsonl`, `law.json`, `experiment.json`,
    `prediction.json`, `report.md` and the plots. Raises ConfigurationError, DataError or TrainingError early, each with
    its remedy; TrainingError if every run of the grid diverges.
    """
    from accelerate import PartialState

    from hf_muscaling.data import prepare_data
    from hf_muscaling.report import write_report
    from hf_muscaling.series import writable_folder

    config.base_config()
    folder = writable_folder(config.output_dir)
    args = config.training_arguments()
    with PartialState().main_process_first():
        data = prepare_data(config.data_config(), config.tokens_per_run, progress=progress and args.process_index == 0)
    base = config.base_config(len(data.tokenizer), data.tokenizer.eos_token_id)
    result = _train_and_predict(config, base, args, data, folder, progress)
    if args.process_index == 0:
        write_report(result, folder)
    PartialState().wait_for_everyone()
    return result


def _train_and_predict(config, base, args, data, folder, progress) -> ExperimentResult:
    from hf_muscaling.counting import count_parameters
    from hf_muscaling.progress import SeriesProgress
    from hf_muscaling.series import Job, run_jobs

    hashes = {"data_hash": data.data_hash, "tokenizer_hash": data.tokenizer_hash}
    target = base.at_width(config.target_width)
    proxy_seeds = [config.seed + k for k in range(config.seeds)]
    target_seeds = [config.seed + k for k in range(config.target_seeds)] if config.verify else []
    grid = [
        Job(
            base.replace(initializer_range=std, output_multiplier=tau).at_width(config.base_width),
            args,
            seed=config.seed,
            learning_rate=lr,
        )
        for std, tau, lr in itertools.product(config.init_stds, config.output_multipliers, config.learning_rates)
    ]
    per_step = config.batch_size * config.sequence_length
    planned = [Job(base.at_width(w), args, seed=s) for w in config.widths for s in proxy_seeds]
    planned += [Job(target, args, seed=s) for s in target_seeds]
    costs = [job.cost(per_step) for job in grid + planned]
    main = args.process_index == 0
    bar = SeriesProgress(costs, f"{config.architecture} series", enabled=progress and main)
    options: dict[str, Any] = {"family": _family(config, data), "hashes": hashes, "progress": bar}
    datasets = (data.train, data.heldout, folder / "runs")
    try:
        if main:
            write_json(folder / "experiment.json", {"config": asdict(config), "data": data.info, **hashes})
            data.tokenizer.save_pretrained(str(folder / "tokenizer"))
        grid_runs = run_jobs(grid, *datasets, role="grid", **options)
        best = best_of_grid(grid_runs, config)
        base = base.replace(
            initializer_range=best.config["initializer_range"], output_multiplier=best.config["output_multiplier"]
        )
        jobs = [
            Job(base.at_width(w), args, seed=s, learning_rate=best.lr)
            for w in sorted(config.widths)
            for s in proxy_seeds
        ]
        proxies = Series(run_jobs(jobs, *datasets, role="proxy", **options), name=config.architecture)
        law = fit_law(proxies, config)
        target_N = count_parameters(target, config.count)
        prediction = law.predict(N=target_N, level=config.level)
        target_jobs = [
            Job(base.at_width(config.target_width), args, seed=s, learning_rate=best.lr) for s in target_seeds
        ]
        targets = run_jobs(target_jobs, *datasets, role="target", **options)
    finally:
        bar.close()
    trained = {run.run_id: run for run in [*grid_runs, *proxies]}
    ratio = sum(_step_flops(run, config) for run in trained.values()) / _target_flops(target, config)
    return ExperimentResult(
        config, grid_runs, best, proxies, law, target_N, prediction, targets, ratio, data.info, main
    )


TOLERANCE = 0.0025
"""Grid losses closer than this share are not told apart: at base width two seeds differ as much."""


def best_of_grid(runs: Sequence[Run], config: ExperimentConfig) -> Run:
    """Return the grid run with the lowest held-out loss; of several within `TOLERANCE`, the smallest learning rate.

    A smaller rate at the same loss is steadier between seeds. Raises TrainingError if every run diverged.
    """
    finished = [run for run in runs if run.finished]
    if not finished:
        raise TrainingError(
            f"Every run of the grid diverged (learning rates {config.learning_rates}, stds {config.init_stds}): "
            "nothing to transfer. Lower them (--learning_rates) or lengthen the warm-up; the records are kept."
        )
    lowest = min(run.loss or math.inf for run in finished)
    close = [run for run in finished if run.loss and run.loss <= lowest * (1 + TOLERANCE)]
    best = min(close, key=lambda run: (run.lr, run.loss))
    tried = sorted({run.lr for run in runs})
    if len(tried) > 2 and best.lr in (tried[0], tried[-1]):
        logger.warning(
            "The best learning rate %g is at the edge of the grid %s; extend the grid on that side.", best.lr, tried
        )
    return best


def fit_law(proxies: Series, config: ExperimentConfig) -> "ScalingLaw":
    """Fit L(N) = a·N^b + c to the proxies. Raises TrainingError if too few widths finished."""
    from hf_muscaling.laws import PowerLaw

    losses = mean_losses(proxies)
    if len(losses) < 3:
        raise TrainingError(
            f"Only the widths {sorted(losses)} finished, the others diverged: a law needs three. Lower the learning "
            "rate or lengthen the warm-up; finished runs are kept."
        )
    return PowerLaw(objective=config.objective, count=config.count).fit(proxies)


def _family(config: ExperimentConfig, data: "PackedData") -> str:
    return f"{config.architecture}-{config.num_hidden_layers}l-{config.parametrization}-{data.data_hash[:8]}"


def _step_flops(run: Run, config: ExperimentConfig) -> float:
    from hf_muscaling.counting import step_flops

    return step_flops(
        config.num_hidden_layers, run.width, config.sequence_length, run.config["vocab_size"], config.batch_size
    )


def _target_flops(target: "PreTrainedConfig", config: ExperimentConfig) -> float:
    from hf_muscaling.counting import step_flops

    return step_flops(
        config.num_hidden_layers, target.hidden_size, config.sequence_length, target.vocab_size, config.batch_size
    )

"""The main job: grid search at base width → μTransfer → proxies → law → prediction → (verified) report.

`run_experiment` does what an `ExperimentConfig` says and writes everything to one folder. Interrupted, the same command
continues.
"""

import itertools
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.distributed import launched_processes
from hf_muscaling.errors import TrainingError
from hf_muscaling.runs import Run, Series, mean_losses, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hf_muscaling.budget.experiment import Offer
    from hf_muscaling.data import ObjectiveBlocks, PackedBlocks, PackedData
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
    notes: list[str] = field(default_factory=list)
    """What the report says of the search: a grid that a law moved, a best rate at its edge."""

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


@dataclass
class ExperimentSetup:
    """What every run of an experiment shares: the base config, its model class, and the data under its objective."""

    base: "PreTrainedConfig"
    model_class: Any
    train_dataset: "PackedBlocks | ObjectiveBlocks"
    heldout_dataset: "PackedBlocks | ObjectiveBlocks"
    data_collator: Callable
    data: "PackedData"

    @property
    def hashes(self) -> dict[str, str]:
        """Return the hashes of data and tokenizer for the runs' records."""
        return {"data_hash": self.data.data_hash, "tokenizer_hash": self.data.tokenizer_hash}


def prepare_experiment(config: ExperimentConfig, progress: bool = True) -> ExperimentSetup:
    """Return base config, model class and data of an experiment; the objective follows from the architecture.

    The masks of the training set follow `config.seed`, those of the held-out set are fixed. Over several processes the
    main one prepares the data first. Raises ConfigurationError or DataError early, each with its remedy.
    """
    from accelerate import PartialState

    from hf_muscaling.data import collate_blocks, objective_blocks, prepare_data
    from hf_muscaling.models import pretraining_class

    launched_processes()
    state = PartialState()
    with state.main_process_first():
        data = prepare_data(config.data_config(), config.tokens_per_run, progress=progress and state.is_main_process)
    tokens = data.tokenizer
    base = config.base_config(len(tokens), tokens.eos_token_id, tokens.pad_token_id)
    train, heldout = objective_blocks(data, config.training_objective, seed=config.seed, **config.objective_options())
    return ExperimentSetup(base, pretraining_class(base), train, heldout, collate_blocks, data)


def run_experiment(
    config: ExperimentConfig, progress: bool = True, setup: ExperimentSetup | None = None
) -> ExperimentResult:
    """Do the whole experiment and write its report; finished runs are read back, an interrupted one is continued.

    `setup` is by default what `prepare_experiment` returns; a comparison of designs gives one whose held-out text all
    designs share.

    Writes below `config.output_dir`: `runs/` (a folder a run), `runs.jsonl`, `law.json`, `experiment.json`,
    `prediction.json`, `report.md` and the plots. Raises ConfigurationError, DataError or TrainingError early, each with
    its remedy; TrainingError if every run of the grid diverges; Preempted after SIGTERM.
    """
    from accelerate import PartialState

    from hf_muscaling.folders import writable_folder
    from hf_muscaling.horizon import moved_grid
    from hf_muscaling.interruption import listening
    from hf_muscaling.live import check_view
    from hf_muscaling.report import write_report
    from hf_muscaling.workers import Workers

    config, notes = moved_grid(config)
    check_view(config.live)
    config.base_config()
    folder = writable_folder(config.output_dir)
    args = config.training_arguments()
    with listening(), Workers() as workers:
        setup = setup or prepare_experiment(config, progress)
        result = _train_and_predict(config, setup, args, folder, workers, progress)
        result.notes[:0] = notes
        if args.process_index == 0:
            write_report(result, folder)
        PartialState().wait_for_everyone()
    return result


def _train_and_predict(config, setup, args, folder, workers, progress) -> ExperimentResult:
    from hf_muscaling.counting import count_parameters
    from hf_muscaling.live import open_view
    from hf_muscaling.progress import SeriesProgress
    from hf_muscaling.series import Job, run_jobs

    base, data, hashes = setup.base, setup.data, setup.hashes
    target = base.at_width(config.target_width)
    proxy_seeds = [config.seed + k for k in range(config.seeds)]
    target_seeds = [config.seed + k for k in range(config.target_seeds)] if config.verify else []
    grid = [
        Job(
            base.replace(**config.init_fields(std), output_multiplier=tau).at_width(config.base_width),
            args,
            seed=config.seed,
            learning_rate=lr,
        )
        for std, tau, lr in itertools.product(config.init_stds, config.output_multipliers, config.learning_rates)
    ]
    per_step = config.batch_size * config.sequence_length
    offered = _offered(config, len(data.tokenizer))
    planned = [Job(base.at_width(w), args, seed=s) for w in config.widths for s in proxy_seeds] if not offered else []
    planned += [Job(target, args, seed=s) for s in target_seeds]
    costs = [job.cost(per_step) for job in grid + planned]
    left = max(offered.budget - offered.overhead, 0.0) * Job(target, args, seed=0).cost(per_step) if offered else 0.0
    costs.append(left)
    main = args.process_index == 0
    target_N = count_parameters(target, config.count)

    def predict(runs: Sequence[Run]) -> "Prediction | None":
        if len(mean_losses(runs)) < 3:
            return None
        with warnings.catch_warnings():  # said of the final law
            warnings.simplefilter("ignore")
            return fit_law(Series(list(runs)), config).predict(N=target_N, level=config.level)

    view = open_view(config.live, folder, predict) if main else None
    bar = SeriesProgress(costs, f"{config.architecture} series", enabled=progress and main, view=view)
    options: dict[str, Any] = {"family": experiment_family(config, data), "hashes": hashes, "progress": bar}
    options |= {"data_collator": setup.data_collator, "placement": config.placement, "workers": workers}
    datasets = (setup.train_dataset, setup.heldout_dataset, folder / "runs")
    try:
        if main:
            record = {"config": asdict(config), "objective": config.training_objective, "data": data.info, **hashes}
            write_json(folder / "experiment.json", record)
            data.tokenizer.save_pretrained(str(folder / "tokenizer"))
        grid_runs = run_jobs(grid, *datasets, role="grid", **options)
        best = best_of_grid(grid_runs, config)
        chosen = [*config.init_fields(1.0), "output_multiplier"]
        base = base.replace(**{name: best.config[name] for name in chosen})

        def train(*which: tuple[int, int]) -> list[Run]:
            jobs = [Job(base.at_width(width), args, seed=seed, learning_rate=best.lr) for width, seed in which]
            return run_jobs(jobs, *datasets, role="proxy", **options)

        if offered is None:
            runs = train(*((width, seed) for width in sorted(config.widths) for seed in proxy_seeds))
        else:
            runs = _train_planned(config, offered, train, folder if main else None, bar)
            bar.skip(left)  # what it could have cost, or did
        proxies = Series(runs, name=config.architecture)
        law = fit_law(proxies, config)
        prediction = law.predict(N=target_N, level=config.level)
        target_jobs = [
            Job(base.at_width(config.target_width), args, seed=s, learning_rate=best.lr) for s in target_seeds
        ]
        targets = run_jobs(target_jobs, *datasets, role="target", **options)
    finally:
        bar.close()
        if view is not None:
            view.close()
    trained = {run.run_id: run for run in [*grid_runs, *proxies]}
    spent = sum(experiment_step_flops(config, run.width, target.vocab_size) for run in trained.values())
    ratio = spent / experiment_step_flops(config, config.target_width, target.vocab_size)
    return ExperimentResult(
        config, grid_runs, best, proxies, law, target_N, prediction, targets, ratio, data.info, main,
        [message] if (message := at_edge(grid_runs, best)) else [],
    )  # fmt: skip


def _offered(config: ExperimentConfig, vocabulary: int) -> "Offer | None":
    if config.budget is None and config.tolerance is None:
        return None
    from hf_muscaling.budget.experiment import offer

    offered = offer(config, vocabulary)
    offered.plan(draws=4, curve=False)  # refuses a budget that buys no law, before anything is trained
    return offered


def _train_planned(config, offered, train, folder, bar) -> list[Run]:
    """Train what the planner advises after each run; `advice.json` keeps what it said."""
    from hf_muscaling.budget.experiment import train_planned

    said: list[dict[str, Any]] = []

    def say(advice: Any) -> None:
        said.append(advice.to_dict() | {"advice": str(advice)})
        logger.info("%s", advice)
        bar.say(str(advice))
        if folder is not None:
            write_json(folder / "advice.json", said)

    return train_planned(config, offered, lambda width, seed: train((width, seed))[0], say)


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
    if message := at_edge(runs, best):
        logger.warning(message)
    return best


def at_edge(grid: Sequence[Run], best: Run) -> str:
    """Return a sentence where the best learning rate is the smallest or largest of three or more, else ""."""
    tried = sorted({run.lr for run in grid})
    if len(tried) < 3 or best.lr not in (tried[0], tried[-1]):
        return ""
    rates = ", ".join(f"{rate:g}" for rate in tried)
    return f"The best learning rate {best.lr:g} is at the edge of the grid [{rates}]; extend the grid on that side."


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


def experiment_family(config: ExperimentConfig, data: "PackedData") -> str:
    """Return the name that the records of an experiment's runs share."""
    return f"{config.architecture}-{config.num_hidden_layers}l-{config.parametrization}-{data.data_hash[:8]}"


def experiment_step_flops(config: ExperimentConfig, width: int, vocabulary: int) -> float:
    """Return the FLOPs of one training step of an experiment's model at a width, by nanoLM's formula."""
    from hf_muscaling.counting import encoder_decoder_step_flops, step_flops
    from hf_muscaling.data import span_lengths

    layers, batch = config.num_hidden_layers, config.batch_size
    if config.training_objective == "seq2seq":
        lengths = span_lengths(config.sequence_length, **config.objective_options())
        return encoder_decoder_step_flops(layers, width, lengths.inputs, lengths.targets, vocabulary, batch)
    return step_flops(layers, width, config.sequence_length, vocabulary, batch)

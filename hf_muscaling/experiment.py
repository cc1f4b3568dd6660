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
    from hf_muscaling.series import Job

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
    """The steps of nanoLM: search at base width, transfer to every width, fit the law, predict, and check."""
    with _Training(config, setup, args, folder, workers, progress) as training:
        training.record()
        grid = training.search()
        best = best_of_grid(grid, config)
        training.transfer(best)
        proxies = training.proxies()
        law = fit_law(proxies, config)
        prediction = law.predict(N=training.target_N, level=config.level)
        targets = training.targets()
    ratio, edge = training.cost_ratio([*grid, *proxies]), at_edge([run.lr for run in grid], best)
    return ExperimentResult(
        config, grid, best, proxies, law, training.target_N, prediction, targets, ratio, setup.data.info, training.main,
        [edge] if edge else [],
    )  # fmt: skip


class _Training:
    """What the steps of an experiment train, in their order, with one bar and one live view over all of them."""

    def __init__(self, config, setup, args, folder, workers, progress):
        from hf_muscaling.counting import count_parameters
        from hf_muscaling.live import open_view
        from hf_muscaling.progress import SeriesProgress

        self.config, self.setup, self.args, self.folder = config, setup, args, folder
        self.base, self.rate = setup.base, None  # the rate and the rest of the base are found by the search
        self.main = args.process_index == 0
        self.seeds = [config.seed + k for k in range(config.seeds)]
        self.target_seeds = [config.seed + k for k in range(config.target_seeds)] if config.verify else []
        self.target_N = count_parameters(self.base.at_width(config.target_width), config.count)
        self.offered = _offered(config, len(setup.data.tokenizer))
        self.view = open_view(config.live, folder, self._predict_early) if self.main else None
        name = f"{config.architecture} series"
        self.bar = SeriesProgress(self._costs(), name, enabled=progress and self.main, view=self.view)
        self.options = {"family": experiment_family(config, setup.data), "hashes": setup.hashes, "progress": self.bar}
        self.options |= {"data_collator": setup.data_collator, "placement": config.placement, "workers": workers}

    def __enter__(self) -> "_Training":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        if self.view is not None:
            self.view.close()

    def record(self) -> None:
        """Write down what the experiment is, before anything trains."""
        if self.main:
            config, data = self.config, self.setup.data
            record = {"config": asdict(config), "objective": config.training_objective, "data": data.info}
            write_json(self.folder / "experiment.json", record | self.setup.hashes)
            data.tokenizer.save_pretrained(str(self.folder / "tokenizer"))

    def search(self) -> list[Run]:
        """Train every point of the grid at the base width."""
        return self._run(self._grid(), "grid")

    def transfer(self, best: Run) -> None:
        """μTransfer: what was best at the base width holds for every width from here on."""
        names = [*self.config.init_fields(1.0), "output_multiplier"]
        self.base, self.rate = self.base.replace(**{name: best.config[name] for name in names}), best.lr

    def proxies(self) -> Series:
        """Train the proxies: the widths asked for, or what the planner advises for the budget."""
        if self.offered is None:
            runs = self._run(self._jobs(sorted(self.config.widths), self.seeds), "proxy")
        else:
            runs = self._planned_proxies(self.offered)
            self.bar.skip(self._budget_left())  # what it could have cost, or did
        return Series(runs, name=self.config.architecture)

    def targets(self) -> list[Run]:
        """Train the target itself, where the experiment is to be verified."""
        return self._run(self._jobs([self.config.target_width], self.target_seeds), "target")

    def cost_ratio(self, trained: Sequence[Run]) -> float:
        """Return the FLOPs of a step of all runs, each counted once, over those of the target's."""
        config, vocabulary = self.config, self.base.vocab_size
        once = {run.run_id: run for run in trained}
        spent = sum(experiment_step_flops(config, run.width, vocabulary) for run in once.values())
        return spent / experiment_step_flops(config, config.target_width, vocabulary)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _grid(self) -> "list[Job]":
        from hf_muscaling.series import Job

        config = self.config
        bases = [
            self.base.replace(**config.init_fields(std), output_multiplier=tau).at_width(config.base_width)
            for std, tau in itertools.product(config.init_stds, config.output_multipliers)
        ]
        return [
            Job(base, self.args, seed=config.seed, learning_rate=rate)
            for base, rate in itertools.product(bases, config.learning_rates)
        ]

    def _jobs(self, widths: Sequence[int], seeds: Sequence[int]) -> "list[Job]":
        from hf_muscaling.series import Job

        return [
            Job(self.base.at_width(width), self.args, seed=seed, learning_rate=self.rate)
            for width, seed in itertools.product(widths, seeds)
        ]

    def _run(self, jobs: "list[Job]", role: str) -> list[Run]:
        from hf_muscaling.series import run_jobs

        datasets = (self.setup.train_dataset, self.setup.heldout_dataset, self.folder / "runs")
        return run_jobs(jobs, *datasets, role=role, **self.options)

    def _costs(self) -> list[float]:
        """The shares of the bar: what each run costs, and what a budget leaves for those not yet known."""
        config = self.config
        proxies = self._jobs(config.widths, self.seeds) if self.offered is None else []
        jobs = [*self._grid(), *proxies, *self._jobs([config.target_width], self.target_seeds)]
        return [*(job.cost(config.batch_size * config.sequence_length) for job in jobs), self._budget_left()]

    def _budget_left(self) -> float:
        if self.offered is None:
            return 0.0
        target = self._jobs([self.config.target_width], [self.config.seed])[0]
        left = max(self.offered.budget - self.offered.overhead, 0.0)
        return left * target.cost(self.config.batch_size * self.config.sequence_length)

    def _planned_proxies(self, offered: "Offer") -> list[Run]:
        """Train what the planner advises after each run; `advice.json` keeps what it said."""
        from hf_muscaling.budget.experiment import train_planned

        said: list[dict[str, Any]] = []

        def say(advice: Any) -> None:
            said.append(advice.to_dict() | {"advice": str(advice)})
            logger.info("%s", advice)
            self.bar.say(str(advice))
            if self.main:
                write_json(self.folder / "advice.json", said)

        def train(width: int, seed: int) -> Run:
            return self._run(self._jobs([width], [seed]), "proxy")[0]

        return train_planned(self.config, offered, train, say)

    def _predict_early(self, runs: Sequence[Run]) -> "Prediction | None":
        """What the live view shows while proxies are still missing."""
        if len(mean_losses(runs)) < 3:
            return None
        with warnings.catch_warnings():  # said of the final law
            warnings.simplefilter("ignore")
            return fit_law(Series(list(runs)), self.config).predict(N=self.target_N, level=self.config.level)


def _offered(config: ExperimentConfig, vocabulary: int) -> "Offer | None":
    if config.budget is None and config.tolerance is None:
        return None
    from hf_muscaling.budget.experiment import offer

    offered = offer(config, vocabulary)
    offered.plan(draws=4, curve=False)  # refuses a budget that buys no law, before anything is trained
    return offered


TOLERANCE = 0.0025
"""Grid losses closer than this share are not told apart: at base width two seeds differ as much."""


def best_of_grid(runs: Sequence[Run], config: ExperimentConfig, tried: Sequence[float] = ()) -> Run:
    """Return the grid run with the lowest held-out loss; of several within `TOLERANCE`, the smallest learning rate.

    A smaller rate at the same loss is steadier between seeds. Warns of a best rate at the edge of those `tried`, by
    default those of the runs. Raises TrainingError if every run diverged.
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
    if edge := at_edge(tried or [run.lr for run in runs], best):
        logger.warning(edge)
    return best


def at_edge(rates: Sequence[float], best: Run) -> str:
    """Return a sentence where the best learning rate is the smallest or largest of three or more, else ""."""
    tried = sorted(set(rates))
    if len(tried) < 3 or best.lr not in (tried[0], tried[-1]):
        return ""
    grid = ", ".join(f"{rate:g}" for rate in tried)
    return f"The best learning rate {best.lr:g} is at the edge of the grid [{grid}]; extend the grid on that side."


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

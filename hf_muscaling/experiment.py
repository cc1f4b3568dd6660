"""The main job: grid search at base width → μTransfer → proxies → law → prediction → (verified) report.

`ExperimentConfig` is what a YAML file or the command line says; `run_experiment` does it and writes everything to one
folder. Interrupted, the same command continues.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.errors import ConfigurationError, TrainingError
from hf_muscaling.runs import Run, Series, mean_losses, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hf_muscaling.data import DataConfig, PackedData
    from hf_muscaling.laws.base import Prediction, ScalingLaw
    from hf_muscaling.trainer import MuTrainingArguments

logger = logging.getLogger(__name__)


def _option(default: Any, text: str) -> Any:
    metadata = {"help": text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ExperimentConfig:
    """One experiment; the defaults are the README's, sized for two CPU cores. Every field is also a `--flag`."""

    output_dir: str = _option("runs/llama", "Folder for runs, law, plots and report; the same folder continues.")
    architecture: str = _option("llama", "llama or gpt2.")
    num_hidden_layers: int = _option(2, "Depth of every model.")
    head_size: int = _option(16, "Size of one attention head, fixed while width grows.")
    model_fields: str | None = _option(None, "Further fields of the stock config at base width, as a YAML mapping.")
    tie_word_embeddings: bool = _option(False, "Tie the readout to the token embedding.")
    zero_query: bool = _option(False, "Start the query projection at zero.")
    zero_readout: bool = _option(False, "Start an untied readout at zero.")
    parametrization: str = _option("mup", "mup, or sp as a control.")

    base_width: int = _option(32, "Width at which hyperparameters are searched.")
    widths: list[int] = _option([32, 48, 64, 80, 96], "Widths of the proxies.")
    target_width: int = _option(192, "Width of the model to predict.")
    seeds: int = _option(2, "Seeds (initialisations) per proxy width.")
    target_seeds: int = _option(1, "Seeds of the target when it is verified; their mean loss is compared.")
    verify: bool = _option(False, "Train the target too and report the error of the prediction.")

    learning_rates: list[float] = _option([4e-3], "Grid of learning rates at base width.")
    init_stds: list[float] = _option([0.05], "Grid of initial standard deviations at base width.")
    output_multipliers: list[float] = _option([1.0], "Grid of output multipliers.")
    steps: int = _option(600, "Optimizer steps of every run.")
    batch_size: int = _option(32, "Sequences per optimizer step, over all processes.")
    accumulation_steps: int = _option(1, "Micro-batches per step.")
    sequence_length: int = _option(64, "Tokens per sequence.")
    warmup_steps: int = _option(100, "Steps of linear warm-up.")
    lr_scheduler: str = _option("cosine", "Any scheduler of transformers.")
    weight_decay: float = _option(0.0, "Weight decay at base width, coupled to the learning rate.")
    adam_beta1: float = _option(0.9, "Adam's β1.")
    adam_beta2: float = _option(0.95, "Adam's β2.")
    max_grad_norm: float = _option(1.0, "Gradient clipping.")
    bf16: bool = _option(False, "Mixed precision with bf16.")
    seed: int = _option(0, "Seed of the batch order and of the first initialisation.")
    checkpoint_steps: int = _option(200, "Steps between checkpoints of a run.")
    logging_steps: int = _option(10, "Steps between rows of a loss curve.")

    dataset: str = _option("embedded", "'embedded' or the name of a Hub data set, which is streamed (allenai/c4).")
    dataset_config: str | None = _option(None, "Configuration of the data set (en).")
    dataset_revision: str | None = _option(None, "Pinned revision of the data set.")
    dataset_split: str = _option("train", "Split to train on.")
    heldout_split: str | None = _option(
        None, "Split to evaluate on; by default documents held out of the training split."
    )
    data_files: list[str] = _option([], "Local text, JSONL or parquet files instead of a data set.")
    text_column: str = _option("text", "Column that holds the text.")
    domains: list[str] = _option(["prose"], "Domains of the embedded corpus: prose, code.")
    vocab_size: int = _option(1024, "Vocabulary of the byte-level BPE that is trained on the data.")
    tokenizer: str | None = _option(None, "A ready tokenizer (folder or Hub name) instead.")
    heldout_tokens: int = _option(131_072, "Tokens of the held-out set.")

    objective: str | None = _option(None, "Fitting objective: huber, least_squares or lad; by default the law's own.")
    count: str = _option("total", "Which N the law uses: total or non_embedding.")
    level: float = _option(0.9, "Level of the prediction interval.")

    def __post_init__(self) -> None:
        positive = ("num_hidden_layers", "head_size", "base_width", "target_width", "seeds", "target_seeds", "steps",
                    "batch_size", "accumulation_steps", "sequence_length", "checkpoint_steps", "logging_steps")  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("widths", "learning_rates", "init_stds", "output_multipliers"):
            values = getattr(self, name)
            if not values or any(v <= 0 for v in values) or len(set(values)) != len(values):
                raise ConfigurationError(f"{name} must list distinct positive values, got {values}.")
        if len(self.widths) < 3:
            raise ConfigurationError(
                f"widths={self.widths}: the law L(N) = a·N^b + c has three parameters; give at least three widths, better five."
            )
        if self.target_width in self.widths:
            raise ConfigurationError(
                f"target_width={self.target_width} is among the proxies; predict a width not trained."
            )
        if self.count not in ("total", "non_embedding"):
            raise ConfigurationError(f"count={self.count!r} is unknown; use 'total' or 'non_embedding'.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level={self.level} must lie between 0 and 1.")

    @property
    def tokens_per_run(self) -> int:
        """Return D, the tokens that every run sees."""
        return self.steps * self.batch_size * self.sequence_length

    def further_fields(self) -> dict[str, Any]:
        """Return `model_fields` as a mapping: a YAML file gives one, the command line its text ('{attention_bias: true}')."""
        import yaml

        fields = self.model_fields
        try:
            fields = yaml.safe_load(fields) if isinstance(fields, str) else fields
        except yaml.YAMLError as error:
            raise ConfigurationError(f"model_fields is not valid YAML: {error}") from error
        if fields is not None and not isinstance(fields, dict):
            raise ConfigurationError(
                f"model_fields must be a mapping such as {{attention_bias: true}}, got {fields!r}."
            )
        return fields or {}

    def data_config(self) -> "DataConfig":
        """Return the data half of the configuration."""
        from hf_muscaling.data import DataConfig

        return DataConfig(
            dataset=self.dataset,
            dataset_config=self.dataset_config,
            dataset_revision=self.dataset_revision,
            split=self.dataset_split,
            heldout_split=self.heldout_split,
            text_column=self.text_column,
            data_files=tuple(self.data_files),
            domains=tuple(self.domains),
            vocab_size=self.vocab_size,
            tokenizer=self.tokenizer,
            block_size=self.sequence_length,
            heldout_tokens=self.heldout_tokens,
        )

    def base_config(self, vocab_size: int | None = None, eos_token_id: int | None = None) -> "PreTrainedConfig":
        """Return the μP config at base width. Raises ConfigurationError if a field or a width is impossible."""
        from transformers import AutoConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        import hf_muscaling.models  # noqa: F401  registers the μP variants

        model_type = f"mu_{self.architecture}"
        if model_type not in CONFIG_MAPPING:
            ours = sorted(k.removeprefix("mu_") for k in CONFIG_MAPPING if k.startswith("mu_"))
            raise ConfigurationError(f"architecture={self.architecture!r} is unknown; use one of {', '.join(ours)}.")
        config_class = CONFIG_MAPPING[model_type]
        known = set(config_class.__dataclass_fields__) | set(config_class.attribute_map)
        further = self.further_fields()
        unknown = sorted(set(further) - known)
        if unknown:
            raise ConfigurationError(f"model_fields: {config_class.__name__} has no field {', '.join(unknown)}.")
        if self.base_width % self.head_size:
            raise ConfigurationError(
                f"base_width={self.base_width} is not divisible by head_size={self.head_size}; choose a multiple."
            )
        fields = {
            "hidden_size": self.base_width,
            "num_attention_heads": self.base_width // self.head_size,
            "num_hidden_layers": self.num_hidden_layers,
            "max_position_embeddings": self.sequence_length,
            "vocab_size": vocab_size or self.vocab_size,
            "tie_word_embeddings": self.tie_word_embeddings,
            "zero_query": self.zero_query,
            "zero_readout": self.zero_readout,
            "parametrization": self.parametrization,
            "initializer_range": self.init_stds[0],
            "output_multiplier": self.output_multipliers[0],
        }
        if "intermediate_size" in known:
            heads = -(-8 * self.base_width // (3 * self.head_size))  # Llama's FFN ratio, rounded up to whole heads
            fields["intermediate_size"] = heads * self.head_size
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0 if eos_token_id is None else eos_token_id)
        try:
            base = AutoConfig.for_model(model_type, **(fields | ends | further))
        except ConfigurationError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"The base config is not possible: {error}") from error
        for width in (*self.widths, self.target_width):
            base.at_width(width)
        return base

    def training_arguments(self) -> "MuTrainingArguments":
        """Return the arguments that all runs share; learning rate and seed are set for each run."""
        from accelerate import PartialState

        from hf_muscaling.trainer import MuTrainingArguments

        processes = PartialState().num_processes
        share, rest = divmod(self.batch_size, processes * self.accumulation_steps)
        if rest or not share:
            raise ConfigurationError(
                f"batch_size={self.batch_size} cannot be divided evenly among {processes} processes and "
                f"{self.accumulation_steps} accumulation steps; choose a multiple of {processes * self.accumulation_steps}."
            )
        return MuTrainingArguments(
            output_dir=str(Path(self.output_dir) / "runs"),
            max_steps=self.steps,
            per_device_train_batch_size=share,
            per_device_eval_batch_size=max(share, 64),
            gradient_accumulation_steps=self.accumulation_steps,
            learning_rate=self.learning_rates[0],
            lr_scheduler_type=self.lr_scheduler,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            max_grad_norm=self.max_grad_norm,
            bf16=self.bf16,
            seed=self.seed,
            data_seed=self.seed,
            logging_steps=self.logging_steps,
            save_steps=self.checkpoint_steps,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_drop_last=True,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=_has_accelerator(),
        )


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
        return None if self.actual is None else self.prediction.loss / self.actual - 1

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
        Job(base.replace(initializer_range=std, output_multiplier=tau), args, seed=config.seed, learning_rate=lr)
        for std, tau, lr in itertools.product(config.init_stds, config.output_multipliers, config.learning_rates)
    ]
    per_step = config.batch_size * config.sequence_length
    planned = [Job(base.at_width(w), args, seed=s) for w in config.widths for s in proxy_seeds]
    planned += [Job(target, args, seed=s) for s in target_seeds]
    costs = [job.cost(per_step) for job in grid + planned]
    main = args.process_index == 0
    bar = SeriesProgress(costs, f"{config.architecture} series", enabled=progress and main)
    options = {"family": _family(config, data), "hashes": hashes, "progress": bar}
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


def best_of_grid(runs: Sequence[Run], config: ExperimentConfig) -> Run:
    """Return the grid run with the lowest held-out loss. Raises TrainingError if every one diverged."""
    finished = [run for run in runs if run.finished]
    if not finished:
        raise TrainingError(
            f"Every run of the grid diverged (learning rates {config.learning_rates}, stds {config.init_stds}): nothing to "
            "transfer. Lower the learning rates (--learning_rates) or lengthen the warm-up; the records are kept."
        )
    best = min(finished, key=lambda run: run.loss)
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
            f"Only the widths {sorted(losses)} finished, the others diverged: a law needs three or more. Lower the learning "
            "rate or lengthen the warm-up; finished runs are kept."
        )
    options = {} if config.objective is None else {"objective": config.objective}
    return PowerLaw(count=config.count, **options).fit(proxies)


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


def _has_accelerator() -> bool:
    from accelerate import PartialState

    return PartialState().device.type != "cpu"

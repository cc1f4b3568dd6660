"""What an experiment is, read from a YAML file and the command line: unknown keys are refused, flags win."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import yaml
from transformers import HfArgumentParser

from hf_muscaling.distributed import launched_processes
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.live import VIEWS
from hf_muscaling.placement import PLACEMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hf_muscaling.data import DataConfig
    from hf_muscaling.data.objectives import ObjectiveName
    from hf_muscaling.trainer import MuTrainingArguments


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with its default and the help of its flag."""
    metadata = {"help": text.replace("%", "%%")}  # argparse formats it
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ExperimentConfig:
    """One experiment; the defaults are the README's, sized for two CPU cores. Every field is also a `--flag`."""

    output_dir: str = option("runs/llama", "Folder for runs, law, plots and report; the same folder continues.")
    architecture: str = option("llama", "llama, gpt2, bert or t5; the training objective follows from it.")
    num_hidden_layers: int = option(2, "Depth of every model.")
    head_size: int = option(16, "Size of one attention head, fixed while width grows.")
    model_fields: str | None = option(None, "Further fields of the stock config at base width, as a YAML mapping.")
    tie_word_embeddings: bool = option(False, "Tie the readout to the token embedding.")
    zero_query: bool = option(False, "Start the query projection at zero.")
    zero_readout: bool = option(False, "Start an untied readout at zero.")
    parametrization: str = option("mup", "mup, or sp as a control.")

    base_width: int = option(32, "Width at which hyperparameters are searched.")
    widths: list[int] = option([32, 48, 64, 80, 96], "Widths of the proxies.")
    target_width: int = option(192, "Width of the model to predict.")
    seeds: int = option(2, "Seeds (initialisations) per proxy width.")
    target_seeds: int = option(1, "Seeds of the target when it is verified; their mean loss is compared.")
    verify: bool = option(False, "Train the target too and report the error of the prediction.")

    learning_rates: list[float] = option([4e-3, 8e-3, 1.6e-2], "Grid of learning rates at base width.")
    init_stds: list[float] = option([0.05], "Grid of initial stds at base width (T5: of attention matrices).")
    output_multipliers: list[float] = option([1.0], "Grid of output multipliers.")
    learning_rate_law: str | None = option(
        None, "JSON of a LearningRateLaw: the grid of learning rates moves to its rate for this horizon and batch size."
    )
    steps: int = option(800, "Optimizer steps of every run.")
    batch_size: int = option(32, "Sequences per optimizer step, over all processes.")
    accumulation_steps: int = option(1, "Micro-batches per step.")
    sequence_length: int = option(64, "Tokens of text per sequence, before an objective hides some.")
    hidden_share: float = option(0.15, "Share of tokens that masked language models and T5 must predict.")
    mean_span: float = option(3.0, "Mean length of T5's hidden spans, tokens.")
    warmup_steps: int = option(120, "Steps of linear warm-up.")
    lr_scheduler: str = option("cosine", "Any scheduler of transformers.")
    weight_decay: float = option(0.0, "Weight decay at base width, coupled to the learning rate.")
    adam_beta1: float = option(0.9, "Adam's β1.")
    adam_beta2: float = option(0.95, "Adam's β2.")
    max_grad_norm: float = option(1.0, "Gradient clipping.")
    bf16: bool = option(False, "Mixed precision with bf16.")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory.")
    compile: bool = option(False, "Compile the models with torch.compile, for each shape anew.")
    threads: int = option(0, "CPU threads per launched process; 0 shares this machine's cores among them.")
    placement: str = option(
        "auto", "Runs side by side, a thread, GPU or launched process each: auto, together (never) or apart (always)."
    )
    seed: int = option(0, "Seed of the batch order and of the first initialisation.")
    live: str = option("none", "Live view of the series: trackio, tensorboard, auto (what is installed) or none.")
    checkpoint_steps: int = option(200, "Steps between checkpoints of a run.")
    logging_steps: int = option(10, "Steps between rows of a loss curve.")

    dataset: str = option("embedded", "'embedded' or the name of a Hub data set, which is streamed (allenai/c4).")
    dataset_config: str | None = option(None, "Configuration of the data set (en).")
    dataset_revision: str | None = option(None, "Pinned revision of the data set.")
    dataset_split: str = option("train", "Split to train on.")
    heldout_split: str | None = option(
        None, "Split to evaluate on; by default documents held out of the training split."
    )
    mixture: str | None = option(
        None, "Domains in exact proportions of tokens: nanolm:100B, nanodata, c4, mc4 or a YAML file, also FILE:TRACK."
    )
    data_files: list[str] = option([], "Local text, JSONL or parquet files instead of a data set.")
    text_column: str = option("text", "Column that holds the text.")
    domains: list[str] = option(["prose"], "Domains of the embedded corpus: prose, code.")
    vocab_size: int = option(1024, "Vocabulary of the byte-level BPE that is trained on the data.")
    tokenizer: str | None = option(None, "A ready tokenizer (folder or Hub name) instead.")
    heldout_tokens: int = option(131_072, "Tokens of the held-out set.")

    # With several seeds a width the noise is averaged away and least squares is unbiased. PowerLaw's own default, a
    # weak prior around b = -0.4, is for few single runs: where embeddings dominate N, b is nearer -0.6.
    objective: str = option("least_squares", "Fitting objective: least_squares, huber, lad or bayes (a weak prior).")
    count: str = option("total", "Which N the law uses: total or non_embedding.")
    level: float = option(0.9, "Level of the prediction interval.")

    budget: str | None = option(
        None, "Share of the target's FLOPs for grid and proxies (5%): widths and seeds are planned, one run at a time."
    )
    tolerance: str | None = option(
        None, "Half-width of the interval, as a share of the loss (1%), at which no more proxies are trained."
    )

    push_to_hub: str | None = option(None, "Share everything as user/name on the Hub when done (`muscaling push`).")
    hub_private_repo: bool = option(False, "Make the repositories private.")

    def __post_init__(self) -> None:
        positive = (
            "num_hidden_layers", "head_size", "base_width", "target_width", "seeds", "target_seeds", "steps",
            "batch_size", "accumulation_steps", "sequence_length", "checkpoint_steps", "logging_steps",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("widths", "learning_rates", "init_stds", "output_multipliers"):
            values = getattr(self, name)
            if not values or any(v <= 0 for v in values) or len(set(values)) != len(values):
                raise ConfigurationError(f"{name} must list distinct positive values, got {values}.")
        if len(self.widths) < 3:
            raise ConfigurationError(
                f"widths={self.widths}: the law L(N) = a·N^b + c has three parameters; give three widths or more."
            )
        if self.target_width in self.widths:
            raise ConfigurationError(
                f"target_width={self.target_width} is among the proxies; predict a width not trained."
            )
        if self.count not in ("total", "non_embedding"):
            raise ConfigurationError(f"count={self.count!r} is unknown; use 'total' or 'non_embedding'.")
        if not 0 < self.hidden_share < 1 or not self.mean_span >= 1:
            raise ConfigurationError(
                f"hidden_share={self.hidden_share} must lie in (0, 1), mean_span={self.mean_span} must be 1 or more."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level={self.level} must lie between 0 and 1.")
        for name in ("budget", "tolerance"):
            if getattr(self, name) is not None:
                from hf_muscaling.budget.share import read_share

                read_share(name, getattr(self, name))
        if self.placement not in PLACEMENTS:
            raise ConfigurationError(f"placement={self.placement!r} is unknown; use one of {', '.join(PLACEMENTS)}.")
        if self.live not in VIEWS:
            raise ConfigurationError(f"live={self.live!r} is unknown; use one of {', '.join(VIEWS)}.")
        if self.threads < 0:
            raise ConfigurationError(f"threads must be 0 (share the cores) or positive, got {self.threads}.")

    @property
    def tokens_per_run(self) -> int:
        """Return D, the tokens of text that every run sees."""
        return self.steps * self.batch_size * self.sequence_length

    def further_fields(self) -> dict[str, Any]:
        """Return `model_fields` as a mapping: YAML files give one, flags its text ('{attention_bias: true}')."""
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

    @property
    def training_objective(self) -> "ObjectiveName":
        """Return the objective that follows from the architecture: causal, masked or seq2seq."""
        from hf_muscaling.models import pretraining_objective

        return pretraining_objective(self._config_class()())

    def _config_class(self) -> "type[PreTrainedConfig]":
        from hf_muscaling.models import MU_MODELS

        ours = {config.model_type.removeprefix("mu_"): config for config in MU_MODELS}
        if self.architecture not in ours:
            raise ConfigurationError(
                f"architecture={self.architecture!r} is unknown; use one of {', '.join(sorted(ours))} (train_series "
                "takes any converted config)."
            )
        return ours[self.architecture]

    def objective_options(self) -> dict[str, float]:
        """Return the settings of masked language modelling and span corruption."""
        return {"density": self.hidden_share, "mean_span": self.mean_span}

    def data_config(self) -> "DataConfig":
        """Return the data half of the configuration."""
        from hf_muscaling.data import DataConfig, special_tokens_for

        special = special_tokens_for(self.training_objective, self.sequence_length, **self.objective_options())
        return DataConfig(
            dataset=self.dataset,
            dataset_config=self.dataset_config,
            dataset_revision=self.dataset_revision,
            split=self.dataset_split,
            heldout_split=self.heldout_split,
            text_column=self.text_column,
            data_files=tuple(self.data_files),
            domains=tuple(self.domains),
            mixture=self.mixture,
            vocab_size=self.vocab_size,
            tokenizer=self.tokenizer,
            block_size=self.sequence_length,
            heldout_tokens=self.heldout_tokens,
            special_tokens=() if self.tokenizer else special,
        )

    def base_config(
        self, vocab_size: int | None = None, eos_token_id: int | None = None, pad_token_id: int | None = None
    ) -> "PreTrainedConfig":
        """Return the μP config at base width. Raises ConfigurationError if a field or a width is impossible."""
        config_class = self._config_class()
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
            "vocab_size": vocab_size or self.vocab_size,
            "tie_word_embeddings": self.tie_word_embeddings,
            "zero_query": self.zero_query,
            "zero_readout": self.zero_readout,
            "parametrization": self.parametrization,
            "output_multiplier": self.output_multipliers[0],
            **self.init_fields(self.init_stds[0]),
        }
        heads = -(-8 * self.base_width // (3 * self.head_size))  # Llama's FFN ratio, rounded up to whole heads
        shapes = {
            "max_position_embeddings": self.sequence_length,
            "intermediate_size": heads * self.head_size if self.architecture == "llama" else 4 * self.base_width,
            "d_ff": 4 * self.base_width,
            "d_kv": self.head_size,
        }
        fields |= {name: value for name, value in shapes.items() if name in known}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0 if eos_token_id is None else eos_token_id)
        if self.training_objective != "causal" and pad_token_id is not None:
            ends["pad_token_id"] = pad_token_id
            if self.training_objective == "seq2seq":
                ends["decoder_start_token_id"] = pad_token_id
        try:
            given: dict[str, Any] = fields | ends | further
            base = config_class(**{config_class.attribute_map.get(name, name): given[name] for name in given})
        except ConfigurationError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"The base config is not possible: {error}") from error
        for width in (*self.widths, self.target_width):
            base.at_width(width)
        return base

    def init_fields(self, std: float) -> dict[str, float]:
        """Return the config's field for an initial standard deviation at base width.

        T5 has a factor instead, on standard deviations that follow the fan-in: the one that gives the attention's
        matrices this deviation at base width.
        """
        if "initializer_factor" in self._config_class().__dataclass_fields__:
            return {"initializer_factor": std * self.base_width**0.5}
        return {"initializer_range": std}

    def training_arguments(self) -> "MuTrainingArguments":
        """Return the arguments that all runs share; learning rate and seed are set for each run."""
        import torch
        from transformers import SchedulerType

        from hf_muscaling.trainer import MuTrainingArguments

        known = [kind.value for kind in SchedulerType]
        if self.lr_scheduler not in known:
            raise ConfigurationError(
                f"lr_scheduler={self.lr_scheduler!r} is not known. Choose one of: {', '.join(known)}."
            )

        processes = launched_processes()
        if not torch.accelerator.is_available():
            # `accelerate launch` starts a CPU process with one thread unless told otherwise, leaving cores idle.
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(self.threads or max(available_cores() // here, 1))
        parts = processes * self.accumulation_steps
        share, rest = divmod(self.batch_size, parts)
        if rest or not share:
            raise ConfigurationError(
                f"batch_size={self.batch_size} cannot be divided evenly among {processes} processes and "
                f"{self.accumulation_steps} accumulation steps; take a multiple of {parts}."
            )
        # transformers 5.2x renames gradient checkpointing
        names = {f.name for f in fields(MuTrainingArguments)} & {"activation_checkpointing", "gradient_checkpointing"}
        further: dict[str, Any] = {min(names): True} if self.gradient_checkpointing else {}
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
            torch_compile=self.compile,
            seed=self.seed,
            data_seed=self.seed,
            logging_steps=self.logging_steps,
            save_steps=self.checkpoint_steps,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
            use_cpu=not torch.accelerator.is_available(),
            **further,
        )


Experiment = TypeVar("Experiment", bound=ExperimentConfig)


@overload
def parse_experiment(
    arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[ExperimentConfig, argparse.Namespace]: ...


@overload
def parse_experiment(
    arguments: Sequence[str] | None = None, description: str | None = None, *, kind: type[Experiment]
) -> tuple[Experiment, argparse.Namespace]: ...


def parse_experiment(
    arguments: Sequence[str] | None = None, description: str | None = None, *, kind: Any = ExperimentConfig
) -> tuple[Any, argparse.Namespace]:
    """Return the experiment, of `kind`, that `--config FILE` and the other flags describe.

    Raises ConfigurationError for a file that is missing or not a mapping, an unknown key (with the nearest known one),
    or a value of the wrong type.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    given, rest = first.parse_known_args(arguments)
    parser = HfArgumentParser(kind, description=description, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", help="YAML file with any of these settings.")
    if given.config:
        parser.set_defaults(**_coerced(read_experiment_file(given.config, kind), kind))
    try:
        config, extra = parser.parse_args_into_dataclasses(rest, look_for_args_file=False)[:2]
    except (argparse.ArgumentError, ValueError) as error:  # transformers raises ValueError for flags it does not know
        raise ConfigurationError(f"{error}") from error
    return config, extra


def read_experiment_file(path: str, kind: type[ExperimentConfig] = ExperimentConfig) -> dict[str, Any]:
    """Return the settings of a YAML file. Raises ConfigurationError as `parse_experiment` does."""
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"The configuration file {path} does not exist; check the path given to --config.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{path} must hold 'key: value' lines, got {type(settings).__name__}.")
    known = [f.name for f in fields(kind)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            raise ConfigurationError(f"{path}: unknown key {key!r}; {hint}")
    return settings


def _coerced(settings: dict[str, Any], kind: type[ExperimentConfig]) -> dict[str, Any]:
    """Turn YAML's strings into the fields' types: YAML reads 2e-3 (no dot) as text.

    A null is left out where it is the default: HfArgumentParser strips "| None" off the fields' types.
    """
    known = {f.name: f for f in fields(kind)}
    given = {name: value for name, value in settings.items() if value is not None or known[name].default is not None}
    return {name: _coerce(name, value, str(known[name].type)) for name, value in given.items()}


def _coerce(name: str, value: Any, kind: str) -> Any:
    if value is None and "None" in kind:
        return None
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise ConfigurationError(f"{name} must be a list, got {value!r}.")
        return [_coerce(name, item, kind[5:-1]) for item in value]
    wanted = {"<class 'int'>": int, "int": int, "<class 'float'>": float, "float": float, "<class 'bool'>": bool,
              "bool": bool, "<class 'str'>": str, "str": str}.get(kind.removesuffix(" | None"))  # fmt: skip
    if wanted is None:
        return value
    if wanted is bool or isinstance(value, bool):
        if not (wanted is bool and isinstance(value, bool)):
            raise ConfigurationError(f"{name} must be {wanted.__name__}, got {value!r}.")
        return value
    try:
        converted = wanted(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} must be {wanted.__name__}, got {value!r}.") from error
    if wanted is int and converted != float(value):
        raise ConfigurationError(f"{name} must be a whole number, got {value!r}.")
    return converted


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

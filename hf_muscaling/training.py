"""Train one run in its own folder: never twice, continued after a kill, its record written last and atomically."""

import copy
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from hf_muscaling.counting import count_parameters, training_flops
from hf_muscaling.data.objectives import ObjectiveBlocks
from hf_muscaling.data.packing import PackedBlocks, collate_blocks
from hf_muscaling.errors import ConfigurationError, RecordError, TrainingError
from hf_muscaling.models import pretraining_class, pretraining_objective
from hf_muscaling.runs import Run, read_json, write_json
from hf_muscaling.trainer import MuTrainer

logger = logging.getLogger(__name__)

# What decides a run's numbers, next to the model's config, the data and the seeds.
_SETTINGS = (
    "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "weight_decay_policy", "scale_adam_epsilon", "decay_vectors", "optim", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "bf16", "fp16", "seed", "data_seed",
)  # fmt: skip
_CONFIG_NOISE = ("transformers_version", "_name_or_path", "architectures", "dtype")
_LATER_FIELDS = {"depth_parametrization": "none"}
_CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def run_settings(args: TrainingArguments) -> dict[str, Any]:
    """Return the training settings that decide a run's numbers, as JSON types; batch size in examples a step."""
    values = {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)}
    values = {k: getattr(v, "value", v) for k, v in values.items()}
    values["batch_size"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return json.loads(json.dumps(values, default=str))


def objective_settings(config: PreTrainedConfig, train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Return {"objective": …} for a run's settings, or {} for causal language modelling and for foreign data sets.

    Raises ConfigurationError if packed blocks come under another objective than the architecture's, which a model
    would often learn happily (BERT copies its input), or if training and held-out set differ in more than their seeds.
    """
    records = {}
    for role, dataset in (("training", train_dataset), ("held-out", eval_dataset)):
        if isinstance(dataset, ObjectiveBlocks):
            records[role] = dataset.record
        elif isinstance(dataset, PackedBlocks):
            records[role] = {"name": "causal", "seed": None}
    for role, record in records.items():
        if record["name"] != (expected := pretraining_objective(config)):
            raise ConfigurationError(
                f"{type(config).__name__} is pretrained with the {expected!r} objective, and the {role} set is "
                f"{record['name']!r}: train on objective_blocks(data, {expected!r}), or name the model_class."
            )
    seeds = [record.pop("seed") for record in records.values()]
    if len(records) == 2 and records["training"] != records["held-out"]:
        raise ConfigurationError(
            f"Training and held-out set have different objectives: {records['training']} and {records['held-out']}."
        )
    if not isinstance(train_dataset, ObjectiveBlocks):
        return {}
    heldout_seed = seeds[1] if len(seeds) == 2 else None
    return {"objective": {**records["training"], "seed": seeds[0], "heldout_seed": heldout_seed}}


def config_record(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a model config as a record: every field but those that change with the library's version.

    Fields of ours that came later are left out while they are off, so that earlier runs are found again.
    """
    fields = {k: v for k, v in config.to_dict().items() if k not in _CONFIG_NOISE and _LATER_FIELDS.get(k) != v}
    return json.loads(json.dumps(fields, default=str))


def run_name(config: PreTrainedConfig, settings: dict[str, Any], hashes: dict[str, str]) -> str:
    """Return the folder name of a run: width, learning rate, seed, and a digest of all that decides its numbers."""
    identity = {"config": config_record(config), "settings": settings, **hashes}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"w{config.hidden_size:04d}-lr{settings['learning_rate']:.3g}-s{settings['seed']}-{digest}"


def train_run(
    config: PreTrainedConfig,
    args: TrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
    folder: str | os.PathLike[str],
    *,
    model_class: Any = None,
    data_collator: Callable | None = None,
    hashes: dict[str, str] | None = None,
    family: str = "",
    role: str = "proxy",
    callbacks: list[TrainerCallback] | None = None,
    save_model: bool = True,
) -> Run:
    """Train a config on a data set and return its record; a finished run is read back, an interrupted one continued.

    `folder` receives one sub-folder a run with `config.json`, `run.json` (the record, written last) and the trained
    model in safetensors. `args.learning_rate` is the one at base width, `args.seed` decides the initialisation,
    `args.data_seed` the order of the batches. `hashes` may give `data_hash` and `tokenizer_hash`. The loss is the mean
    over the targets of `eval_dataset` in nats: every token but a block's first for causal models, the masked ones, or
    the decoder's. D counts tokens of text (blocks times their size) under every objective. `model_class` is by default
    the Auto class of the architecture's objective.

    Raises RecordError if the record was damaged or edited, TrainingError if the disk is full, ConfigurationError if the
    data sets come under another objective than the architecture's.
    """
    hashes = {"data_hash": "", "tokenizer_hash": "", **(hashes or {})}
    args = copy.deepcopy(args)
    settings = run_settings(args)
    if model_class is None:
        settings |= objective_settings(config, train_dataset, eval_dataset)
        model_class = pretraining_class(config)
    run_id = run_name(config, settings, hashes)
    path = Path(folder) / run_id
    record = path / "run.json"
    if record.exists():
        run = Run.load(record)
        if run.config != config_record(config) or run.settings != settings:
            raise RecordError(f"{record} does not belong to the run {run_id}; move the folder away to train it again.")
        run.role = role
        return run
    args.output_dir = str(path / "checkpoints")
    try:
        with PartialState().main_process_first():
            path.mkdir(parents=True, exist_ok=True)
        with _quiet_transformers():
            run = _train(
                config, args, train_dataset, eval_dataset, path, model_class, data_collator, callbacks, save_model
            )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"The disk is full: {run_id} stopped while writing below {path}. Free some space (or choose another "
                "output folder) and run the same command again; finished runs are kept and are not trained again."
            ) from error
        raise
    run.run_id, run.settings, run.family, run.role = run_id, settings, family, role
    run.data_hash, run.tokenizer_hash = hashes["data_hash"], hashes["tokenizer_hash"]
    run.lr, run.seed = settings["learning_rate"], settings["seed"]
    if PartialState().is_main_process:
        run.save(record)
        shutil.rmtree(args.output_dir, ignore_errors=True)
    PartialState().wait_for_everyone()
    return run


def _train(config, args, train_dataset, eval_dataset, path, model_class, data_collator, callbacks, save_model) -> Run:
    started = time.monotonic()
    set_seed(args.seed)
    model = model_class.from_config(copy.deepcopy(config))  # training may write to it
    trainer = MuTrainer(
        model, args, train_dataset=train_dataset, data_collator=data_collator or collate_blocks, callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    checkpoint = last_valid_checkpoint(args.output_dir)
    earlier = _seconds_before(path)
    if checkpoint is not None and int(checkpoint.name.rpartition("-")[2]) >= args.max_steps:
        # Trainer would train one step more: only the weights and the log are needed.
        trainer.model = model_class.from_pretrained(checkpoint).to(args.device)
        trainer.state = type(trainer.state).load_from_json(str(checkpoint / "trainer_state.json"))
    else:
        trainer.add_callback(_Clock(path, started, earlier))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    diverged = trainer.diverged
    loss = None if diverged else trainer.evaluate(eval_dataset)["eval_loss"]
    if diverged or not math.isfinite(loss):
        logger.warning("%s diverged: %s", path.name, diverged or f"its held-out loss is {loss}")
        loss = None
    if save_model and loss is not None:
        if hasattr(config, "use_cache"):
            trainer.model.config.use_cache = config.use_cache  # Trainer turns it off; who loads the model may generate
        trainer.save_model(str(path / "model"))
    N = count_parameters(config, "total")
    steps = args.max_steps
    tokens = trainer.state.num_input_tokens_seen
    batch = max(round(tokens / max(trainer.state.global_step, 1)), 1)
    return Run(
        run_id=path.name,
        status="diverged" if loss is None else "finished",
        N=N,
        N_non_embedding=count_parameters(config, "non_embedding"),
        D=batch * steps,
        S=steps,
        B=batch,
        C=training_flops(N, batch * steps),
        loss=loss,
        width=config.hidden_size,
        seed=args.seed,
        lr=args.learning_rate,
        config=config_record(config),
        versions={name: version(name) for name in ("torch", "transformers", "accelerate", "datasets", "numpy")},
        seconds=round(earlier + time.monotonic() - started, 2),
        curve=[{k: v for k, v in row.items() if math.isfinite(v)} for row in trainer.curve],
    )


@contextmanager
def _quiet_transformers():
    """Silence transformers' own bars ("Writing model shards"), which would tear the series' bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def last_valid_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest whole checkpoint in a Trainer output folder, or None.

    A kill can leave the newest one incomplete, or without its optimizer, which Trainer would silently replace by a
    fresh Adam. `trainer_state.json` is written last: it must parse, and every other file must be there and readable.
    """
    checkpoints = sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        problem = _checkpoint_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("Passing over %s: %s; continuing from the one before.", checkpoint.name, problem)
    return None


def _checkpoint_problem(checkpoint: Path) -> str | None:
    try:
        state = read_json(checkpoint / "trainer_state.json")
        weights = list(checkpoint.glob("*.safetensors"))
        if not isinstance(state, dict) or "global_step" not in state or not weights:
            return "its state or its weights are missing"
        for path in weights:
            with safe_open(path, framework="pt") as handle:
                for key in handle.keys():  # noqa: SIM118  a safetensors file is not a mapping
                    handle.get_slice(key)
        for name in _CHECKPOINT_FILES:
            found = list(checkpoint.glob(name.replace(".pth", "*.pth")))
            if not found:
                return f"{name} is missing"
            for path in found:
                with zipfile.ZipFile(path) as archive:  # torch writes zip files; their checksums need no unpickling
                    if (damaged := archive.testzip()) is not None:
                        return f"{damaged} in {path.name} is damaged"
    except (OSError, RecordError, SafetensorError, zipfile.BadZipFile) as error:
        return f"{type(error).__name__}: {error}"
    return None


class _Clock(TrainerCallback):
    """Keep the seconds spent so far, so that a continued run reports its whole cost."""

    def __init__(self, path: Path, started: float, earlier: float):
        self.path, self.started, self.earlier = path, started, earlier

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            seconds = self.earlier + time.monotonic() - self.started
            write_json(self.path / "progress.json", {"step": state.global_step, "seconds": round(seconds, 2)})


def _seconds_before(path: Path) -> float:
    try:
        return float(read_json(path / "progress.json")["seconds"])
    except (OSError, RecordError, KeyError, TypeError, ValueError):
        return 0.0  # a fresh run, or one killed while writing this small file: only the reported seconds suffer

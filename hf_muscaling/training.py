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
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PreTrainedConfig, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from hf_muscaling.checkpoints import CheckpointKeeper, StopInTime, last_valid_checkpoint, manifest
from hf_muscaling.counting import count_parameters, training_flops
from hf_muscaling.data.objectives import ObjectiveBlocks
from hf_muscaling.data.packing import PackedBlocks, collate_blocks
from hf_muscaling.errors import ConfigurationError, MuScalingError, Preempted, RecordError, TrainingError
from hf_muscaling.folders import exclusive
from hf_muscaling.interruption import listening, stop
from hf_muscaling.models import pretraining_class, pretraining_objective
from hf_muscaling.runs import Run
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
_DYING = 10.0
"""Seconds that the lock of a run is waited for: a killed command's worker process may take a moment to follow it."""


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
    left_out = _LATER_FIELDS.items()
    fields = {k: v for k, v in config.to_dict().items() if k not in _CONFIG_NOISE and (k, v) not in left_out}
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

    Raises RecordError if the record was damaged or edited, TrainingError if the disk is full or another process trains
    the same run, Preempted (with a checkpoint) on SIGTERM, ConfigurationError if the data sets come under another
    objective than the architecture's.
    """
    hashes = {"data_hash": "", "tokenizer_hash": "", **(hashes or {})}
    args = copy.deepcopy(args)
    settings, model_class = _identity(config, args, train_dataset, eval_dataset, model_class)
    run_id = run_name(config, settings, hashes)
    path = Path(folder) / run_id
    args.output_dir = str(path / "checkpoints")
    try:
        with PartialState().main_process_first():
            path.mkdir(parents=True, exist_ok=True)
        with exclusive(path, PartialState().is_main_process, _DYING), listening(deferring=True), _quiet_transformers():
            if (run := _recorded(path, config, settings)) is None:  # another process may have finished it meanwhile
                run = _train(
                    config, args, train_dataset, eval_dataset, path, model_class, data_collator, callbacks, save_model
                )
                run.run_id, run.settings, run.family = run_id, settings, family
                run.data_hash, run.tokenizer_hash = hashes["data_hash"], hashes["tokenizer_hash"]
                run.lr, run.seed = settings["learning_rate"], settings["seed"]
                if PartialState().is_main_process:
                    run.role = role
                    run.save(path / "run.json")
                    shutil.rmtree(args.output_dir, ignore_errors=True)
            PartialState().wait_for_everyone()
    except (OSError, SafetensorError, RuntimeError) as error:
        if (cause := _machine_trouble(error, path, args.world_size)) is None:
            raise
        raise TrainingError(cause) from error
    run.role = role
    return run


def recorded_run(
    config: PreTrainedConfig,
    args: TrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
    folder: str | os.PathLike[str],
    *,
    model_class: Any = None,
    hashes: dict[str, str] | None = None,
    role: str = "proxy",
    **options: Any,
) -> Run | None:
    """Return the record that `train_run` would return without training, or None if the run is not finished.

    Raises RecordError if the record was damaged or edited.
    """
    settings, _ = _identity(config, args, train_dataset, eval_dataset, model_class)
    name = planned_name(config, args, train_dataset, eval_dataset, model_class=model_class, hashes=hashes)
    run = _recorded(Path(folder) / name, config, settings)
    if run is not None:
        run.role = role
    return run


def planned_name(
    config: PreTrainedConfig,
    args: TrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    model_class: Any = None,
    hashes: dict[str, str] | None = None,
    **options: Any,
) -> str:
    """Return the name of the run that `train_run` would train: equal names are one run."""
    settings, _ = _identity(config, args, train_dataset, eval_dataset, model_class)
    return run_name(config, settings, {"data_hash": "", "tokenizer_hash": "", **(hashes or {})})


def _identity(config, args, train_dataset, eval_dataset, model_class) -> tuple[dict[str, Any], Any]:
    """Return the settings that decide a run's numbers, and its model class."""
    settings = run_settings(args)
    if model_class is None:
        settings |= objective_settings(config, train_dataset, eval_dataset)
        model_class = pretraining_class(config)
    return settings, model_class


def _recorded(path: Path, config: PreTrainedConfig, settings: dict[str, Any]) -> Run | None:
    record = path / "run.json"
    if not record.exists():
        return None
    run = Run.load(record)
    if run.config != config_record(config) or run.settings != settings:
        raise RecordError(f"{record} does not belong to the run {path.name}; move the folder away to train it again.")
    shutil.rmtree(path / "checkpoints", ignore_errors=True)  # left by a kill just after the record was written
    return run


def _machine_trouble(error: Exception, path: Path, processes: int) -> str | None:
    """Return cause and remedy of an error that is the machine's: a full disk, a lost process; else None."""
    text = str(error)
    if isinstance(error, MuScalingError):
        return None  # it says so itself
    # safetensors puts the number into its message; torch says "iostream error" or less, but from one place
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text
    if full or isinstance(error, RuntimeError) and _from_torch_save(error):
        what = (
            "The disk is full" if full else f"A checkpoint cannot be written, the disk is probably full ({text[:60]})"
        )
        return (
            f"{what}: {path.name} stopped while writing below {path}. Free some space (or choose another output "
            "folder) and run the same command again; finished runs are kept and are not trained again."
        )
    lost = ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "gloo")
    if processes > 1 and any(word in text for word in lost):
        return (
            f"One of the {processes} processes that train {path.name} together is gone ({text[:120]}): it was killed, "
            "ran out of memory, or lost the network. The same command continues from the last checkpoint."
        )
    return None


def _from_torch_save(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(
        f.f_code.co_filename == torch.serialization.__file__ and "load" not in f.f_code.co_name for f, _ in frames
    )


def _train(config, args, train_dataset, eval_dataset, path, model_class, data_collator, callbacks, save_model) -> Run:
    started = time.monotonic()
    set_seed(args.seed)
    model = model_class.from_config(copy.deepcopy(config))  # training may write to it
    trainer = MuTrainer(
        model, args, train_dataset=train_dataset, data_collator=data_collator or collate_blocks, callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    layout = {"processes": args.world_size, "threads": torch.get_num_threads(), "device": args.device.type}
    layout |= {"sharding": "fsdp2"} if trainer.is_fsdp_enabled else {}
    checkpoint = last_valid_checkpoint(args.output_dir)
    if checkpoint and _at_end(checkpoint, args) and not list(checkpoint.glob("*.safetensors")):
        checkpoint = last_valid_checkpoint(args.output_dir, below=args.max_steps)  # shards: no model to read by itself
    before = manifest(checkpoint) if checkpoint else {"seconds": 0.0, "layout": layout}
    earlier = before["seconds"]
    if before["layout"] != layout:
        logger.warning(
            "%s is continued on %s instead of %s: its losses may differ in their last digits from an undisturbed "
            "run's.", path.name, layout, before["layout"],
        )  # fmt: skip
    if checkpoint is not None and _at_end(checkpoint, args):
        # Trainer would train one step more: only the weights and the log are needed.
        trainer.model = model_class.from_pretrained(checkpoint).to(args.device)
        trainer.state = type(trainer.state).load_from_json(str(checkpoint / "trainer_state.json"))
    else:
        limit, args.save_total_limit = args.save_total_limit, None
        stopping = StopInTime()
        trainer.add_callback(stopping)
        trainer.add_callback(CheckpointKeeper(limit, layout, started, earlier))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stopping.stopped and trainer.diverged is None:
            raise Preempted(
                f"Stopped ({stop.reason}): {path.name} has a checkpoint at step {trainer.state.global_step} of "
                f"{args.max_steps}. Finished runs are kept; the same command continues."
            )
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
        layout=layout,
        seconds=round(earlier + time.monotonic() - started, 2),
        curve=[{k: v for k, v in row.items() if math.isfinite(v)} for row in trainer.curve],
    )


def _at_end(checkpoint: Path, args: TrainingArguments) -> bool:
    return int(checkpoint.name.rpartition("-")[2]) >= args.max_steps


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

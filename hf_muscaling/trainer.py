"""`MuTrainer`: transformers' Trainer with μP parameter groups and losses that can be put into a scaling law."""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, get_last_checkpoint, has_length

from hf_muscaling import distributed
from hf_muscaling.errors import ConfigurationError, RecordError
from hf_muscaling.layouts import Layout, readable
from hf_muscaling.models.base import require_mu_model
from hf_muscaling.optim import MuAdamW, MuSGD, mu_param_groups, sgd_lr_scale

_ADAMW = ("adamw_torch", "adamw_torch_fused")
DIVERGENCE_MARGIN = 1.02
DIVERGENCE_PATIENCE = 3
"""A run has diverged when so many logged losses in a row, or the last, are above 1.02 times the first.

The margin is for the noise of a single batch, the patience for a warm-up that passes above the start once.
"""


@dataclass
class MuTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the μP choices; `learning_rate`, `weight_decay` and `adam_epsilon` are at base width."""

    weight_decay_policy: str = field(
        default="coupled", metadata={"help": "How decay follows the learning rate: coupled, independent or none."}
    )
    scale_adam_epsilon: bool = field(
        default=True, metadata={"help": "Use adam_epsilon / r at width multiplier r, as gradients shrink by 1/r."}
    )
    decay_vectors: bool = field(default=False, metadata={"help": "Apply weight decay to norms and biases too."})


class MuTrainer(Trainer):
    """Train a μP model; everything else is `transformers.Trainer`.

    What differs: the optimizer always has the model's μP groups; the reported loss, in training and evaluation, is the
    mean over predicted tokens (nats per token) whatever the accumulation steps and processes (a classifier keeps
    its own); a NaN, or a loss that stays above its start, ends the run with `diverged` set; `curve` holds step, tokens,
    loss, lr and grad_norm of every logged step.

    Raises ConfigurationError for a model without a parametrisation, an optimizer whose groups are not μP's, or a
    scheduler that would flatten the groups' learning rates. Example:

    >>> import tempfile, torch
    >>> from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM, MuTrainer, MuTrainingArguments
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    >>> args = MuTrainingArguments(output_dir=tempfile.mkdtemp(), max_steps=2, logging_steps=1, disable_tqdm=True,
    ...                            use_cpu=True, save_strategy="no", report_to="none")
    >>> trainer = MuTrainer(MuLlamaForCausalLM(base.at_width(64)), args, train_dataset=data)
    >>> _ = trainer.train()  # doctest: +ELLIPSIS
    {...}
    >>> [row["tokens"] for row in trainer.curve]
    [64, 128]
    """

    def __init__(self, model: Any = None, args: TrainingArguments | None = None, *positional: Any, **kwargs: Any):
        if model is not None:
            require_mu_model(model, "MuTrainer")
        super().__init__(model, args, *positional, **kwargs)
        inner = require_mu_model(self.model, "MuTrainer")
        self._token_loss = inner.mu_objective is not None
        if self._token_loss and not inner.mu_counts_targets and self.compute_loss_func is None:
            # These classes take num_items_in_batch and ignore it, so that Trainer multiplies loss and gradient by
            # accumulation steps times processes.
            self.compute_loss_func = next_token_mean_loss if inner.mu_objective == "causal" else token_mean_loss
        # The filter replaces a NaN by the mean of the losses before it, which would hide a divergence from the record.
        self.args.logging_nan_inf_filter = False
        # Otherwise each process would divide by its own number of targets, which differ under masking and padding.
        self.args.average_tokens_across_devices = True
        if self.optimizer is not None and not isinstance(self.optimizer, (MuAdamW, MuSGD)):
            raise ConfigurationError(
                f"MuTrainer got optimizers=({type(self.optimizer).__name__}, …), whose groups need not be μP's: pass "
                "MuAdamW(model, …) or MuSGD(model, …), or optimizer_cls_and_kwargs for another class."
            )
        if self.args.label_smoothing_factor:
            raise ConfigurationError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} would report another loss than the "
                "cross-entropy in nats per token that a scaling law is fitted to; leave it at 0."
            )
        _check_scheduler(self.args)
        self.diverged: str | None = None
        self._flops_per_token: int | None = None
        self._groups: list[list[str]] = []  # the parameter names of the optimizer's groups, under FSDP2
        self._evaluated = [0.0, 0.0]  # Σ loss and number of targets of the evaluation under way
        self.add_callback(_RunGuard(self))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer that the arguments name over the model's μP groups; under FSDP2, shard the model first.

        The groups then hold the sharded parameters from the start.
        """
        if self.is_fsdp_enabled and not distributed.is_sharded(self.model):
            names = self.optimizer and distributed.group_names(self.model, self.optimizer)
            distributed.shard_for(self.accelerator, self.model)
            if names is not None:
                distributed.point_groups(self.model, self.optimizer, names)
        if self.optimizer is None:
            self.optimizer = self._mu_optimizer(self.model if model is None else model)
        if self.is_fsdp_enabled:
            self._groups = distributed.group_names(self.model, self.optimizer)
        return self.optimizer

    def _mu_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        args = self.args
        policy = getattr(args, "weight_decay_policy", "coupled")
        decay = {"weight_decay": args.weight_decay, "policy": policy}
        decay["decay_vectors"] = getattr(args, "decay_vectors", False)
        if self.optimizer_cls_and_kwargs is not None:
            optimizer_class, kwargs = self.optimizer_cls_and_kwargs
            if not (inspect.isclass(optimizer_class) and issubclass(optimizer_class, torch.optim.Optimizer)):
                raise ConfigurationError(
                    f"optimizer_cls_and_kwargs needs an optimizer class, got {optimizer_class!r}; mup's MuAdamW is a "
                    "function: use hf_muscaling.MuAdamW, MuTrainer's default."
                )
            kwargs = {"lr": args.learning_rate, **kwargs}
            if issubclass(optimizer_class, (MuAdamW, MuSGD)):
                return optimizer_class(model, **kwargs)
            rule = {"lr_scale": sgd_lr_scale} if issubclass(optimizer_class, torch.optim.SGD) else {}
            decay["weight_decay"] = kwargs.pop("weight_decay", args.weight_decay)
            return optimizer_class(mu_param_groups(model, kwargs["lr"], **decay, **rule), **kwargs)
        if str(getattr(args.optim, "value", args.optim)) in _ADAMW:
            return MuAdamW(
                model,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                scale_eps=getattr(args, "scale_adam_epsilon", True),
                **decay,
            )
        if str(getattr(args.optim, "value", args.optim)) == "sgd":
            return MuSGD(model, lr=args.learning_rate, **decay)
        raise ConfigurationError(
            f"optim={args.optim!r} has no μP rule here; use one of {', '.join((*_ADAMW, 'sgd'))}, or "
            "optimizer_cls_and_kwargs with an Adam-like class."
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the scheduler, after making sure that sharding left every group with its own parameters.

        Accelerate matches tensors by address, and shards that are empty on a process all have the same one.
        """
        if self.is_fsdp_enabled and self.optimizer is not None:
            distributed.point_groups(self.model, self.optimizer, self._groups)
        return super().create_scheduler(num_training_steps, optimizer)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and refuse one that does less than the launcher was asked for."""
        with distributed.accelerate_for(self.args, self.model):
            super().create_accelerator_and_postprocess()
        distributed.check_accelerator(self.accelerator, self.args)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch one optimizer step's batches and count their tokens over all processes.

        A data set of blocks says how many tokens of text an example stands for (`block_size`), whatever an objective
        makes of them; of any other, the tokens that the model reads count.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.include_num_input_tokens_seen == "no":  # else Trainer counts them itself, with a gather a batch
            inputs = [b[getattr(self.model, "main_input_name", "input_ids")] for b in batches]
            block = getattr(self.train_dataset, "block_size", None)
            tokens = sum(x.numel() if block is None else len(x) * block for x in inputs)
            self.state.num_input_tokens_seen += tokens * (self.args.world_size // self._sharing_a_batch())
        return batches, items

    def get_train_dataloader(self) -> DataLoader:
        """Return whole global batches only: over several processes Accelerate fills the last one with repeats."""
        asked = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = asked or self.args.world_size > 1
        try:
            loader = super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = asked
        if has_length(loader) and len(loader) == 0:
            size = self.args.per_device_train_batch_size * self.args.world_size
            raise ConfigurationError(
                f"The training set has {len(self.train_dataset)} examples, fewer than one batch of {size} over "
                f"{self.args.world_size} processes; lower per_device_train_batch_size or give more examples."
            )
        return loader

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss as Trainer does, and add an evaluation batch to the exact mean over all targets.

        An encoder-decoder gets the inputs of its decoder here: it would make them of the labels, but the loss is
        computed outside of it and so the labels never reach it.
        """
        shift = getattr(require_mu_model(self.model, "MuTrainer"), "prepare_decoder_input_ids_from_labels", None)
        given = inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
        if shift is not None and "labels" in inputs and not given:
            inputs = {**inputs, "decoder_input_ids": shift(labels=inputs["labels"])}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not model.training and self._token_loss and num_items_in_batch is not None:
            targets = float(torch.as_tensor(num_items_in_batch).flatten()[0])
            self._evaluated[0] += float(loss.detach().mean()) * targets
            self._evaluated[1] += targets
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, *args: Any, **kwargs: Any):
        """Evaluate one batch, without the examples that Accelerate repeats to fill the last global batch."""
        loader, labels = self.accelerator.gradient_state, inputs.get("labels")
        if labels is not None and loader.end_of_dataloader and loader.remainder > 0:
            rank = self.args.process_index // self._sharing_a_batch()
            first_repeat = max(loader.remainder - rank * len(labels), 0)
            if first_repeat < len(labels):
                inputs = {**inputs, "labels": labels.clone()}
                inputs["labels"][first_repeat:] = -100
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as Trainer does; the loss is the mean over targets, not the mean of the batches' means."""
        self._evaluated = [0.0, 0.0]
        if self.is_fsdp_enabled and not distributed.is_sharded(self.model):
            # Trainer would prepare the model without an optimizer, which Accelerate refuses under FSDP2.
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.create_optimizer())
            self.model_wrapped = self.model
        output = super().evaluation_loop(*args, **kwargs)
        total, targets = self._evaluated
        if targets:
            mean = self.accelerator.reduce(torch.tensor(total / targets, device=self.args.device), reduction="mean")
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = mean.item()
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 6·N·tokens as Trainer does, without counting the parameters anew every step."""
        if self._flops_per_token is None:
            self._flops_per_token = 6 * self.model.num_parameters(exclude_embeddings=True)
        return self._flops_per_token * inputs[getattr(self.model, "main_input_name", "input_ids")].numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, with the tokens seen; a resumed run's `train_loss` is the mean over all its steps."""
        if "loss" in logs and "learning_rate" in logs:
            logs["tokens"] = self.state.num_input_tokens_seen
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_training_loss(logs["train_loss"])
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, and return the mean training loss over all steps, those before a resume included.

        A checkpoint may have been written by another number of processes, with or without FSDP2.
        """
        self.diverged = None
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True and (checkpoint := get_last_checkpoint(self.args.output_dir)) is None:
            raise RecordError(f"There is no checkpoint in {self.args.output_dir}; train without resuming.")
        with readable(checkpoint, self._layout, self.model, self._names_by_group() if checkpoint else []) as folder:
            output = super().train(folder, *args, **kwargs)
        return output._replace(training_loss=self._mean_training_loss(output.training_loss))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model for `from_pretrained`, gathered from all processes; under SHARDED_STATE_DICT Trainer does not.

        A checkpoint (`_internal_call`) under SHARDED_STATE_DICT keeps its shards only.
        """
        if self._layout != "sharded" or _internal_call:
            return super().save_model(output_dir, _internal_call)
        weights = self.accelerator.get_state_dict(self.model)
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=weights)
        return None

    def _sharing_a_batch(self) -> int:
        """Return how many processes work on the same examples, those next to each other in rank."""
        return self.get_tp_size() * self.get_cp_size() * self.get_sp_size()

    @property
    def _layout(self) -> Layout:
        """Return the layout of the checkpoints that this trainer writes and reads."""
        if not self.is_fsdp_enabled:
            return "plain"
        return "sharded" if "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type) else "full"

    def _names_by_group(self) -> list[list[str]]:
        optimizer = self.optimizer or self._mu_optimizer(self.model)  # in either case over the model's own parameters
        return distributed.group_names(self.model, optimizer)

    @property
    def curve(self) -> list[dict[str, float]]:
        """The loss curve so far, kept in the trainer state and thus in its checkpoints: one row a logged step.

        `step`, `tokens` seen, `loss` (mean since the row before, nats per token), `lr` (base), `grad_norm`.
        """
        return [
            {
                "step": row["step"],
                "tokens": row["tokens"],
                "loss": row["loss"],
                "lr": row["learning_rate"],
                "grad_norm": row.get("grad_norm", math.nan),
            }
            for row in self.state.log_history
            if row.keys() >= {"loss", "tokens", "learning_rate"}  # a callback may log what it likes
        ]

    def _mean_training_loss(self, otherwise: float) -> float:
        rows = self.curve
        steps = [row["step"] for row in rows]
        if not rows or steps[-1] != self.state.global_step:
            return otherwise
        spans = [b - a for a, b in zip([0, *steps], steps, strict=False)]
        return sum(row["loss"] * span for row, span in zip(rows, spans, strict=True)) / steps[-1]


class _RunGuard(TrainerCallback):
    """Log the first step, the last, and each that is saved; stop a run that diverges."""

    def __init__(self, trainer: MuTrainer):
        self.trainer = trainer
        self.first = math.inf
        self.above = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first, self.above = math.inf, 0
        for row in self.trainer.curve:  # those before a resume
            self._follow(row["loss"])

    def on_step_end(self, args, state, control, **kwargs):
        # The first loss is what a divergence is measured against; the last row closes the curve. A checkpoint does not
        # hold the losses since the last row, so a resumed curve is only the same if it has a row at each checkpoint.
        if state.global_step == 1 or state.global_step >= state.max_steps or control.should_save:
            control.should_log = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save
        control.should_save = control.should_save and self.trainer.diverged is None
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or "tokens" not in logs:
            return control
        loss = logs["loss"]
        self._follow(loss)
        reason = None
        if not math.isfinite(loss):
            reason = f"the loss is {loss} at step {state.global_step}"
        elif self.above >= DIVERGENCE_PATIENCE or (self.above and state.global_step >= state.max_steps):
            reason = f"the loss {loss:.4f} at step {state.global_step} is above its start {self.first:.4f}"
        if reason is not None:
            self.trainer.diverged = reason
            control.should_training_stop = True
            control.should_save = False
        return control

    def _follow(self, loss: float) -> None:
        self.first = loss if self.first == math.inf else self.first
        self.above = self.above + 1 if loss > DIVERGENCE_MARGIN * self.first else 0


def token_mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
    """Return the cross-entropy over labels other than -100, in nats per label of the whole (global) batch.

    Σ CE / num_items_in_batch, or the mean over this batch where no count is given. `outputs["logits"]` has shape
    (…, vocabulary) and is not shifted: for masked language models and encoder-decoders.
    """
    logits = outputs["logits"]
    total = nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.to(logits.device).flatten(), ignore_index=-100, reduction="sum"
    )
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if torch.is_tensor(count) else count)


def next_token_mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
    """Return `token_mean_loss` of each position's logits and the next position's label: for causal language models."""
    return token_mean_loss({"logits": outputs["logits"][..., :-1, :]}, labels[..., 1:], num_items_in_batch)


def _check_scheduler(args: TrainingArguments) -> None:
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    default = {"reduce_lr_on_plateau": 0.0, "greedy": 1e-3}  # the schedulers' own floors, the same for all groups
    if name in default and (args.lr_scheduler_kwargs or {}).get("min_lr", default[name]):
        raise ConfigurationError(
            f"lr_scheduler_type={name!r} with min_lr sets one floor for all μP groups and so changes their ratios; set "
            "min_lr to 0 in lr_scheduler_kwargs, or use 'cosine_with_min_lr' with min_lr_rate."
        )

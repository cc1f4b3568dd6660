"""The package's metrics in a Trainer: perplexity and bits per byte beside the held-out loss."""

from collections.abc import Callable
from typing import Any

import torch

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.metrics import load_metric
from hf_muscaling.models.base import require_mu_model

IGNORED = -100


def loss_metrics(model: Any, bytes_per_target: float | None = None) -> dict[str, Callable]:
    """Return what MuTrainer (or any Trainer) needs to report perplexity and bits per byte when it evaluates.

    Each batch's logits are reduced to one loss a target on its device, so that no logits are kept. `bytes_per_target`
    is `prepare_data(...).info["bytes_per_token"]` for a causal model. Raises ConfigurationError for a model whose loss
    is no mean over tokens.

    >>> from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM
    >>> model = MuLlamaForCausalLM(MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...                                          num_attention_heads=2, num_hidden_layers=1))
    >>> sorted(loss_metrics(model))                    # MuTrainer(model, args, …, **loss_metrics(model))
    ['compute_metrics', 'preprocess_logits_for_metrics']
    """
    objective = getattr(require_mu_model(model, "loss_metrics"), "mu_objective", None)
    if objective is None:
        raise ConfigurationError(f"{type(model).__name__} has a loss of its own that is no mean over tokens.")
    shift = 1 if objective == "causal" else 0
    metric = load_metric("bits_per_byte")

    def reduce(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return -ln p of every label, shape (batch, length); 0 where there is none."""
        logits = logits[0] if isinstance(logits, (tuple, list)) else logits
        targets = labels[:, shift:]
        losses = torch.nn.functional.cross_entropy(
            logits[:, : targets.shape[1]].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        return torch.nn.functional.pad(losses, (shift, 0))

    def compute(evaluation: Any) -> dict[str, float]:
        labels = evaluation.label_ids.copy()
        labels[:, :shift] = IGNORED
        found = metric.compute(predictions=evaluation.predictions, references=labels, bytes_per_target=bytes_per_target)
        return {name: value for name, value in found.items() if name not in ("loss", "targets")}

    return {"preprocess_logits_for_metrics": reduce, "compute_metrics": compute}

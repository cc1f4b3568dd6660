"""The coordinate check: do activations and their changes keep their size as width grows? (Tensor Programs V, App. D.1)

A parametrisation is right when every activation is Θ(1) at initialisation and every activation's change is Θ(1) after
a few steps, whatever the width. Train a few steps at several widths, regress log size on log width: slopes are zero
under μP, near one or above under standard parametrisation.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from hf_muscaling.coordinates import CoordinateCheck, Coordinates
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.base import require_mu_model
from hf_muscaling.models.pretraining import pretraining_class, pretraining_objective
from hf_muscaling.models.multipliers import MuReadout
from hf_muscaling.optim import MuAdamW
from hf_muscaling.parametrization import MUP

Batch = dict[str, torch.Tensor]
MASKED_SHARE = 0.15


def coordinate_check(
    config: PreTrainedConfig,
    widths: Sequence[int] | None = None,
    *,
    seeds: int = 3,
    steps: int = 10,
    judged_step: int = 6,
    learning_rate: float = 2**-8,
    batch: Batch | None = None,
    model_class: Any = None,
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | None = None,
    control: bool = True,
    tolerance: float = 0.2,
    tolerance_initial: float = 0.2,
    device: str | torch.device = "cpu",
) -> CoordinateCheck:
    # docstring later
    if widths is None:
        base = config.base_config().hidden_size
        widths = [base, 2 * base, 4 * base, 8 * base]
    optimizer = optimizer or _mu_adamw
    batch = {k: v.to(device) for k, v in (batch or random_batch(config)).items()}

    def measured(design: PreTrainedConfig) -> Coordinates:
        configs = [design.at_width(width) for width in widths]
        return _measure(configs, seeds, steps, learning_rate, batch, model_class, optimizer, device)

    return CoordinateCheck(
        model=type(config).__name__.removesuffix("Config"),
        mup=measured(config),
        control=measured(config.replace(parametrization="sp")) if control else None,
        step=min(judged_step, steps),
        tolerance=tolerance,
        tolerance_initial=tolerance_initial,
    )


def _mu_adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return MuAdamW(model, lr=lr, weight_decay=0.0)


def random_batch(config: PreTrainedConfig, sequences: int = 8, length: int = 32, seed: int = 0) -> Batch:
    """Return a fixed batch of random tokens for the objective that the model is pretrained with."""
    limit = getattr(config, "max_position_embeddings", None) or length
    length = min(length, limit)
    generator = torch.Generator().manual_seed(seed)
    reserved = config.pad_token_id
    tokens = torch.randint(0, config.vocab_size - (reserved is not None), (2, sequences, length), generator=generator)
    if reserved is not None:
        tokens += tokens >= reserved  # any token but padding
    objective = pretraining_objective(config)
    ids, other = tokens
    if objective == "causal":
        return {"input_ids": ids, "labels": ids}
    if objective == "masked":
        chosen = torch.rand(ids.shape, generator=generator) < MASKED_SHARE
        return {"input_ids": torch.where(chosen, other, ids), "labels": ids.masked_fill(~chosen, -100)}
    return {"input_ids": ids, "labels": other}


def _measure(configs, seeds, steps, learning_rate, batch, model_class, optimizer, device) -> Coordinates:
    runs = []
    for config in configs:
        for seed in range(seeds):
            torch.manual_seed(seed)
            make = model_class or pretraining_class(config)
            model = getattr(make, "from_config", make)(copy.deepcopy(config)).to(device)
            runs.append(_train(model, optimizer(model, learning_rate), batch, steps))
    shape = (len(configs), seeds)
    last = runs[0]
    collected = {
        table: {
            name: np.moveaxis(np.array([run[table][name] for run in runs]).reshape(*shape, -1), -1, 0)
            for name in last[table]
        }
        for table in ("initial", "changes", "updates")
    }
    return Coordinates(
        parametrization=configs[0].parametrization,
        widths=tuple(c.hidden_size for c in configs),
        kinds=_kinds(model, collected["initial"]),
        initial={k: v[0] for k, v in collected["initial"].items()},
        changes=collected["changes"],
        updates=collected["updates"],
        matrices=frozenset(n for n, p in model.named_parameters() if p.dim() > 1),
        losses=np.moveaxis(np.array([run["losses"] for run in runs]).reshape(*shape, -1), -1, 0),
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, steps: int) -> dict[str, Any]:
    start = _activations(model, batch)
    inner = require_mu_model(model, "coordinate_check")
    table = inner.mu_table()
    weights = {n: p.detach().clone() for n, p in inner.named_parameters()}
    scales = {n: 1 / MUP[s.role].scale("lr", s.fan_in) for n, s in table.items()}
    initial = {n: [_rms(x)] for n, x in start.items()}
    changes: dict[str, list[float]] = {n: [] for n in start}
    updates: dict[str, list[float]] = {n: [] for n in weights}
    losses = []
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        now = _activations(model, batch)
        for name, x in start.items():
            changes[name].append(_rms(now[name] - x))
        for name, p in inner.named_parameters():
            updates[name].append(_rms(p.detach() - weights[name]) * scales[name])
    return {"initial": initial, "changes": changes, "updates": updates, "losses": losses}


@torch.no_grad()
def _activations(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the output of every module in evaluation mode, by module name; several calls of one are joined."""
    found: dict[str, list[torch.Tensor]] = {}

    def record(name: str) -> Callable:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                found.setdefault(name, []).append(first.detach().flatten())

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if name and not isinstance(module, (nn.Dropout, nn.Identity))
    ]
    try:
        model.eval()(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(outputs) for name, outputs in found.items()}


def _kinds(model: nn.Module, names: Any) -> dict[str, str]:
    kinds = {}
    for name in names:
        module = model.get_submodule(name)
        if any(isinstance(m, MuReadout) for m in module.modules()):
            kinds[name] = "logits"
        elif isinstance(module, nn.Embedding):
            kinds[name] = "embedding"
        elif "norm" in type(module).__name__.lower():
            kinds[name] = "norm"
        else:
            kinds[name] = "linear" if not any(module.children()) else "block"
    return kinds


def _rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()

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

from hf_muscaling.checks.coordinates import CoordinateCheck, Coordinates
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.base import require_mu_model
from hf_muscaling.models.config import require_mu_config
from hf_muscaling.models.multipliers import MuReadout
from hf_muscaling.models.pretraining import pretraining_class, pretraining_objective
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
    learning_rate: float = 2**-9,
    batch: Batch | None = None,
    model_class: Any = None,
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | None = None,
    control: bool = True,
    tolerance: float = 0.2,
    tolerance_initial: float = 0.2,
    device: str | torch.device = "cpu",
) -> CoordinateCheck:
    """Train a few steps at several widths and return how the sizes of activations and updates move with width.

    For each width w and seed the model of `config.at_width(w)` takes `steps` AdamW steps on one fixed `batch`. After
    each step t, and before the first, every module's output x is measured in evaluation mode (so that a multiplier
    applied in training only is seen):

        initial   RMS(x_0)                  Θ(1); random logits may shrink as r**-0.5
        change    RMS(x_t − x_0)            Θ(1)
        update    RMS(W_t − W_0)·r**e       Θ(1), e = 1 for matrix-like parameters, 0 for all others

    with RMS over all entries, the root mean square that Tensor Programs calls coordinate size. The slope of log size
    over log width is fitted by least squares and averaged over seeds. The check passes if every initial slope is within
    ±`tolerance_initial`, and every change's and every matrix's update's after `judged_step` updates within
    ±`tolerance`. Both are needed: a missing μP initialisation shows in the initial sizes and is nearly gone after six
    steps; a wrong learning rate shows only in the changes. Logits are bounded from above alone at initialisation,
    and from below by −0.5 − `tolerance` in their change, unless the readout starts at zero: a random readout W_0
    averages w terms of random sign over r, so that W_0·x_0, and the part of W_0·(x_t − x_0) that is not aligned with
    W_0, shrink as r**-0.5 while the aligned part stays (in a tied readout also the input token's own logit).

    Finite widths bend slopes below zero in the same way wherever random terms outweigh aligned ones: many tokens in
    the batch, a small learning rate beside a large initialisation. `batch` therefore defaults to 2 × 16 random tokens
    for the model's own objective; nanoLM's zero readout and query remove most of what is left.

    Args:
        config: a μP config (`MuLlamaConfig`, …); its base width counts, whatever its own width.
        widths: at least two widths; by default 1, 2, 4 and 8 times the base width.
        seeds: initialisations per width. `steps`: updates to take. `judged_step`: updates before changes are judged.
        learning_rate: at base width; small enough that no loss spikes, or slopes tell of the spike.
        batch: keyword arguments of the model's forward, labels included.
        model_class: what builds the model: an Auto class, a model class or a function of the config; by default the
            pretraining class of the architecture.
        optimizer: a function of the model and the learning rate; by default `MuAdamW` without weight decay. It may
            shard the model first: `lambda model, lr: MuAdamW(shard_model(model), lr=lr)` measures sharded training.
        control: measure standard parametrisation too, on the same batch.
        device: where to measure.

    Raises ConfigurationError before any training for a config without base shapes, fewer than two widths, an
    impossible width, or counts that are not positive. Source: Tensor Programs V (Yang et al. 2022), Appendix D.1 and
    Figure 5; coordinate size as in Tensor Programs IV (Yang & Hu 2021). Example:

    >>> from hf_muscaling import MuLlamaConfig, coordinate_check
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> check = coordinate_check(base, widths=[32, 64, 128], seeds=1, steps=6)
    >>> check.passed, check.control_worst.slope > 1
    (True, True)
    """
    config, widths = _checked(config, widths, seeds=seeds, steps=steps, judged_step=judged_step)
    optimizer = optimizer or _mu_adamw
    batch = {k: v.to(device) for k, v in (batch or random_batch(config)).items()}

    def measured(design: PreTrainedConfig) -> Coordinates:
        configs = [design.at_width(width) for width in widths]
        return _measure(configs, seeds, steps, learning_rate, batch, model_class, optimizer, device)

    settings = {"seeds": seeds, "steps": steps, "learning_rate": learning_rate, "config": config.to_dict()}
    return CoordinateCheck(
        model=type(config).__name__.removesuffix("Config"),
        mup=measured(config),
        control=measured(config.replace(parametrization="sp")) if control else None,
        step=judged_step,
        tolerance=tolerance,
        tolerance_initial=tolerance_initial,
        settings=settings | {"batch": {k: list(v.shape) for k, v in batch.items()}},
    )


def _checked(config: Any, widths: Sequence[int] | None, **counts: int) -> tuple[Any, list[int]]:
    require_mu_config(config, "coordinate_check")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be a positive whole number, got {value!r}.")
    if counts["judged_step"] > counts["steps"]:
        raise ConfigurationError(
            f"judged_step={counts['judged_step']} is past the last of {counts['steps']} steps; take more steps."
        )
    base = config.base_config().hidden_size
    widths = sorted(widths) if widths is not None else [base, 2 * base, 4 * base, 8 * base]
    if len(set(widths)) < 2 or len(set(widths)) < len(widths):
        raise ConfigurationError(f"widths={widths}: a slope needs two different widths or more.")
    for width in widths:
        config.at_width(width)
    return config, widths


def _mu_adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return MuAdamW(model, lr=lr, weight_decay=0.0)


def random_batch(config: PreTrainedConfig, sequences: int = 2, length: int = 16, seed: int = 0) -> Batch:
    """Return a fixed batch of random tokens for the objective that the architecture is pretrained with.

    Causal: the labels are the tokens. Masked: 15 % of the tokens are labels, and are replaced by other tokens in the
    input. Sequence to sequence: input and labels are drawn separately. The padding token is never drawn.
    """
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
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
        count = max(round(MASKED_SHARE * ids.numel()), 1)
        chosen = torch.rand(ids.numel(), generator=generator).argsort().view(ids.shape) < count
        return {"input_ids": torch.where(chosen, other, ids), "labels": ids.masked_fill(~chosen, -100)}
    return {"input_ids": ids, "labels": other}


def _measure(configs, seeds, steps, learning_rate, batch, model_class, optimizer, device) -> Coordinates:
    runs = []
    with torch.random.fork_rng():
        for config in configs:
            config = copy.deepcopy(config)
            if hasattr(config, "use_cache"):
                config.use_cache = False
            make = model_class or pretraining_class(config)
            for seed in range(seeds):
                torch.manual_seed(seed)
                build: Callable = getattr(make, "from_config", make)
                model = build(copy.deepcopy(config)).to(device)
                runs.append(_train(model, optimizer(model, learning_rate), batch, steps))

    def joined(table: str) -> dict[str, np.ndarray]:
        """Return the runs' lists over steps as one array [steps, widths, seeds] for each name."""
        return {
            name: np.moveaxis(np.array([run[table][name] for run in runs]).reshape(len(configs), seeds, -1), -1, 0)
            for name in runs[0][table]
        }

    # a router is a readout inside the network: its logits behave like the model's
    routers = {name.rpartition(".")[0] for name, scale in model.mu_table().items() if scale.role == "router"}
    return Coordinates(
        parametrization=configs[0].parametrization,
        widths=tuple(config.hidden_size for config in configs),
        kinds={n: "logits" if n in routers else _kind(model.get_submodule(n)) for n in runs[0]["initial"]},
        initial={name: sizes[0] for name, sizes in joined("initial").items()},
        changes=joined("changes"),
        updates=joined("updates"),
        matrices=frozenset(n for n, p in model.named_parameters() if p.dim() > 1),
        losses=joined("losses")[""],
    )


def _train(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, steps: int) -> dict[str, dict[str, list[float]]]:
    inner: Any = require_mu_model(model, "coordinate_check")
    table = inner.mu_table()
    weights = dict(model.named_parameters())
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    units = {name: MUP[scale.role].scale("lr", scale.fan_in) for name, scale in table.items()}
    before = _activations(model, batch)
    found: dict[str, dict[str, list[float]]] = {
        "initial": {name: [rms(x)] for name, x in before.items()},
        "changes": {name: [] for name in before},
        "updates": {name: [] for name in weights},
        "losses": {"": []},
    }
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        found["losses"][""].append(loss.item())
        after = _activations(model, batch)
        for name, x in before.items():
            found["changes"][name].append(rms(after[name] - x))
        for name, weight in weights.items():
            found["updates"][name].append(rms(weight.detach() - start[name]) / units[name])
    return found


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


def _kind(module: nn.Module) -> str:
    if any(isinstance(part, MuReadout) for part in module.modules()):
        return "logits"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "block" if any(module.children()) else "layer"


def rms(x: torch.Tensor) -> float:
    """Return the root mean square over all entries, Tensor Programs' coordinate size."""
    whole = getattr(x, "full_tensor", None)  # of a sharded weight
    return (whole() if whole else x).float().square().mean().sqrt().item()

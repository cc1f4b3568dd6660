"""μP optimizers: parameter groups from the model's table, and AdamW and SGD that take the model itself.

Adam (nanoLM Table 2): lr of matrix-like parameters is l/r, of all others l. SGD (Tensor Programs V, Table 8): lr of
input and vector parameters is l·fan_out, of readouts l·fan_in, of hidden ones l·fan_out/fan_in, all as ratios to base.
"""

from collections import defaultdict
from typing import Any, Literal

import torch
from torch import nn

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.base import require_mu_model
from hf_muscaling.parametrization import ParameterScale

DecayPolicy = Literal["coupled", "independent", "none"]


def adam_lr_scale(model: Any, scale: ParameterScale) -> float:
    """Return lr / base lr of one parameter under Adam: r**(-1) for hidden parameters, 1 for all others (under μP)."""
    return model.mu_rules[scale.role].scale("lr", scale.fan_in)


def sgd_lr_scale(model: Any, scale: ParameterScale) -> float:
    """Return lr / base lr of one parameter under SGD (Tensor Programs V, Table 8)."""
    if model.config.is_standard:
        return 1.0
    if scale.role == "hidden":
        return scale.fan_out / scale.fan_in
    if scale.role == "readout" or (scale.role == "input" and model.config.tie_word_embeddings):
        return max(scale.fan_in, scale.fan_out)
    if scale.role == "router":  # a readout's fan-in times the square of the 1/r that its weights hold
        return 1 / scale.fan_in
    return scale.fan_out


def _decay(weight_decay: float, lr: float, lr_scale: float, policy: DecayPolicy) -> float:
    if policy == "coupled":
        return weight_decay / lr_scale
    if policy == "independent":
        return weight_decay / (lr * lr_scale)
    return weight_decay


def mu_param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    policy: DecayPolicy = "coupled",
    *,
    eps: float | None = None,
    decay_vectors: bool = False,
    lr_scale=adam_lr_scale,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a μP model: one a distinct (lr, weight decay), the base-lr group first.

    `lr` is the learning rate at base width. A decoupled optimizer shrinks weights by lr_i·wd_i a step; `policy` says
    how wd_i follows lr_i at width multiplier r:

    * `coupled`: lr_i·wd_i = lr·weight_decay at every width (what `mup` does);
    * `independent`: lr_i·wd_i = weight_decay, whatever the learning rate;
    * `none`: wd_i = weight_decay, so that wider matrices decay less.

    Norms and biases do not decay unless `decay_vectors`. With `eps` (Adam's, at base width), each group gets eps/r:
    gradients shrink as 1/width under μP, so a constant eps would begin to dominate at large width. Under a depth
    parametrisation those inside the layers shrink by 1/depth multiplier too (CompleteP, Dey et al. 2025).

    Raises ConfigurationError for a model without a parametrisation or an impossible setting. Example:

    >>> from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM, mu_param_groups
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> [g["lr"] for g in mu_param_groups(MuLlamaForCausalLM(base.at_width(128)), lr=0.5)]
    [0.5, 0.125]
    """
    inner = require_mu_model(model, "mu_param_groups")
    if isinstance(lr, torch.Tensor):
        raise ConfigurationError("lr must be a number: a tensor would be shared and rescaled by every group.")
    if not lr > 0:
        raise ConfigurationError(f"lr must be positive, got {lr!r}.")
    if not weight_decay >= 0:
        raise ConfigurationError(f"weight_decay must not be negative, got {weight_decay!r}.")
    if policy not in ("coupled", "independent", "none"):
        raise ConfigurationError(f"policy={policy!r} is unknown; use 'coupled', 'independent' or 'none'.")
    table = inner.mu_table()
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in inner.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = lr_scale(inner, table[name])
        decays = weight_decay and (decay_vectors or (table[name].role != "vector" and parameter.dim() > 1))
        shrinkage = inner.mu_depth_rule.scale("eps", table[name].depth)
        groups[scale, _decay(weight_decay, lr, scale, policy) if decays else 0.0, shrinkage].append(parameter)
    # Trainer logs the learning rate of group 0: the base one, or the nearest to it where no parameter has it
    order = sorted(groups, key=lambda key: (abs(key[0] - 1.0), -key[1], -key[2]))
    width = 1.0 if inner.config.is_standard else inner.width_multiplier()
    return [
        {"params": groups[k], "lr": lr * k[0], "weight_decay": k[1]}
        | ({} if eps is None else {"eps": eps / width * k[2]})
        for k in order
    ]


class MuAdamW(torch.optim.AdamW):
    """AdamW over the μP groups of a model: one optimizer, a handful of groups, fused where torch can.

    θ ← θ·(1 − lr_i·wd_i) − lr_i·m̂/(√v̂ + eps/r), with lr_i = lr/r for matrix-like parameters (nanoLM Table 2).
    `lr`, `weight_decay` and `eps` are those at base width; see `mu_param_groups` for `policy`. `scale_eps=False` keeps
    eps constant, as `mup` does. Any further keyword is `torch.optim.AdamW`'s.

    >>> from hf_muscaling import MuAdamW, MuGPT2Config, MuGPT2LMHeadModel
    >>> base = MuGPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_head=2, n_layer=1)
    >>> optimizer = MuAdamW(MuGPT2LMHeadModel(base.at_width(64)), lr=1e-2, weight_decay=0.1)
    >>> [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    [(0.01, 0.1), (0.01, 0.0), (0.005, 0.2)]
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        policy: DecayPolicy = "coupled",
        *,
        scale_eps: bool = True,
        decay_vectors: bool = False,
        fused: bool | None = None,
        **kwargs: Any,
    ):
        groups = mu_param_groups(
            model, lr, weight_decay, policy, eps=eps if scale_eps else None, decay_vectors=decay_vectors
        )
        if fused is None and not any(kwargs.get(k) for k in ("foreach", "differentiable")):
            # torch's fused kernel is 3 to 6 times faster on CPU too; it wants plain floating-point parameters
            fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused, **kwargs)


class MuSGD(torch.optim.SGD):
    """SGD over the μP groups of a model (Tensor Programs V, Table 8); weight decay follows `policy` as in `MuAdamW`."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        policy: DecayPolicy = "coupled",
        *,
        decay_vectors: bool = False,
        **kwargs: Any,
    ):
        groups = mu_param_groups(model, lr, weight_decay, policy, decay_vectors=decay_vectors, lr_scale=sgd_lr_scale)
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, **kwargs)

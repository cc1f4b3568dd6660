"""The coordinate check over depth: does the residual stream keep its size, and its changes theirs, as layers are added?

With each residual branch divided by the depth multiplier (CompleteP) the changes of the stream after a few steps are
Θ(1) in depth; without it they grow with every layer.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig

from hf_muscaling.checks.coordinate import Batch, random_batch, rms
from hf_muscaling.checks.coordinates import Slope, loglog_slope
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.config import require_mu_config
from hf_muscaling.models.pretraining import pretraining_class
from hf_muscaling.optim import MuAdamW
from hf_muscaling.runs import write_json

Sizes = dict[str, NDArray]
"""Where → RMS sizes, [depths, seeds]; where is a stack of layers at half or full height, or the logits."""


@dataclass(frozen=True)
class DepthCheck:
    """The verdict of `depth_check`; print it, `plot` it, write it with `to_json`.

    `initial` and `changes` hold sizes before any update and of the changes after `step` updates; `control_changes`
    the changes with `depth_parametrization="none"`, empty without a control.
    """

    model: str
    depths: tuple[int, ...]
    initial: Sizes
    changes: Sizes
    control_changes: Sizes = field(default_factory=dict)
    step: int = 6
    tolerance: float = 0.2

    @property
    def slopes(self) -> list[Slope]:
        """Return the slopes of log size over log depth: initial sizes must not grow, changes must keep their size.

        The branches start as L random terms, each divided by L: what they add at initialisation may vanish as L**-0.5.
        """
        found = []
        for quantity, sizes, low in (("initial", self.initial, None), ("change", self.changes, -self.tolerance)):
            for name, size in sizes.items():
                slope, error = loglog_slope(self.depths, size)
                found.append(Slope(name, "block", quantity, self.step, slope, error, low, self.tolerance))
        return found

    @property
    def passed(self) -> bool:
        """Whether every slope is within its bounds and something moved."""
        return all(s.passed for s in self.slopes) and any(s.slope is not None for s in self.slopes)

    @property
    def worst(self) -> Slope:
        """Return the change with the largest |slope|."""
        return max((s for s in self.slopes if s.quantity == "change"), key=lambda s: s.excess)

    @property
    def control_slope(self) -> float | None:
        """Return the largest slope of a change in the control; None without one."""
        found = [loglog_slope(self.depths, size)[0] for size in self.control_changes.values()]
        return max((s for s in found if s is not None), default=None)

    def __str__(self) -> str:
        verdict = "PASSED" if self.passed else "FAILED"
        lines = [
            f"Depth check of {self.model} {verdict}: {', '.join(map(str, self.depths))} layers; worst slope of a "
            f"change after step {self.step} {self.worst.slope:+.2f} ({self.worst.name}), tolerance {self.tolerance:g}."
        ]
        if self.control_slope is not None:
            lines.append(f"Without a depth parametrisation: {self.control_slope:+.2f}.")
        lines += ["", f"{'':>36}{'initial':>9}{'change':>9}" + (f"{'control':>9}" if self.control_changes else "")]
        rows = {(s.quantity, s.name): s.slope for s in self.slopes}
        for name in self.changes:
            control = loglog_slope(self.depths, self.control_changes[name])[0] if self.control_changes else None
            cells = [rows["initial", name], rows["change", name], *([control] if self.control_changes else [])]
            lines.append(f"{name:>36}" + "".join(f"{'zero' if c is None else f'{c:+.2f}':>9}" for c in cells))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON types, sizes as [depth][seed]."""
        return {
            "model": self.model,
            "passed": self.passed,
            "depths": list(self.depths),
            "step": self.step,
            "tolerance": self.tolerance,
            "slopes": [{**asdict(s), "passed": s.passed} for s in self.slopes],
            "control_slope": self.control_slope,
            **{
                name: {where: size.tolist() for where, size in getattr(self, name).items()}
                for name in ("initial", "changes", "control_changes")
            },
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the check to a file, atomically."""
        write_json(path, self.to_dict())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Return the figure (sizes of changes over depth, beside the control), written to `path` if one is given."""
        from hf_muscaling.plotting import plot_depth, save_figure

        figure = plot_depth(self)
        if path is not None:
            save_figure(figure, path)
        return figure


def depth_check(
    config: PreTrainedConfig,
    depths: Sequence[int] = (2, 4, 8, 16, 32),
    *,
    seeds: int = 2,
    steps: int = 6,
    learning_rate: float = 2**-8,
    batch: Batch | None = None,
    control: bool = True,
    tolerance: float = 0.2,
) -> DepthCheck:
    """Train a few AdamW steps at several depths on one batch and return how sizes in the residual stream move.

    Measured at half and at full height of each stack of layers, before the last norm, and at the logits: RMS before
    any update, RMS of the change after `steps` updates. It passes if the slopes of log change over log depth lie within
    ± `tolerance` and no initial size grows faster. `config` must have a depth parametrisation; the control is the same
    design without one. Post-norm models (BERT) renormalise the stream after every branch, which hides most of the
    growth that the control is meant to show.

    Raises ConfigurationError for a config without a depth parametrisation, for fewer than three depths or odd ones.
    Source: CompleteP (Dey et al. 2025), whose α = 1 this is. Example:

    >>> from hf_muscaling import MuLlamaConfig, depth_check
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=2, depth_parametrization="completep")
    >>> depth_check(base, depths=[2, 4, 8], seeds=1, steps=3).passed
    True
    """
    name = type(config).__name__
    require_mu_config(config, "depth_check")
    if config.depth_parametrization == "none":
        raise ConfigurationError(
            f"{name} has depth_parametrization='none', under which nothing follows the depth: set it to 'completep'."
        )
    depths = sorted(depths)
    if len(set(depths)) < max(3, len(depths)) or any(not isinstance(d, int) or d < 2 or d % 2 for d in depths):
        raise ConfigurationError(f"depths={depths}: give three different even numbers of layers or more.")
    batch = batch or random_batch(config)

    def measured(design: PreTrainedConfig) -> tuple[Sizes, Sizes]:
        runs = [_train(design.at_depth(d), s, steps, learning_rate, batch) for d in depths for s in range(seeds)]
        return tuple(  # type: ignore[return-value]
            {where: np.reshape([run[k][where] for run in runs], (len(depths), seeds)) for where in runs[0][k]}
            for k in (0, 1)
        )

    initial, changes = measured(config)
    control_changes = measured(config.replace(depth_parametrization="none"))[1] if control else {}
    model = name.removesuffix("Config")
    return DepthCheck(model, tuple(depths), initial, changes, control_changes, steps, tolerance)


def _train(config: PreTrainedConfig, seed: int, steps: int, learning_rate: float, batch: Batch):
    torch.manual_seed(seed)
    model = pretraining_class(config).from_config(config)
    optimizer = MuAdamW(model, lr=learning_rate)
    before = _stream(model, batch)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    after = _stream(model, batch)
    return {w: rms(x) for w, x in before.items()}, {w: rms(after[w] - x) for w, x in before.items()}


@torch.no_grad()
def _stream(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the residual stream at half and full height of every stack of layers, and the logits."""
    seen: dict[str, torch.Tensor] = {}

    def watch(where: str):
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[where] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = []
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    for name, stack in stacks:
        if any(name.startswith(f"{outer}.") for outer, _ in stacks):
            continue  # T5's blocks are lists of sublayers themselves
        for where, layer in ((f"{name}, half", stack[len(stack) // 2 - 1]), (f"{name}, all", stack[-1])):
            handles.append(layer.register_forward_hook(watch(where)))
    try:
        seen["logits"] = model.eval()(**batch).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen

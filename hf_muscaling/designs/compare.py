"""Algorithm 1 of nanoLM, research without re-search: train narrow proxies of every design, predict which wins wide.

For each design: grid search at its base width, proxies with the settings found, L(N) = a·N^b + c, prediction at the
target. All designs see the same batches in the same order and are evaluated on the same held-out text; the verdict
carries its probability (`verdict`, `joint`). Interrupted, the same call continues.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from hf_muscaling.configuration import ExperimentConfig, parse_experiment
from hf_muscaling.errors import ConfigurationError, FitError, TrainingError
from hf_muscaling.experiment import ExperimentResult, ExperimentSetup, experiment_step_flops, run_experiment
from hf_muscaling.runs import Run

from .comparability import CommonGround, check_designs, common_ground
from .crossing import Crossing, crossing
from .narrowing import Purchase, purchases
from .targets import next_proxy, width_for
from .verdict import CALL, Call, FittedDesign, Verdict, compare_fitted

EQUAL = 0.01  #: targets whose N differ by less count as of one size


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: each design's experiment, the verdict, and what surrounds it.

    `at_equal_size` is the verdict of the laws at one N where the targets' own sizes differ by more than 1 % (None
    otherwise). `spent` are the FLOPs of each design's grid and proxies, `target_flops` those of training each target
    once (nanoLM's formula). Losses of `results` are nats per token; `ground.scales` turn them into `ground.unit`.
    """

    results: Mapping[str, ExperimentResult]
    ground: CommonGround
    verdict: Verdict
    at_equal_size: Verdict | None
    crossings: Mapping[tuple[str, str], Crossing]
    purchases: Mapping[tuple[str, str], list[Purchase]]
    spent: Mapping[str, float]
    target_flops: Mapping[str, float]

    @property
    def cost_ratio(self) -> float:
        """The cost of all grids and proxies over that of training every target once (nanoLM, Eq. 1)."""
        return sum(self.spent.values()) / sum(self.target_flops.values())

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and prints."""
        return all(result.is_main_process for result in self.results.values())

    def actual(self, name: str) -> float | None:
        """A trained target's held-out loss in the comparison's unit, the mean over its seeds; None if not trained."""
        loss = self.results[name].actual
        return None if loss is None else loss * self.ground.scales[name]

    def actual_difference(self, call: Call) -> float | None:
        """log L_first - log L_second of the trained targets; None if they were not trained."""
        first, second = self.actual(call.first), self.actual(call.second)
        return None if first is None or second is None else float(np.log(first / second))

    def right(self, call: Call) -> bool | None:
        """Whether the design called has the lower loss; None if nothing was called or the targets were not trained."""
        found = self.actual_difference(call)
        if call.winner is None or found is None:
            return None
        return (found < 0) == (call.winner == call.first)


def compare_designs(
    designs: Sequence[str | os.PathLike[str]] | Mapping[str, ExperimentConfig],
    target: float | None = None,
    *,
    target_width: int | None = None,
    output_dir: str | os.PathLike[str] = "runs/compare",
    verify: bool = False,
    threshold: float = CALL,
    heldout_of: str | None = None,
    different_horizons: bool = False,
    progress: bool = True,
) -> Comparison:
    """Say which design will have the lower loss at the target, from proxies alone, with the verdict's probability.

    Args:
        designs: YAML files of experiments, or experiments by name. Each is trained in `output_dir`/name.
        target: N of the targets, parameters; each design takes its own nearest width. By default each design's own
            `target_width`.
        target_width: one width for all designs instead.
        verify: train the targets too and say whether the verdict was right.
        threshold: the probability from which a pair is called; below, it is "too close to call".
        heldout_of: the design whose held-out text all are evaluated on, if their data differ.
        different_horizons: allow designs that see different numbers of tokens.

    Writes comparison.md, comparison.json and comparison.png to `output_dir`, and each design's own report beside its
    runs. Raises ConfigurationError for designs that do not compare, before any training, and what `run_experiment`
    raises.

    >>> comparison = compare_designs(["llama.yaml", "gpt2.yaml"], target=1.3e6)  # doctest: +SKIP
    >>> print(comparison.verdict)  # doctest: +SKIP
    """
    from hf_muscaling.folders import writable_folder
    from hf_muscaling.interruption import listening

    from .report import write_comparison

    configs = read_designs(designs)
    if target is not None and target_width is not None:
        raise ConfigurationError(f"Give target={target:g} parameters or target_width={target_width}, not both.")
    if target is not None and not (np.isfinite(target) and target > 0):
        raise ConfigurationError(f"target={target!r} must be a positive number of parameters.")
    if not 0.5 < threshold < 1:
        raise ConfigurationError(f"threshold={threshold} must be a probability between 0.5 and 1.")
    check_designs(configs, heldout_of=heldout_of, different_horizons=different_horizons)
    if target_width is not None:
        configs = {name: replace(config, target_width=target_width) for name, config in configs.items()}
    for config in configs.values():
        config.base_config()
    folder = writable_folder(output_dir)
    with listening():
        ground = common_ground(configs, heldout_of=heldout_of, progress=progress)
        if target is not None:
            widths = {name: width_for(configs[name], ground.setups[name].base, target) for name in configs}
            configs = {name: replace(config, target_width=widths[name]) for name, config in configs.items()}
        configs = {name: replace(c, output_dir=str(folder / name)) for name, c in configs.items()}
        results: dict[str, ExperimentResult] = {}
        for verifying in (False, True) if verify else (False,):
            for name, config in configs.items():
                try:
                    results[name] = run_experiment(replace(config, verify=verifying), progress, ground.setups[name])
                except (ConfigurationError, FitError, TrainingError) as error:
                    raise type(error)(f"Design {name!r}: {error}") from error
            comparison = judge(results, ground, threshold)
            if comparison.is_main_process:
                write_comparison(comparison, folder)
    return comparison


def read_designs(
    designs: Sequence[str | os.PathLike[str]] | Mapping[str, ExperimentConfig], flags: Sequence[str] = ()
) -> dict[str, ExperimentConfig]:
    """Return the designs by name: a YAML file is named by its stem. `flags` are those of an experiment and win."""
    if isinstance(designs, Mapping):
        found = dict(designs)
    else:
        for path in designs:
            if not Path(path).is_file():
                raise ConfigurationError(f"There is no file {str(path)!r}. A design is a YAML file of an experiment.")
        names = [Path(path).stem for path in designs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"Two designs are called {name!r}; rename a file: folders bear these names.")
        found = {
            name: parse_experiment(["--config", str(path), *flags])[0]
            for name, path in zip(names, designs, strict=True)
        }
    for name in found:
        if not name or Path(name).name != name:
            raise ConfigurationError(f"The design's name {name!r} must do as the name of a folder.")
    return found


def judge(results: Mapping[str, ExperimentResult], ground: CommonGround, threshold: float = CALL) -> Comparison:
    """Compare experiments that are done: verdict, crossings, what more proxies would buy, and costs."""
    level = next(iter(results.values())).config.level
    designs = [_fitted(name, result, ground) for name, result in results.items()]
    verdict = compare_fitted(designs, threshold=threshold, level=level)
    sizes = np.array([d.N for d in designs])
    equal = None
    if sizes.max() / sizes.min() > 1 + EQUAL:
        one = float(np.exp(np.log(sizes).mean()))
        equal = compare_fitted([replace(d, N=one) for d in designs], threshold=threshold, level=level)
    pairs = list(combinations(results, 2))
    widths: dict[tuple[str, float], int] = {(d.name, float(n)): w for d in designs for n, w in _widths(d)}
    next_size = {}
    for name, result in results.items():
        width, N = next_proxy(result.config, ground.setups[name].base)
        widths[name, float(N)], next_size[name] = width, float(N)

    def flops(name: str, N: float) -> float:
        return _flops(results[name], ground.setups[name], widths[name, N])

    target_flops = {name: _flops(r, ground.setups[name], r.config.target_width) for name, r in results.items()}
    return Comparison(
        results=dict(results),
        ground=ground,
        verdict=verdict,
        at_equal_size=equal,
        crossings={p: crossing(verdict, *p) for p in pairs},
        purchases={p: purchases(verdict, *p, next_size, flops) for p in pairs},
        spent={name: result.cost_ratio * target_flops[name] for name, result in results.items()},
        target_flops=target_flops,
    )


def _fitted(name: str, result: ExperimentResult, ground: CommonGround) -> FittedDesign:
    runs: list[Run] = list(result.proxies)
    seeds = result.config.target_seeds
    return FittedDesign(name, result.law, runs, float(result.target_N), seeds, ground.scales[name])  # type: ignore[arg-type]


def _widths(design: FittedDesign) -> set[tuple[float, int]]:
    """(N as the law counts it, width) of a design's proxies."""
    return {(float(getattr(run, design.law.columns["N"])), run.width) for run in design.runs}


def _flops(result: ExperimentResult, setup: ExperimentSetup, width: int) -> float:
    """The FLOPs of training a design at a width once, by nanoLM's formula."""
    return result.config.steps * experiment_step_flops(result.config, width, setup.base.vocab_size)

"""What an experiment will cost before it runs: parameters, FLOPs and memory of every run, counted on `meta`."""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.counting import training_flops
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.memory import Memory, ModelSizes, Sharding, model_sizes, training_memory

USABLE = 0.9
"""Share of a device's memory that a plan fills: the rest is for the device's context, buffers of communication and
fragments that the allocator cannot use."""
_MOST_DEVICES = 2**20


@dataclass(frozen=True)
class Hardware:
    """The devices a run is planned on: how many train it together, how, in what precision, with how much memory."""

    devices: int = 1
    sharding: Sharding = "none"
    precision: str = "fp32"
    device_memory: float = 80e9
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ConfigurationError(f"devices={self.devices} must be 1 or more.")
        if not (self.device_memory > 0 and math.isfinite(self.device_memory)):
            raise ConfigurationError(f"device_memory={self.device_memory} must be a positive number of bytes (80e9).")
        if self.sharding == "none" and self.devices > 1:
            raise ConfigurationError(
                f"devices={self.devices} with sharding='none' would leave all but one idle: choose 'ddp' (each holds "
                "the whole model) or 'fsdp2' (each holds a part)."
            )


@dataclass(frozen=True)
class PlannedRun:
    """One kind of run: `runs` of them train alike (cells of the grid, seeds). FLOPs are those of one run.

    `flops_nanolm` is steps · 96·b·s·l·w²·(1 + s/(6w) + V/(16·l·w)), `flops_6nd` 6·N·D. `memory` is in bytes on each
    device, with `sequences` on it at once; `fits` if its total is below 90 % of the device's. `least_devices` is the
    smallest power of two with which FSDP2 would fit, with one sequence on each at a time; None if none does.
    """

    role: str
    width: int
    runs: int
    N: int
    N_non_embedding: int
    D: int
    flops_nanolm: float
    flops_6nd: float
    sequences: int
    memory: Memory
    fits: bool
    least_devices: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total}}


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment with their cost; `print(plan)` shows the table.

    `cost_ratio` is nanoLM's Eq. 1: the FLOPs of grid and proxies (one seed each, the base width's proxy being a run of
    the grid) over those of the target; `cost_ratio_all` counts every seed that the experiment trains.
    """

    architecture: str
    hardware: Hardware
    rows: tuple[PlannedRun, ...]
    cost_ratio: float
    cost_ratio_all: float

    @property
    def fits(self) -> bool:
        """Return whether every run fits on its devices."""
        return all(row.fits for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: bytes, FLOPs, counts."""
        return {
            "architecture": self.architecture, "hardware": asdict(self.hardware), "fits": self.fits,
            "cost_ratio": self.cost_ratio, "cost_ratio_all": self.cost_ratio_all,
            "runs": [row.to_dict() for row in self.rows],
        }  # fmt: skip

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        header = ["run", "width", "runs", "N", "N w/o emb.", "D", "FLOPs nanoLM", "6ND", "weights", "grads", "Adam",
                  "activations", "workspace", "total", "fits"]  # fmt: skip
        lines = [header]
        for row in self.rows:
            m = row.memory
            sizes = (m.weights, m.gradients, m.optimizer, m.activations, m.workspace, m.total)
            lines.append([
                row.role, str(row.width), str(row.runs), _short(row.N), _short(row.N_non_embedding), _short(row.D),
                f"{row.flops_nanolm:.3g}", f"{row.flops_6nd:.3g}", *(_size(b) for b in sizes),
                "yes" if row.fits else "NO",
            ])  # fmt: skip
        widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
        table = "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
        h = self.hardware
        how = f"{h.devices} × {h.sharding}" if h.sharding != "none" else "one device"
        recomputed = "with" if h.gradient_checkpointing else "without"
        notes = [
            f"Bytes on each device: {how}, {h.precision}, {recomputed} gradient checkpointing, "
            f"{_size(h.device_memory)} a device of which {USABLE:.0%} count; FLOPs of one run.",
            f"Grid and proxies cost {self.cost_ratio:.1%} of the target (nanoLM, Eq. 1), "
            f"{self.cost_ratio_all:.1%} with every seed.",
        ]
        notes += [self._advice(row) for row in self.rows if not row.fits]
        return table + "\n\n" + "\n".join(notes)

    def _advice(self, row: PlannedRun) -> str:
        if row.least_devices is not None:
            return (
                f"{row.role} width {row.width} does not fit; fsdp2 on {row.least_devices} such devices would, one "
                "sequence on each at a time."
            )
        hint = "" if self.hardware.gradient_checkpointing else " (try --gradient-checkpointing)"
        return f"{row.role} width {row.width} fits under fsdp2 on no number of such devices{hint}."


def plan_experiment(config: ExperimentConfig, hardware: Hardware | None = None) -> Plan:
    """Return what every run of an experiment costs on the stated hardware, without allocating a model.

    The vocabulary is the one asked for (`model_fields: {vocab_size: …}` pads it), or a ready tokenizer's. Under DDP and
    FSDP2 the devices share `batch_size` sequences a step and `accumulation_steps` micro-batches. Raises
    ConfigurationError if the experiment is impossible, or its batch cannot be shared out. Example, a GPT-2 of 52
    billion parameters (nanoLM's 64 layers, width 8192):

    >>> from hf_muscaling.configuration import ExperimentConfig
    >>> from hf_muscaling.planning import Hardware, plan_experiment
    >>> config = ExperimentConfig(architecture="gpt2", num_hidden_layers=64, head_size=64, base_width=256,
    ...     widths=[256, 512, 1024], target_width=8192, vocab_size=100256, sequence_length=2048, batch_size=512,
    ...     tie_word_embeddings=True)
    >>> plan = plan_experiment(config, Hardware(512, "fsdp2", "bf16", gradient_checkpointing=True))
    >>> target = plan.rows[-1]
    >>> round(target.N / 1e9, 1), target.fits, target.least_devices
    (52.4, True, 16)
    """
    hardware = hardware or Hardware(precision="bf16" if config.bf16 else "fp32")
    vocabulary = experiment_vocabulary(config)
    base = config.base_config(vocabulary)
    share, rest = divmod(config.batch_size, hardware.devices * config.accumulation_steps)
    if rest or not share:
        raise ConfigurationError(
            f"batch_size={config.batch_size} cannot be divided evenly among {hardware.devices} devices and "
            f"{config.accumulation_steps} accumulation steps; take a multiple of "
            f"{hardware.devices * config.accumulation_steps}."
        )
    cells = len(config.learning_rates) * len(config.init_stds) * len(config.output_multipliers)
    kinds = [("grid", config.base_width, cells), *(("proxy", w, config.seeds) for w in sorted(config.widths))]
    kinds.append(("target", config.target_width, config.target_seeds if config.verify else 1))
    counted = {width: model_sizes(base.at_width(width)) for width in {width for _, width, _ in kinds}}
    rows = tuple(
        _row(config, hardware, base.at_width(width), counted[width], share, role, runs) for role, width, runs in kinds
    )
    target = rows[-1].flops_nanolm
    grid, proxies = rows[0], rows[1:-1]
    spent = cells * grid.flops_nanolm
    once = spent + sum(r.flops_nanolm for r in proxies if r.width != config.base_width)
    # The best cell of the grid is the first seed of the base width's proxy: it is trained once.
    every = spent + sum(r.flops_nanolm * (r.runs - (r.width == config.base_width)) for r in proxies)
    return Plan(config.architecture, hardware, rows, once / target, every / target)


def _row(
    config: ExperimentConfig, hardware: Hardware, model: Any, sizes: ModelSizes, sequences: int, role: str, runs: int
) -> PlannedRun:
    from hf_muscaling.experiment import experiment_step_flops

    inputs, targets = _lengths(config)

    def memory(hardware: Hardware, sequences: int) -> Memory:
        return training_memory(
            model, sequences, inputs, targets, devices=hardware.devices, sharding=hardware.sharding,
            precision=hardware.precision, checkpointing=hardware.gradient_checkpointing, sizes=sizes,
        )  # fmt: skip

    room = USABLE * hardware.device_memory
    found = memory(hardware, sequences)
    least, devices = None, 1
    while devices <= _MOST_DEVICES and least is None:
        if memory(replace(hardware, devices=devices, sharding="fsdp2"), 1).total <= room:
            least = devices
        devices *= 2
    return PlannedRun(
        role=role,
        width=model.hidden_size,
        runs=runs,
        N=sizes.total,
        N_non_embedding=sizes.non_embedding,
        D=config.tokens_per_run,
        flops_nanolm=config.steps * experiment_step_flops(config, model.hidden_size, model.vocab_size),
        flops_6nd=training_flops(sizes.total, config.tokens_per_run),
        sequences=sequences,
        memory=found,
        fits=found.total <= room,
        least_devices=least,
    )


def _lengths(config: ExperimentConfig) -> tuple[int, int | None]:
    from hf_muscaling.data import span_lengths

    if config.training_objective != "seq2seq":
        return config.sequence_length, None
    lengths = span_lengths(config.sequence_length, **config.objective_options())
    return lengths.inputs, lengths.targets


def experiment_vocabulary(config: ExperimentConfig) -> int:
    """Return the vocabulary of an experiment's models: the one asked for, or a ready tokenizer's."""
    fixed = config.further_fields().get("vocab_size")  # a vocabulary padded beyond its tokenizer's tokens
    if fixed is not None or config.tokenizer is None:
        return fixed or config.vocab_size
    from hf_muscaling.data.tokenizer import load_tokenizer

    return len(load_tokenizer(config.tokenizer))


def _short(count: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:.0f}"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"

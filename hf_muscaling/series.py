"""Train a series: one design at several widths, on the same batches in the same order, with transferred settings."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, TrainingArguments

from hf_muscaling.counting import count_parameters
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.folders import exclusive, writable_folder
from hf_muscaling.interruption import listening
from hf_muscaling.lanes import Phase, train_phase
from hf_muscaling.models.config import require_mu_config
from hf_muscaling.progress import SeriesProgress, run_cost
from hf_muscaling.runs import Run, Series
from hf_muscaling.workers import Workers


def train_series(
    base: PreTrainedConfig,
    widths: Sequence[int],
    args: TrainingArguments,
    train_dataset: Any,
    eval_dataset: Any | None = None,
    *,
    seeds: Sequence[int] | int = 1,
    output_dir: str | os.PathLike[str] | None = None,
    model_class: Any = None,
    data_collator: Callable | None = None,
    hashes: dict[str, str] | None = None,
    family: str = "",
    role: str = "proxy",
    progress: bool = True,
    placement: str = "auto",
) -> Series:
    """Train `base.at_width(w)` for every width and seed with the settings of the base, and return their runs.

    `args.learning_rate` is tuned at base width; μTransfer makes it the right one at every width (Tensor Programs V).
    `args.data_seed` (by default `args.seed`) fixes the order of the batches for all runs; `seeds` lists the seeds of
    the initialisation, or says how many there are, counted from `args.seed`. `eval_dataset` is the held-out set whose
    mean loss in nats per target is recorded (by default the training set). `model_class` is by default the Auto class
    of the architecture's objective; masked and encoder-decoder models train on `objective_blocks`. Runs land in
    `output_dir` (by default `args.output_dir`); one that is finished there is not trained again, one that was killed is
    continued. `placement` says which runs are trained side by side in processes of their own (see `run_jobs`).

    Raises ConfigurationError before any training if a width is impossible. Example:

    >>> from hf_muscaling import MuLlamaConfig, MuTrainingArguments, train_series
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> import torch
    >>> data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    >>> args = MuTrainingArguments(output_dir="out", max_steps=2, use_cpu=True, report_to="none")
    >>> series = train_series(base, [32, 64], args, data, progress=False)
    >>> [run.N for run in series]
    [14432, 49344]
    """
    require_mu_config(base, "train_series")
    configs = [base.at_width(width) for width in widths]
    first = args.seed
    seeds = [first + k for k in range(seeds)] if isinstance(seeds, int) else list(seeds)
    jobs = [Job(config, args, seed=seed) for config in configs for seed in seeds]
    runs = run_jobs(
        jobs,
        train_dataset,
        train_dataset if eval_dataset is None else eval_dataset,
        output_dir or str(args.output_dir),
        model_class=model_class,
        data_collator=data_collator,
        hashes=hashes,
        family=family,
        role=role,
        progress=progress,
        placement=placement,
    )
    return Series(runs, name=family)


class Job:
    """One run to do: a config and its arguments, the template's with another seed or learning rate."""

    def __init__(
        self, config: PreTrainedConfig, args: TrainingArguments, *, seed: int, learning_rate: float | None = None
    ):
        if args.max_steps <= 0:
            raise ConfigurationError("A series needs max_steps > 0 in its training arguments: all runs train as long.")
        self.config = config
        self.args = copy.deepcopy(args)
        self.args.data_seed = args.seed if args.data_seed is None else args.data_seed
        self.args.seed = seed
        if learning_rate is not None:
            self.args.learning_rate = learning_rate

    @cached_property
    def N(self) -> int:
        """The number of parameters, counted on `meta`."""
        return count_parameters(self.config)

    @property
    def name(self) -> str:
        """What tells it from the others, for a progress bar."""
        return f"width {self.config.hidden_size}, lr {self.args.learning_rate:.3g}, seed {self.args.seed}"

    def cost(self, tokens_per_step: int) -> float:
        """Return the expected cost in arbitrary units."""
        return run_cost(self.N, tokens_per_step * self.args.max_steps)

    def memory(self, length: int) -> float:
        """Return about how many bytes it takes on one lane, with sequences of so many tokens, in fp32."""
        from hf_muscaling.memory import activation_bytes

        c = self.config
        try:
            kept = activation_bytes(c, length, targets=length)
            sequence = kept.layers + kept.ends + kept.logits
        except ConfigurationError:  # an architecture that is not known so closely
            layers = getattr(c, "num_hidden_layers", 1)
            sequence = 4.0 * length * (34 * layers * c.hidden_size + 3 * c.vocab_size)
        return 16.0 * self.N + _batch_size(self.args) / self.args.gradient_accumulation_steps * sequence


def run_jobs(
    jobs: Iterable[Job],
    train_dataset: Any,
    eval_dataset: Any,
    output_dir: str | os.PathLike[str],
    *,
    progress: bool | SeriesProgress = True,
    placement: str = "auto",
    workers: Workers | None = None,
    **train_options: Any,
) -> list[Run]:
    """Do the jobs and return their runs in order; see `train_run` for the options.

    `placement` "together" gives every run all threads (or all launched processes), one run after the other; "apart"
    gives each a thread (a launched process, a GPU) of its own, side by side, costliest first; "auto" does what is
    expected to be faster for each. Which process trains a run does not change its numbers; on a CPU the number of
    threads, fixed by the placement and recorded as the run's `layout`, may change the last digits. `workers` keeps the
    worker processes of several calls alive.

    Raises ConfigurationError, before any training, for "apart" with data or options that only exist in this process.
    """
    jobs = list(jobs)
    if not jobs:
        return []
    _check_vocabulary(jobs, train_dataset)
    folder = writable_folder(output_dir)
    length = getattr(train_dataset, "block_size", None) or len(train_dataset[0]["input_ids"])
    costs = [job.cost(length * _batch_size(job.args)) for job in jobs]
    memory = [job.memory(length) for job in jobs]
    main = jobs[0].args.process_index == 0
    bar = progress if isinstance(progress, SeriesProgress) else SeriesProgress(costs, enabled=progress and main)
    phase = Phase(jobs, costs, memory, train_dataset, eval_dataset, folder, length, train_options, bar)
    held = nullcontext(workers) if workers is not None else Workers()
    try:
        with exclusive(folder, main), listening(deferring=True), held as crew:
            return train_phase(phase, placement, crew)
    finally:
        if not isinstance(progress, SeriesProgress):
            bar.close()


def _check_vocabulary(jobs: Sequence[Job], dataset: Any) -> None:
    """Refuse packed blocks whose tokens a model's vocabulary does not hold; looks at a few thousand blocks."""
    blocks = getattr(dataset, "blocks", None)
    blocks = getattr(blocks, "blocks", blocks)  # those under an objective
    if not isinstance(blocks, np.ndarray) or not blocks.size:
        return
    highest = int(blocks[:: max(len(blocks) // 4096, 1)].max())
    for job in jobs:
        if job.config.vocab_size <= highest:
            raise ConfigurationError(
                f"The model's vocab_size={job.config.vocab_size} does not hold token {highest} of the training set; "
                "set it to len(tokenizer)."
            )


def _batch_size(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

"""Train a series: one design at several widths, on the same batches in the same order, with transferred settings."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from transformers import PreTrainedConfig, TrainingArguments

from hf_muscaling.counting import count_parameters
from hf_muscaling.errors import ConfigurationError, TrainingError
from hf_muscaling.models.config import require_mu_config
from hf_muscaling.progress import SeriesProgress, run_cost
from hf_muscaling.runs import Run, Series
from hf_muscaling.training import train_run


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
) -> Series:
    """Train `base.at_width(w)` for every width and seed with the settings of the base, and return their runs.

    `args.learning_rate` is tuned at base width; μTransfer makes it the right one at every width (Tensor Programs V).
    `args.data_seed` (by default `args.seed`) fixes the order of the batches for all runs; `seeds` lists the seeds of
    the initialisation, or says how many there are, counted from `args.seed`. `eval_dataset` is the held-out set whose
    mean loss in nats per target is recorded (by default the training set). `model_class` is by default the Auto class
    of the architecture's objective; masked and encoder-decoder models train on `objective_blocks`. Runs land in
    `output_dir` (by default `args.output_dir`); one that is finished there is not trained again, one that was killed is
    continued.

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

    def cost(self, tokens_per_step: int) -> float:
        """Return the expected cost in arbitrary units."""
        return run_cost(count_parameters(self.config), tokens_per_step * self.args.max_steps)


def run_jobs(
    jobs: Iterable[Job],
    train_dataset: Any,
    eval_dataset: Any,
    output_dir: str | os.PathLike[str],
    *,
    progress: bool | SeriesProgress = True,
    **train_options: Any,
) -> list[Run]:
    """Do the jobs in order and return their runs; see `train_run` for the options."""
    jobs = list(jobs)
    if not jobs:
        return []
    _check_vocabulary(jobs, train_dataset)
    folder = writable_folder(output_dir)
    length = getattr(train_dataset, "block_size", None) or len(train_dataset[0]["input_ids"])
    costs = [job.cost(length * _batch_size(job.args)) for job in jobs]
    main = jobs[0].args.process_index == 0
    bar = progress if isinstance(progress, SeriesProgress) else SeriesProgress(costs, enabled=progress and main)
    runs = []
    with exclusive(folder, main):
        for job, cost in zip(jobs, costs, strict=True):
            bar.start(f"width {job.config.hidden_size}, lr {job.args.learning_rate:.3g}, seed {job.args.seed}", cost)
            runs.append(
                train_run(job.config, job.args, train_dataset, eval_dataset, folder, callbacks=[bar], **train_options)
            )
            bar.finish()
    if not isinstance(progress, SeriesProgress):
        bar.close()
    return runs


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


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and prove that files can be written there. Raises TrainingError before hours of compute."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_text("ok", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise TrainingError(
            f"The output folder {folder} cannot be written to ({error.strerror}): choose another one (--output_dir), "
            "or make room and give yourself write permission."
        ) from error
    return folder


@contextmanager
def exclusive(folder: Path, main: bool = True):
    """Hold the folder's lock, so that two commands never train the same run. Raises TrainingError if it is taken."""
    lock = FileLock(folder / ".lock")
    if main:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise TrainingError(
                f"Another process is training in {folder}: wait for it, stop it, or choose another output folder."
            ) from error
    try:
        yield
    finally:
        lock.release()


def _batch_size(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

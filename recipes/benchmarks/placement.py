"""What placement saves: the grid and the series side by side against one after the other, as ratios of one run.

    python recipes/benchmarks/placement.py [--steps 100] [--rounds 3] [--learning_rates 4e-3 8e-3 1.6e-2]

Each round trains the default experiment's grid (base width, every learning rate) and its series (five widths, two
seeds) twice on the same data: with `placement: together` (one process, all threads, one run after the other) and with
`--placement` (auto, or apart), whose workers start anew, their start counted in the grid, and live on for the series.
The order alternates between rounds; a ratio above 1 says how many times faster the placement is.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from hf_muscaling.configuration import ExperimentConfig, available_cores
from hf_muscaling.data import PackedBlocks, collate_blocks
from hf_muscaling.series import Job, run_jobs
from hf_muscaling.workers import Workers


def timed(config: ExperimentConfig, placement: str, blocks: PackedBlocks) -> tuple[float, float, list[float]]:
    """Return the seconds of the grid and of the series, and the runs' losses."""
    with tempfile.TemporaryDirectory() as folder, Workers() as workers:
        config.output_dir = folder
        args = config.training_arguments()
        base = config.base_config()
        grid = [Job(base, args, seed=0, learning_rate=rate) for rate in config.learning_rates]
        series = [Job(base.at_width(w), args, seed=s) for w in config.widths for s in (1, 2)]
        heldout = PackedBlocks(blocks.blocks[:256])
        seconds, losses = [], []
        for jobs in (grid, series):
            started = time.perf_counter()
            runs = run_jobs(
                jobs, blocks, heldout, folder, placement=placement, workers=workers, data_collator=collate_blocks,
                progress=False, save_model=False,
            )  # fmt: skip
            seconds.append(time.perf_counter() - started)
            losses += [run.loss for run in runs]
    return seconds[0], seconds[1], losses


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=ExperimentConfig().learning_rates)
    parser.add_argument("--placement", default="auto", choices=["auto", "apart"])
    flags = parser.parse_args()
    config = ExperimentConfig(
        steps=flags.steps, warmup_steps=min(20, flags.steps), learning_rates=flags.learning_rates,
        checkpoint_steps=max(flags.steps // 4, 1),
    )  # fmt: skip
    shape = ((flags.steps + 1) * config.batch_size, config.sequence_length)
    blocks = PackedBlocks(np.random.default_rng(0).integers(0, config.vocab_size, shape, dtype=np.uint16))
    ratios: dict[str, list[float]] = {"grid": [], "series": [], "both": []}
    for k in range(flags.rounds):
        found = {}
        for placement in ("together", flags.placement) if k % 2 == 0 else (flags.placement, "together"):
            found[placement] = timed(config, placement, blocks)
        slow, fast = found["together"], found[flags.placement]
        ratios["grid"].append(slow[0] / fast[0])
        ratios["series"].append(slow[1] / fast[1])
        ratios["both"].append((slow[0] + slow[1]) / (fast[0] + fast[1]))
        apart = max(abs(a / b - 1) for a, b in zip(slow[2], fast[2], strict=True))
        print(
            f"round {k + 1}: together {slow[0]:.1f} s + {slow[1]:.1f} s, {flags.placement} {fast[0]:.1f} s + "
            f"{fast[1]:.1f} s; losses differ by {apart:.1e} at most",
            flush=True,
        )
    medians = ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in ratios.items())
    print(
        f"{flags.placement} against together on {available_cores()} cores ({torch.get_num_threads()} threads), "
        f"{len(flags.learning_rates)} grid runs, {len(config.widths) * 2} proxies of {flags.steps} steps: {medians}"
    )


if __name__ == "__main__":
    main()

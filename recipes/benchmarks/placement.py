"""What placement saves: the grid and the series side by side against one after the other, as ratios of one run.

    python recipes/benchmarks/placement.py [--steps 60] [--rounds 3] [--learning_rates 4e-3 8e-3 1.6e-2]

The default experiment's grid (base width, every learning rate) and series (five widths, two seeds) are trained for a
few steps each in two ways, turn by turn so that other load meets both: `together` (one process, all threads, one run
after the other), and where `auto` places the runs of the full length. The worker processes live on from round to round;
their start is timed once and added, shared among the lanes, to the time of the full-length grid. A ratio above 1 says
how many times faster the placement is; medians over the rounds.
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
from hf_muscaling.placement import place
from hf_muscaling.series import Job, run_jobs
from hf_muscaling.workers import Workers


def phases(config: ExperimentConfig, steps: int) -> dict[str, list[Job]]:
    """Return the jobs of the grid and of the series with so many steps."""
    args = config.training_arguments()
    args.max_steps, args.save_strategy = steps, "no"
    base = config.base_config()
    return {
        "grid": [Job(base, args, seed=0, learning_rate=rate) for rate in config.learning_rates],
        "series": [Job(base.at_width(w), args, seed=s) for w in config.widths for s in (1, 2)],
    }


def timed(jobs: list[Job], blocks: PackedBlocks, together: list[int], workers: Workers) -> float:
    """Return the seconds that some jobs take together and the others apart."""
    parts = {"together": together, "apart": [k for k in range(len(jobs)) if k not in together]}
    heldout = PackedBlocks(blocks.blocks[:64])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for placement, numbers in parts.items():
            run_jobs(
                [jobs[k] for k in numbers], blocks, heldout, folder, placement=placement, workers=workers,
                data_collator=collate_blocks, progress=False, save_model=False,
            )  # fmt: skip
        return time.perf_counter() - started


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=ExperimentConfig().learning_rates)
    flags = parser.parse_args()
    config = ExperimentConfig(learning_rates=flags.learning_rates)
    shape = ((flags.steps + 1) * config.batch_size, config.sequence_length)
    blocks = PackedBlocks(np.random.default_rng(0).integers(0, config.vocab_size, shape, dtype=np.uint16))
    tokens = config.batch_size * config.sequence_length
    full, short = phases(config, config.steps), phases(config, flags.steps)
    lanes = torch.get_num_threads()
    plans = {name: place([job.cost(tokens) for job in jobs], lanes) for name, jobs in full.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in full}
    with Workers() as workers:
        started = time.perf_counter()
        timed(short["grid"][:lanes], blocks, [], workers)  # partly here, while the workers start
        workers.wait_until_ready()
        start = time.perf_counter() - started
        for k in range(flags.rounds):
            for name, jobs in short.items():
                ways = {"together": list(range(len(jobs))), "auto": list(plans[name].together)}
                found = {way: timed(jobs, blocks, ways[way], workers) for way in sorted(ways, reverse=k % 2 == 0)}
                times[name].append((found["together"], found["auto"]))
                print(f"round {k + 1}, {name}: together {times[name][-1][0]:.1f} s, auto {times[name][-1][1]:.1f} s")
    longer = config.steps / flags.steps
    print(f"{available_cores()} cores, {lanes} threads; a worker is ready after {start:.1f} s")
    for name, pairs in times.items():
        once = start / lanes if name == "grid" else 0.0
        ratio = statistics.median(slow / fast for slow, fast in pairs)
        whole = statistics.median(slow * longer / (fast * longer + once) for slow, fast in pairs)
        plan = plans[name]
        print(
            f"{name}: {len(plan.together)} together, {len(plan.apart)} apart on {plan.workers} workers: {ratio:.2f} "
            f"times as fast as one after the other; {whole:.2f} with the start, for {config.steps} steps"
        )


if __name__ == "__main__":
    main()

"""What μP and MuTrainer cost: ratios measured side by side in one run, since single times depend on the machine's load.

    python recipes/benchmarks/overhead.py [--widths 64 128] [--steps 60] [--rounds 7] [--architecture llama]

1. A training step of the μP model with MuAdamW against the stock Hugging Face model with torch.optim.AdamW(fused=True).
2. MuTrainer's tokens per second against a bare PyTorch loop on the same model and batches.

The two models alternate step by step, and the ratio is that of their median steps; MuTrainer and the bare loop
alternate run by run, and the ratio is the median over rounds.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, get_scheduler
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_muscaling import MuAdamW, MuTrainer
from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.data import PackedBlocks, collate_blocks


def steps(model, optimizer, batches) -> float:
    """Return the seconds that one training step a batch takes."""
    model.train()
    started = time.perf_counter()
    for batch in batches:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


def model_ratio(config: ExperimentConfig, width: int, blocks: PackedBlocks, rounds: int) -> float:
    """Return time(μP) / time(stock) of a training step."""
    from transformers import AutoModelForCausalLM

    target = config.base_config().at_width(width)
    mu = AutoModelForCausalLM.from_config(target)
    stock = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}[config.architecture](target.to_stock_config())
    stock.loss_type = "ForCausalLM"  # as the μP model; GPT-2's default loss counts one target too many
    for model in (mu, stock):
        model.config.use_cache = False
    pairs = [
        (mu, MuAdamW(mu, lr=1e-3)),
        (stock, torch.optim.AdamW(stock.parameters(), lr=1e-3, weight_decay=0.0, fused=True)),
    ]
    size = config.batch_size
    starts = range(0, len(blocks) - size, size)
    batches = [collate_blocks(blocks.__getitems__(list(range(i, i + size)))) for i in starts]
    for pair in pairs:
        steps(*pair, batches[:5])
    times: dict[int, list[float]] = {id(mu): [], id(stock): []}
    for k in range(rounds):
        for batch in batches:
            for model, optimizer in pairs if k % 2 == 0 else pairs[::-1]:
                times[id(model)].append(steps(model, optimizer, [batch]))
    return statistics.median(times[id(mu)]) / statistics.median(times[id(stock)])


def trainer_ratio(config: ExperimentConfig, width: int, blocks: PackedBlocks, rounds: int) -> float:
    """Return tokens per second of MuTrainer over those of a bare loop with the same schedule, clipping and logging."""
    from transformers import AutoModelForCausalLM

    target = config.base_config().at_width(width)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        for k in range(rounds):
            speeds = {}
            for kind in ("bare", "trainer") if k % 2 == 0 else ("trainer", "bare"):
                model = AutoModelForCausalLM.from_config(target)
                args = config.training_arguments()
                args.save_strategy = "no"
                trainer = MuTrainer(model, args, train_dataset=blocks, data_collator=collate_blocks)
                for callback in (PrinterCallback, ProgressCallback):
                    trainer.remove_callback(callback)
                if kind == "trainer":
                    clock = _Clock()
                    trainer.add_callback(clock)
                    trainer.train()
                    speeds[kind] = (args.max_steps - 1) / (clock.last - clock.first)
                else:
                    speeds[kind] = bare_loop(model, args, blocks)
            ratios.append(speeds["trainer"] / speeds["bare"])
    return statistics.median(ratios)


def bare_loop(model, args, blocks: PackedBlocks) -> float:
    """Return steps per second of a plain loop: AdamW, schedule, clipping, the mean loss read every `logging_steps`."""
    model.config.use_cache = False
    model.train()
    optimizer = MuAdamW(model, lr=args.learning_rate)
    schedule = get_scheduler("cosine", optimizer, args.warmup_steps, args.max_steps)
    size = args.per_device_train_batch_size
    order = np.random.default_rng(0).permutation(len(blocks))
    total, first = torch.zeros(()), 0.0
    for step in range(args.max_steps):
        batch = collate_blocks(blocks.__getitems__(order[step * size : (step + 1) * size].tolist()))
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.detach()
        if (step + 1) % args.logging_steps == 0:
            total = torch.zeros(()) * total.item()
        if step == 0:
            first = time.perf_counter()
    return (args.max_steps - 1) / (time.perf_counter() - first)


class _Clock(ProgressCallback):
    """Note when the first and the last step end; without the bar of its parent."""

    def __init__(self):
        self.first = self.last = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Start afresh."""

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.last = time.perf_counter()
        self.first = self.first or self.last

    def on_log(self, args, state, control, **kwargs):
        """Show nothing."""

    def on_train_end(self, args, state, control, **kwargs):
        """Show nothing."""


def main() -> None:
    """Print both ratios for every width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--architecture", default="llama", choices=["llama", "gpt2"])
    flags = parser.parse_args()
    config = ExperimentConfig(architecture=flags.architecture, steps=flags.steps, warmup_steps=10)
    count = (flags.steps + 1) * config.batch_size
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (count, config.sequence_length), dtype=np.uint16)
    blocks = PackedBlocks(ids)
    for width in flags.widths:
        model = model_ratio(config, width, blocks, flags.rounds)
        trainer = trainer_ratio(config, width, blocks, flags.rounds)
        print(
            f"{flags.architecture} width {width}: μP step / stock step {model:.3f} (target ≤ 1.02); "
            f"MuTrainer / bare loop tokens per second {trainer:.3f} (target ≥ 0.97)",
            flush=True,
        )


if __name__ == "__main__":
    main()

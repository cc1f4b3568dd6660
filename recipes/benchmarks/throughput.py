"""Tokens per second of ways to train one model, as ratios to a bare loop measured side by side, per width.

    python recipes/benchmarks/throughput.py [--widths 64 128 256 512] [--architecture gpt2] [--output table.md]

1. stock Trainer (its defaults, stock model), MuTrainer, MuTrainer + torch.compile, and two processes (one thread each)
   under DDP and FSDP2, against a bare fp32 loop with as many threads as there are cores.
2. What to choose at each width: attention kernel, torch.compile and bf16 autocast against fp32 with sdpa, with the
   difference of the training loss after the same steps from the same start.

All take turns in short stretches and a ratio is the median over rounds, so that other load on the machine falls on all
alike. The two processes have their own bare loop beside them, in the first one while the other waits. The time to
compile is not counted, but printed.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_muscaling import MuAdamW, MuTrainer, MuTrainingArguments
from hf_muscaling.configuration import ExperimentConfig, available_cores
from hf_muscaling.data import PackedBlocks, collate_blocks
from hf_muscaling.models import pretraining_class

STOCK = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}
CHOICES = {"eager": ("eager", False, False), "compile": ("sdpa", True, False), "bf16": ("sdpa", False, True)}
"""Attention kernel, torch.compile, bf16 autocast."""
SECONDS = 1.0
"""How long a stretch of the bare loop should take."""


def base_config(flags):
    """Return the μP config of the models at base width 64."""
    return ExperimentConfig(
        architecture=flags.architecture, num_hidden_layers=flags.layers, sequence_length=flags.sequence,
        vocab_size=flags.vocabulary, base_width=64, widths=[16, 32, 48], target_width=64,
    ).base_config()  # fmt: skip


def lean_arguments(flags, folder: str, steps: int, **further) -> MuTrainingArguments:
    """Return the arguments that an experiment's runs have."""
    return MuTrainingArguments(
        output_dir=folder, max_steps=steps, learning_rate=4e-3, lr_scheduler_type="constant", logging_steps=10,
        per_device_train_batch_size=flags.batch // int(os.environ.get("WORLD_SIZE", "1")), save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
        ddp_find_unused_parameters=False, **further,
    )  # fmt: skip


def text(flags, sequences: int) -> PackedBlocks:
    """Return blocks of a random language with something to learn: every token has four likely successors."""
    rng = np.random.default_rng(0)
    successors = rng.integers(0, flags.vocabulary, (flags.vocabulary, 4))
    ids = np.empty((sequences, flags.sequence), np.uint16)
    ids[:, 0] = rng.integers(0, flags.vocabulary, sequences)
    for t in range(1, flags.sequence):
        ids[:, t] = successors[ids[:, t - 1], rng.integers(0, 4, sequences)]
    return PackedBlocks(ids)


class Loop:
    """A bare training loop that goes on where it stopped: AdamW, clipping, the loss kept."""

    def __init__(self, flags, width: int, blocks: PackedBlocks, kernel="sdpa", compiled=False, bf16=False):
        config = base_config(flags).at_width(width)
        torch.manual_seed(0)
        self.model = pretraining_class(config).from_config(config, attn_implementation=kernel)
        self.model.config.use_cache = False
        self.optimizer = MuAdamW(self.model, lr=4e-3)
        self.blocks, self.size, self.bf16, self.done = blocks, flags.batch, bf16, 0
        self.losses: list[float] = []
        if compiled:
            self.model.compile()
        started = time.perf_counter()
        self.step()
        self.first_step = time.perf_counter() - started

    def step(self) -> None:
        """Do one step."""
        starts = [(self.done * self.size + k) % len(self.blocks) for k in range(self.size)]
        batch = collate_blocks(self.blocks.__getitems__(starts))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.done += 1

    def run(self, steps: int) -> float:
        """Return the steps per second of so many steps."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        return steps / (time.perf_counter() - started)


class Clock(TrainerCallback):
    """Note when the first and the last step end."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.times.append(time.perf_counter())


def trainer_speed(kind: str, flags, model, blocks: PackedBlocks, steps: int, **arguments) -> float:
    """Return the steps per second of a Trainer on a model, from the end of its first step on."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "stock":
            args = TrainingArguments(
                output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=flags.batch, save_strategy="no",
                report_to="none", use_cpu=True,
            )  # fmt: skip
            trainer = Trainer(model, args, train_dataset=list(blocks), callbacks=[clock])
        else:
            args = lean_arguments(flags, folder, steps + 1, **arguments)
            trainer = MuTrainer(model, args, train_dataset=blocks, data_collator=collate_blocks, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return steps / (clock.times[-1] - clock.times[0])


def measure(flags, width: int) -> dict:
    """Return each way's ratio to the bare loop at one width, each choice's loss difference, and the bare tokens/s."""
    torch.set_num_threads(available_cores())
    blocks = text(flags, 64 * flags.batch)
    bare = Loop(flags, width, blocks)
    steps = min(max(round(SECONDS * bare.run(2)), 4), 40)
    config = base_config(flags).at_width(width)
    stock = STOCK[flags.architecture](config.to_stock_config())
    stock.loss_type = "ForCausalLM"
    models = {"stock": stock, "mu": pretraining_class(config).from_config(config)}
    models["mu + compile"] = pretraining_class(config).from_config(config)
    models["mu + compile"].compile()
    loops = {name: Loop(flags, width, blocks, *choice) for name, choice in CHOICES.items()}
    for loop in loops.values():
        loop.run(2)
    trainer_speed("mu", flags, models["mu + compile"], blocks, 2)  # compiles
    ways = {name: lambda m=model, k=name: trainer_speed(k, flags, m, blocks, steps) for name, model in models.items()}
    ways |= {name: lambda loop=loop: loop.run(steps) for name, loop in loops.items()}
    ratios, speeds = {name: [] for name in ways}, []
    for k in range(flags.rounds):
        before = bare.run(steps)
        found = {name: ways[name]() for name in (ways if k % 2 == 0 else [*ways][::-1])}
        speed = statistics.mean((before, bare.run(steps)))
        speeds.append(speed * flags.batch * flags.sequence)
        for name, value in found.items():
            ratios[name].append(value / speed)
    seen = min(len(loop.losses) for loop in loops.values())
    last = slice(max(seen - 10, 0), seen)
    reference = statistics.mean(bare.losses[last])
    return {
        "tokens": statistics.median(speeds),
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "losses": {name: statistics.mean(loop.losses[last]) / reference - 1 for name, loop in loops.items()},
        "compile seconds": loops["compile"].first_step,
        "steps": seen,
    }


def measure_processes(flags) -> None:
    """In each of several processes: MuTrainer over all of them against a bare loop in the first, per width."""
    sharded = flags.child == "fsdp2"
    result = {}
    for width in flags.widths:
        blocks = text(flags, 64 * flags.batch)
        config = base_config(flags).at_width(width)
        torch.set_num_threads(1)
        lean_arguments(flags, "unused", 1).device  # noqa: B018  starts the process group
        first = torch.distributed.get_rank() == 0
        arguments = {"fsdp": True, "fsdp_config": {"version": 2}} if sharded else {}
        bare = Loop(flags, width, blocks) if first else None
        steps = torch.tensor(4)
        if first:
            torch.set_num_threads(available_cores())
            steps = torch.tensor(min(max(round(SECONDS * bare.run(2)), 4), 40))
        torch.distributed.broadcast(steps, 0)
        ratios = []
        for _ in range(flags.rounds):
            speed = 0.0
            if first:
                torch.set_num_threads(available_cores())
                speed = bare.run(int(steps))
            torch.distributed.barrier()
            torch.set_num_threads(1)
            torch.manual_seed(0)
            model = pretraining_class(config).from_config(config)
            ratios.append(trainer_speed("mu", flags, model, blocks, int(steps), **arguments) / (speed or 1))
        result[str(width)] = statistics.median(ratios)
    if torch.distributed.get_rank() == 0:
        Path(flags.result).write_text(json.dumps(result))


def launched(flags, child: str) -> dict[str, float]:
    """Return what `measure_processes` finds in two processes, by width."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        words += ["--child", child, "--result", str(result), "--architecture", flags.architecture]
        for name in ("layers", "sequence", "batch", "vocabulary", "rounds"):
            words += [f"--{name}", str(getattr(flags, name))]
        words += ["--widths", *map(str, flags.widths)]
        done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if not result.exists():  # judged by its record: a process may abort at interpreter exit with its work done
            raise SystemExit(f"{child} failed:\n{done.stderr[-3000:]}")
        return json.loads(result.read_text())


def tables(flags, found: dict[int, dict], two: dict[str, dict[str, float]]) -> str:
    """Return both tables in Markdown."""
    lines = ["| width | bare loop, tokens/s | stock Trainer | MuTrainer | MuTrainer + compile | "
             + "".join(f"2 processes, {name.upper()} | " for name in two)]  # fmt: skip
    lines.append("|---" * (5 + len(two)) + "|")
    for width, row in found.items():
        cells = [row["ratios"][name] for name in ("stock", "mu", "mu + compile")]
        cells += [values[str(width)] for values in two.values()]
        lines.append(f"| {width} | {row['tokens']:,.0f} | " + " | ".join(f"{c:.2f}" for c in cells) + " |")
    lines += ["", "| width | " + " | ".join(CHOICES) + " | fastest in fp32 | seconds to compile |",
              "|---" * (3 + len(CHOICES)) + "|"]  # fmt: skip
    for width, row in found.items():
        cells = [f"{row['ratios'][name]:.2f} ({100 * row['losses'][name]:+.3f} %)" for name in CHOICES]
        exact = {"sdpa": 1.0} | {name: row["ratios"][name] for name in ("eager", "compile")}
        lines.append(
            f"| {width} | " + " | ".join(cells) + f" | {max(exact, key=exact.__getitem__)} | "
            f"{row['compile seconds']:.0f} |"
        )
    steps = sorted({row["steps"] for row in found.values()})
    lines += ["", f"{flags.architecture}, {flags.layers} layers, {flags.batch} × {flags.sequence} tokens a step, "
              f"{available_cores()} cores, {flags.rounds} rounds; in brackets the training loss against fp32's after "
              f"the same {steps[0]} to {steps[-1]} steps."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure every width and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--architecture", default="gpt2", choices=[*STOCK])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step, over all processes")
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one_process", action="store_true", help="leave out DDP and FSDP2")
    parser.add_argument("--output", metavar="FILE", help="write the tables here too")
    parser.add_argument("--child", choices=["ddp", "fsdp2"], help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        measure_processes(flags)
        return
    found = {}
    for width in flags.widths:
        found[width] = measure(flags, width)
        print(f"width {width}: {json.dumps(found[width])}", file=sys.stderr, flush=True)
    two = {} if flags.one_process else {child: launched(flags, child) for child in ("ddp", "fsdp2")}
    shown = tables(flags, found, two)
    print(shown)
    if flags.output:
        Path(flags.output).write_text(shown + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

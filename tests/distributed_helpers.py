"""Two gloo processes on the CPU that run a test file as their script, and what they train on."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**further: str) -> dict[str, str]:
    """Return the environment of a launched process: this tree, one thread, nothing left of an outer launcher."""
    launchers = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers) and k not in ("MASTER_ADDR", "RANK")}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": path} | further


def torchrun(processes: int = 2) -> list[str]:
    """Return the command that starts a script in several processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def accelerate_launch(config: str, *flags: str) -> list[str]:
    """Return the command that starts a script with one of `recipes/accelerate`'s files."""
    file = ROOT / "recipes" / "accelerate" / f"{config}.yaml"
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *flags]


def launch(script: str, case: str, folder: Path, processes: int = 2, launcher: list[str] | None = None) -> list[dict]:
    """Run a test file's `main` for a case in several processes and return what each wrote."""
    out = folder / case
    command = [*(launcher or torchrun(processes)), script, "--case", case, "--out", str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, cwd=ROOT)
    files = [Path(f"{out}.{rank}") for rank in range(processes)]
    # Judged by its record: an FSDP2 process may abort at interpreter exit with all its work done.
    assert all(f.exists() for f in files), done.stderr[-4000:]
    return [json.loads(f.read_text()) for f in files]


def launch_options() -> argparse.Namespace:
    """Read what `launch` gave a test file's `main`: the case, and where its record goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def write_record(out: str, result: dict) -> None:
    """Write what this process found and wait until all have: one that aborts at exit stops the rest."""
    import torch.distributed as dist

    Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()


def examples(count, masked=False):
    """Return blocks whose first token is their number, with next-token or a growing number of masked targets."""
    import torch

    ids = torch.randint(0, 64, (count, 16), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = torch.arange(count) % 64
    labels = ids.clone()
    if masked:
        for number, row in enumerate(labels):
            row[1 + number % 15 :] = -100
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]

"""A tiny experiment on text that every Python has: the source of a few standard modules."""

import inspect
import tarfile
import textwrap
import typing
from pathlib import Path

from hf_muscaling.configuration import ExperimentConfig


def write_text_file(folder: Path) -> Path:
    """Write about 200 kB of text in many documents and return the file."""
    import json

    source = inspect.getsource(tarfile) + inspect.getsource(typing) + inspect.getsource(textwrap)
    documents = [part for part in source.split("\n\n") if len(part) > 40]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": part}) + "\n" for part in documents), encoding="utf-8")
    return path


def tiny_experiment(folder: Path, **changes) -> ExperimentConfig:
    """Return an experiment that trains in a few seconds."""
    text = folder / "text.jsonl"
    if not text.exists():
        write_text_file(folder)
    settings = {
        "output_dir": str(folder / "out"),
        "data_files": [str(text)],
        "vocab_size": 300,
        "sequence_length": 16,
        "heldout_tokens": 1024,
        "num_hidden_layers": 1,
        "head_size": 8,
        "base_width": 16,
        "widths": [8, 16, 32, 64],
        "target_width": 128,
        "seeds": 1,
        "learning_rates": [1e-2, 2e-2],
        "steps": 30,
        "warmup_steps": 6,
        "batch_size": 8,
        "checkpoint_steps": 5,
        "logging_steps": 4,
        "threads": 1,
    }
    return ExperimentConfig(**(settings | changes))


def flags(config: ExperimentConfig) -> list[str]:
    """Return the command line that describes a configuration."""
    from dataclasses import asdict

    words = []
    for name, value in asdict(config).items():
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return words

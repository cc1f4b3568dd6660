"""Laws, series and an experiment's folder that were never trained: what sharing needs, in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_muscaling import PowerLaw, Run, Series

WIDTHS = (16, 32, 64, 128)


def small_law(**settings: Any) -> PowerLaw:
    sizes = np.array([1e5, 1.6e5, 2.4e5, 3.3e5, 4.4e5])
    noise = np.array([0.002, -0.001, 0.001, -0.002, 0.001])
    return PowerLaw(**settings).fit({"N": sizes, "loss": (2.9 + 60 * sizes**-0.35) * (1 + noise)})


def small_run(width: int = 16, **changes: Any) -> Run:
    n = 100 * width**2 + 1000 * width
    curve = [
        {"step": s, "tokens": 512 * s, "loss": 6.0 / s**0.1 + 1 / 3, "lr": 0.01, "grad_norm": 1.0 / s}
        for s in (1, 5, 9)
    ]
    fields: dict[str, Any] = {
        "run_id": f"w{width:04d}-lr0.01-s0-00000000", "status": "finished", "N": n, "N_non_embedding": n - 1000 * width,
        "D": 5120, "S": 10, "B": 512, "C": 6.0 * n * 5120, "loss": 2.9 + 60 * n**-0.35, "width": width, "seed": 0,
        "lr": 0.01, "family": "llama-1l-mup", "config": {"model_type": "mu_llama", "hidden_size": width,
        "mup_base": {"hidden_size": 16, "num_attention_heads": 2}, "parametrization": "mup", "initializer_range": 0.05},
        "settings": {"max_steps": 10, "optim": "adamw_torch"}, "data_hash": "d" * 64, "tokenizer_hash": "e" * 64,
        "versions": {"torch": "2.14"}, "seconds": 1.5, "curve": curve,
    }  # fmt: skip
    return Run(**(fields | changes))


def small_series() -> Series:
    runs = [small_run(width) for width in WIDTHS]
    bad = small_run(run_id="w0016-lr9-s0-11111111", status="diverged", loss=None, lr=9.0, role="grid", curve=[])
    target = small_run(256, role="target", run_id="w0256-lr0.01-s0-22222222")
    return Series([bad, *runs, target], name="llama")


def experiment_folder(folder: Path, models: bool = False) -> Path:
    """Write what `run_experiment` leaves, the models (tiny Llamas) on request."""
    series = small_series()
    proxies = Series([run for run in series if run.role == "proxy"])
    folder.mkdir(parents=True, exist_ok=True)
    if models:
        for run in proxies:
            _save_model(run, folder / "runs" / run.run_id / "model")
    series.to_jsonl(folder / "runs.jsonl")
    PowerLaw("least_squares").fit(proxies).to_json(folder / "law.json")
    (folder / "prediction.json").write_text(json.dumps({"level": 0.9}))
    return folder


def _save_model(run: Run, folder: Path) -> None:
    import torch

    from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM
    from hf_muscaling.training import config_record

    base = MuLlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    config = base.at_width(run.width)
    torch.manual_seed(run.width)
    model = MuLlamaForCausalLM(config)
    model.save_pretrained(folder)
    torch.save({"output_dir": str(folder)}, folder / "training_args.bin")  # as Trainer does: a pickle, with paths
    run.config = config_record(config)

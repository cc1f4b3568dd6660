"""A proxy as a model repository: safetensors, tokenizer, card, and the same model for transformers alone.

`standard/` holds the model with every μP multiplier folded into its weights (`hf_muscaling.export`), so that a reader
without this package can run it. Of a folder only the files named here are pushed: Trainer also leaves a pickle of its
arguments there.
"""

import json
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_muscaling.errors import ConfigurationError, RecordError
from hf_muscaling.hub import cards, text
from hf_muscaling.hub.client import Pushed, check_repo_id, push_files
from hf_muscaling.runs import Run

MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "chat_template.jinja",
)  # fmt: skip
SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
"""Files that may hold a path; a tokenizer's vocabulary holds whatever the text did and is left as it is."""
AUTO = {
    "causal": ("AutoModelForCausalLM", "text-generation"),
    "masked": ("AutoModelForMaskedLM", "fill-mask"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "text2text-generation"),
}
SHAPES = {
    "hidden_size": "width", "d_model": "width", "n_embd": "width", "num_attention_heads": "attention heads",
    "n_head": "attention heads", "num_heads": "attention heads", "num_key_value_heads": "key/value heads",
    "head_dim": "head size", "d_kv": "head size", "intermediate_size": "FFN size", "d_ff": "FFN size",
    "n_inner": "FFN size", "num_hidden_layers": "layers", "num_layers": "layers", "n_layer": "layers",
    "num_decoder_layers": "decoder layers",
}  # fmt: skip


def push_proxy(
    folder: Path,
    run: Run,
    repo_id: str,
    *,
    tokenizer: Path | None = None,
    standard: bool = True,
    law: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> Pushed:
    """Push a trained model's folder with the card of its run, in one commit, and return where it is.

    `tokenizer` is the folder of its tokenizer, `law` the repository of the law it serves. With `standard` the folded
    model goes to `standard/`, unless folding is not possible for its architecture. Raises RecordError if the folder
    holds no safetensors weights or another model than the run's, HubError as `push_files` does.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        files = proxy_files(folder, run, repo_id, Path(scratch), tokenizer, standard, law, license)
        where = "Nothing is lost: the model stays in its run's folder; pushing again sends only what is missing."
        message = f"Upload the proxy {text.plain(run.run_id)}"
        return push_files(repo_id, files, private=private, token=token, message=message, kept=where)


def proxy_files(
    folder: Path,
    run: Run,
    repo_id: str,
    scratch: Path,
    tokenizer: Path | None,
    standard: bool = True,
    law: str | None = None,
    license: str | None = None,
) -> dict[str, bytes | Path]:
    """Return the repository of a proxy as name → content; the folded model is written below `scratch`."""
    files = _chosen(folder, MODEL_FILES) | (_chosen(tokenizer, TOKENIZER_FILES) if tokenizer else {})
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise RecordError(
            f"{text.public(str(folder))} holds no config.json with .safetensors weights: there is no model to push. "
            "Pickled weights are not taken; save the model with save_pretrained."
        )
    config = json.loads(files["config.json"].read_bytes())  # type: ignore[union-attr]
    if (config.get("model_type"), config.get("hidden_size")) != (
        run.config.get("model_type"),
        run.config.get("hidden_size"),
    ):
        raise RecordError(f"{text.public(str(folder))} holds another model than that of the run {run.run_id!r}.")
    folded = False
    if standard:
        folded = _fold(folder, scratch / "standard")
        files |= {
            f"standard/{name}": path for name, path in _chosen(scratch / "standard", MODEL_FILES).items() if folded
        }
    drawn = any("loss" in row for row in run.curve)
    if drawn:
        from hf_muscaling.plotting import plot_loss_curves

        files["curve.png"] = cards.png(plot_loss_curves([run], title="Training loss"))
    files["README.md"] = proxy_card(run, repo_id, folded, drawn, law, license, tokenizer is not None).encode()
    return {name: _scrubbed(name, content) for name, content in files.items()}


def _chosen(folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes | Path]:
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return {path.name: path for path in found if any(fnmatch(path.name, pattern) for pattern in patterns)}


def _scrubbed(name: str, content: bytes | Path) -> bytes | Path:
    """Return a settings file with home folders and tokens blotted out, any other content as it is."""
    if not isinstance(content, Path) or content.name not in SETTINGS_FILES:
        return content
    raw = content.read_bytes()
    record = json.loads(raw)
    clean = text.public_record(record)
    return content if clean == record else (json.dumps(clean, indent=2, sort_keys=True) + "\n").encode()


def _fold(folder: Path, output: Path) -> bool:
    """Write the folded model; whether that is possible for this architecture."""
    from hf_muscaling.export import export_folder

    try:
        export_folder(folder, output)
    except ConfigurationError:
        return False  # the card then names this package as the only way to load the model
    return True


def proxy_card(
    run: Run, repo_id: str, folded: bool, drawn: bool, law: str | None, license: str | None, tokenizer: bool
) -> str:
    """Return the card of a proxy."""
    from huggingface_hub import EvalResult

    objective = run.settings.get("objective") or {}
    kind = objective.get("name", "causal") if isinstance(objective, dict) else "causal"
    auto, pipeline = AUTO.get(str(kind), AUTO["causal"])
    title = text.plain(repo_id.split("/")[-1])
    base = run.config.get("mup_base") or {}
    body = cards.render(
        "proxy.md",
        title=title,
        repo_id=repo_id,
        run=run,
        auto=auto,
        target={"masked": "masked token", "seq2seq": "target token"}.get(str(kind), "token"),
        generates=kind != "masked",
        shapes=[
            {"name": SHAPES[field], "base": base[field], "here": run.config.get(field, base[field])}
            for field in SHAPES if field in base
        ],
        settings=_settings(run),
        ratio=_ratio(run, base),
        adam="adam" in str(run.settings.get("optim", "adam")).lower(),
        mup=run.config.get("parametrization", "mup") != "sp",
        folded=folded,
        drawn=drawn,
        tokenizer=tokenizer,
        law=cards.links([law])[0] if law else None,
    )  # fmt: skip
    results = []
    if run.loss is not None:
        results = [
            EvalResult(
                task_type=pipeline, dataset_type="text", dataset_name="text held out from training", metric_type="loss",
                metric_name="held-out loss, nats", metric_value=float(f"{run.loss:.6g}"),
            )
        ]  # fmt: skip
    tags = [*cards.TAGS, "proxy"]
    return cards.model_card(
        body, name=title, library="transformers", results=results, tags=tags, license=license, pipeline_tag=pipeline
    )


def _ratio(run: Run, base: dict[str, Any]) -> float | None:
    """Return r = width / base width."""
    width = next((base[name] for name in ("hidden_size", "d_model", "n_embd") if name in base), None)
    return run.width / width if isinstance(width, (int, float)) and width > 0 else None


def _settings(run: Run) -> list[tuple[str, Any]]:
    """Return what decided the run's numbers, for the card's table."""
    names = {
        "parametrization": "parametrisation over width", "depth_parametrization": "parametrisation over depth",
        "output_multiplier": "output multiplier τ", "initializer_range": "initial std σ at base width",
        "initializer_factor": "initial factor at base width", "zero_query": "query starts at zero",
        "zero_readout": "readout starts at zero", "tie_word_embeddings": "tied embeddings", "vocab_size": "vocabulary",
    }  # fmt: skip
    further = {
        "optim": "optimizer", "lr_scheduler_type": "schedule", "warmup_steps": "warm-up steps",
        "weight_decay": "weight decay at base width", "weight_decay_policy": "weight decay policy",
        "adam_beta1": "β1", "adam_beta2": "β2", "max_grad_norm": "gradient clipping",
        "data_seed": "seed of the data order",
    }  # fmt: skip
    rows = [(label, run.config[name]) for name, label in names.items() if name in run.config]
    return rows + [(label, run.settings[name]) for name, label in further.items() if name in run.settings]

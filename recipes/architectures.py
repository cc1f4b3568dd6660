"""Which architectures of transformers convert to μP, and does the coordinate check agree? A table, one row each.

    python recipes/architectures.py                                   # every row; rows that are done are read back
    python recipes/architectures.py --only Mistral Gemma2 --seeds 3

Each row takes a tiny stock config, converts it (`hf_muscaling.mu_config`), compares it with the stock model at base
width bit for bit, and runs the coordinate check under μP beside standard parametrisation. A refusal is recorded with
its reason; where the table below holds the plan that the refusal asks for, the row goes on with it. Writes
`architectures.json` and `architectures.md`.
"""

import argparse
import importlib.metadata
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded

TOKENS = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
DECODER = {
    **TOKENS, "hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 2, "intermediate_size": 352,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**DECODER, "num_key_value_heads": 4}
PLAIN = {k: v for k, v in DECODER.items() if k != "intermediate_size"}
ENCODER = {**DECODER, "intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODER_DECODER = {
    **TOKENS, "d_model": 128, "max_position_embeddings": 64, "dropout": 0.0, "decoder_start_token_id": 0,
    "forced_eos_token_id": None, **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_{field}": size for side in ("encoder", "decoder") for field, size in
       (("attention_heads", 8), ("ffn_dim", 512))},
}  # fmt: skip
T5 = {"vocab_size": 256, "d_model": 128, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 8, "dropout_rate": 0.0}

# name of the config class without "Config" → fields, and the plan that an expected refusal asks for
ROWS: dict[str, tuple[dict[str, Any], dict[str, str] | None]] = {
    "Mistral": (GROUPED, None),
    "Qwen2": (GROUPED, None),
    "Qwen3": ({**GROUPED, "head_dim": 16}, None),
    "Gemma": ({**GROUPED, "head_dim": 16}, None),
    "Gemma2": ({**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16}, None),
    "Phi": (DECODER, None),
    "Phi3": (DECODER, None),
    "Olmo2": (DECODER, None),
    "GPTNeoX": (DECODER, None),
    "OPT": ({**PLAIN, "ffn_dim": 512, "dropout": 0.0, "word_embed_proj_dim": 128}, None),
    "StableLm": (GROUPED, None),
    "Cohere": (GROUPED, {"logit_scale": "constant"}),
    "Granite": (
        {**GROUPED, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
         "attention_multiplier": 0.25},
        {"*_multiplier": "constant", "logits_scaling": "constant"},
    ),
    "Falcon": ({**PLAIN, "multi_query": False, "num_kv_heads": 8}, {"*.self_attention": "fixed_head"}),
    "Bloom": (
        {**TOKENS, "hidden_size": 128, "n_head": 8, "n_layer": 2},
        {"*.self_attention": "fixed_head"},
    ),
    "Mixtral": ({**GROUPED, "num_local_experts": 4}, {"*.mlp.gate.weight": "router"}),
    "Mamba": ({**TOKENS, "hidden_size": 128, "num_hidden_layers": 2}, None),
    "Roberta": (ENCODER, None),
    "DistilBert": (
        {"vocab_size": 256, "pad_token_id": 0, "dim": 128, "n_heads": 8, "n_layers": 2, "hidden_dim": 512,
         "dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 64},
        None,
    ),
    "ModernBert": ({**DECODER, "cls_token_id": 0, "sep_token_id": 0}, {"*.attn": "fixed_head"}),
    "DebertaV2": (
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
         "norm_rel_ebd": "layer_norm", "share_att_key": True},
        {"*.attention.self": "fixed_head"},
    ),
    "Electra": ({**ENCODER, "embedding_size": 32}, {"embedding_size": "infinite"}),
    "Albert": ({**ENCODER, "embedding_size": 32}, {"embedding_size": "infinite"}),
    "Bart": (ENCODER_DECODER, None),
    "Pegasus": (
        {**{k: v for k, v in ENCODER_DECODER.items() if k != "bos_token_id"}, "scale_embedding": True},
        None,
    ),
    "MT5": (T5, None),
    "UMT5": (T5, None),
}  # fmt: skip


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return one row: the refusal or the plan, equality with the stock model, slopes and the verdict."""
    import transformers

    from hf_muscaling import coordinate_check, mu_config, verify_variant
    from hf_muscaling.errors import ConfigurationError
    from hf_muscaling.models import pretraining_class, pretraining_objective

    fields, plan = ROWS[name]
    stock = getattr(transformers, f"{name}Config")(**fields)
    row: dict[str, Any] = {"architecture": name, "objective": None, "refusal": None, "plan": None, "converted": False}
    config = None
    for additions in [None, plan] if plan else [None]:
        try:
            candidate = mu_config(stock, plan=additions)
            if not candidate.tie_word_embeddings:  # no logits of the initialisation in the first steps' changes
                candidate = candidate.replace(zero_readout=True)
            verify_variant(type(pretraining_class(candidate).from_config(candidate)), candidate)
            config = candidate
        except ConfigurationError as error:
            row["refusal"] = row["refusal"] or str(error)
            continue
        row["plan"] = additions
        break
    if config is None:
        return row
    row |= {"converted": True, "objective": pretraining_objective(config), "equals_stock": equals_stock(config)}
    check = coordinate_check(config, args.widths, seeds=args.seeds, steps=args.steps, learning_rate=args.learning_rate)
    worst = {"initial": check.worst_initial, "change": check.worst, "update": check.worst_update}
    row |= {f"{quantity}_slope": finite(slope.slope) for quantity, slope in worst.items()}
    row |= {f"{quantity}_where": slope.name for quantity, slope in worst.items()}
    control = check.control_worst
    row |= {
        "control_slope": finite(control.slope),
        "passed": check.passed,
        "control_failed": control.excess > check.tolerance,
        "failures": [f"{s.name} ({s.quantity})" for s in check.failures],
        "tolerance": check.tolerance,
    }
    return row


def finite(slope: float | None) -> float | None:
    """Return the slope, None if it has none or diverged: JSON knows no infinity."""
    return slope if slope is not None and math.isfinite(slope) else None


def shown(slope: float | None) -> str:
    """Return a slope as the table shows it."""
    return "diverged" if slope is None else f"{slope:+.2f}"


def equals_stock(config: Any) -> bool:
    """Return whether the variant at base width has the stock model's parameters and logits, bit for bit, same seed."""
    import torch

    from hf_muscaling.models import pretraining_class

    def logits(config: Any) -> Any:
        torch.manual_seed(0)
        model = pretraining_class(config).from_config(config).eval()
        tokens = torch.randint(1, config.vocab_size, (2, 16))
        inputs = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
        with torch.no_grad():
            return [*model.state_dict().values(), model(input_ids=tokens, **inputs).logits]

    config = config.replace(zero_readout=False)
    ours, theirs = logits(config), logits(config.to_stock_config())
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of all rows."""
    lines = [
        "| architecture | objective | conversion | = stock at base width | initial | change | SP control | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["architecture"]
        if not row["converted"]:
            lines.append(f"| {name} | | refused: {row['refusal']} | | | | | |")
            continue
        how = f"with `plan={row['plan']}`" if row["plan"] else "automatic"
        verdict = "passed" if row["passed"] else f"FAILED ({row['failures'][0]})"
        equal = "yes" if row["equals_stock"] else "NO"
        slopes = " | ".join(shown(row[f"{what}_slope"]) for what in ("initial", "change", "control"))
        lines.append(f"| {name} | {row['objective']} | {how} | {equal} | {slopes} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row that is not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME")
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    # small enough that six steps do not fit the batch: after that, trajectories are chaotic and slopes are noise
    parser.add_argument("--learning_rate", type=float, default=2**-10)
    args = parser.parse_args()

    from tqdm.auto import tqdm
    from transformers.utils import logging

    from hf_muscaling.runs import read_json, write_json
    from hf_muscaling.series import writable_folder

    logging.set_verbosity_error()
    folder = writable_folder(args.output_dir / "rows").parent
    settings = {
        "widths": args.widths, "seeds": args.seeds, "steps": args.steps, "learning_rate": args.learning_rate,
        "transformers": importlib.metadata.version("transformers"),
    }  # fmt: skip
    rows = []
    bar = tqdm(args.only, unit="row")
    for name in bar:
        bar.set_description(name)
        path = folder / "rows" / f"{name}.json"
        key = {**settings, "fields": ROWS[name][0], "plan": ROWS[name][1]}
        done = read_json(path) if path.exists() else {}
        if done.get("settings") != key:
            done = {"settings": key, "row": measure(name, args)}
            write_json(path, done)
        rows.append(done["row"])
    write_json(folder / "architectures.json", {"settings": settings, "rows": rows})
    table = markdown(rows)
    (folder / "architectures.md").write_text(table, encoding="utf-8")
    print(table)
    print(f"Table: {folder}/architectures.md")


if __name__ == "__main__":
    raise SystemExit(guarded(main))

"""Designs as JSON records, one a file, and RESULTS.md, which is generated from them."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_muscaling.errors import ConfigurationError, RecordError
from hf_muscaling.experiment import ExperimentResult
from hf_muscaling.runs import mean_losses, read_json, write_json, write_text

FORMAT = "nanolm-design-1"
REQUIRED = {
    "format": str, "name": str, "architecture": str, "objective": str, "layers": int, "target_width": int,
    "target_N": int, "tokens": int, "widths": list, "predicted": float, "low": float, "high": float, "level": float,
    "actual": float, "error": float, "inside": bool, "cost_ratio": float, "proxies": list, "data_sha256": str,
}  # fmt: skip


def design_record(name: str, result: ExperimentResult) -> dict[str, Any]:
    """Return what the leaderboard keeps of a verified experiment: JSON types; losses in nats per target.

    Raises RecordError if the target diverged, or was not trained: a design without an actual loss has no error.
    """
    if result.actual is None or result.relative_error is None or result.inside is None:
        raise RecordError(f"{name}: the target was not trained, or diverged; a design needs its actual loss.")
    config, p = result.config, result.prediction
    sizes = {run.width: run.N for run in result.proxies}
    runs = {run.run_id: run for run in [*result.grid, *result.proxies, *result.targets]}
    causal = config.training_objective == "causal"
    bits = 1 / (math.log(2) * result.data_info["bytes_per_token"]) if causal else None
    return {
        "format": FORMAT, "name": name, "architecture": config.architecture, "objective": config.training_objective,
        "layers": config.num_hidden_layers, "parametrization": config.parametrization, "widths": sorted(sizes),
        "target_width": config.target_width, "target_N": result.target_N, "tokens": config.tokens_per_run,
        "vocab_size": result.data_info["vocab_size"], "learning_rate": result.best.lr, "seeds": config.seeds,
        "predicted": float(p.loss), "low": float(p.low), "high": float(p.high), "level": config.level,
        "actual": result.actual, "error": result.relative_error, "inside": result.inside,
        "predicted_bits_per_byte": None if bits is None else float(p.loss) * bits,
        "actual_bits_per_byte": None if bits is None else result.actual * bits,
        "cost_ratio": result.cost_ratio, "seconds": round(sum(run.seconds for run in runs.values()), 1),
        "proxies": [{"width": w, "N": sizes[w], "loss": loss} for w, loss in mean_losses(result.proxies).items()],
        "data_sha256": result.best.data_hash, "versions": result.best.versions,
    }  # fmt: skip


def save_design(record: Mapping[str, Any], folder: Path) -> Path:
    """Write a design's record to `folder`/results; the same name replaces the earlier one."""
    path = folder / "results" / f"{record['name']}.json"
    write_json(path, record)
    return path


QUICK = "quick run, a dozen steps: the numbers mean nothing"


def mark_quick(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a design's or a claim's record with the mark of a quick run, in its headline too.

    >>> mark_quick({"headline": "It fits."})
    {'headline': 'QUICK RUN, A DOZEN STEPS: THE NUMBERS MEAN NOTHING. It fits.', 'quick': True}
    """
    headline = {"headline": f"{QUICK.upper()}. {record['headline']}"} if "headline" in record else {}
    return {**record, **headline, "quick": True}


def check_kind(folder: Path, quick: bool, either: Collection[str] = ()) -> None:
    """Refuse to put quick records beside real ones, or real ones beside quick: they would replace each other.

    `either` are the claims that train nothing, the same in both. Raises ConfigurationError.
    """
    for path in sorted([*(folder / "results").glob("*.json"), *(folder / "claims").glob("*.json")]):
        if path.parent.name == "claims" and path.stem in either:
            continue
        found = bool(read_json(path).get("quick", False))
        if found != quick:
            raise ConfigurationError(
                f"{path} is a record of {'a quick' if found else 'a real'} run, and this is "
                f"{'a quick' if quick else 'a real'} one: the two do not mix. Give another --report_dir "
                "(by default it is --output_dir)."
            )


def claim_verdict(claim: Mapping[str, Any]) -> str:
    """Return the `verdict` of a claim's record; that of a quick run has none."""
    return "no verdict" if claim.get("quick") else verdict(claim["checks"])


def read_designs(folder: Path) -> list[dict[str, Any]]:
    """Return the records of `folder`/results. Raises RecordError naming a file and what is wrong with it."""
    return [check_design(read_json(path), path) for path in sorted((folder / "results").glob("*.json"))]


def check_design(record: Any, path: Path) -> dict[str, Any]:
    """Return a record if every field is there and of its kind. Raises RecordError with the remedy."""
    remedy = "write it with benchmark.py --add"
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RecordError(f"{path} is not a design of format {FORMAT}; {remedy}.")
    for key, kind in REQUIRED.items():
        value = record.get(key)
        good = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not good or (kind in (int, float) and (isinstance(value, bool) or not math.isfinite(value))):
            raise RecordError(f"{path}: {key} must be {kind.__name__}, got {value!r}; {remedy}.")
    if record["name"] != path.stem:
        raise RecordError(f"{path} holds the design {record['name']!r}: the file must have its name; {remedy}.")
    if abs(record["predicted"] / record["actual"] - 1 - record["error"]) > 1e-6:
        raise RecordError(f"{path}: error does not follow from predicted and actual; {remedy}.")
    return record


def verdict(checks: Mapping[str, bool]) -> str:
    """Return "reproduced", "reproduced in part" or "not reproduced".

    >>> verdict({"fits": True, "extrapolates": False})
    'reproduced in part'
    """
    return "reproduced" if all(checks.values()) else "reproduced in part" if any(checks.values()) else "not reproduced"


def results_text(designs: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]) -> str:
    """Return RESULTS.md. Causal designs come first, by predicted bits per byte, which compare across vocabularies."""
    quick = any(record.get("quick") for record in (*designs, *claims))
    banner = [f"**{QUICK.capitalize()}.**", ""] if quick else []
    lines = [
        "# Results",
        "",
        *banner,
        "Generated by `benchmark.py` from `results/*.json` and `claims/*.json`; do not edit. The README says what is "
        "measured.",
        "",
        "## Designs",
        "",
        "Losses in nats per target. Bits per byte compare designs with other tokenizers on the same text, for causal "
        "models only; a masked model's loss compares with its own kind. Designs of other data, tokens or target sizes "
        "do not compete: the columns say so. The cost ratio counts every seed of the proxies.",
        "",
        "| design | objective | layers | target width | target N | tokens | predicted | 90 % interval | actual | error "
        "| inside | bits per byte, predicted (actual) | cost ratio | data |",
        "|" + "---|" * 14,
    ]

    def order(d: Mapping[str, Any]) -> tuple:
        bits = d.get("predicted_bits_per_byte")
        return (bits is None, d["objective"], bits if bits is not None else d["predicted"], d["name"])

    for d in sorted(designs, key=order):
        bits, mark = d.get("predicted_bits_per_byte"), " (quick)" if d.get("quick") else ""
        shown = "–" if bits is None else f"{bits:.4f} ({d['actual_bits_per_byte']:.4f})"
        lines.append(
            f"| {d['name']}{mark} | {d['objective']} | {d['layers']} | {d['target_width']} | {d['target_N']:,} | "
            f"{d['tokens']:,} | {d['predicted']:.4f} | {d['low']:.4f} … {d['high']:.4f} | {d['actual']:.4f} | "
            f"{d['error']:+.2%} | {'yes' if d['inside'] else 'no'} | {shown} | {d['cost_ratio']:.2f} | "
            f"`{d['data_sha256'][:8]}` |"
        )
    if claims:
        lines += ["", "## Claims", "", "| claim | in the paper | | measured |", "|---|---|---|---|"]
        for c in claims:
            cells = (c["statement"], c["source"], claim_verdict(c), c["headline"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += ["", "What was asked of each, before the runs:", ""]
        told = {True: "yes", False: "no"}
        lines += [f"* {c['source']}: {'; '.join(f'{k}: {told[v]}' for k, v in c['checks'].items())}." for c in claims]
    return "\n".join(lines) + "\n"


def write_results(folder: Path, order: Sequence[str] = ()) -> Path:
    """Write RESULTS.md from the records below `folder`; claims in the given order, others after them by name."""
    claims = {path.stem: read_json(path) for path in sorted((folder / "claims").glob("*.json"))}
    names = [n for n in order if n in claims] + [n for n in claims if n not in order]
    path = folder / "RESULTS.md"
    write_text(path, results_text(read_designs(folder), [claims[n] for n in names]))
    return path

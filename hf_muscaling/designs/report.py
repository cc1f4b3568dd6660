"""Write what a comparison found: comparison.md, comparison.json and comparison.png."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.runs import write_json, write_text

if TYPE_CHECKING:
    from .compare import Comparison

SETTINGS = (
    "architecture", "num_hidden_layers", "head_size", "model_fields", "tie_word_embeddings", "zero_query",
    "zero_readout", "parametrization", "base_width", "widths", "target_width", "seeds", "steps", "batch_size",
    "sequence_length", "warmup_steps", "lr_scheduler", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
    "learning_rates", "dataset", "mixture", "data_files", "domains", "vocab_size", "tokenizer",
)  # fmt: skip
"""What may make up a design: those that differ are listed in the report."""


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the report, the record and the picture below `folder`, each atomically."""
    from hf_muscaling.plotting import save_figure

    from .plots import plot_comparison

    write_json(folder / "comparison.json", comparison_record(comparison))
    save_figure(plot_comparison(comparison), folder / "comparison.png")
    write_text(folder / "comparison.md", comparison_text(comparison))


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON types; losses in its unit, differences of log losses, costs in FLOPs."""
    scales = comparison.ground.scales
    designs = {}
    for name, result in comparison.results.items():
        p = result.prediction
        designs[name] = {
            "target_width": result.config.target_width, "N": result.target_N, "lr": result.best.lr,
            "law": dict(result.law.params_), "loss": float(p.loss) * scales[name], "low": float(p.low) * scales[name],
            "high": float(p.high) * scales[name], "actual": comparison.actual(name), "spent": comparison.spent[name],
            "target_flops": comparison.target_flops[name], "bytes_scale": scales[name],
        }  # fmt: skip
    verdict = comparison.verdict.to_dict()
    for record, call in zip(verdict["calls"], comparison.verdict.calls.values(), strict=True):
        record["actual_difference"] = comparison.actual_difference(call)
        record["right"] = comparison.right(call)
        crossed = comparison.crossings[call.first, call.second]
        record["crossing_N"], record["turned"] = crossed.N, crossed.turned
        record["purchases"] = [vars(p) for p in comparison.purchases[call.first, call.second]]
    equal = comparison.at_equal_size
    return {
        "unit": comparison.ground.unit, "heldout": comparison.ground.heldout, "designs": designs, "verdict": verdict,
        "at_equal_size": None if equal is None else equal.to_dict(), "cost_ratio": comparison.cost_ratio,
    }  # fmt: skip


def headline(comparison: Comparison) -> str:
    """Return the verdict in a few lines for the terminal."""
    lines = [str(comparison.verdict)]
    for call in comparison.verdict.calls.values():
        actual = comparison.actual_difference(call)
        if actual is not None:
            lines.append(f"  {_checked(comparison, call, actual)}")
    lines.append(
        f"Grids and proxies cost {comparison.cost_ratio:.0%} of training all {len(comparison.results)} targets once "
        "(nanoLM, Eq. 1)"
    )
    return "\n".join(lines)


def _checked(comparison: Comparison, call: Any, actual: float) -> str:
    right = comparison.right(call)
    judged = "nothing was called" if right is None else "the verdict was RIGHT" if right else "the verdict was WRONG"
    inside = "inside" if call.low <= actual <= call.high else "OUTSIDE"
    return f"Trained: {call.first} relative to {call.second} {100 * actual:+.2f} %, {inside} the interval; {judged}"


def comparison_text(comparison: Comparison) -> str:
    """Return the report in Markdown."""
    c, verdict = comparison, comparison.verdict
    names = list(c.results)
    lines = [
        f"# {', '.join(names[:-1])} or {names[-1]}?",
        "",
        headline(c).replace("\n", "  \n"),
        "",
        "![Laws with intervals, extrapolation shaded, and the differences at the target](comparison.png)",
        "",
        "## The designs",
        "",
        *_differing(c),
        "",
        f"Loss: {c.ground.unit} on {c.ground.heldout}. All designs see the batches in one order, and the verdict is "
        "about this order.",
        "",
        "## The targets",
        "",
        "| design | width | N | predicted loss | interval | actual | learning rate at base width | law |",
        "|" + "---|" * 8,
    ]
    for name, result in c.results.items():
        p, s, law = result.prediction, c.ground.scales[name], result.law.params_
        actual = c.actual(name)
        lines.append(
            f"| {name} | {result.config.target_width} | {result.target_N:,} | {p.loss * s:.4f} | {p.low * s:.4f} … "
            f"{p.high * s:.4f} | {'not trained' if actual is None else f'{actual:.4f}'} | {result.best.lr:.3g} | "
            f"{law['a']:.3g}·N^({law['b']:.3f}) + {law['c']:.3f} nats |"
        )
    lines += ["", "## The verdict", "", *_matrix(c), ""]
    lines.append(
        f"A pair is called from a probability of {verdict.threshold:g} on. It comes from both laws' posterior draws, "
        "the noise of the targets' own runs and the laws' drift beyond the proxies, correlated as far as matched runs' "
        "residuals are, with exponents pooled in part (hf_muscaling.designs.joint). The predictions above are the "
        "curves fitted with `objective`; the probability is the posterior's, so that the two can lean apart a little."
    )
    if c.at_equal_size is not None:
        size = c.at_equal_size.designs[0].N
        lines += ["", f"The targets differ in N. By the laws at one size, N = {size:,.0f}:", ""]
        lines += [f"* {call}" for call in c.at_equal_size.calls.values()]
    for call in verdict.calls.values():
        lines += ["", f"### {call.first} against {call.second}", "", *_pair(c, call)]
    lines += ["", "## Cost", "", *_costs(c), ""]
    return "\n".join(lines)


def _differing(c: Comparison) -> list[str]:
    configs = {name: result.config for name, result in c.results.items()}
    found = [s for s in SETTINGS if len({str(getattr(config, s)) for config in configs.values()}) > 1]
    if not found:
        return ["The designs have the same settings."]
    rows = ["| setting | " + " | ".join(configs) + " |", "|" + "---|" * (len(configs) + 1)]
    return rows + [
        f"| {s} | " + " | ".join(str(getattr(config, s)) for config in configs.values()) + " |" for s in found
    ]


def _matrix(c: Comparison) -> list[str]:
    names = list(c.results)
    head = [
        "| P(row has the lower loss than column) | " + " | ".join(names) + " | best of all |",
        "|" + "---|" * (len(names) + 2),
    ]
    return head + [
        f"| {a} | "
        + " | ".join("" if a == b else f"{c.verdict.probability(a, b):.3f}" for b in names)
        + f" | {c.verdict.best[a]:.3f} |"
        for a in names
    ]


def _pair(c: Comparison, call: Any) -> list[str]:
    pairing, crossed = call.pairing, c.crossings[call.first, call.second]
    kind = "runs of one seed" if pairing.same_seeds else "means of nearest sizes (no seed in common)"
    lines = [
        f"* {call}",
        f"* Pairing: {pairing.matched} matched {kind}, residual correlation {pairing.correlation:+.2f}, "
        f"{pairing.shrunk:+.2f} after shrinking ({pairing.dof:g} degrees of freedom).",
    ]
    if crossed.N is None:
        lines.append("* The curves do not cross between the smallest proxy and the target.")
    else:
        lines.append(f"* The curves cross at N ≈ {crossed.N:.3g}.")
    lines.append(
        f"* Probability that the order at the largest common proxy has turned by the target: {crossed.turned:.2f}."
    )
    both = c.target_flops[call.first] + c.target_flops[call.second]
    lines += [
        f"* What more would buy: {p}, {p.flops / both:.0%} of both targets; a difference that stays would then have "
        f"probability {p.probability:.3f}."
        for p in c.purchases[call.first, call.second]
    ]
    actual = c.actual_difference(call)
    return lines if actual is None else [*lines, f"* {_checked(c, call, actual)}."]


def _costs(c: Comparison) -> list[str]:
    rows = ["| design | grid and proxies, FLOPs | target once, FLOPs | ratio (Eq. 1) |", "|" + "---|" * 4]
    for name in c.results:
        spent, target = c.spent[name], c.target_flops[name]
        rows.append(f"| {name} | {spent:.3g} | {target:.3g} | {spent / target:.0%} |")
    total, all_targets = sum(c.spent.values()), sum(c.target_flops.values())
    rows.append(f"| all | {total:.3g} | {all_targets:.3g} | {c.cost_ratio:.0%} |")
    return rows

"""Write what an experiment found: report.md, law.json, runs.jsonl, prediction.json and the plots."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_muscaling.runs import Run, Series, write_json, write_text

if TYPE_CHECKING:
    from hf_muscaling.experiment import ExperimentResult


def write_report(result: "ExperimentResult", folder: Path) -> None:
    """Write the record and its pictures below `folder`; every file atomically or from records already safe."""
    from hf_muscaling import plotting

    runs = {run.run_id: run for run in [*result.grid, *result.proxies, *result.targets]}
    Series(list(runs.values())).to_jsonl(folder / "runs.jsonl")
    result.law.to_json(folder / "law.json")
    write_json(folder / "prediction.json", prediction_record(result))
    figures = {
        "law.png": plotting.plot_law(
            result.law,
            result.proxies,
            result.prediction,
            float(result.target_N),
            [run.loss for run in result.targets if run.loss is not None],
            result.config.level,
        ),
        "curves.png": plotting.plot_loss_curves([*result.proxies, *result.targets]),
        "landscape.png": plotting.plot_landscape(result.grid, result.best),
    }
    for name, figure in figures.items():
        plotting.save_figure(figure, folder / name)
    write_text(folder / "report.md", report_text(result))


def prediction_record(result: "ExperimentResult") -> dict:
    """Return the prediction as JSON types: N in parameters, losses in nats per token, errors as fractions."""
    p = result.prediction
    return {
        "target_width": result.config.target_width,
        "N": result.target_N,
        "count": result.config.count,
        "loss": float(p.loss),
        "low": float(p.low),
        "high": float(p.high),
        "level": result.config.level,
        "extrapolation": float(p.extrapolation),
        "cost_ratio": result.cost_ratio,
        "actual": result.actual,
        "relative_error": result.relative_error,
        "inside": result.inside,
    }


def headline(result: "ExperimentResult", notes: bool = True) -> str:
    """Return the result in a few lines for the terminal, with what the law leaves open unless `notes` is false."""
    p, c = result.prediction, result.config
    lines = [
        f"Predicted loss of {c.architecture} at width {c.target_width} (N = {result.target_N:,}): {p.loss:.4f} nats "
        f"per {_target(result.best)}, {c.level:.0%} interval [{p.low:.4f}, {p.high:.4f}]",
        f"  from {len(result.proxies)} proxies of up to {_largest(result):,} parameters, {_beyond(result):.1f} times "
        f"smaller, at learning rate {result.best.lr:.3g}; cost {result.cost_ratio:.0%} of training the target "
        "(nanoLM, Eq. 1)",
    ]
    if result.actual is not None:
        lines.append(
            f"Actual loss: {result.actual:.4f}; error {result.relative_error:+.2%}, "
            f"{'inside' if result.inside else 'OUTSIDE'} the interval"
        )
    found = [*_flat(result), *(result.law.caveats() if notes else [])]
    return "\n".join([*lines, *(f"  note: {message}" for message in found)])


def _flat(result: "ExperimentResult") -> list[str]:
    """Return a sentence where the interval does not tell the target from the widest proxy."""
    largest = _largest(result)
    losses = [run.loss for run in result.proxies if _size(result, run) == largest and run.loss is not None]
    mean = sum(losses) / len(losses) if losses else None
    if mean is None or not result.prediction.low <= mean <= result.prediction.high:
        return []
    return [
        f"the largest proxy's own loss, {mean:.4f}, lies inside the interval: at this distance the law does not tell "
        "the target from it. Predict a larger target, or train longer."
    ]


def report_text(result: "ExperimentResult") -> str:
    """Return the report in Markdown."""
    c, info = result.config, result.data_info
    lines = [
        f"# {c.architecture}: predicted loss at width {c.target_width}",
        "",
        headline(result, notes=False).replace("\n", "  \n"),
        "",
        "![The law, its interval and the extrapolation](law.png)",
        "",
        "## The law",
        "",
        f"L(N) = a·N^b + c, losses in nats per {_target(result.best)}, "
        f"N = parameters ({'with' if c.count == 'total' else 'without'} embeddings).",
        "",
        "```",
        result.law.summary().rstrip(),
        "```",
        "",
        "## The runs",
        "",
        f"Every run: {c.steps} steps of {c.batch_size} × {c.sequence_length} tokens ({result.best.D:,} tokens), the "
        f"same batches in the same order (seed {c.seed}), {c.lr_scheduler} schedule with {c.warmup_steps} steps of "
        "warm-up. "
        f"{c.num_hidden_layers} layers, head size {c.head_size}, base width {c.base_width}, "
        f"parametrisation {c.parametrization}.",
        *_objective(result.best),
        "",
        *_run_table([*result.proxies, *result.targets]),
        "",
        f"FLOPs are 6·N·D. The grid and the proxies cost {result.cost_ratio:.1%} of training the target once, counted "
        "by nanoLM's formula M = 96·b·s·l·w²·(1 + s/(6w) + V/(16·l·w)) per step (its Eq. 1, every run counted once)"
        f"{'; encoder and decoder each count their own tokens' if c.training_objective == 'seq2seq' else ''}.",
        "",
        "![Training loss of every run](curves.png)",
        "",
        f"## Search at base width {c.base_width}",
        "",
        *_grid_table(result.grid, result.best),
        "",
        *(line for note in result.notes for line in (f"Note: {note}", "")),
        "![Learning-rate landscape](landscape.png)",
        "",
        "## Data",
        "",
        *(f"* {key}: {_shown(value)}" for key, value in sorted(info.items())),
        f"* data sha256: `{result.best.data_hash}`",
        f"* tokenizer sha256: `{result.best.tokenizer_hash}`",
        f"* versions: {', '.join(f'{k} {v}' for k, v in sorted(result.best.versions.items()))}",
        "",
    ]
    return "\n".join(lines)


def _target(run: Run) -> str:
    name = run.settings.get("objective", {}).get("name", "causal")
    return {"causal": "token", "masked": "masked token", "seq2seq": "target token"}[name]


def _objective(run: Run) -> list[str]:
    objective = run.settings.get("objective")
    if objective is None:
        return []
    text = (
        f"Objective: {objective['name']}, {objective['density']:.0%} of the tokens hidden, {objective['inputs']} "
        f"inputs and {objective['targets']} targets a sequence, the same for every run; the held-out set's are fixed. "
    )
    if objective["name"] == "masked":
        return [text + "The loss is the mean over masked tokens."]
    return [
        text + f"Spans of {objective['mean_span']:g} tokens on average; targets include sentinels and the end token. "
        "Tokens count text; 6·N·D counts every parameter for each, though encoder and decoder each read a part."
    ]


def _run_table(runs: list[Run]) -> list[str]:
    header = [
        "| run | role | width | seed | N | N without embeddings | FLOPs | held-out loss | seconds |",
        "|" + "---|" * 9,
    ]
    return header + [
        f"| {r.run_id} | {r.role} | {r.width} | {r.seed} | {r.N:,} | {r.N_non_embedding:,} | {r.C:.3g} | "
        f"{'diverged' if r.loss is None else f'{r.loss:.4f}'} | {r.seconds:.0f} |"
        for r in runs
    ]


def _grid_table(grid: list[Run], best: Run) -> list[str]:
    from hf_muscaling.plotting import initial_scale

    header = [f"| learning rate | {initial_scale(best)[0]} | output multiplier | held-out loss | |", "|" + "---|" * 5]
    return header + [
        f"| {r.lr:.3g} | {initial_scale(r)[1]:g} | {r.config['output_multiplier']:g} | "
        f"{'diverged' if r.loss is None else f'{r.loss:.4f}'} | {'best' if r.run_id == best.run_id else ''} |"
        for r in grid
    ]


def _largest(result: "ExperimentResult") -> int:
    return max(_size(result, run) for run in result.proxies)


def _size(result: "ExperimentResult", run: Run) -> int:
    return run.N_non_embedding if result.config.count == "non_embedding" else run.N


def _beyond(result: "ExperimentResult") -> float:
    return result.target_N / _largest(result)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} ({_shown(v)})" if isinstance(v, dict) else f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

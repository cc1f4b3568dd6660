"""Write what a trajectory experiment predicts, before the target is trained, and how it fared, afterwards."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.runs import write_json, write_text

if TYPE_CHECKING:
    from hf_muscaling.trajectory import TrajectoryResult


def write_prediction(result: "TrajectoryResult", folder: Path) -> None:
    """Write `prediction.json`, `prediction.md`, `curves.csv`, `law.json`, `prediction.png` and `stages.png`."""
    from hf_muscaling.plotting import save_figure
    from hf_muscaling.readers import RunTable

    columns: dict[str, Any] = {name: [row[name] for row in result.table] for name in result.table[0]}
    RunTable(columns).to_csv(folder / "curves.csv")
    result.law.to_json(folder / "law.json")
    write_json(folder / "prediction.json", prediction_record(result))
    save_figure(result.forecast.plot(fitted=result.law), folder / "prediction.png")
    if result.stages is not None:
        save_figure(result.stages.plot(), folder / "stages.png")
    write_text(folder / "prediction.md", prediction_text(result))


def write_verification(result: "TrajectoryResult", folder: Path) -> None:
    """Write `verification.json`, `verification.md` and `overlay.png`; the prediction's files stay as they are."""
    from dataclasses import asdict

    from hf_muscaling.plotting import save_figure
    from hf_muscaling.trajectory import LATE

    record = {"curves": [asdict(error) for error in result.errors]}
    record["heldout"] = [
        {"B": run.B, "seed": run.seed, "lr": run.lr, "loss": run.loss, "last_window": _last_window(result, run)}
        for run in result.targets
    ]
    write_json(folder / "verification.json", record)
    save_figure(result.forecast.plot(result.measured, result.law, LATE), folder / "overlay.png")
    write_text(folder / "verification.md", verification_text(result))


def prediction_record(result: "TrajectoryResult") -> dict[str, Any]:
    """Return the prediction and both sets of constants as JSON types: tokens, steps, nats per token."""
    levels = {reach.loss for reach in result.forecast.reaches}
    return {
        "forecast": result.forecast.to_dict(),
        "constants": {"joint": result.law.params_, "stage_wise": result.stages and result.stages.params},
        "critical_batch": {
            f"{loss:g}": dict(zip(("joint", "stage_wise"), critical_batches(result, loss), strict=True))
            for loss in sorted(levels, reverse=True)
        },
        "runs": [{"run_id": r.run_id, "N": r.N, "B": r.B, "S": r.S, "lr": r.lr, "loss": r.loss} for r in result.runs],
        "learning_rate": {"base": result.best.lr, "batch_size": result.config.batch_size},
        "data": result.data_info,
    }


def critical_batches(result: "TrajectoryResult", loss: float) -> tuple[float, float | None]:
    """Return B_crit at a loss, tokens: from the joint fit and stage by stage."""
    joint = float(result.law.critical_batch_size(loss))
    if result.stages is None:
        return joint, None
    return joint, result.stages.critical_batch_size(loss)


def prediction_text(result: "TrajectoryResult") -> str:
    """Return the prediction in Markdown."""
    c, found = result.config, result.forecast
    lines = [
        f"# {c.architecture}, width {c.target_width}: the loss curve before training",
        "",
        f"N = {found.N:,.0f} parameters ({'without' if c.count == 'non_embedding' else 'with'} embeddings), from "
        f"{len(result.runs)} runs of up to {found.fitted['N'][1]:,.0f} at batch sizes of {found.fitted['B'][0]:,.0f} "
        f"to {found.fitted['B'][1]:,.0f} tokens. {100 * found.level:g} % intervals.",
        "",
        f"Minimum loss: {found.minimum_loss} nats per token.",
        "",
        "| loss | batch size, tokens | steps | tokens | B_crit, tokens | B_crit stage by stage |",
        "|" + "---|" * 6,
        *(
            f"| {r.loss:g} | {r.B:,.0f} | {r.steps.whole()} | {r.tokens} | {r.critical_batch} | "
            f"{_number(critical_batches(result, r.loss)[1])} |"
            for r in found.reaches
        ),
        "",
        *(
            f"* B = {curve.B:,.0f} tokens: loss {curve.loss[-1]:.4f} [{curve.low[-1]:.4f}, {curve.high[-1]:.4f}] after "
            f"{curve.S[-1]:,.0f} steps ({curve.D[-1]:,.0f} tokens)"
            for curve in found.curves
        ),
        *(f"* note: {note}" for note in found.notes),
        "",
        "![Predicted curves](prediction.png)",
        "",
        "## The constants",
        "",
        "```",
        result.stages.compare(result.law) if result.stages else f"stage by stage: {result.stage_note}",
        "",
        result.law.summary(),
        "```",
        "",
        *(["![The stages](stages.png)", ""] if result.stages else []),
        "## The runs",
        "",
        f"Constant learning rate after warm-up; {result.best.lr:.3g} at base width {c.base_width} and {c.batch_size} "
        f"sequences (grid {', '.join(f'{lr:g}' for lr in c.learning_rates)}), times (batch size/{c.batch_size})^"
        f"{c.lr_exponent:g} elsewhere. Every run reads the same blocks in the same order, none twice: the longest "
        f"needs {c.tokens_per_run:,} tokens, as many as the training set has.",
        "",
        "| width | batch size, tokens | steps | learning rate | held-out loss | seconds |",
        "|" + "---|" * 6,
        *(
            f"| {r.width} | {r.B:,} | {r.S:,} | {r.lr:.3g} | {'diverged' if r.loss is None else f'{r.loss:.4f}'} | "
            f"{r.seconds:.0f} |"
            for r in result.runs
        ),
        "",
    ]
    return "\n".join(lines)


def verification_text(result: "TrajectoryResult") -> str:
    """Return prediction against truth in Markdown."""
    lines = ["# Prediction and truth", "", "![Prediction and truth](overlay.png)", "", *verification_lines(result), ""]
    return "\n".join(lines)


def verification_lines(result: "TrajectoryResult") -> list[str]:
    """Return the errors as lines for a report or a terminal."""
    from hf_muscaling.trajectory import LATE

    low, high = result.forecast.fitted["B"]
    lines = []
    for error in result.errors:
        where = "inside" if low <= error.B <= high else "outside"
        lines.append(
            f"* B = {error.B:,} tokens ({where} the fitted range), seed {error.seed}: mean error of the curve after "
            f"its first {100 * LATE:g} % {100 * error.error:.2f} % (worst {100 * error.worst:.2f} %), "
            f"{100 * error.inside:.0f} % of it inside the interval"
        )
        for r in error.reaches:
            if r["reached"] is None:
                missed = "; the interval begins later" if r["inside"] is False else ""
                lines.append(
                    f"    * loss {r['loss']:g}: reached before the first window (step {r['steps']:,.0f}), predicted "
                    f"{r['predicted']:,.0f}; not comparable{missed}"
                )
            elif not r["reached"]:
                off = f", {100 * r['error']:+.1f} % or further off" if r["error"] < 0 else ""
                held = "the interval ended before" if r["inside"] is False else "the interval is still open"
                lines.append(
                    f"    * loss {r['loss']:g}: not reached by step {r['steps']:,.0f}, predicted "
                    f"{r['predicted']:,.0f}{off}; {held}"
                )
            else:
                lines.append(
                    f"    * loss {r['loss']:g}: {r['steps']:,.0f} steps, predicted {r['predicted']:,.0f} "
                    f"({100 * r['error']:+.1f} %), {'inside' if r['inside'] else 'OUTSIDE'} the interval"
                )
    return lines


def headline(result: "TrajectoryResult") -> str:
    """Return the result in a few lines for the terminal."""
    return "\n".join([str(result.forecast), "", *verification_lines(result)]).rstrip()


def _last_window(result: "TrajectoryResult", run: Any) -> float:
    curve = next(c for c in result.measured if c["B"] == run.B and c["seed"] == run.seed)
    return float(curve["loss"][-1])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"

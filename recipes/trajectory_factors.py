"""How the constants of the step law move with context length and data (Part I treats both as factors of the constants).

    python recipes/trajectory_factors.py                                             # prose at 64 and 128, code at 64
    python recipes/trajectory_factors.py --settings prose:32 prose:256 code:32 --seeds 2

Trains the same widths at the same batch sizes in tokens under every setting (domain:context), fits the constants both
ways, and writes `factors.md`, `factors.json` and `factors.png`. Each domain has its own tokenizer, so that losses per
token compare between contexts, not between domains: the table gives nats per byte as well. It takes the settings of
`predict_trajectory.py`; batch sizes are meant in sequences of 64 tokens. The same command continues.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded

CONSTANTS = ("N_c", "alpha_N", "S_c", "alpha_S", "B_star", "alpha_B")
REFERENCE = 64  # tokens of the sequences in which batch sizes are meant
DEFAULTS = [
    *("--output_dir", "runs/trajectory-factors", "--widths", "32", "48", "64", "--target_width", "96"),
    *("--batch_sizes", "8", "32", "128", "--target_batch_sizes", "32", "--learning_rates", "0.006"),
    *("--steps", "500", "--least_steps", "250"),
]


def main() -> None:
    """Train and fit every setting, then compare."""
    from hf_muscaling import TrajectoryConfig, predict_trajectory
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.errors import ConfigurationError
    from hf_muscaling.plotting import save_figure
    from hf_muscaling.runs import write_json, write_text

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--settings", nargs="+", default=["prose:64", "prose:128", "code:64"])
    given, rest = first.parse_known_args(sys.argv[1:])
    config, _ = parse_experiment(
        [*DEFAULTS, *rest], f"{__doc__}\nOption: --settings DOMAIN:CONTEXT …", kind=TrajectoryConfig
    )
    found = {}
    for setting in given.settings:
        domain, _, context = setting.partition(":")
        if domain not in ("prose", "code") or not context.isdigit():
            raise ConfigurationError(f"--settings {setting!r} must be DOMAIN:CONTEXT, such as prose:128 or code:32.")
        found[setting] = predict_trajectory(under(config, domain, int(context)))
    folder = Path(config.output_dir)
    record = compare(found)
    write_json(folder / "factors.json", record)
    text = table(record)
    write_text(folder / "factors.md", f"# The constants under each setting\n\n{text}\n\n![Factors](factors.png)\n")
    save_figure(plot(found), folder / "factors.png")
    print(f"\n{text}\n\nPlot: {folder}/factors.png")


def under(config, domain: str, context: int):
    """The experiment under one setting: batch sizes in tokens and tokens per run as they are."""
    from dataclasses import replace

    from hf_muscaling.errors import ConfigurationError

    def sequences(batch: int) -> int:
        if batch * REFERENCE % context:
            raise ConfigurationError(
                f"A batch of {batch * REFERENCE} tokens is no whole number of {context}-token blocks."
            )
        return batch * REFERENCE // context

    return replace(
        config, output_dir=str(Path(config.output_dir) / f"{domain}-{context}"), domains=[domain],
        sequence_length=context, batch_size=sequences(config.batch_size),
        batch_sizes=[sequences(b) for b in config.batch_sizes],
        target_batch_sizes=[sequences(b) for b in config.target_batch_sizes],
    )  # fmt: skip


def compare(found: dict) -> dict:
    """Both fits' constants of every setting, and what they come to at one loss that all of them reach.

    Single constants are open where others make up for them (the law says which); what they say together is not.
    """
    from hf_muscaling import forecast

    lowest = {name: min(run.loss for run in result.runs if run.finished) for name, result in found.items()}
    level = round(1.1 * max(lowest.values()), 2)
    record = {}
    for name, result in found.items():
        law = result.law
        size, batch = law.range_["N"][1], sorted({row["B"] for row in result.table})[1]
        reach = forecast(law, size, batch, losses=[level]).reaches[0]
        record[name] = {
            "constants": {c: law.params_[c] for c in CONSTANTS},
            "stage_wise": result.stages and result.stages.params,
            "N": size, "B": batch, "loss": level, "learning_rate": result.best.lr,
            "steps": [reach.steps.value, reach.steps.low, reach.steps.high],
            "critical_batch": [reach.critical_batch.value, reach.critical_batch.low, reach.critical_batch.high],
            "final_loss": lowest[name], "bytes_per_token": result.data_info.get("bytes_per_token"),
        }  # fmt: skip
    return record


def table(record: dict) -> str:
    """The constants and answers as a Markdown table, 90 % intervals in brackets."""
    first = next(iter(record.values()))
    heads = [
        *CONSTANTS,
        f"B_crit at loss {first['loss']:g}, tokens",
        f"steps to it, N = {first['N']:,.0f}",
        "lowest loss",
    ]
    lines = [f"| setting | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for setting, row in record.items():
        cells = [f"{row['constants'][name]:.3g}" for name in CONSTANTS]
        cells += ["{:,.0f} [{:,.0f}, {:,.0f}]".format(*row[name]) for name in ("critical_batch", "steps")]
        per_byte = f" ({row['final_loss'] / row['bytes_per_token']:.3f} a byte)" if row["bytes_per_token"] else ""
        lines.append(f"| {setting} | {' | '.join(cells)} | {row['final_loss']:.3f}{per_byte} |")
    return "\n".join(lines)


def plot(found: dict):
    """Critical batch size over loss, and the curves over steps at a middling batch size, a colour a setting."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (setting, result) in zip(("C0", "C1", "C2", "C3", "C4", "C5"), found.items(), strict=False):
        law = result.law
        size, batch = law.range_["N"][1], sorted({row["B"] for row in result.table})[1]
        rows = [row for row in result.table if row["N"] == size]
        losses = np.linspace(min(r["loss"] for r in rows), np.quantile([r["loss"] for r in rows], 0.8), 40)
        left.plot(losses, law.critical_batch_size(losses), color=colour, label=setting)
        if result.stages is not None:
            p = result.stages.params
            left.plot(losses, p["B_star"] / losses ** (1 / p["alpha_B"]), color=colour, ls=":")
        own = [row for row in rows if row["B"] == batch]
        steps = np.geomspace(own[0]["S"], own[-1]["S"], 60)
        right.plot([r["S"] for r in own], [r["loss"] for r in own], "o", ms=3, color=colour)
        right.plot(steps, law.loss_curve(size, batch, steps), color=colour, label=f"{setting}, B = {batch:,} tokens")
    left.set(
        yscale="log", xlabel="loss, nats per token", ylabel="B_crit, tokens", title="joint fit; dotted: stage by stage"
    )
    left.invert_xaxis()
    right.set(
        xscale="log", xlabel="S, optimizer steps", ylabel="loss, nats per token", title="largest size; line: joint fit"
    )
    for axis in (left.yaxis, right.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    raise SystemExit(guarded(main))

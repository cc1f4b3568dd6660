"""`muscaling trajectory`: your curves in; steps, tokens, critical batch size and curves of a larger model out."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_muscaling.errors import FitError, MuScalingError, RecordError
from hf_muscaling.laws import Forecast, KaplanStepLaw, StageWise, estimate_stages, forecast
from hf_muscaling.readers import RunTable

from .law_flags import add_reader_flags, as_notes, number_flag, one_family, read_columns, writable
from .parser import Parser


def run(arguments: Sequence[str]) -> None:
    """Read curves, fit Part I's constants jointly and stage by stage, answer for the model asked for."""
    parser = Parser(
        prog="muscaling trajectory",
        description="Predict a larger model's minimum loss, steps and tokens to a loss, critical batch size and whole "
        "loss curves (Scaling Laws, Part I) from training curves at several sizes and batch sizes.",
        epilog="example: muscaling trajectory runs.parquet --N 1.3e9 --B 524288 2M --loss 3.0 2.8 --plot curves.png",
    )
    add_reader_flags(parser, stated="runs_")
    add = parser.add_argument_group("the model to predict").add_argument
    add("--N", dest="size", required=True, metavar="PARAMETERS", help="its parameters, counted as the runs' are")
    add("--B", dest="batches", required=True, nargs="+", metavar="TOKENS", help="its batch sizes, tokens per step")
    add("--loss", dest="levels", nargs="+", metavar="NATS", help="losses to reach; three on the way by default")
    add(
        "--tokens",
        metavar="TOKENS",
        help="length of the curves; the longest run's by default, but no fewer steps than the run of fewest",
    )
    add = parser.add_argument_group("the law").add_argument
    add("--objective", default="bayes", help="what the joint fit minimises (default bayes)")
    add("--irreducible", choices=["auto", "yes", "no"], default="auto", help="an irreducible loss beside (N_c/N)^a_N")
    add("--window", type=float, default=0.3, help="share of each run, by tokens, that the joint fit leaves out")
    add("--stage_window", type=float, default=0.05, help="share that the stage-wise fit leaves out: the warm-up")
    add("--level", type=float, default=0.9, help="confidence of intervals (default 0.9)")
    add("--plot", metavar="PNG", help="draw the curves, the runs and the extrapolation")
    add("--save", metavar="JSON", help="store the fitted law; the law's from_json reads it")
    add("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(list(arguments))
    save = writable(args.save, ".json") if args.save else None
    plot = writable(args.plot, ".png") if args.plot else None
    size, tokens = number_flag(args.size, "--N"), args.tokens and number_flag(args.tokens, "--tokens")
    batches = [number_flag(word, "--B") for word in args.batches]
    levels = [number_flag(word, "--loss") for word in args.levels] if args.levels else None
    table, counted = _table(args)
    with as_notes():
        irreducible: Any = {"auto": "auto", "yes": True, "no": False}[args.irreducible]
        law = KaplanStepLaw(args.objective, args.window, irreducible=irreducible).fit(table)
        found = forecast(law, size, batches, losses=levels, tokens=tokens, level=args.level)
    stages, lacking = _stages(table, args.stage_window)
    if save:
        law.to_json(save)
    if plot:
        from hf_muscaling.plotting import save_figure

        save_figure(found.plot(fitted=law), plot)
    if args.json:
        print(json.dumps(_record(found, law, stages, counted), indent=1, sort_keys=True, allow_nan=False))
        return
    print(f"{table}\n\n{law.summary()}\n\n{stages.compare(law) if stages else f'stage by stage: {lacking}'}")
    print(f"\nN counts parameters {counted}.\n{found}")
    if stages:
        for loss in dict.fromkeys(r.loss for r in found.reaches):
            print(f"B_crit at loss {loss:g}, stage by stage: {stages.critical_batch_size(loss):,.0f} tokens")
    for path, what in ((args.save, "Law"), (args.plot, "Plot")):
        if path:
            print(f"\n{what}: {path}")


def _table(args: argparse.Namespace) -> tuple[RunTable, str]:
    """The curves, with Kaplan's N where the table has both counts, and how N counts in words."""
    fitted = _fitted_curves(args.path)
    if fitted:
        print(f"note: {args.path} is a trajectory experiment: its curves are read from {fitted}.", file=sys.stderr)
        args.path = str(fitted)
    try:
        table = read_columns(args, {"N", "S", "B"})
    except MuScalingError as error:  # the readers name the flags as other commands have them
        raise type(error)(re.sub(r"--(N|D|B|loss)\b(?!_)", r"--runs_\1", str(error))) from error
    one_family(table)
    _one_model_a_run(table)
    if args.count is None and "N_non_embedding" in table:
        return RunTable({**table, "N": table["N_non_embedding"]}, table.source, table.notes), "without embeddings"
    counts = {"total": "with embeddings", "non_embedding": "without embeddings", None: "as the column N does"}
    return table, counts[args.count]


def _fitted_curves(path: str) -> Path | None:
    """The curves which a trajectory experiment fitted: those of its settings, without the target it predicts."""
    folders = (Path(path), Path(path).parent) if Path(path).name == "runs" else (Path(path),)
    return next((f / "curves.csv" for f in folders if (f / "curves.csv").is_file() and (f / "runs").is_dir()), None)


def _one_model_a_run(table: RunTable) -> None:
    """Refuse a run_id that several models or batch sizes share: resampling takes whole runs."""
    if "run_id" not in table:
        return
    names = np.asarray(table["run_id"]).astype(str)
    for name in np.unique(names).tolist():
        for column in ("N", "B"):
            count = len(np.unique(table[column][names == name]))
            if count > 1:
                raise RecordError(
                    f"{table.source}: run_id {name!r} has {count} different {column}; a run has one. Give every run "
                    "its own run_id, or leave the column out."
                )


def _stages(table: RunTable, window: float) -> tuple[StageWise | None, str]:
    """The stage-wise constants, or what the runs lack for them."""
    try:
        return estimate_stages(table, window, partial=True), ""
    except FitError as error:
        return None, str(error)


def _record(found: Forecast, law: KaplanStepLaw, stages: StageWise | None, counted: str) -> dict[str, Any]:
    return {
        "forecast": found.to_dict(),
        "N_counts": f"parameters {counted}",
        "constants": {"joint": law.params_, "stage_wise": stages and stages.params},
        "critical_batch_stage_wise": stages
        and {f"{r.loss:g}": stages.critical_batch_size(r.loss) for r in found.reaches},
    }

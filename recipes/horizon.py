"""How should the learning rate at base width move with the token horizon and the batch size? Measured, not assumed.

    accelerate launch recipes/horizon.py           # 4 horizons × 2 batch sizes on the embedded corpus
    accelerate launch recipes/run_series.py --learning_rate_law runs/horizon/law.json --learning_rates 8e-3

Trains a lattice of rates at base width in every cell, follows each minimum, fits lr*(D, B) = lr0·(D/D0)^-gamma·
(B/B0)^delta, and then predicts the longest horizon from the shorter ones. Writes `runs.csv`, `law.json`,
`horizon.json` and the plots. It takes the settings of `run_series.py`; killed, the same command continues.
"""

import argparse
import os
import sys
from dataclasses import asdict, replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded

DEFAULTS = [
    *("--output_dir", "runs/horizon", "--batch_size", "16", "--learning_rates", "0.016", "--warmup_steps", "120"),
    *("--heldout_tokens", "32768", "--checkpoint_steps", "4000"),
]


def main() -> None:
    """Sweep, fit, hold out, write the table, the law and the plots."""
    from hf_muscaling import LearningRateLaw
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.errors import FitError
    from hf_muscaling.experiment import prepare_experiment
    from hf_muscaling.folders import writable_folder
    from hf_muscaling.horizon import HorizonSweep, hold_out, horizon_cells, table_of
    from hf_muscaling.interruption import listening
    from hf_muscaling.plotting import save_figure
    from hf_muscaling.readers import RunTable
    from hf_muscaling.readers.files import columns_of
    from hf_muscaling.runs import write_json
    from hf_muscaling.workers import Workers

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--horizons", type=int, nargs="+", default=[100, 200, 400, 800])
    own.add_argument("--batch_factors", type=float, nargs="+", default=[1.0, 4.0])
    given, rest = own.parse_known_args(sys.argv[1:])
    text = f"{__doc__}\nBesides: --horizons STEPS … (at the base batch size), --batch_factors TIMES …"
    config, _ = parse_experiment([*DEFAULTS, *rest], text)
    config = replace(config, steps=max(given.horizons))
    cells = horizon_cells(config, given.horizons, given.batch_factors)
    folder = writable_folder(config.output_dir)
    with listening(), Workers() as workers:
        sweep = HorizonSweep(config, prepare_experiment(config), workers)
        rows = table_of(sweep.search(cells))
        if main_process := sweep.args.process_index == 0:
            RunTable(columns_of(rows, "the sweep")).to_csv(folder / "runs.csv")
        law = LearningRateLaw().fit(rows)
        if main_process:
            law.to_json(folder / "law.json")
            save_figure(law.plot(), folder / "horizon.png")
            save_figure(law.plot("landscapes"), folder / "landscapes.png")
            print(f"\n{law.summary()}")
        try:
            found = hold_out(sweep, law, config.level) if len(given.horizons) > 2 else []
        except FitError as error:
            found = []
            print(f"\nNot held out, the shorter horizons alone are too few: {error}")
    if main_process:
        write_json(folder / "horizon.json", {"config": asdict(config), "held_out": [asdict(h) for h in found]})
        for h in found:
            print(
                f"\nHeld out: D = {h.D:,.0f}, B = {h.B:,.0f}: predicted rate {h.predicted:.3g} "
                f"[{h.low:.3g}, {h.high:.3g}] gives {h.predicted_loss:.4f}; that of the shortest horizon, "
                f"{h.kept:.3g}, {h.kept_loss:.4f}; the best, {h.optimum:.3g}, {h.optimum_loss:.4f}"
            )
        print(f"\nLaw: {folder}/law.json\nPlots: {folder}/horizon.png, {folder}/landscapes.png")


if __name__ == "__main__":
    raise SystemExit(guarded(main))

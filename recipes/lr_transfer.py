"""Does the best learning rate stay put as width grows? Under μP it should, under standard parametrisation it moves.

    accelerate launch recipes/lr_transfer.py                                  # Llama, widths 32 … 256
    accelerate launch recipes/lr_transfer.py --architecture gpt2 --output_dir runs/lr-transfer-gpt2

Trains every width at every learning rate under both parametrisations, on the same batches, and writes `transfer.json`
and `transfer.png`. It takes the settings of `run_series.py`; of these, `widths` and `learning_rates` are what is swept.
"""

import math
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded

DEFAULTS = [
    *("--output_dir", "runs/lr-transfer", "--widths", "32", "64", "128", "256", "--target_width", "16"),
    *("--learning_rates", "0.004", "0.008", "0.016", "0.032", "0.064"),
    *("--steps", "150", "--warmup_steps", "30"),
]


def main() -> None:
    """Sweep, print the optimum of every width, write the plot."""
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.data import prepare_data
    from hf_muscaling.plotting import plot_transfer, save_figure
    from hf_muscaling.progress import SeriesProgress
    from hf_muscaling.runs import write_json
    from hf_muscaling.series import Job, run_jobs, writable_folder

    config, _ = parse_experiment([*DEFAULTS, *sys.argv[1:]], __doc__)
    folder = writable_folder(config.output_dir)
    args = config.training_arguments()
    data = prepare_data(config.data_config(), config.tokens_per_run)
    base = config.base_config(len(data.tokenizer), data.tokenizer.eos_token_id)
    panels = {"μP": base, "standard parametrisation": base.replace(parametrization="sp")}
    jobs = {
        name: [
            Job(panel.at_width(width), args, seed=config.seed, learning_rate=lr)
            for width in config.widths
            for lr in config.learning_rates
        ]
        for name, panel in panels.items()
    }
    tokens_per_step = config.batch_size * config.sequence_length
    bar = SeriesProgress([job.cost(tokens_per_step) for row in jobs.values() for job in row], "transfer")
    hashes = {"data_hash": data.data_hash, "tokenizer_hash": data.tokenizer_hash}
    losses = {}
    for name, row in jobs.items():
        options = {"progress": bar, "hashes": hashes, "role": "grid", "save_model": False}
        runs = run_jobs(row, data.train, data.heldout, folder / "runs", **options)
        losses[name] = {
            width: {run.lr: math.nan if run.loss is None else run.loss for run in runs if run.width == width}
            for width in config.widths
        }
    bar.close()
    optima = {
        name: {width: min((loss, lr) for lr, loss in row.items() if loss == loss)[1] for width, row in panel.items()}
        for name, panel in losses.items()
    }
    for name, best in optima.items():
        shift = max(best.values()) / min(best.values())
        print(f"{name}: best learning rate by width {best}; it moves by a factor of {shift:g}")
    save_figure(plot_transfer(losses, f"{config.architecture}: learning-rate transfer"), folder / "transfer.png")
    rows = [
        {"parametrization": name, "width": width, "lr": lr, "loss": None if loss != loss else loss}
        for name, panel in losses.items()
        for width, row in panel.items()
        for lr, loss in row.items()
    ]
    write_json(folder / "transfer.json", {"runs": rows, "optima": optima})
    print(f"Plot: {folder}/transfer.png")


if __name__ == "__main__":
    raise SystemExit(guarded(main))

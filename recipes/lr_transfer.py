"""Does the best learning rate stay put as width grows? Under μP it should, under standard parametrisation it moves.

    accelerate launch recipes/lr_transfer.py                                  # Llama, widths 32 … 256
    accelerate launch recipes/lr_transfer.py --architecture gpt2 --output_dir runs/lr-transfer-gpt2

Trains every width at every learning rate under both parametrisations, on the same batches, and writes `transfer.json`
and `transfer.png`. It takes the settings of `run_series.py`; of these, `widths` and `learning_rates` are what is swept.
"""

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
    from hf_muscaling import transfer_check
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.experiment import prepare_experiment
    from hf_muscaling.series import writable_folder

    config, _ = parse_experiment([*DEFAULTS, *sys.argv[1:]], __doc__)
    folder = writable_folder(config.output_dir)
    args = config.training_arguments()
    setup = prepare_experiment(config)
    check = transfer_check(
        setup.base,
        config.widths,
        config.learning_rates,
        args,
        setup.train_dataset,
        setup.heldout_dataset,
        control=True,
        output_dir=folder / "runs",
        model_class=setup.model_class,
        data_collator=setup.data_collator,
        hashes=setup.hashes,
    )
    if args.process_index == 0:
        check.to_json(folder / "transfer.json")
        check.plot(folder / "transfer.png")
        print(f"\n{check}\nPlot: {folder}/transfer.png")


if __name__ == "__main__":
    raise SystemExit(guarded(main))

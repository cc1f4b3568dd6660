"""Search learning rate, initial std and output multiplier at base width, with any number of workers on one study.

    python recipes/search_hyperparameters.py recipes/configs/gpt2.yaml --output_dir runs/sweep --threads 1 &
    python recipes/search_hyperparameters.py recipes/configs/gpt2.yaml --output_dir runs/sweep --threads 1
    accelerate launch recipes/run_series.py --config runs/sweep/best.yaml

The same as `muscaling sweep`; `--help` lists its flags. Needs `pip install -e ".[optuna]"`. recipes/slurm/ does it on a
cluster.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded

if __name__ == "__main__":
    from hf_muscaling.commands.sweep import run

    raise SystemExit(guarded(lambda: run(None, __doc__)))

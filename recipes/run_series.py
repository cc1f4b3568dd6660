"""Train a μP series, fit its scaling law and predict a larger model that is not trained.

    accelerate launch recipes/run_series.py                                    # Llama on the embedded corpus
    accelerate launch recipes/run_series.py --verify                           # … and train the target to check
    accelerate launch recipes/run_series.py --config recipes/configs/gpt2.yaml --seed 1 --output_dir runs/gpt2-1

Every setting of `hf_muscaling.configuration.ExperimentConfig` is a key of the YAML file and a flag; flags win. The same
command continues where it was interrupted.
"""

import os

# Two threads that spin while they wait starve each other as soon as anything else runs; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import run_series

if __name__ == "__main__":
    raise SystemExit(run_series(description=__doc__))

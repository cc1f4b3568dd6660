"""Which design wins at the target? Proxies of each, a law each, a verdict with its probability (nanoLM, Algorithm 1).

    accelerate launch recipes/compare_designs.py recipes/configs/designs/llama.yaml recipes/configs/designs/gpt2.yaml
    accelerate launch recipes/compare_designs.py recipes/configs/designs/layers{4,8}.yaml --verify  # train targets too
    accelerate launch recipes/compare_designs.py A.yaml B.yaml C.yaml --target_N 1.3e6 --seed 1 --output_dir runs/abc

Every design is an experiment as `run_series.py` takes it; any of its flags holds for all designs. The same command
continues where it was interrupted.
"""

import os

# Two threads that spin while they wait starve each other as soon as anything else runs; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import compare

if __name__ == "__main__":
    raise SystemExit(compare(description=__doc__))

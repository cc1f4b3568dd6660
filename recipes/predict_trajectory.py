"""Predict the whole loss curve of a larger model before it is trained (Scaling Laws, Part I), at any batch size.

    python recipes/predict_trajectory.py                                     # small runs → constants → prediction
    python recipes/predict_trajectory.py --verify                            # … then train the target and compare
    python recipes/predict_trajectory.py --target_width 256 --target_batch_sizes 16 512 --loss_levels 3.2 3.0

Trains several widths at several batch sizes, estimates B_*, α_B, N_c, α_N, S_c, α_S stage by stage and jointly, and
writes `prediction.md` before the target exists: minimum loss, steps, tokens and critical batch size at three
losses, and whole curves. That takes 17 CPU-minutes in one thread, and half as much again with `--verify`;
`--steps 500 --least_steps 250` takes a third of it, in curves that still show these small models' plateau. Every
setting of `hf_muscaling.trajectory.TrajectoryConfig` is a flag and a key of `--config FILE.yaml`. The same command
continues where it was interrupted.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded


def main() -> None:
    """Predict, print, say where the files are."""
    from hf_muscaling import TrajectoryConfig, predict_trajectory
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.trajectory_report import headline

    config, _ = parse_experiment(description=__doc__, kind=TrajectoryConfig)
    result = predict_trajectory(config)
    print(f"\n{headline(result)}\n\nReport: {config.output_dir}/prediction.md")


if __name__ == "__main__":
    raise SystemExit(guarded(main))

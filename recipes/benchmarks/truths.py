"""Synthetic tables for `extrapolation.py`: known laws, some of them not the one that is fitted, in usual designs."""

from collections.abc import Callable

import numpy as np

from hf_muscaling.laws import KaplanLaw, KaplanStepLaw

TRUTHS = ("chinchilla", "kaplan", "early", "interaction", "tuning")
DESIGNS = ("grid", "isoflop", "ladder", "curves")
Table = dict[str, np.ndarray]


def truth(rng: np.random.Generator, kind: str) -> Callable:
    """Return L(N, D): "chinchilla"; "kaplan" (no floor); "early" (a transient that dies with compute and tokens);
    "interaction" (the terms do not add); "tuning" (hyperparameters right at one size only).

    Exponents scatter by a quarter about 0.36; each term is 0.2 to 0.9 nats at 3e8 parameters and 6e9 tokens.
    """
    alpha, beta = np.clip(np.exp(rng.normal(np.log(0.36), 0.25, 2)), 0.12, 0.8)
    floor = rng.uniform(1.2, 2.2)
    a, b = rng.uniform(0.2, 0.9, 2) * np.array([3e8**alpha, 6e9**beta])

    def plain(n, d):
        return floor + a * n**-alpha + b * d**-beta

    if kind == "chinchilla":
        return plain
    if kind == "kaplan":
        alpha_n, alpha_d, loss = rng.uniform(0.05, 0.1), rng.uniform(0.07, 0.13), rng.uniform(2, 3)
        n_c, d_c = 3e8 * (0.9 * loss) ** (1 / alpha_n), 6e9 * (0.8 * loss) ** (1 / alpha_d)
        return lambda n, d: KaplanLaw.loss(n, d, n_c, alpha_n, d_c, alpha_d)
    if kind == "early":
        size, power = rng.uniform(0.03, 0.15), rng.uniform(0.5, 1.0)
        return lambda n, d: plain(n, d) * (1 + 0.3 * size * (n * d / 1e17) ** -power + size * (1 + d / (5 * n)) ** -2)
    if kind == "interaction":
        q = rng.uniform(0.5, 1.5)
        return lambda n, d: floor + ((a * n**-alpha) ** (1 / q) + (b * d**-beta) ** (1 / q)) ** q
    bend, best = rng.uniform(0, 0.003), np.exp(rng.uniform(np.log(5e7), np.log(1e9)))
    return lambda n, d: plain(n, d) * (1 + bend * np.log(n / best) ** 2)


def design(rng: np.random.Generator, kind: str) -> tuple[Table, Table]:
    """Return N and D of the runs, and of targets 1.2 to 4 times larger."""
    first, span = np.exp(rng.uniform(np.log(5e6), np.log(1e8))), np.exp(rng.uniform(np.log(10), np.log(100)))
    if kind == "isoflop":
        budgets = 240 * first**2 * (span**2) ** np.linspace(0, 1, rng.integers(4, 8))
        width, points = rng.uniform(0.8, 1.3), rng.integers(5, 8)
        n = (np.sqrt(budgets / 120)[:, None] * np.exp(np.linspace(-1, 1, points) * width)).ravel()
        d = np.repeat(budgets, points) / 6 / n
        large = n.max() * np.array([1.2, 2, 3, 4])
        return {"N": n, "D": d}, {"N": large, "D": budgets.max() * np.array([2, 4, 9, 16]) / 6 / large}
    if kind == "curves":
        models, points, fixed = rng.integers(5, 12), rng.integers(8, 25), rng.random() < 0.5
        sizes = first * span ** np.linspace(0, 1, models)
        ends = np.full(models, 160 * first * np.sqrt(span)) if fixed else 40 * sizes
        d = (ends[:, None] * np.linspace(1 / points, 1, points)).ravel()
        run = np.repeat(np.arange(models), points).astype(str)
        large = first * span * np.array([2, 4, 2, 4])
        end = np.full(4, ends.max()) if fixed else 40 * large
        small = {"N": np.repeat(sizes, points), "D": d, "run_id": run}
        return small, {"N": large, "D": end * np.array([1, 1, 0.8, 0.8])}
    if kind == "grid":
        sizes = first * span ** np.linspace(0, 1, rng.integers(4, 9))
        horizons = 8 * first * (20 * span) ** np.linspace(0, 1, rng.integers(3, 7))
        n, d = (v.ravel() for v in np.meshgrid(sizes, horizons))
        large = {"N": sizes.max() * np.array([2, 4, 2, 4]), "D": horizons.max() * np.array([1, 1, 2, 4])}
        return {"N": n, "D": d}, large
    multiples = np.array([5, 20, 80, 160])[: rng.integers(2, 5)]
    n, m = (v.ravel() for v in np.meshgrid(first * span ** np.linspace(0, 1, rng.integers(5, 9)), multiples))
    large = n.max() * np.array([2, 4, 4, 4])
    return {"N": n, "D": n * m}, {"N": large, "D": large * np.array([20, multiples[0], 20, multiples[-1]])}


def table(seed: int, kind: str | None = None, failures: bool = True) -> tuple[Table, Table, str, str]:
    """Return the runs, the targets (`loss` measured, `clean` without noise), the truth's kind and the design.

    Noise is normal, 0.1 to 1 %, shared by the checkpoints of a curve; with `failures`, in three tables of ten, 4 % of
    the runs lie several standard deviations too high.
    """
    rng = np.random.default_rng(seed)
    kind, shape = kind or TRUTHS[seed % 5], DESIGNS[seed // 5 % 4]
    law = truth(rng, kind)
    runs, targets = design(rng, shape)
    sigma = np.exp(rng.uniform(np.log(0.001), np.log(0.01)))
    rate = 0.04 if rng.random() < 0.3 and failures else 0.0
    if shape == "curves":
        _, run = np.unique(runs["run_id"], return_inverse=True)
    else:
        run = np.arange(len(runs["N"]))
    count = run.max() + 1
    error = sigma * rng.normal(size=count) + (rng.random(count) < rate) * rng.uniform(2, 8, count) * max(sigma, 0.005)
    error = error[run] + (0.3 * sigma * rng.normal(size=len(run)) if shape == "curves" else 0)
    runs["loss"] = law(runs["N"], runs["D"]) * np.exp(error)
    targets["clean"] = law(targets["N"], targets["D"])
    targets["loss"] = targets["clean"] * np.exp(sigma * rng.normal(size=len(targets["clean"])))
    return runs, targets, kind, shape


def step_table(seed: int) -> tuple[Table, Table]:
    """Return runs with changing batch size and targets 4 to 1000 times their compute, from the law of Part I: without
    an irreducible loss for even seeds, with one for odd seeds.
    """
    rng = np.random.default_rng(seed)
    floor = rng.uniform(0.8, 1.8) if seed % 2 else 0.0
    alpha_n, alpha_s = (rng.uniform(0.2, 0.4), rng.uniform(0.4, 0.8)) if seed % 2 else (rng.uniform(0.06, 0.1), 0.7)
    letters = {
        "N_c": 1e7 * (rng.uniform(0.8, 1.5) if seed % 2 else rng.uniform(2.2, 3)) ** (1 / alpha_n),
        "alpha_N": alpha_n,
        "S_c": 2e3 * rng.uniform(0.6, 1.2) ** (1 / alpha_s),
        "alpha_S": alpha_s,
        "B_star": 10 ** rng.uniform(6, 7),
        "alpha_B": rng.uniform(0.2, 0.4),
        "E": floor,
    }
    count = int(rng.integers(24, 70))
    n, b = np.exp(rng.uniform(np.log(1e6), np.log(1e8), count)), np.exp(rng.uniform(np.log(1e4), np.log(1e6), count))
    s = np.clip(20 * n / b * np.exp(rng.normal(0, 1, count)), 50, 1e5)
    loss = KaplanStepLaw.loss(n, s, b, **letters) * np.exp(rng.uniform(0.001, 0.01) * rng.normal(size=count))
    large = 1e8 * np.array([2, 4, 10, 30])
    targets = {"N": large, "B": np.full(4, 3e5), "S": 20 * large / 3e5}
    targets["loss"] = KaplanStepLaw.loss(*(targets[v] for v in "NSB"), **letters)
    return {"N": n, "S": s, "B": b, "loss": loss}, targets

"""The claims that train: Figures 1, 3, 5 and 6 and Table 3 of nanoLM on the twins. Each returns a `Claim`."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import figures
from leaderboard import design_record, verdict
from matplotlib.figure import Figure
from twins import TWINS, Options, Score, Twin, find_twin, nearest_rates, score_law

from hf_muscaling.checks.transfer import NAMES, TransferCheck, tabulate
from hf_muscaling.errors import FitError
from hf_muscaling.experiment import ExperimentResult

MAIN = "gpt-12l"
"""The design behind Figures 1, 3, 5a and 6."""


@dataclass
class Claim:
    """What one claim came to. Its `checks` were written down before the runs: what must hold → whether it does."""

    name: str
    source: str
    statement: str
    checks: dict[str, bool]
    headline: str
    numbers: dict[str, Any]
    figure: Figure | None = None
    designs: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the figure and the designs, which have files of their own."""
        keys = ("name", "source", "statement", "checks", "headline", "numbers")
        return {key: getattr(self, key) for key in keys}

    @property
    def verdict(self) -> str:
        """ "reproduced", "reproduced in part" or "not reproduced"."""
        return verdict(self.checks)


class Benchmark:
    """The twins of one run of the benchmark, opened once."""

    def __init__(self, options: Options):
        self.options = options
        self._twins: dict[str, Twin] = {}

    def twin(self, name: str = MAIN) -> Twin:
        """Return a design; all claims share its runs."""
        if name not in self._twins:
            self._twins[name] = find_twin(name, self.options)
        return self._twins[name]

    def names(self) -> tuple[str, ...]:
        """Return the designs of Table 3."""
        return TWINS[:2] if self.options.quick else TWINS

    def results(self) -> tuple[dict[str, ExperimentResult], dict[str, str]]:
        """Return the experiments of Table 3 and, for a design whose losses follow no law, the reason."""
        found, failed = {}, {}
        for name in self.names():
            try:
                found[name] = self.twin(name).result
            except FitError as error:
                failed[name] = str(error)
        return found, failed


def landscapes(benchmark: Benchmark) -> Claim:
    """Figure 1: under μP the loss over learning rate has its minimum at the same place for all widths."""
    twin = benchmark.twin()
    widths = [twin.config.base_width, 2 * twin.config.base_width, twin.config.target_width]
    rates = twin.config.learning_rates
    jobs = {key: [twin.job(w, lr, 0, key) for w in widths for lr in rates] for key in ("mup", "sp")}
    runs = twin.train([job for row in jobs.values() for job in row], "landscapes")
    cut = len(jobs["mup"])
    check = TransferCheck("GPT-2", {"mup": tabulate(runs[:cut]), "sp": tabulate(runs[cut:])}, runs=tuple(runs))
    moved = {key: check.moves_by(key) for key in ("mup", "sp")}
    edge = {key: any(o.at_edge for o in check.optima(key)) for key in moved}
    said = {key: f"{moved[key]:g}{' or more' if edge[key] else ''}" for key in moved}
    return Claim(
        "landscapes", "Figure 1", "Loss landscapes over the learning rate align across widths under μP.",
        {
            "μP's best rate moves by at most a factor of 2 and lies inside the grid at every width": check.passed,
            "standard parametrisation's best rate moves further than μP's": moved["sp"] > moved["mup"],
        },
        f"Widths {widths[0]} to {widths[-1]}: the best rate moves by a factor of {said['mup']} under μP, of "
        f"{said['sp']} without.",
        check.to_dict(),
        check.plot(),
    )  # fmt: skip


def parametrization(benchmark: Benchmark) -> Claim:
    """Figure 3: with the base width's hyperparameters, losses follow a law under μP and not without it."""
    twin = benchmark.twin()
    result, config = twin.result, twin.config
    best = result.best.lr
    jobs = [twin.job(w, best, k, "sp") for w in config.widths for k in range(config.seeds)]
    jobs += [twin.job(config.target_width, best, k, "sp") for k in range(config.target_seeds)]
    runs = twin.train(jobs, "standard parametrisation")
    cut = len(config.widths) * config.seeds
    measured = {"mup": (list(result.proxies), result.targets), "sp": (runs[:cut], runs[cut:])}
    scores = {key: score_law(*pair) for key, pair in measured.items()}
    mup, sp = scores["mup"], scores["sp"]
    return Claim(
        "parametrization", "Figure 3", "Under μP the losses of a series fit a law that predicts a larger model; "
        "with standard parametrisation and the same hyperparameters they do not.",
        {
            "the law errs less at the target under μP": mup.beats(sp),
            "the law fits the proxies closer under μP": mup.fits_closer(sp),
        },
        f"Error at {_times(twin)} the largest proxy {mup.shown} under μP, {sp.shown} without; mean residual of the "
        f"fit {_share(mup.residual)} and {_share(sp.residual)}.",
        {key: asdict(score) for key, score in scores.items()} | {"learning_rate": best},
        figures.laws([(NAMES[key], *measured[key], scores[key]) for key in scores], "μP against standard "
                     "parametrisation"),
    )  # fmt: skip


def architectures(benchmark: Benchmark) -> Claim:
    """Table 3: one law for each of four architectures and three depths, each predicting a larger model."""
    panels, designs, numbers = [], [], {}
    results, failed = benchmark.results()
    for name, result in results.items():
        score = score_law(result.proxies, result.targets, result.config.count)
        panels.append((name, list(result.proxies), result.targets, score))
        designs.append(design_record(name, result))
        numbers[name] = asdict(score)
    errors = [abs(panel[-1].error) for panel in panels if panel[-1].error is not None]
    inside = sum(bool(panel[-1].inside) for panel in panels)
    return Claim(
        "architectures", "Table 3", "The law fitted to small widths predicts the loss of a large one, for GPT, Llama, "
        "BERT and T5.",
        {
            "every design's error at its target is at most 1 % (the paper's own are up to 0.9 %)": len(errors)
            == len(benchmark.names())
            and max(errors) <= 0.01,
        },
        f"{len(panels)} designs: mean |error| {_share(sum(errors) / max(len(errors), 1))}, largest "
        f"{_share(max(errors, default=None))}; {inside} of {len(panels)} targets inside the 90 % interval"
        f"{'; no law for ' * bool(failed)}{', '.join(failed)}.",
        numbers | {name: {"why": why} for name, why in failed.items()},
        figures.laws(panels, "Fit and extrapolation"),
        designs,
    )  # fmt: skip


def embeddings(benchmark: Benchmark) -> Claim:
    """Figure 5b: the law fits better with N counting the embeddings than without. No run of its own."""
    rows: dict[str, dict[str, Score]] = {}
    for name, result in benchmark.results()[0].items():
        counts = ("total", "non_embedding")
        rows[name] = {count: score_law(result.proxies, result.targets, count) for count in counts}
    both = {c: [row[c] for row in rows.values()] for c in ("total", "non_embedding")}
    means, fits = _means(both)
    return Claim(
        "embeddings", "Figure 5b", "N with embeddings gives the better law.",
        {
            "the mean |error| at the target over the designs is smaller with embeddings": means["total"]
            < means["non_embedding"],
            "the mean residual of the fit is smaller with embeddings": fits["total"] < fits["non_embedding"],
        },
        f"Mean |error| over {len(rows)} designs {means['total']:.2%} with embeddings, {means['non_embedding']:.2%} "
        f"without; mean residual {fits['total']:.2%} and {fits['non_embedding']:.2%}.",
        {name: {count: asdict(score) for count, score in row.items()} for name, row in rows.items()},
        figures.pairs(
            {name: {"with embeddings": row["total"], "without": row["non_embedding"]} for name, row in rows.items()},
            "N with and without embeddings",
        ),
    )  # fmt: skip


def basin(benchmark: Benchmark) -> Claim:
    """Figure 5a: proxies trained outside the loss basin, at a bad learning rate, give a worse law."""
    twin = benchmark.twin()
    best = twin.result.best.lr
    seeds = min(2, twin.config.seeds)
    rates = nearest_rates(best, (0.25, 1, 4))
    jobs = [twin.job(w, lr, k) for lr in rates for w in twin.config.widths for k in range(seeds)]
    jobs += [twin.job(twin.config.target_width, lr, 0) for lr in rates]
    runs = twin.train(jobs, "outside the basin")
    each = len(twin.config.widths) * seeds
    panels = []
    for k, lr in enumerate(rates):
        proxies, targets = runs[k * each : (k + 1) * each], [runs[3 * each + k]]
        place = ("a quarter of the best", "the best", "four times the best")[k]
        panels.append((f"lr {lr:.3g}, {place}", proxies, targets, score_law(proxies, targets)))
    low, middle, high = (panel[-1] for panel in panels)
    return Claim(
        "basin", "Figure 5a", "Outside the loss basin the losses of a series do not fit a law that extrapolates.",
        {
            "the law errs less at the target at the best rate than at a quarter of it": middle.beats(low),
            "the law errs less at the target at the best rate than at four times it": middle.beats(high),
            "the law fits the proxies closer at the best rate than at both others": all(
                middle.fits_closer(other) for other in (low, high)
            ),
        },
        f"Error at the target {middle.shown} at the best rate, {low.shown} at a quarter of it, {high.shown} at four "
        f"times it; mean residual {_share(middle.residual)}, {_share(low.residual)} and {_share(high.residual)}.",
        {panel[0]: asdict(panel[-1]) for panel in panels},
        figures.laws(panels, "Inside and outside the loss basin"),
    )  # fmt: skip


def averaging(benchmark: Benchmark) -> Claim:
    """Figure 6: for very small proxies, losses averaged over the basin's hyperparameters fit and predict better."""
    twin = benchmark.twin()
    config = twin.config
    small = [config.head_size, *config.widths[:3]]
    rates = nearest_rates(twin.result.best.lr, (0.5, 1, 2))
    seeds = min(2, config.seeds)
    jobs = [twin.job(w, lr, k) for lr in rates for w in small for k in range(seeds)]
    jobs += [twin.job(config.target_width, lr, 0) for lr in rates]
    runs = twin.train(jobs, "very small proxies")
    targets = dict(zip(rates, runs[-len(rates) :], strict=True))
    proxies = runs[: -len(rates)]
    single, averaged = [], []
    for k in range(seeds):
        mine = [run for run in proxies if run.seed == config.seed + k]
        single += [score_law([r for r in mine if r.lr == lr], [targets[lr]]) for lr in rates]
        averaged.append(score_law(mine, targets.values()))
    both = {"single": single, "averaged": averaged}
    errors, fits = _means(both)
    failed = {key: sum(s.error is None for s in found) / len(found) for key, found in both.items()}
    return Claim(
        "averaging", "Figure 6", "Losses of very small proxies averaged over the hyperparameters of the basin fit and "
        "predict better than those of one setting.",
        {
            "the mean |error| at the target is smaller for the averages": errors["averaged"] < errors["single"],
            "the mean residual of the fit is smaller for the averages": fits["averaged"] < fits["single"],
            "a law can be fitted to the averages at least as often": failed["averaged"] <= failed["single"],
        },
        f"Widths {small[0]} to {small[-1]}, rates {', '.join(f'{r:.3g}' for r in rates)}, {seeds} seeds: mean "
        f"|error| at width {config.target_width} {errors['averaged']:.2%} averaged, {errors['single']:.2%} for single "
        f"settings; mean residual {fits['averaged']:.2%} and {fits['single']:.2%}.",
        {"single": [asdict(s) for s in single], "averaged": [asdict(s) for s in averaged], "failed": failed},
        figures.averages(proxies, targets.values(), single, averaged),
    )  # fmt: skip


def _means(scores: dict[str, list[Score]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean |error| at the target and mean residual of several sets of laws; infinite for a set without a law."""
    errors, fits = {}, {}
    for key, found in scores.items():
        there = [s for s in found if s.error is not None and s.residual is not None]
        errors[key] = sum(abs(s.error) for s in there) / len(there) if there else math.inf
        fits[key] = sum(s.residual for s in there) / len(there) if there else math.inf
    return errors, fits


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"


def _times(twin: Twin) -> str:
    return f"{twin.target_N / max(run.N for run in twin.result.proxies):.1f} times"


TRAINED: dict[str, Callable[[Benchmark], Claim]] = {
    f.__name__: f for f in (landscapes, parametrization, basin, averaging, architectures, embeddings)
}

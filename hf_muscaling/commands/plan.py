"""`muscaling plan`: what an experiment costs and whether it fits; with a budget, what to train for it."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_muscaling.errors import ConfigurationError

from .law_flags import as_notes, writable
from .parser import Parser, take_config

if TYPE_CHECKING:
    from hf_muscaling.budget import Assumptions, BudgetPlan
    from hf_muscaling.configuration import ExperimentConfig
    from hf_muscaling.laws import PowerLaw

DESCRIPTION = """Parameters, FLOPs and memory of every run of an experiment (grid, proxies, target) on the stated
devices, counted without allocating a model. Any other flag is one of run-series and changes the experiment:
muscaling plan big.yaml --target_width 8192 --devices 64 --sharding fsdp2 --precision bf16 --gradient-checkpointing

With --budget or --tolerance: the widths and seeds whose interval at the target is expected to be narrowest for a share
of the target's FLOPs, and what other budgets buy. With --runs as well, what to do after the runs finished so far:
muscaling plan small.yaml --target 512 --budget 20% --tolerance 1.5% --runs runs/small"""


def run(arguments: Sequence[str]) -> int:
    """Print the plan of the experiment that the flags describe; returns 0 if every run fits (or the interval is within
    the tolerance), 1 if not.
    """
    parser = Parser(
        prog="muscaling plan", usage="%(prog)s [CONFIG.yaml] [flags]", description=DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add("--devices", type=int, default=1, help="devices that train one run together")
    add("--sharding", choices=["none", "ddp", "fsdp2"], help="default: none on one device, ddp on several")
    add("--precision", choices=["fp32", "bf16"], help="default: the experiment's")
    add("--device-memory", "--device_memory", type=float, default=80e9, metavar="BYTES", help="default: 80e9")
    add("--gradient-checkpointing", "--gradient_checkpointing", action="store_true")
    add("--json", action="store_true", help="print JSON instead of the table")
    budget = parser.add_argument_group("what to train for a budget")
    add = budget.add_argument
    add("--target", type=int, metavar="WIDTH", help="the same as --target_width")
    add("--budget", metavar="SHARE", help="of the target's FLOPs, grid included: 5%%")
    add("--tolerance", metavar="SHARE", help="half-width of the interval, of the loss, that is tight enough: 1%%")
    add("--runs", metavar="FOLDER", help="output folder of a run-series: advice from the runs finished there")
    add("--law", metavar="LAW.json", help="a fitted power law of a similar design: its curve and noise are believed")
    add("--noise", nargs=2, metavar=("LOW", "HIGH"), help="how far seeds differ (default: 0.1%% 0.4%%)")
    add("--candidates", type=int, nargs="+", metavar="WIDTH", help="widths to choose from")
    text = "shares of the target's steps that proxies may stop at (0.1 0.25 0.5): plans L(N, D) beside L(N)"
    add("--horizons", type=float, nargs="+", metavar="SHARE", help=text)
    add("--max-seeds", "--max_seeds", type=int, default=8, help="most runs of one width (default: 8)")
    add("--plot", metavar="PNG", help="write the trade-off as a figure")
    given, rest = parser.parse_known_args(take_config(list(arguments)))
    for name, value in (("target_width", given.target), ("budget", given.budget), ("tolerance", given.tolerance)):
        rest += [] if value is None else [f"--{name}={value}"]

    from hf_muscaling.configuration import parse_experiment

    experiment, _ = parse_experiment(rest)
    if experiment.budget or experiment.tolerance:
        return _budget(experiment, given)
    if given.runs or given.law or given.plot or given.candidates or given.noise or given.horizons:
        parser.error("--runs, --law, --noise, --candidates, --horizons and --plot plan a budget: add --budget 5%")
    return _memory(experiment, given)


def _memory(experiment: "ExperimentConfig", given: Namespace) -> int:
    from hf_muscaling.planning import Hardware, plan_experiment

    sharding: Any = given.sharding or ("none" if given.devices == 1 else "ddp")
    precision = given.precision or ("bf16" if experiment.bf16 else "fp32")
    checkpointing = given.gradient_checkpointing or getattr(experiment, "gradient_checkpointing", False)
    plan = plan_experiment(experiment, Hardware(given.devices, sharding, precision, given.device_memory, checkpointing))
    print(plan.to_json() if given.json else plan)
    return 0 if plan.fits else 1


def _budget(experiment: "ExperimentConfig", given: Namespace) -> int:
    import json

    from hf_muscaling.budget.experiment import offer
    from hf_muscaling.budget.finished import finished_proxies
    from hf_muscaling.planning import experiment_vocabulary

    assumptions = _assumptions(given)
    _check(given)
    believed = {"belief": _believed(given.law), "keep": False} if given.law else {}
    with as_notes():
        runs = finished_proxies(experiment, given.runs) if given.runs else []
        vocabulary = runs[0].config["vocab_size"] if runs else experiment_vocabulary(experiment)
        offered = offer(experiment, vocabulary, given.candidates)
    if runs:
        advice = offered.advise(runs, assumptions, max_seeds=given.max_seeds)
        print(json.dumps(advice.to_dict(), indent=1) if given.json else advice)
        return 0 if advice.stop and advice.reason == "tight" else 1 if advice.stop else 0
    options: dict[str, Any] = {"max_seeds": given.max_seeds, "assumptions": assumptions}
    plan = offered.plan(**options, **believed)
    shorter = offered.plan_horizons(given.horizons, assumptions=assumptions) if given.horizons else None
    if given.json:
        print(json.dumps(plan.to_dict() | ({"horizons": shorter.to_dict()} if shorter else {}), indent=1))
    else:
        print(plan)
    if shorter and not given.json:
        print(f"\nWith proxies of fewer steps and a law in N and D:\n\n{shorter}\n\n{_narrower(plan, shorter)}")
    if given.plot:
        from hf_muscaling.budget.plots import plot_budget
        from hf_muscaling.plotting import save_figure

        save_figure(plot_budget(plan), given.plot)
    return 1 if plan.tight is False else 0


def _check(given: Namespace) -> None:
    """Refuse, before anything is computed, flags that do not go together and a figure that cannot be written."""
    if given.horizons and (given.runs or given.law):
        raise ConfigurationError("--horizons plans before any run; leave out --runs and --law, or --horizons.")
    if given.runs and given.law:
        raise ConfigurationError(
            "--law says what is believed before any run, and with --runs the finished runs say it: give one of them."
        )
    if given.runs and given.plot:
        raise ConfigurationError(
            "--plot draws the trade-off of a plan before any run, and --runs asks for advice, one line: leave one out."
        )
    if given.max_seeds < 1:
        raise ConfigurationError(f"--max-seeds {given.max_seeds}: the most runs of one width must be 1 or more.")
    if given.plot:
        writable(given.plot, ".png")


def _believed(path: str) -> "PowerLaw":
    """The power law of --law; another law is refused with the way to one, or to the flag that takes it."""
    from hf_muscaling.laws import PowerLaw, store

    stored = store.kind(store.parse(path)[0])
    remedy = "Fit one to the same runs: muscaling fit RUNS --law power --save law.json."
    if stored == "LearningRateLaw":
        remedy = f"That moves a grid of learning rates: give it as --learning_rate_law {path}."
    if stored == "DownstreamLaw":
        remedy = "That is a law of a task's score: give the law.json of the loss that belongs to it."
    if stored not in ("", "PowerLaw"):
        raise ConfigurationError(
            f"--law takes a PowerLaw, L(N) of a similar design; {path!r} holds a {stored}. {remedy}"
        )
    law: PowerLaw = PowerLaw.from_json(path)
    return law


def _narrower(plan: "BudgetPlan", shorter: "BudgetPlan") -> str:
    one, other = 100 * plan.design.half_width, 100 * shorter.design.half_width
    better = "fewer steps and L(N, D)" if other < one else "the target's steps and L(N)"
    return f"Narrower for this budget: {better} (L(N) ± {one:.2f} %, L(N, D) ± {other:.2f} %)."


def _assumptions(given: Namespace) -> "Assumptions | None":
    from hf_muscaling.budget import Assumptions
    from hf_muscaling.budget.share import read_share

    if not given.noise:
        return None
    low, high = (read_share("noise", text) for text in given.noise)
    return Assumptions(noise=(low, high))

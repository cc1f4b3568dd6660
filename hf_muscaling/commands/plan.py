"""`muscaling plan`: what every run of an experiment costs, and whether it fits, before anything runs."""

from collections.abc import Sequence
from typing import Any

from .parser import Parser, take_config

DESCRIPTION = """Parameters, FLOPs and memory of every run of an experiment (grid, proxies, target) on the stated
devices, counted without allocating a model. Any other flag is one of run-series and changes the experiment:
muscaling plan big.yaml --target_width 8192 --devices 64 --sharding fsdp2 --precision bf16 --gradient-checkpointing"""


def run(arguments: Sequence[str]) -> int:
    """Print the plan of the experiment that the flags describe; returns 0 if every run fits, 1 if not."""
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
    given, rest = parser.parse_known_args(take_config(list(arguments)))

    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.planning import Hardware, plan_experiment

    experiment, _ = parse_experiment(rest)
    sharding: Any = given.sharding or ("none" if given.devices == 1 else "ddp")
    precision = given.precision or ("bf16" if experiment.bf16 else "fp32")
    checkpointing = given.gradient_checkpointing or getattr(experiment, "gradient_checkpointing", False)
    plan = plan_experiment(experiment, Hardware(given.devices, sharding, precision, given.device_memory, checkpointing))
    print(plan.to_json() if given.json else plan)
    return 0 if plan.fits else 1

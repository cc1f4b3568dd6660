"""FSDP2 and DDP over two gloo processes against one process: every architecture, tied and untied, step by step.

This file is also the script that the processes run: `torchrun … test_distributed_training.py --case fsdp --out FILE`.
"""

import os
from functools import cache
from pathlib import Path

import pytest

from tests.distributed_helpers import accelerate_launch, examples, launch, launch_options, write_record

pytestmark = pytest.mark.slow

NAMES = ("gpt2", "llama", "bert", "t5")
MODELS = [(name, tied) for name in NAMES for tied in (False, True)]
STEPS = 50
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}


def make_trainer(name, tied, folder, seed=0, base=None, model=None, **settings):
    """Return a trainer of a small μP model at twice its base width; two processes share each batch of 8."""
    import torch
    from transformers import default_data_collator
    from transformers.trainer_callback import PrinterCallback

    from hf_muscaling import MuTrainer, MuTrainingArguments
    from tests.conftest import Architecture

    architecture = Architecture(name)
    spread = 0.4 if name == "t5" else 0.2  # more makes T5's first losses huge, and rounding errors grow
    config = architecture.base(width=16, layers=2, initializer_range=spread, tie_word_embeddings=tied).at_width(32)
    model = model or architecture.model(config, seed)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    defaults = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": (8 if tied else 4) // processes,
        "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 1 if tied else 2, "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine", "warmup_steps": 5, "weight_decay": 0.1, "max_grad_norm": 0.1,
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
    }  # fmt: skip
    args = MuTrainingArguments(**(defaults | settings))
    torch.manual_seed(0)
    data = examples(64, masked=name in ("bert", "t5"))
    trainer = (base or MuTrainer)(model, args, train_dataset=data, data_collator=default_data_collator)
    trainer.remove_callback(PrinterCallback)
    return trainer


def curve(*args, **settings):
    """Return the losses and gradient norms of a run, its groups' hyperparameters, and a held-out loss."""
    trainer = make_trainer(*args, **settings)
    trainer.train()
    held_out = trainer.evaluate(examples(13, masked=args[0] in ("bert", "t5")))["eval_loss"]
    return {
        "loss": [row["loss"] for row in trainer.curve],
        "norm": [row["grad_norm"] for row in trainer.curve],
        "groups": [[g["initial_lr"], g["lr"], g["weight_decay"], g["eps"]] for g in trainer.optimizer.param_groups],
        "held_out": held_out,
        "kind": trainer.accelerator.distributed_type.value,
        "sharded": sum(hasattr(p, "placements") for p in trainer.model.parameters()),
    }


def flat_trainer():
    """Return a MuTrainer whose optimizer has lost its groups, as stock Trainer's would: one learning rate for all."""
    import torch

    from hf_muscaling import MuTrainer

    class Flat(MuTrainer):
        def _mu_optimizer(self, model):
            args = self.args
            return torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)

    return Flat


def coordinates(name, sharded):
    """Return slopes and verdicts of the coordinate check, measured in sharded training or in one process."""
    from hf_muscaling import MuAdamW, coordinate_check
    from hf_muscaling.distributed import shard_model
    from tests.conftest import Architecture

    def optimizer(model, lr):
        return MuAdamW(shard_model(model) if sharded else model, lr=lr)

    base = Architecture(name).base(width=32, layers=1, tie_word_embeddings=True)
    # so narrow, the slopes are noisy: twice the usual tolerance
    check = coordinate_check(base, widths=[32, 64, 128], seeds=2, steps=6, optimizer=optimizer, tolerance=0.4)
    return {
        "passed": check.passed,
        "control": check.control_worst.slope,
        "slopes": {f"{s.quantity} {s.name}": s.slope for s in check.slopes},
    }


def main():
    options = launch_options()
    rank = int(os.environ["RANK"])
    folder = Path(options.out).parent / "trainer"
    if options.case == "coordinates":
        from hf_muscaling.distributed import launched_processes

        assert launched_processes() == 2
        result = {name: coordinates(name, sharded=True) for name in NAMES}
    else:
        settings = FSDP if options.case == "fsdp" else {}
        # ranks start from different weights: those of the first count
        result = {f"{name} {tied}": curve(name, tied, folder, seed=7 * rank, **settings) for name, tied in MODELS}
        result["checkpointing"] = curve("t5", True, folder, activation_checkpointing=True, **settings)
        # without a code generator, which takes a minute; what it wraps and renames is the same
        result["compiled"] = curve("llama", True, folder, torch_compile_backend="aot_eager", **settings)
        result["flat"] = curve("llama", False, folder, base=flat_trainer(), **settings)
    write_record(options.out, result)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return checked(
        launch(__file__, "ddp", tmp_path_factory.mktemp("ddp"), launcher=accelerate_launch("ddp_cpu")), "MULTI_CPU"
    )


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    return checked(launch(__file__, "fsdp", tmp_path_factory.mktemp("fsdp")), "FSDP")


@pytest.fixture(params=["ddp", "fsdp"])
def together(request):
    return request.getfixturevalue(request.param)


def checked(ranks, expected):
    """Return the curves of all ranks, if they did come from the kind of training expected."""
    assert {run["kind"] for rank in ranks for run in rank.values()} == {expected}
    assert all((run["sharded"] > 0) == (expected == "FSDP") for rank in ranks for run in rank.values())
    return ranks


@cache
def alone(name, tied):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return curve(name, tied, folder)


@pytest.mark.parametrize(("name", "tied"), MODELS, ids=[f"{n}-{'tied' if t else 'untied'}" for n, t in MODELS])
def test_two_processes_equal_one(together, name, tied):
    """Accumulation, cosine schedule, active clipping, decay; loss and gradient norm at each of 50 steps."""
    reference = alone(name, tied)
    assert len(reference["loss"]) == STEPS and len(reference["groups"]) > 2
    assert reference["loss"][-1] < reference["loss"][0] - 0.05  # it does train
    for rank in together:
        run = rank[f"{name} {tied}"]
        assert run["loss"] == pytest.approx(reference["loss"], abs=1e-5)
        assert run["norm"] == pytest.approx(reference["norm"], rel=1e-3)
        assert run["held_out"] == pytest.approx(reference["held_out"], abs=1e-5)
        assert run["groups"] == reference["groups"]


def test_lost_groups_show(together):
    """The control: with one learning rate for all parameters the same comparison fails, from the second step on."""
    reference = alone("llama", False)["loss"]
    for rank in together:
        gaps = [abs(a - b) for a, b in zip(rank["flat"]["loss"], reference, strict=True)]
        assert gaps[0] < 1e-5 and max(gaps) > 1e-2


def test_compilation_changes_nothing(together):
    for rank in together:
        assert rank["compiled"]["loss"] == pytest.approx(alone("llama", True)["loss"], abs=1e-5)
        assert rank["compiled"]["groups"] == alone("llama", True)["groups"]


def test_activation_checkpointing_changes_nothing(together):
    for rank in together:
        assert rank["checkpointing"]["loss"] == pytest.approx(alone("t5", True)["loss"], abs=1e-5)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return launch(__file__, "coordinates", tmp_path_factory.mktemp("coordinates"))


@pytest.mark.parametrize("name", NAMES)
def test_the_coordinate_check_in_sharded_training(measured, name):
    """The slopes are those of one process: sharding keeps every learning rate; the standard parametrisation fails."""
    reference = coordinates(name, sharded=False)
    assert reference["passed"]
    for rank in measured:
        found = rank[name]
        assert found["passed"] and found["control"] > 0.5
        assert found["slopes"] == pytest.approx(reference["slopes"], abs=1e-3)


if __name__ == "__main__":
    main()

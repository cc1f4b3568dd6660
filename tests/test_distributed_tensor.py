"""Tensor parallelism over gloo processes: Llama split in two, alone and with FSDP2, against one process.

This file is also the script that the processes run.
"""

import os
from pathlib import Path

import pytest

from tests.distributed_helpers import accelerate_launch, examples, launch, launch_options, write_record
from tests.test_distributed_training import FSDP, STEPS, alone, make_trainer


def split_curve(folder, tied, fsdp_size):
    """Return what `tests.test_distributed_training.curve` does, of a model split in two; and where its weights are."""
    from hf_muscaling.distributed import tensor_parallel

    # ranks start from different weights: those of the first count
    whole = make_trainer("llama", tied, folder, seed=7 * int(os.environ["RANK"])).model
    model = tensor_parallel(whole, tp_size=2, fsdp_size=fsdp_size)
    trainer = make_trainer(
        "llama", tied, folder, model=model, per_device_train_batch_size=(8 if tied else 4) // fsdp_size
    )
    trainer.train()
    held_out = trainer.evaluate(examples(13))["eval_loss"]
    trainer.save_model(str(folder / f"model-{tied}-{fsdp_size}"))
    return {
        "loss": [row["loss"] for row in trainer.curve],
        "norm": [row["grad_norm"] for row in trainer.curve],
        "tokens": trainer.curve[-1]["tokens"],
        "groups": [[g["initial_lr"], g["lr"], g["weight_decay"], g["eps"]] for g in trainer.optimizer.param_groups],
        "held_out": held_out,
        "placements": str(trainer.model.model.layers[0].mlp.down_proj.weight.placements),
        "readout": repr(trainer.model.lm_head),
    }


def refusals(folder):
    from hf_muscaling.distributed import tensor_parallel
    from hf_muscaling.errors import ConfigurationError

    found = []
    llama, bert = (make_trainer(name, False, folder).model for name in ("llama", "bert"))
    split = tensor_parallel(llama, 2)
    for attempt in (
        lambda: tensor_parallel(bert, 2),
        lambda: tensor_parallel(llama, 3),
        lambda: make_trainer("llama", False, folder, model=split, save_strategy="steps", save_steps=5),
        lambda: make_trainer("llama", False, folder, model=split, **FSDP),
    ):
        try:
            attempt()
        except ConfigurationError as error:
            found.append(str(error))
    return found


def main():
    options = launch_options()
    folder = Path(options.out).parent
    fsdp_size = int(os.environ["WORLD_SIZE"]) // 2
    # tied alone over FSDP2: the harder case
    result = {str(tied): split_curve(folder, tied, fsdp_size) for tied in (False, True)[fsdp_size - 1 :]}
    if fsdp_size == 1:
        result["refusals"] = refusals(folder)
    write_record(options.out, result)


def check(ranks, folder, fsdp_size):
    from transformers import AutoModelForCausalLM

    for tied in (False, True)[fsdp_size - 1 :]:
        reference = alone("llama", tied)
        for rank in ranks:
            run = rank[str(tied)]
            assert len(run["loss"]) == STEPS and run["loss"] == pytest.approx(reference["loss"], abs=1e-5)
            assert run["norm"] == pytest.approx(reference["norm"], rel=1e-3)
            assert run["held_out"] == pytest.approx(reference["held_out"], abs=1e-5)
            assert run["groups"] == reference["groups"] and run["tokens"] == STEPS * 8 * 16
            assert "MuReadout" in run["readout"] and "multiplier=0.5" in run["readout"]
        trainer = make_trainer("llama", tied, folder)
        trainer.model = AutoModelForCausalLM.from_pretrained(folder / f"model-{tied}-{fsdp_size}")
        assert trainer.evaluate(examples(13))["eval_loss"] == pytest.approx(reference["held_out"], abs=1e-5)


@pytest.mark.slow
def test_a_split_llama_equals_a_whole_one(tmp_path):
    ranks = launch(__file__, "two", tmp_path)
    assert ranks[0]["True"]["placements"] == "(Shard(dim=1),)"
    check(ranks, tmp_path, 1)
    for found in (rank["refusals"] for rank in ranks):
        for message, expected in zip(
            found, ["no tensor-parallel plan for MuBertForMaskedLM", "is not the number of processes, 2",
                    "cannot be continued", "split already"], strict=True,
        ):  # fmt: skip
            assert expected in message


@pytest.mark.slow
def test_fsdp2_over_tensor_parallelism(tmp_path):
    """Two groups of two processes, through the shipped launcher configuration."""
    ranks = launch(__file__, "four", tmp_path, 4, launcher=accelerate_launch("fsdp2_tp", "--num_processes", "4"))
    assert ranks[0]["True"]["placements"] == "(Shard(dim=0), Shard(dim=1))"
    check(ranks, tmp_path, 2)


if __name__ == "__main__":
    main()

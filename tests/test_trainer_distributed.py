"""MuTrainer over two gloo processes on the CPU: the same losses as in one, DDP and FSDP2.

This file is also the script that the processes run: `torchrun … test_trainer_distributed.py --case ddp --out FILE`.
"""

from pathlib import Path

import pytest

from tests.distributed_helpers import examples, launch, launch_options, write_record

pytestmark = pytest.mark.slow

MASKED = ("bert", "t5")


def trainer_of(name, folder, batch, data, base=None, **settings):
    """Return a trainer of a small μP model that records which examples this process trains on."""
    import torch
    from transformers import default_data_collator

    from hf_muscaling import MuTrainer, MuTrainingArguments
    from tests.conftest import Architecture
    from tests.test_trainer import masked_model

    torch.manual_seed(0)
    if name in MASKED:
        model = masked_model(name)
    else:
        architecture = Architecture(name)
        model = architecture.model(architecture.base(layers=2, initializer_range=0.1).at_width(64))
    seen = []

    def collate(rows):
        seen.append([int(row["input_ids"][0]) for row in rows])
        return default_data_collator(rows)

    defaults = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch, "gradient_accumulation_steps": 2, "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine", "max_grad_norm": 0.5, "logging_steps": 1, "save_strategy": "no",
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "ddp_find_unused_parameters": False,
    }  # fmt: skip
    args = MuTrainingArguments(**(defaults | settings))
    trainer = (base or MuTrainer)(model, args, train_dataset=data, data_collator=collate)
    return trainer, seen


def train_and_evaluate(name, folder, batch):
    """Return the curve, the exact evaluation loss and the examples seen, for a model over all processes."""
    trainer, seen = trainer_of(name, folder, batch, examples(64, masked=name in MASKED))
    trainer.train()
    seen = list(seen)
    # 13 examples fill no whole number of global batches
    loss = trainer.evaluate(examples(13, masked=name in MASKED))["eval_loss"]
    tiny = trainer.evaluate(examples(1, masked=name in MASKED))["eval_loss"]
    return {"curve": trainer.curve, "eval": [loss, tiny], "seen": seen, "kind": str(trainer.args.parallel_mode)}


def one_epoch(folder, batch):
    """Return the examples seen in one epoch of a set that the global batch does not divide."""
    trainer, seen = trainer_of(
        "llama", folder, batch, examples(21), max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=1
    )
    trainer.train()
    return {"seen": seen, "steps": trainer.state.global_step, "tokens": trainer.state.num_input_tokens_seen}


def sharded(folder):
    """Return fp32, bf16 and bf16-with-Accelerate's-own-policy curves under real FSDP2, all else equal."""
    from hf_muscaling import MuTrainer

    class Rounded(MuTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            import torch
            from torch.distributed.fsdp import MixedPrecisionPolicy

            # what Accelerate sets by itself
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, output_dtype=torch.bfloat16
            )

    fsdp = {"fsdp": True, "fsdp_config": {"version": 2}, "gradient_accumulation_steps": 1}
    result = {}
    for key, base, bf16 in (("fp32", MuTrainer, False), ("bf16", MuTrainer, True), ("rounded", Rounded, True)):
        trainer, _ = trainer_of("llama", folder, 4, examples(64), base, bf16=bf16, **fsdp)
        trainer.train()
        groups = [[g["lr"], g["weight_decay"]] for g in trainer.optimizer.param_groups]
        result[key] = {"curve": trainer.curve, "groups": groups}
    for name in ("gpt2", *MASKED):
        for key, bf16 in (("fp32", False), ("bf16", True)):
            trainer, _ = trainer_of(name, folder, 4, examples(64, masked=name in MASKED), bf16=bf16, **fsdp)
            trainer.train()
            result[f"{name} {key}"] = [row["loss"] for row in trainer.curve]
    return result


def main():
    options = launch_options()
    folder = Path(options.out).parent / "trainer"
    if options.case == "ddp":
        result = {name: train_and_evaluate(name, folder, 4) for name in ("gpt2", "llama", *MASKED)}
        result["epoch"] = one_epoch(folder, 4)
    else:
        result = sharded(folder)
    write_record(options.out, result)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return launch(__file__, "ddp", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", ["gpt2", "llama", *MASKED])
def test_two_processes_equal_one(ddp, name, tmp_path):
    """The curve (loss, gradient norm under clipping, tokens) and the held-out loss; BERT's and T5's targets differ."""
    alone = train_and_evaluate(name, tmp_path, 8)
    for rank in ddp:
        together = rank[name]
        assert together["kind"] == "ParallelMode.DISTRIBUTED"
        assert len(together["curve"]) == len(alone["curve"]) == 4
        for a, b in zip(together["curve"], alone["curve"], strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        assert together["eval"] == pytest.approx(alone["eval"], rel=1e-5)
    assert alone["curve"][0]["loss"] != pytest.approx(alone["curve"][-1]["loss"], rel=1e-3)  # it did train


@pytest.mark.parametrize("name", MASKED)
def test_the_held_out_loss_is_the_mean_over_targets(tmp_path, name):
    """The reference of the test above, against a loss written by hand."""
    from tests.test_trainer import masked_loss

    data = examples(13, masked=True)
    trainer, _ = trainer_of(name, tmp_path, 8, data)
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(masked_loss(trainer.model, data).item(), rel=1e-6)


def test_no_example_is_repeated(ddp):
    first, second = (rank["epoch"] for rank in ddp)
    assert first["steps"] == 2 and first["tokens"] == 16 * 16
    batches = [row for pair in zip(first["seen"][:2], second["seen"][:2], strict=True) for row in pair]
    numbers = [n for batch in batches for n in batch]
    assert len(numbers) == len(set(numbers)) == 16  # 21 examples hold two global batches of 8, none filled up


def test_fsdp2_with_bf16_reports_an_unrounded_loss(tmp_path):
    for rank in launch(__file__, "fsdp", tmp_path):
        for name in ("gpt2", *MASKED):
            exact, rounded = rank.pop(f"{name} fp32"), rank.pop(f"{name} bf16")
            assert rounded != exact and rounded == pytest.approx(exact, rel=1e-2)
        curves = {key: [row["loss"] for row in value["curve"]] for key, value in rank.items()}
        assert all(value["groups"] == rank["fp32"]["groups"] and len(value["groups"]) == 2 for value in rank.values())
        errors = {k: max(abs(a - b) for a, b in zip(curves[k], curves["fp32"], strict=True)) for k in curves}
        assert 0 < errors["bf16"] < 4e-3 < errors["rounded"], errors

        # Between 4 and 8 a bf16 number is a multiple of 1/32, and the mean over two processes one of 1/64.
        on_grid = {key: [float(64 * loss).is_integer() for loss in losses] for key, losses in curves.items()}
        assert all(on_grid["rounded"]) and not any(on_grid["bf16"]), curves


if __name__ == "__main__":
    main()

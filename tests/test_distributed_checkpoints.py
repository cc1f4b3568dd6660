"""A checkpoint of any layout continues in any other: 1, 2 and 4 processes, DDP, FSDP2 full and sharded.

This file is also the script that the processes run.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.distributed_helpers import launch, launch_options, write_record
from tests.test_distributed_training import make_trainer

MODEL = ("bert", True)  # its weight and its bias are tied
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}
SHARDED = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
LAYOUTS = {"ddp": {}, "full": FSDP, "sharded": SHARDED}
STEPS, SAVED = 12, 6


def trainer_in(folder, **settings):
    return make_trainer(*MODEL, folder, max_steps=STEPS, save_strategy="steps", save_steps=SAVED, **settings)


def rest(folder, checkpoint, **settings):
    """Return the losses after a resume, from another initialisation."""
    trainer = trainer_in(folder, seed=11, **settings)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return [row["loss"] for row in trainer.curve]


def write_all(folder):
    """Write a checkpoint in each layout, continue each in each, and save a model out of a sharded run."""
    for layout, settings in LAYOUTS.items():
        trainer = trainer_in(folder / layout, **settings)
        trainer.train()
        if layout == "sharded":
            trainer.save_model(str(folder / "model"))
    result = {}
    for reader, settings in LAYOUTS.items():
        for writer in ("one", *LAYOUTS):
            checkpoint = folder / writer / f"checkpoint-{SAVED}"
            result[f"{writer} {reader}"] = rest(folder / f"{writer}-{reader}", checkpoint, **settings)
    spoilt = folder / "spoilt" / f"checkpoint-{SAVED}"
    if int(os.environ["RANK"]) == 0:
        import torch

        shutil.copytree(folder / "full" / f"checkpoint-{SAVED}", spoilt)
        state = torch.load(spoilt / "optimizer.bin", weights_only=True)
        for moments in state["state"].values():
            moments["exp_avg"].zero_()
        torch.save(state, spoilt / "optimizer.bin")
    import torch.distributed as dist

    dist.barrier()
    result["spoilt full"] = rest(folder / "spoilt-full", spoilt, **FSDP)
    return result


def main():
    options = launch_options()
    folder = Path(options.out).parent
    if options.case == "two":
        result = write_all(folder)
    else:
        checkpoints = {w: folder / w / f"checkpoint-{SAVED}" for w in ("one", *LAYOUTS)}
        result = {
            f"{writer} {reader}": rest(folder / f"{writer}-{reader}-4", checkpoints[writer], **LAYOUTS[reader])
            for writer, reader in (("one", "full"), ("full", "full"), ("sharded", "sharded"), ("full", "ddp"))
        }
    write_record(options.out, result)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer = trainer_in(folder / "one")
    trainer.train()
    (folder / "reference.json").write_text(json.dumps([row["loss"] for row in trainer.curve]))
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return launch(__file__, "two", folder)


@pytest.mark.slow
def test_two_processes_read_every_layout(folder, two):
    reference = json.loads((folder / "reference.json").read_text())
    for rank in two:
        for case, losses in rank.items():
            if case != "spoilt full":
                assert losses == pytest.approx(reference, abs=1e-5), case
        gaps = [abs(a - b) for a, b in zip(rank["spoilt full"], reference, strict=True)]
        assert max(gaps) > 1e-3, "the control: without its moments Adam goes elsewhere"
    assert not list(folder.rglob(".checkpoint-*"))  # translations are gone


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_one_process_continues_what_two_began(folder, tmp_path):
    reference = json.loads((folder / "reference.json").read_text())
    for writer in LAYOUTS:
        losses = rest(tmp_path / writer, folder / writer / f"checkpoint-{SAVED}")
        assert losses == pytest.approx(reference, abs=1e-5), writer


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_four_processes_continue_what_two_began(folder):
    reference = json.loads((folder / "reference.json").read_text())
    for rank in launch(__file__, "four", folder, processes=4):
        for case, losses in rank.items():
            assert losses == pytest.approx(reference, abs=1e-5), case


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_a_sharded_run_saves_a_whole_model(folder):
    from transformers import AutoModelForMaskedLM

    import hf_muscaling.models  # noqa: F401

    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight and head.multiplier == 0.5


class TestTranslation:
    """In one process, without a launcher."""

    @pytest.fixture
    def checkpoint(self, tmp_path):
        self.trainer = trainer_in(tmp_path)
        self.trainer.args.max_steps = SAVED
        self.trainer.train()
        return tmp_path / f"checkpoint-{SAVED}"

    @pytest.mark.parametrize("layout", ["full", "sharded"])
    def test_there_and_back(self, checkpoint, tmp_path, layout):
        import torch

        from hf_muscaling.distributed import group_names
        from hf_muscaling.layouts import checkpoint_layout, translate

        there, back = tmp_path / "there", tmp_path / "back"
        there.mkdir(), back.mkdir()
        model = self.trainer.model
        groups = group_names(model, self.trainer.optimizer)
        assert checkpoint_layout(checkpoint) == "plain" and len(groups) > 2
        translate(checkpoint, there, layout, model, groups)
        assert checkpoint_layout(there) == layout
        translate(there, back, "plain", model, groups)
        before, after = (torch.load(f / "optimizer.pt", weights_only=True) for f in (checkpoint, back))
        assert before["param_groups"] == after["param_groups"] and before["state"].keys() == after["state"].keys()
        for number, moments in before["state"].items():
            assert all(torch.equal(moments[k], after["state"][number][k]) for k in moments)
        weights = torch.load(back / "pytorch_model.bin", weights_only=True)
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())

    def test_groups_of_another_model_are_refused(self, checkpoint, tmp_path):
        from hf_muscaling.distributed import group_names
        from hf_muscaling.errors import RecordError
        from hf_muscaling.layouts import translate

        model = self.trainer.model
        groups = group_names(model, self.trainer.optimizer)
        there = tmp_path / "there"
        there.mkdir()
        with pytest.raises(RecordError, match="written for another model or another weight decay"):
            translate(checkpoint, there, "full", model, groups[:-1])
        translate(checkpoint, there, "full", model, groups)
        swapped = [[*groups[0][:-1], groups[1][-1]], [*groups[1][:-1], groups[0][-1]], *groups[2:]]
        with pytest.raises(RecordError, match="other parameters"):
            translate(there, tmp_path, "plain", model, swapped)

    def test_a_checkpoint_without_its_optimizer_is_refused(self, checkpoint, tmp_path):
        """Trainer would continue with a fresh Adam, without a word."""
        from hf_muscaling.errors import RecordError

        (checkpoint / "optimizer.pt").unlink()
        with pytest.raises(RecordError, match="holds no optimizer"):
            rest(tmp_path / "again", checkpoint)


if __name__ == "__main__":
    main()

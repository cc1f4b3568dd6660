"""What a launcher was asked for and what it gives: the files in recipes/accelerate, and every way to get less."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.distributed_helpers import ROOT, accelerate_launch, environment

FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}


def main():
    """Run by a launcher: say what training would run on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    from hf_muscaling.distributed import launched_processes
    from hf_muscaling.errors import ConfigurationError

    try:
        processes = launched_processes()
        from tests.test_distributed_training import make_trainer

        trainer = make_trainer("llama", False, Path(options.out).parent, max_steps=3)
        trainer.train()
        mesh = trainer.accelerator.torch_device_mesh
        result = {
            "processes": processes,
            "kind": trainer.accelerator.distributed_type.value,
            "mesh": None if mesh is None else dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True)),
            "placements": str(getattr(trainer.model.lm_head.weight, "placements", None)),
            "loss": [row["loss"] for row in trainer.curve],
        }
    except ConfigurationError as error:
        result = {"error": str(error)}
    Path(f"{options.out}.{os.environ.get('RANK', '0')}").write_text(json.dumps(result))


def launched(command, folder, processes, **variables):
    """Return what each process found out."""
    out = folder / "found"
    done = subprocess.run(
        [*command, __file__, "--out", str(out)],
        env=environment(**variables), capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    files = [Path(f"{out}.{rank}") for rank in range(processes)]
    assert all(f.exists() for f in files), done.stderr[-4000:]
    return [json.loads(f.read_text()) for f in files]


class TestFiles:
    def test_they_are_there(self):
        assert {f.stem for f in FILES} >= {"cpu", "ddp_cpu", "ddp", "fsdp2", "fsdp2_nodes", "fsdp2_tp"}

    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
    def test_accelerate_reads_them(self, path):
        from accelerate.commands.config.config_args import ClusterConfig

        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = ClusterConfig.from_yaml_file(str(path))  # refuses unknown keys
        assert config.mixed_precision == "no"  # the experiment decides
        if "fsdp_config" in settings:
            assert settings["fsdp_config"]["fsdp_version"] == 2
        if "parallelism_config" in settings:
            sizes = settings["parallelism_config"].values()
            total = 1
            for size in sizes:
                total *= size
            assert total == settings["num_processes"]

    @pytest.mark.slow
    def test_two_processes_train_together(self, tmp_path):
        first, second = launched(accelerate_launch("ddp_cpu"), tmp_path, 2)
        assert first == second and (first["processes"], first["kind"]) == (2, "MULTI_CPU")

    @pytest.mark.slow
    def test_two_machines_of_two_processes(self, tmp_path):
        """Both machines are this one; sharded within each and replicated across them."""
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        flags = ["--num_processes", "4", "--main_process_port", port]
        flags += ["--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2"]
        second = subprocess.Popen(
            [*accelerate_launch("fsdp2_nodes", *flags, "--machine_rank", "1"), __file__, "--out", tmp_path / "found"],
            env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            found = launched(accelerate_launch("fsdp2_nodes", *flags, "--machine_rank", "0"), tmp_path, 4)
        finally:
            second.terminate()
            second.wait()
        assert all(one == found[0] for one in found)
        assert found[0]["mesh"] == {"dp_replicate": 2, "dp_shard": 2} and found[0]["kind"] == "FSDP"
        assert "Replicate" in found[0]["placements"] and "Shard" in found[0]["placements"]


class TestLess:
    """Asked for more than one gets: an error, with the remedy."""

    @pytest.mark.slow
    def test_accelerates_cpu_flag_starts_one_process(self, tmp_path):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
        (found,) = launched(command, tmp_path, 1)
        assert "was asked for several processes and started one" in found["error"]

    @pytest.fixture
    def alone(self, monkeypatch):
        for name in list(os.environ):
            if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")) or name in (
                "MASTER_ADDR",
                "WORLD_SIZE",
            ):
                monkeypatch.delenv(name)
        return monkeypatch

    def test_one_process_is_one(self, alone):
        from hf_muscaling.distributed import launched_processes

        assert launched_processes() == 1

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"WORLD_SIZE": "4"}, "started 4 processes but Accelerate uses 1"),
            ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, "several processes and started one"),
            ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not supported"),
            ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
            ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
            ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "splits no model"),
        ],
    )
    def test_the_launcher(self, alone, variables, message):
        from accelerate import PartialState

        from hf_muscaling.distributed import launched_processes
        from hf_muscaling.errors import ConfigurationError

        PartialState(cpu=True)  # before WORLD_SIZE is set, as after a launch that Accelerate does not understand
        for name, value in variables.items():
            alone.setenv(name, value)
        with pytest.raises(ConfigurationError, match=message):
            launched_processes()

    @pytest.mark.parametrize(
        ("settings", "variables", "message"),
        [
            (FSDP, {}, "FSDP was asked for, but Accelerate chose NO: start the script with a launcher"),
            ({"fsdp": True, "fsdp_config": {"version": 1}}, {}, "FSDP version 1 is not supported"),
            ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP was asked for"),
            (
                {},
                {"ACCELERATE_MIXED_PRECISION": "bf16"},
                "asks for mixed precision bf16, the training arguments do not",
            ),
        ],
    )
    def test_the_trainer(self, alone, tmp_path, llama, settings, variables, message):
        from hf_muscaling import MuTrainer
        from hf_muscaling.errors import ConfigurationError
        from tests.test_trainer import arguments

        for name, value in variables.items():
            alone.setenv(name, value)
        with pytest.raises(ConfigurationError, match=message):
            MuTrainer(llama.model(llama.base(layers=1)), arguments(tmp_path, **settings))


def test_the_one_private_override(monkeypatch):
    """Accelerate must still keep a process's kind where we set it, or FSDP on CPUs would silently be DDP again."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from hf_muscaling.distributed import accelerate_for

    state = PartialState(cpu=True)
    assert state.__dict__ is PartialState._shared_state
    monkeypatch.setitem(state._shared_state, "num_processes", 2)
    monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType.MULTI_CPU)
    args = SimpleNamespace(device="cpu", fsdp=False, fsdp_config={"version": 2})
    with accelerate_for(args):
        assert PartialState().distributed_type == DistributedType.MULTI_CPU
    args.fsdp = True
    with accelerate_for(args):
        assert PartialState().distributed_type == DistributedType.MULTI_GPU and PartialState().device.type == "cpu"
        os.environ["ACCELERATE_USE_FSDP"] = "true"  # as an Accelerator does
    assert "ACCELERATE_USE_FSDP" not in os.environ


class TestPolicies:
    """What an accelerator's FSDP plugin is made to do."""

    def check(self, bf16=False, fsdp2=True, **settings):
        from hf_muscaling.distributed import check_accelerator

        defaults = {"cpu_ram_efficient_loading": False, "activation_checkpointing": False}
        plugin = SimpleNamespace(mixed_precision_policy="Accelerate's", **(defaults | settings))
        kind = SimpleNamespace(value="FSDP" if fsdp2 else "MULTI_CPU")
        accelerator = SimpleNamespace(
            num_processes=1, is_fsdp2=fsdp2, distributed_type=kind, mixed_precision="no",
            state=SimpleNamespace(fsdp_plugin=plugin),
        )  # fmt: skip
        args = SimpleNamespace(fsdp=True, bf16=bf16, activation_checkpointing=False)
        check_accelerator(accelerator, args)
        return plugin, args

    def test_bf16_keeps_the_loss_in_fp32(self):
        import torch

        assert self.check(bf16=False)[0].mixed_precision_policy == "Accelerate's"
        policy = self.check(bf16=True)[0].mixed_precision_policy
        assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (
            torch.bfloat16, torch.float32, torch.float32,
        )  # fmt: skip

    def test_activation_checkpointing_is_transformers(self):
        plugin, args = self.check(activation_checkpointing=True)
        assert args.activation_checkpointing and not plugin.activation_checkpointing

    def test_what_is_refused(self):
        from hf_muscaling.errors import ConfigurationError

        with pytest.raises(ConfigurationError, match="fsdp_cpu_ram_efficient_loading"):
            self.check(cpu_ram_efficient_loading=True)
        with pytest.raises(ConfigurationError, match="Accelerate chose MULTI_CPU"):
            self.check(fsdp2=False)


class TestGroups:
    def test_groups_follow_their_names(self, architecture, tied):
        """Accelerate matches by address, and empty shards share theirs: every group may end up with wrong tensors."""
        import torch

        from hf_muscaling import MuAdamW
        from hf_muscaling.distributed import group_names, point_groups

        model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(64))
        optimizer = MuAdamW(model, lr=0.1, weight_decay=0.1)
        names, before = group_names(model, optimizer), [g["params"] for g in optimizer.param_groups]
        assert sum(map(len, names)) == len(list(model.parameters())) and len(names) > 2
        for group in optimizer.param_groups:
            group["params"] = [torch.empty(0)] * len(group["params"])
        point_groups(model, optimizer, names)
        after = [g["params"] for g in optimizer.param_groups]
        assert all(a is b for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
        assert [g["lr"] for g in optimizer.param_groups][0] == 0.1

    def test_a_foreign_optimizer(self, llama):
        from hf_muscaling import MuAdamW
        from hf_muscaling.distributed import group_names
        from hf_muscaling.errors import ConfigurationError

        one, other = (llama.model(llama.base().at_width(64)) for _ in range(2))
        with pytest.raises(ConfigurationError, match="no parameters of this model"):
            group_names(one, MuAdamW(other))

    def test_units_hold_no_tie(self, architecture, tied):
        """The units are the blocks; each parameter is in at most one, and embeddings and readouts in none."""
        from hf_muscaling.distributed import layer_units

        model = architecture.model(architecture.base(layers=3, tie_word_embeddings=tied))
        units = list(layer_units(model))
        kinds = {"gpt2": "GPT2Block", "llama": "LlamaDecoderLayer", "bert": "BertLayer", "t5": "T5Block"}
        assert {type(unit).__name__ for unit in units} == {kinds[architecture.name]}
        assert len(units) == (6 if architecture.name == "t5" else 3)
        inside = [id(p) for unit in units for p in unit.parameters()]
        assert len(inside) == len(set(inside))
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        assert not {id(p) for m in (head, embedding) for p in m.parameters()} & set(inside)

    def test_a_shared_block_is_one_unit(self):
        from torch import nn

        from hf_muscaling.distributed import layer_units

        block = nn.Linear(2, 2)
        model = nn.Module()
        model.stack = nn.ModuleList([block, block, nn.ModuleList([nn.Linear(2, 2)])])
        assert list(layer_units(model)) == [block, model.stack[2]]

    def test_a_model_without_weights(self, llama):
        import torch

        from hf_muscaling.distributed import shard_model
        from hf_muscaling.errors import ConfigurationError

        with torch.device("meta"):
            model = llama.model_class(llama.base())
        with pytest.raises(ConfigurationError, match="on the meta device"):
            shard_model(model)


@pytest.mark.slow
def test_a_series_under_fsdp2(tmp_path, monkeypatch):
    """The main job through the shipped file: the same records as one process, and the same run names."""
    from hf_muscaling import Run
    from hf_muscaling.experiment import run_experiment
    from tests.series_helpers import flags, tiny_experiment

    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    settings = {"widths": [8, 16, 32], "target_width": 64, "learning_rates": [1e-2], "steps": 12, "warmup_steps": 2}
    settings |= {"gradient_checkpointing": True, "accumulation_steps": 2, "tie_word_embeddings": True}
    one = tiny_experiment(tmp_path, output_dir=str(tmp_path / "one"), **settings)
    expected = {run.run_id: run for run in run_experiment(one, progress=False).proxies}
    two = tiny_experiment(tmp_path, output_dir=str(tmp_path / "two"), **settings)
    command = [*accelerate_launch("fsdp2", "--num_processes", "2"), str(ROOT / "recipes" / "run_series.py")]
    done = subprocess.run(
        [*command, *flags(two)], env=environment(HF_MUSCALING_CACHE=str(tmp_path / "cache")),
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    records = {p.parent.name: Run.load(p) for p in (tmp_path / "two" / "runs").glob("*/run.json")}
    assert records.keys() >= expected.keys(), done.stderr[-4000:]
    for name, run in expected.items():
        assert records[name].loss == pytest.approx(run.loss, abs=1e-5)
        curves = [[row["loss"] for row in c] for c in (records[name].curve, run.curve)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert (tmp_path / "two" / "report.md").exists()


if __name__ == "__main__":
    main()

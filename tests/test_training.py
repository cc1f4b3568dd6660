"""One run in its folder: recorded once, continued after an interruption, damage noticed."""

import errno
import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_muscaling import MuBertConfig, MuLlamaConfig, MuT5Config, MuTrainer, MuTrainingArguments, train_series
from hf_muscaling.checkpoints import last_valid_checkpoint
from hf_muscaling.data import MaskedLM, ObjectiveBlocks, PackedBlocks, SpanCorruption
from hf_muscaling.errors import ConfigurationError, RecordError, TrainingError
from hf_muscaling.folders import exclusive, writable_folder
from hf_muscaling.series import Job, run_jobs
from hf_muscaling.training import config_record, objective_settings, run_settings, train_run


@pytest.fixture
def base():
    return MuLlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


@pytest.fixture
def blocks():
    return PackedBlocks(np.random.default_rng(0).integers(0, 64, (80, 16), dtype=np.uint16))


@pytest.fixture
def args(tmp_path):
    return MuTrainingArguments(
        output_dir=str(tmp_path / "args"), max_steps=10, per_device_train_batch_size=8, learning_rate=1e-2,
        logging_steps=3, save_steps=4, save_total_limit=2, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip


class Killed(BaseException):
    """Stands for kill −9: no handler may catch it."""


def _kill_at(monkeypatch, step: int) -> None:
    original = MuTrainer.training_step

    def training_step(self, *a, **k):
        if self.state.global_step >= step:
            raise Killed
        return original(self, *a, **k)

    monkeypatch.setattr(MuTrainer, "training_step", training_step)


def _no_training(monkeypatch) -> None:
    def train(self, *a, **k):
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(MuTrainer, "train", train)


def test_the_record_says_what_was_trained(tmp_path, base, blocks, args):
    run = train_run(base.at_width(32), args, blocks, blocks, tmp_path, hashes={"data_hash": "d", "tokenizer_hash": "t"})
    assert (run.status, run.width, run.S, run.B, run.D) == ("finished", 32, 10, 8 * 16, 10 * 8 * 16)
    assert run.C == 6 * run.N * run.D
    assert (run.data_hash, run.tokenizer_hash, run.lr, run.seed) == ("d", "t", 1e-2, args.seed)
    assert [row["step"] for row in run.curve] == [1, 3, 4, 6, 8, 9, 10]
    folder = tmp_path / run.run_id
    assert {p.name for p in folder.iterdir()} >= {"run.json", "model"}
    assert not (folder / "checkpoints").exists()
    model = __import__("transformers").AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        ids = torch.from_numpy(blocks.blocks.astype(np.int64))
        logits = model(ids).logits[:, :-1].flatten(0, 1).double()
        by_hand = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    assert run.loss == pytest.approx(by_hand.item(), abs=1e-5)


def test_a_finished_run_is_not_trained_again(tmp_path, base, blocks, args, monkeypatch):
    first = train_run(base, args, blocks, blocks, tmp_path)
    _no_training(monkeypatch)
    assert train_run(base, args, blocks, blocks, tmp_path) == first
    args.learning_rate = 2e-2
    with pytest.raises(AssertionError, match="trained again"):
        train_run(base, args, blocks, blocks, tmp_path)


def test_an_edited_record_is_refused(tmp_path, base, blocks, args):
    run = train_run(base, args, blocks, blocks, tmp_path)
    path = tmp_path / run.run_id / "run.json"
    document = json.loads(path.read_text())
    document["run"]["loss"] -= 0.1
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="checksum does not match"):
        train_run(base, args, blocks, blocks, tmp_path)


@pytest.mark.parametrize("step", [2, 5, 9])
def test_a_killed_run_continues_to_the_same_numbers(tmp_path, base, blocks, args, monkeypatch, step):
    whole = train_run(base, args, blocks, blocks, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _kill_at(patch, step)
        with pytest.raises(Killed):
            train_run(base, args, blocks, blocks, tmp_path / "killed")
    again = train_run(base, args, blocks, blocks, tmp_path / "killed")
    assert again.loss == whole.loss
    assert again.curve == whole.curve


MASKED, SPANS = MaskedLM(2, (0, 1, 2), 64), SpanCorruption((2,), 0)


@pytest.fixture(params=["bert", "t5"])
def hidden(request, blocks):
    """Return config, training and held-out set of a model that predicts what an objective hides."""
    if request.param == "bert":
        config, objective = MuBertConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
            max_position_embeddings=16,
        ), MASKED  # fmt: skip
    else:
        config = MuT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=1)
        objective = SPANS
    return config, ObjectiveBlocks(blocks, objective, 5), ObjectiveBlocks(blocks, objective, 6)


def test_other_objectives_are_recorded_and_continue_to_the_same_numbers(tmp_path, hidden, args, monkeypatch):
    config, train, heldout = hidden
    whole = train_run(config, args, train, heldout, tmp_path / "whole")
    assert whole.settings["objective"] == {**train.objective.record(16), "seed": 5, "heldout_seed": 6}
    assert (whole.B, whole.D) == (8 * 16, 10 * 8 * 16)  # tokens of text, not of inputs or targets
    with monkeypatch.context() as patch:
        _kill_at(patch, 6)
        with pytest.raises(Killed):
            train_run(config, args, train, heldout, tmp_path / "killed")
    again = train_run(config, args, train, heldout, tmp_path / "killed")
    assert (again.run_id, again.loss, again.curve) == (whole.run_id, whole.loss, whole.curve)
    _no_training(monkeypatch)
    assert train_run(config, args, train, heldout, tmp_path / "whole").loss == whole.loss
    with pytest.raises(AssertionError, match="trained again"):  # other masks are another run
        train_run(config, args, ObjectiveBlocks(train.blocks, train.objective, 8), heldout, tmp_path / "whole")


def test_the_held_out_loss_does_not_depend_on_the_batch(tmp_path, hidden, args):
    config, train, heldout = hidden
    losses = []
    for size in (1, 7, 80):
        args.per_device_eval_batch_size = size
        losses.append(train_run(config, args, train, heldout, tmp_path / str(size)).loss)
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)


def test_data_under_another_objective_than_the_architectures(tmp_path, base, blocks, hidden, args):
    config, train, heldout = hidden
    with pytest.raises(ConfigurationError, match=r"the training set is 'causal': train on objective_blocks\(data, "):
        train_run(config, args, blocks, blocks, tmp_path)
    with pytest.raises(ConfigurationError, match="MuLlamaConfig is pretrained with the 'causal' objective"):
        train_run(base, args, train, heldout, tmp_path)
    with pytest.raises(ConfigurationError, match="the held-out set is 'causal'"):
        train_run(config, args, train, blocks, tmp_path)
    denser = ObjectiveBlocks(blocks, replace(train.objective, density=0.3))
    with pytest.raises(ConfigurationError, match="have different objectives"):
        train_run(config, args, train, denser, tmp_path)
    assert not list(tmp_path.glob("*/run.json"))


def test_the_name_of_a_causal_run_is_what_it_was_before_there_were_other_objectives(tmp_path, base, blocks, args):
    config = base.replace(initializer_range=0.02)
    settings = run_settings(args) | objective_settings(config, blocks, blocks)
    assert "objective" not in settings
    assert set(config.to_dict()) - set(config_record(config)) <= {
        "depth_parametrization", "transformers_version", "_name_or_path", "architectures", "dtype",
    }  # fmt: skip
    assert config_record(config.replace(depth_parametrization="completep"))["depth_parametrization"] == "completep"


def test_a_run_killed_after_its_last_checkpoint_trains_no_step_more(tmp_path, base, blocks, args, monkeypatch):
    whole = train_run(base, args, blocks, blocks, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(MuTrainer, "evaluate", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            train_run(base, args, blocks, blocks, tmp_path / "killed")
    _no_training(monkeypatch)
    again = train_run(base, args, blocks, blocks, tmp_path / "killed")
    assert (again.loss, again.curve, again.D) == (whole.loss, whole.curve, whole.D)


@pytest.mark.parametrize("damage", ["optimizer missing", "optimizer truncated", "bit flip", "state half written"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, base, blocks, args, monkeypatch, damage, caplog):
    whole = train_run(base, args, blocks, blocks, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _kill_at(patch, 9)
        with pytest.raises(Killed):
            train_run(base, args, blocks, blocks, tmp_path / "killed")
    newest = next((tmp_path / "killed").glob("*/checkpoints/checkpoint-8"))
    optimizer = newest / "optimizer.pt"
    if damage == "optimizer missing":
        optimizer.unlink()
    elif damage == "optimizer truncated":
        optimizer.write_bytes(optimizer.read_bytes()[:1000])
    elif damage == "bit flip":
        with zipfile.ZipFile(optimizer) as archive:
            entry = max(archive.infolist(), key=lambda i: i.file_size)
        content = bytearray(optimizer.read_bytes())
        content[entry.header_offset + entry.file_size // 2 + 200] ^= 1
        optimizer.write_bytes(bytes(content))
    else:
        state = newest / "trainer_state.json"
        state.write_text(state.read_text()[:50])
    assert last_valid_checkpoint(newest.parent).name == "checkpoint-4"
    again = train_run(base, args, blocks, blocks, tmp_path / "killed")
    assert again.loss == whole.loss
    assert "Passing over checkpoint-8" in caplog.text


def test_divergence_keeps_its_record(tmp_path, base, blocks, args, monkeypatch):
    args.learning_rate = 1e4
    args.max_grad_norm = 0.0
    run = train_run(base, args, blocks, blocks, tmp_path)
    assert (run.status, run.loss) == ("diverged", None)
    assert run.curve
    _no_training(monkeypatch)
    assert train_run(base, args, blocks, blocks, tmp_path).status == "diverged"


def test_a_full_disk_says_what_to_do(tmp_path, base, blocks, args, monkeypatch):
    finished = train_run(base, args, blocks, blocks, tmp_path)

    def full(*a, **k):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MuTrainer, "_save_checkpoint", full)
    with pytest.raises(TrainingError, match="The disk is full.*run the same command again; finished runs are kept"):
        train_run(base.at_width(32), args, blocks, blocks, tmp_path)
    assert train_run(base, args, blocks, blocks, tmp_path) == finished


def test_an_unwritable_folder_is_refused_early(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="cannot be written to"):
        writable_folder(tmp_path / "file" / "out")


def test_two_processes_never_train_in_one_folder(tmp_path, base, blocks, args):
    with exclusive(tmp_path), pytest.raises(TrainingError, match="Another process is training"):
        run_jobs([Job(base, args, seed=0)], blocks, blocks, tmp_path, progress=False)


def test_a_series_sees_the_same_batches_at_every_width_and_seed(tmp_path, base, blocks, args, monkeypatch):
    seen = {}
    original = MuTrainer.training_step

    def training_step(self, model, inputs, *a, **k):
        seen.setdefault((self.model.config.hidden_size, self.args.seed), []).append(inputs["input_ids"].clone())
        return original(self, model, inputs, *a, **k)

    monkeypatch.setattr(MuTrainer, "training_step", training_step)
    series = train_series(base, [16, 32], args, blocks, seeds=2, output_dir=tmp_path / "out", progress=False)
    assert [(run.width, run.seed) for run in series] == [(16, 42), (16, 43), (32, 42), (32, 43)]
    first, *others = (torch.stack(batches) for batches in seen.values())
    assert len(others) == 3
    assert all(torch.equal(first, other) for other in others)
    assert series[0].loss != series[1].loss  # the seeds differ in their initialisation
    args.data_seed = 7
    seen.clear()
    train_series(base, [16], args, blocks, output_dir=tmp_path / "out", progress=False)
    assert not torch.equal(first, torch.stack(next(iter(seen.values()))))


def test_the_same_command_twice_gives_the_same_numbers(tmp_path, base, blocks, args):
    losses = [
        [run.loss for run in train_series(base, [16, 24], args, blocks, output_dir=tmp_path / k, progress=False)]
        for k in ("a", "b")
    ]
    assert losses[0] == losses[1]


def test_an_impossible_width_is_refused_before_any_training(tmp_path, base, blocks, args, monkeypatch):
    _no_training(monkeypatch)
    with pytest.raises(ConfigurationError, match="multiple of 8"):
        train_series(base, [16, 20], args, blocks, output_dir=tmp_path, progress=False)
    args.max_steps = -1
    with pytest.raises(ConfigurationError, match="max_steps > 0"):
        train_series(base, [16], args, blocks, output_dir=tmp_path, progress=False)


def test_a_checkpoint_without_weights_is_none(tmp_path, base, blocks, args, monkeypatch):
    _kill_at(monkeypatch, 9)
    with pytest.raises(Killed):
        train_run(base, args, blocks, blocks, tmp_path)
    folder = next(tmp_path.glob("*/checkpoints"))
    for path in folder.glob("checkpoint-*/model.safetensors"):
        path.unlink()
    assert last_valid_checkpoint(folder) is None
    shutil.rmtree(folder)
    assert last_valid_checkpoint(folder) is None

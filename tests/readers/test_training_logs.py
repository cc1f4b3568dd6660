"""What training itself leaves behind: Trainer folders, event files, this package's runs."""

import json
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_muscaling.errors import MuScalingError, RecordError, UnknownQuantityError
from hf_muscaling.readers import read_runs, read_series, read_tensorboard, read_trainer
from hf_muscaling.readers.events import read_events
from hf_muscaling.runs import Run

from .conftest import TOKENS_PER_STEP, curves, loss_at, record, recovers, scalar_event, varint, write_state

WIDTHS = (16, 32, 64, 128, 256)


def config_of(width):
    """A Llama config.json as transformers writes it, and its parameters counted by hand."""
    ffn, vocabulary, layers = 2 * width, 50, 2
    document = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "intermediate_size": ffn,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "head_dim": width // 2, "tie_word_embeddings": False, "transformers_version": "5.0.0", "torch_dtype": "float32",
        "auto_map": {"AutoConfig": "evil--evil.py"},
    }  # fmt: skip
    body = layers * (4 * width**2 + 3 * width * ffn + 2 * width) + width
    return document, body + 2 * vocabulary * width, body


@pytest.fixture
def trainer_folder(tmp_path):
    """One run a width, with two checkpoints each and a pickle that must stay closed."""
    for width in WIDTHS:
        document, n, _ = config_of(width)
        run = tmp_path / f"w{width}"
        rows = []
        for step in range(100, 2001, 100):
            rows.append({"step": step, "loss": 9.9, "epoch": 0.1, "num_input_tokens_seen": step * TOKENS_PER_STEP})
            loss = float(loss_at(n, step * TOKENS_PER_STEP))
            rows.append({"step": step, "eval_loss": loss, "num_input_tokens_seen": step * TOKENS_PER_STEP})
        rows.append(
            {"step": 2000, "train_loss": 7.7, "total_flos": 1.0, "num_input_tokens_seen": 2000 * TOKENS_PER_STEP}
        )
        write_state(run / "checkpoint-1000", rows[:20])
        write_state(run / "checkpoint-2000", rows)
        (run / "checkpoint-2000" / "config.json").write_text(json.dumps(document))
        (run / "checkpoint-2000" / "training_args.bin").write_bytes(pickle.dumps(Bomb(str(tmp_path / "owned"))))
    return tmp_path


class Bomb:
    """A pickle that would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


class TestTrainer:
    def test_the_truth_comes_back(self, trainer_folder):
        table = read_runs(trainer_folder)
        assert recovers(table) and set(table["run_id"]) == {f"w{w}" for w in WIDTHS}
        for width in WIDTHS:
            rows = table.take(table["run_id"] == f"w{width}")
            _, n, bare = config_of(width)
            assert set(rows["N"]) == {n} and set(rows["N_non_embedding"]) == {bare} and rows.n_rows == 20
        assert not (trainer_folder / "owned").exists()

    def test_training_loss_on_request(self, trainer_folder):
        table = read_trainer(trainer_folder, loss="loss")
        assert set(table["loss"]) == {9.9}  # and never the mean over all of training, 7.7

    def test_tokens_from_total_flos(self, tmp_path):
        document, n, bare = config_of(32)
        counted_by_trainer = bare + 50 * 32  # its `exclude_embeddings` counts an untied readout
        flos = 6.0 * counted_by_trainer * 2000 * TOKENS_PER_STEP
        write_state(tmp_path / "run", [{"step": s, "loss": 3.0} for s in (1000, 2000)], total_flos=flos)
        (tmp_path / "run" / "config.json").write_text(json.dumps(document))
        table = read_trainer(tmp_path)
        assert table["D"].tolist() == pytest.approx([1000 * TOKENS_PER_STEP, 2000 * TOKENS_PER_STEP])
        assert table["N"].tolist() == [n, n] and any("total_flos" in note for note in table.notes)
        assert read_trainer(tmp_path, B=10)["D"].tolist() == [10_000, 20_000]  # what the user says comes first

    def test_what_is_missing_is_asked_for(self, tmp_path):
        write_state(tmp_path / "run", [{"step": 5, "loss": 3.0}])
        with pytest.raises(UnknownQuantityError, match="how many parameters"):
            read_trainer(tmp_path)
        with pytest.raises(UnknownQuantityError, match="--B"):
            read_trainer(tmp_path, N=1e6)
        assert read_trainer(tmp_path, N=1e6, B=10)["D"].tolist() == [50]

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"model_type": "no_such_model"}, "no_such_model"),
            ({"hidden_size": 8}, "no model_type"),
            ([], "not a JSON object"),
            ({"model_type": "llama", "num_hidden_layers": 10**6}, "num_hidden_layers = 1000000"),
            ({"model_type": "llama", "hidden_size": 10**15}, "holds the size"),
            ({"model_type": "llama", "hidden_size": "big"}, "Error"),
        ],
    )
    def test_an_impossible_config_asks_for_parameters(self, tmp_path, config, message):
        write_state(tmp_path / "run", [{"step": 5, "loss": 3.0}])
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnknownQuantityError, match=message):
            read_trainer(tmp_path, B=10)
        assert read_trainer(tmp_path, N=1e6, B=10).n_rows == 1

    def test_a_diverged_run(self, tmp_path):
        write_state(tmp_path / "run", [{"step": 5, "loss": 3.0}, {"step": 10, "loss": float("nan")}])
        with pytest.raises(RecordError, match="drop_bad"):
            read_trainer(tmp_path, N=1e6, B=10)
        assert read_trainer(tmp_path, N=1e6, B=10, drop_bad=True).n_rows == 1

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"log_history": 3}', '{"log_history": [3, {"step": "x"}]}'])
    def test_a_damaged_state_is_named(self, tmp_path, text):
        (tmp_path / "trainer_state.json").write_text(text)
        with pytest.raises(RecordError, match="Cannot read runs"):
            read_trainer(tmp_path, N=1e6, B=10)

    def test_a_real_trainer(self, tmp_path):
        """Tokens and parameters of a run that transformers' Trainer made, tracked and untracked, are the true ones."""
        import torch
        from transformers import AutoConfig, LlamaForCausalLM, Trainer, TrainingArguments

        document, n, _ = config_of(16)
        model = LlamaForCausalLM(AutoConfig.for_model(**{k: v for k, v in document.items() if k != "auto_map"}))
        ids = torch.randint(0, 50, (64, 8))
        data = [{"input_ids": row, "labels": row} for row in ids]
        for name, tracked in (("a", "all"), ("b", "no")):
            args = TrainingArguments(
                str(tmp_path / name), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=3,
                logging_steps=2, save_steps=4, report_to="none", use_cpu=True, include_num_input_tokens_seen=tracked,
            )  # fmt: skip
            Trainer(model, args, train_dataset=data).train()
        table = read_runs(tmp_path)
        assert table["D"].tolist() == pytest.approx([2 * 48, 4 * 48] * 2) and set(table["N"]) == {n}
        assert set(table["run_id"]) == {"a", "b"}


class TestTensorBoard:
    def write(self, folder, scalars, name="events.out.tfevents.1.host"):
        folder.mkdir(parents=True, exist_ok=True)
        data = record(b"\x09" + struct.pack("<d", 1.0) + b"\x1a" + varint(13) + b"brain.Event:2")
        (folder / name).write_bytes(data + b"".join(scalar_event(*s) for s in scalars))

    def test_the_truth_comes_back(self, tmp_path):
        runs = curves([1e5, 3e5, 1e6, 3e6, 1e7])
        for name, _, curve in runs:
            points = [("eval/loss", s, loss) for s, _, loss in curve] + [("train/loss", s, 9.0) for s, _, _ in curve]
            self.write(tmp_path / name, [*points, ("train/train_loss", 2000, 7.0), ("train/lr", 10, 0.1)])
        with pytest.raises(UnknownQuantityError, match="how many parameters"):
            read_runs(tmp_path)
        table = read_runs(tmp_path, N={name: n for name, n, _ in runs}, B=TOKENS_PER_STEP)
        assert recovers(table, 1e-2) and table.n_rows == 100  # float32 on disk
        assert set(read_runs(tmp_path, N=1e6, B=1, loss="train/loss")["loss"]) == {9.0}

    def test_tokens_and_a_continued_run(self, tmp_path):
        tokens = "train/num_input_tokens_seen"
        self.write(tmp_path / "r", [("train/loss", 1, 4.0), (tokens, 1, 100), ("train/loss", 2, 3.9), (tokens, 2, 200)])
        self.write(tmp_path / "r", [("train/loss", 2, 3.5), (tokens, 2, 200)], "events.out.tfevents.2.host")
        table = read_tensorboard(tmp_path, N=1e6)
        assert table["loss"].tolist() == [4.0, 3.5] and table["D"].tolist() == [100, 200]

    def test_a_last_record_cut_short(self, tmp_path):
        self.write(tmp_path, [("train/loss", 1, 4.0), ("train/loss", 2, 3.5)])
        path = tmp_path / "events.out.tfevents.1.host"
        path.write_bytes(path.read_bytes()[:-7])
        table = read_runs(path, N=1e6, B=10)
        assert table["loss"].tolist() == [4.0] and any("cut short" in n for n in table.notes)

    def test_a_flipped_bit_is_found(self, tmp_path):
        self.write(tmp_path, [("train/loss", 1, 4.0), ("train/loss", 2, 3.5)])
        path = tmp_path / "events.out.tfevents.1.host"
        data = bytearray(path.read_bytes())
        data[60] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(RecordError, match="checksum"):
            read_runs(path, N=1e6, B=10)

    def test_the_checksum_is_crc32c(self):
        from hf_muscaling.readers.events import _masked_crc

        crc = (_masked_crc(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
        assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32C (RFC 3720's polynomial)

    def test_against_tensorboard(self, tmp_path):
        """Files of TensorBoard's own writer, in the old and the tensor layout, and the Trainer's config text."""
        pytest.importorskip("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        document, n, bare = config_of(32)
        with SummaryWriter(str(tmp_path / "run")) as writer:
            writer.add_text("model_config", json.dumps(document))
            for step in (10, 20):
                writer.add_scalar("train/loss", 4.0 - step / 100, step)
                writer.add_scalar("eval/loss", 3.0 - step / 100, step, new_style=True)
            writer.add_scalar("train/total_flos", 6.0 * (bare + 50 * 32) * 20 * 96, 20)
            writer.add_histogram("weights", np.arange(10.0), 10)
        table = read_runs(tmp_path)
        np.testing.assert_allclose(table["loss"], [2.9, 2.8], rtol=1e-6)
        np.testing.assert_allclose(table["D"], [960, 1920], rtol=1e-6)
        assert table["N"].tolist() == [n, n]

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=300), st.booleans())
    def test_any_bytes_are_read_or_refused(self, tmp_path, data, framed):
        (tmp_path / "tfevents").write_bytes(record(data) if framed else data)
        try:
            read_events(tmp_path / "tfevents")
        except RecordError as error:
            assert str(error)


class TestSeries:
    def run(self, i, n, loss, status="finished"):
        b, s = 1000, 100 * (i + 1)
        return Run(f"r{i}", status, n, n - 10, b * s, s, b, 6.0 * n * b * s, loss, 32, 0, 1e-2)

    def test_finished_runs(self, tmp_path):
        for i, (status, loss) in enumerate((("finished", 3.0), ("finished", 2.9), ("diverged", None))):
            (tmp_path / f"r{i}").mkdir()
            self.run(i, 1000 * (i + 1), loss, status).save(tmp_path / f"r{i}" / "run.json")
        table = read_runs(tmp_path)
        assert table["loss"].tolist() == [3.0, 2.9] and table["N_non_embedding"].tolist() == [990, 1990]
        assert any("diverged" in note for note in table.notes) and "family" not in table

    def test_an_edited_record_is_refused(self, tmp_path):
        self.run(0, 1000, 3.0).save(tmp_path / "run.json")
        (tmp_path / "run.json").write_text((tmp_path / "run.json").read_text().replace("3.0", "2.0"))
        with pytest.raises(MuScalingError, match="checksum"):
            read_series(tmp_path)


def test_reading_a_table_brings_no_torch(tmp_path):
    (tmp_path / "t.csv").write_text("N,D,loss\n1e6,1e8,3\n")
    code = (
        f"from hf_muscaling import read_runs; read_runs({str(tmp_path / 't.csv')!r}); import sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "matplotlib"}

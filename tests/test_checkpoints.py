"""A checkpoint is what its manifest says, or is passed over; the oldest go, whatever the clock says."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from hf_muscaling.checkpoints import (
    MANIFEST,
    CheckpointKeeper,
    StopInTime,
    checkpoint_problem,
    checkpoints,
    last_valid_checkpoint,
    write_manifest,
)
from hf_muscaling.errors import Preempted
from hf_muscaling.interruption import listening, stop


@pytest.fixture
def checkpoint(tmp_path):
    def make(step):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "shards").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        (folder / "optimizer.pt").write_bytes(b"moments" * 500)
        (folder / "shards" / "__0_0.distcp").write_bytes(b"part" * 10)
        return folder

    return make


def test_a_whole_checkpoint(checkpoint):
    folder = checkpoint(10)
    write_manifest(folder, step=10)
    assert checkpoint_problem(folder) is None
    document = json.loads((folder / MANIFEST).read_text())
    assert document["step"] == 10
    assert set(document["files"]) == {"model.safetensors", "optimizer.pt", "shards/__0_0.distcp"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "shards/__0_0.distcp"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_every_file_is_checked(checkpoint, name, damage):
    folder = checkpoint(10)
    write_manifest(folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    says = {"flipped": "its checksum does not match", "truncated": "bytes instead of", "missing": "is missing"}
    assert says[damage] in checkpoint_problem(folder) and path.name in checkpoint_problem(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"optimizer.pt": 3}}', "{}"])
def test_a_damaged_manifest(checkpoint, text):
    folder = checkpoint(10)
    (folder / MANIFEST).write_text(text)
    assert "manifest" in checkpoint_problem(folder)


def test_the_newest_that_is_whole(checkpoint, caplog):
    for step in (5, 10, 100):
        write_manifest(checkpoint(step))
    assert last_valid_checkpoint(checkpoints_of := checkpoint(7).parent).name == "checkpoint-100"
    (checkpoints_of / "checkpoint-100" / "optimizer.pt").write_bytes(b"")
    assert last_valid_checkpoint(checkpoints_of).name == "checkpoint-10"
    assert "Passing over checkpoint-100" in caplog.text and "continuing from the one before" in caplog.text
    shutil.rmtree(checkpoints_of / "checkpoint-5")
    shutil.rmtree(checkpoints_of / "checkpoint-10")
    assert last_valid_checkpoint(checkpoints_of) is None  # checkpoint-7 has no manifest
    assert last_valid_checkpoint(checkpoints_of / "nowhere") is None


@pytest.mark.parametrize("jump", [0, -3600])
def test_the_oldest_go_whatever_the_clock_says(checkpoint, tmp_path, jump):
    """Trainer's own rotation goes by modification time: after a jump back it would delete what was just written."""
    keeper = CheckpointKeeper(2, {}, 0.0, 0.0)
    args = SimpleNamespace(output_dir=str(tmp_path))
    for step in (5, 10, 15):
        folder = checkpoint(step)
        os.utime(folder, (2e9 + step * jump,) * 2)
        keeper.on_save(args, SimpleNamespace(global_step=step), None)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-15"]
    if jump:
        from transformers.trainer_utils import rotate_checkpoints

        os.utime(checkpoint(20), (1e9,) * 2)
        rotate_checkpoints(str(tmp_path), 2, use_mtime=True)
        assert not (tmp_path / "checkpoint-20").exists()  # so it does; if this fails, Trainer was mended


def test_damaged_ones_of_a_later_step_take_no_place(checkpoint, tmp_path):
    for step in (5, 10, 30):
        checkpoint(step)
    keeper = CheckpointKeeper(2, {}, 0.0, 0.0)
    keeper.on_save(SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=10), None)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]


def test_sigterm_outside_of_training_stops_at_once():
    with pytest.raises(Preempted, match=r"Stopped \(SIGTERM\)"), listening():
        os.kill(os.getpid(), 15)
        pytest.fail("went on")
    with listening(deferring=True):
        assert not stop.asked  # the next job is not stopped by the request to the one before
        os.kill(os.getpid(), 15)
        assert stop.asked
        with pytest.raises(Preempted):
            stop.check()


@pytest.mark.parametrize("seconds_a_step", [0.0, 100.0])
def test_a_stop_waits_for_the_next_row_only_if_that_is_near(seconds_a_step):
    callback = StopInTime()
    args = SimpleNamespace(world_size=1, logging_steps=10)
    state = SimpleNamespace(global_step=0, max_steps=100)
    control = SimpleNamespace(should_log=False, should_save=False, should_training_stop=False)
    callback.on_train_begin(args, state, control)
    callback.began -= 3 * seconds_a_step
    with listening(deferring=True):
        os.kill(os.getpid(), 15)
        state.global_step = 3
        callback.on_step_end(args, state, control)
        assert callback.stopped == control.should_save == (seconds_a_step > 0)
        state.global_step, control.should_log = 10, True
        callback.on_step_end(args, state, control)
    assert callback.stopped and control.should_save and control.should_training_stop

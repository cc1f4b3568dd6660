"""Worker processes: the same bits as here, kept alive, replaced when killed, heard when they fail, never orphans."""

import copy
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_muscaling import MuLlamaConfig, MuTrainingArguments, Series
from hf_muscaling.data import PackedBlocks, collate_blocks
from hf_muscaling.errors import ConfigurationError, Preempted, TrainingError
from hf_muscaling.experiment import run_experiment
from hf_muscaling.interruption import listening
from hf_muscaling.progress import SeriesProgress
from hf_muscaling.series import Job, run_jobs
from hf_muscaling.training import train_run
from hf_muscaling.worker import packed, unpacked
from hf_muscaling.workers import Task, Workers
from tests.series_helpers import flags, tiny_experiment

RECIPE = Path(__file__).parents[1] / "recipes" / "run_series.py"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def base():
    return MuLlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


@pytest.fixture
def blocks(tmp_path):
    PackedBlocks(np.random.default_rng(0).integers(0, 64, (400, 16), dtype=np.uint16)).save(tmp_path / "blocks")
    return PackedBlocks.load(tmp_path / "blocks")


@pytest.fixture
def args(tmp_path):
    return MuTrainingArguments(
        output_dir=str(tmp_path / "args"), max_steps=30, per_device_train_batch_size=8, learning_rate=1e-2,
        logging_steps=5, save_steps=10, save_total_limit=2, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def numbers(run):
    return run.run_id, run.loss, run.curve, run.layout


class TestPacked:
    def test_a_memory_mapped_array_goes_by_its_name(self, blocks):
        assert isinstance(blocks.blocks, np.memmap)
        data = packed(blocks)
        assert len(data) < blocks.blocks.nbytes / 4
        assert np.array_equal(unpacked(data).blocks, blocks.blocks)
        part = PackedBlocks(blocks.blocks[3:9])  # a part of a map is sent whole: its offset is not its own
        assert np.array_equal(unpacked(packed(part)).blocks, blocks.blocks[3:9])

    def test_what_only_exists_here(self, base, blocks, args, tmp_path):
        torch.set_num_threads(2)
        try:
            with pytest.raises(ConfigurationError, match=r"placement='apart' trains in other processes.*in a module"):
                run_jobs(
                    [Job(base, args, seed=0)], blocks, blocks, tmp_path, placement="apart", progress=False,
                    data_collator=lambda rows: collate_blocks(rows),
                )  # fmt: skip
        finally:
            torch.set_num_threads(1)


@pytest.mark.slow
def test_a_worker_trains_the_same_bits_reports_and_is_replaced(base, blocks, args, tmp_path, caplog, monkeypatch):
    """The life of one worker, in one test because every start imports torch."""
    jobs = [Job(base.at_width(w), args, seed=0) for w in (16, 32, 64, 24, 40)]
    here = [train_run(job.config, job.args, blocks, blocks, tmp_path / "here") for job in jobs]
    bar = SeriesProgress([1.0] * 5, enabled=False)
    monkeypatch.setattr(SeriesProgress, "start", _noting(begun := [], SeriesProgress.start))

    def tasks(*numbers):
        return [Task(k, f"run {k}", jobs[k].config, jobs[k].args, lambda: bar.start("", 1.0)) for k in numbers]

    shared = packed(("share", blocks, blocks, tmp_path / "there", {"data_collator": collate_blocks}))
    with Workers() as workers:
        workers.configure(1, 1)
        there = workers.train(tasks(0, 1), shared)
        assert {k: numbers(run) for k, run in there.items()} == {k: numbers(here[k]) for k in (0, 1)}
        process = workers._workers[0].process

        # its errors are ours
        wrong = copy.deepcopy(jobs[2].args)
        wrong.label_smoothing_factor = 0.1
        with pytest.raises(ConfigurationError, match="label_smoothing_factor=0.1 would report another loss"):
            workers.train([Task(0, "wrong", jobs[2].config, wrong, lambda: bar.start("", 1.0))], shared)

        # it lives on, until it is killed; then the run is continued by another
        with monkeypatch.context() as patch:
            patch.setattr("hf_muscaling.progress.RunProgress.show_loss", _once(lambda *_: process.kill()))
            there = workers.train(tasks(2), shared)
        assert process.poll() == -signal.SIGKILL and workers._workers[0].process is not process
        assert numbers(there[2]) == numbers(here[2])
        assert "was killed (SIGKILL); another one continues from the run's last checkpoint" in caplog.text

        # a request to stop is passed on: it saves a checkpoint and says so
        process = workers._workers[0].process
        with monkeypatch.context() as patch, listening(deferring=True), pytest.raises(Preempted):
            patch.setattr(
                "hf_muscaling.progress.RunProgress.show_loss", _once(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            )
            workers.train(tasks(3), shared)
        workers.close()
        assert process.poll() is not None
    assert list((tmp_path / "there").glob("w0024*/checkpoints/checkpoint-*/manifest.json"))
    assert not list((tmp_path / "there").glob("w0024*/run.json"))
    job = jobs[3]
    assert numbers(train_run(job.config, job.args, blocks, blocks, tmp_path / "there")) == numbers(here[3])
    assert begun


def _noting(noted, original):
    def start(self, *a):
        noted.append(a)
        return original(self, *a)

    return start


def _once(act):
    calls = []

    def show_loss(self, *heard):
        if not calls:
            calls.append(heard)
            act()

    return show_loss


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_given_up(base, blocks, args, tmp_path, caplog):
    class Lethal(Workers):
        def _hear(self, worker, message):
            if message[0] == "ready":
                worker.process.kill()
            super()._hear(worker, message)

    caplog.set_level(logging.WARNING)
    bar = SeriesProgress([1.0], enabled=False)
    shared = packed(("share", blocks, blocks, tmp_path, {}))
    with Lethal() as workers, pytest.raises(TrainingError, match=r"SIGKILL.*3 times.*out of memory"):
        workers.configure(1, 1)
        workers.train([Task(0, "run 0", base, Job(base, args, seed=0).args, lambda: bar.start("", 1.0))], shared)


def children(pid):
    """Return a process's children that run our code."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(p) for p in found if b"hf_muscaling.worker " in Path(f"/proc/{p}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def gone(pids, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{p}/cmdline").exists() and Path(f"/proc/{p}/cmdline").read_bytes() for p in pids):
            return True
        time.sleep(0.1)
    return False


@linux
@pytest.mark.slow
def test_the_recipe_side_by_side_killed_interrupted_and_preempted(tmp_path, monkeypatch):
    """kill -9, Ctrl-C and SIGTERM of the main process, each while a worker trains: nobody is left, nothing is lost."""
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))

    def config(name, threads):
        # a worker needs seconds to start, in which this process trains: the runs must be many and long enough for three
        settings = {"steps": 600, "widths": [8, 16, 32], "target_width": 64, "learning_rates": [1e-2], "seeds": 4}
        settings |= {"checkpoint_steps": 40, "placement": "apart", "threads": threads}
        return tiny_experiment(tmp_path, output_dir=str(tmp_path / name), **settings)

    def start():
        command = [sys.executable, RECIPE, *flags(config("broken", threads=2))]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    for sent, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 75)):
        process = start()
        workers = []
        while process.poll() is None:
            workers = children(process.pid)
            begun = {p.parents[1] for p in (tmp_path / "broken").glob("runs/*/checkpoints/checkpoint-*")}
            if workers and len([p for p in begun if not (p / "run.json").exists()]) >= 2:
                break
            time.sleep(0.05)
        assert workers, process.stderr.read()[-3000:]
        process.send_signal(sent)
        shown = process.communicate(timeout=60)[1]
        assert process.returncode == status, shown[-3000:]
        assert gone(workers)
        assert "Traceback" not in shown
        if sent != signal.SIGKILL:
            assert "the same command continues" in shown
    process = start()
    shown = process.communicate(timeout=300)[1]
    assert process.returncode == 0, shown[-3000:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_experiment(config("whole", threads=1), progress=False)

    outcomes = []
    for folder in (tmp_path / "broken", tmp_path / "whole"):
        runs = Series.from_jsonl(folder / "runs.jsonl")
        outcomes.append(([numbers(run) for run in runs], json.loads((folder / "prediction.json").read_text())))
    assert outcomes[0] == outcomes[1]  # two workers, three times broken, against one process that trained all
    assert {run.layout["threads"] for run in runs} == {1}

"""The live view: what it shows, on a token axis; that it never changes a run, and that its failure stops nothing."""

import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_muscaling import PowerLaw, Series
from hf_muscaling.cli import main
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.experiment import prepare_experiment
from hf_muscaling.live import SERIES, Label, LiveView, TrackioSink, check_view, open_view
from hf_muscaling.progress import SeriesProgress
from hf_muscaling.readers.events import read_events
from hf_muscaling.series import Job, run_jobs
from tests.series_helpers import flags, tiny_experiment
from tests.test_runs import make_run


class Memory:
    """A sink that keeps what it is told, and may be told to fail."""

    where = "memory"

    def __init__(self, fails_at=None):
        self.rows, self.closed, self.fails_at = [], False, fails_at

    def log(self, run, values, tokens):
        if self.fails_at is not None and len(self.rows) >= self.fails_at:
            np.random.random()  # what a tracker draws must not reach the runs
            raise OSError("the disk of the tracker is full")
        self.rows += [(run, name, tokens, value) for name, value in values.items()]

    def close(self):
        self.closed = True

    def curve(self, run, name):
        return [(tokens, value) for r, n, tokens, value in self.rows if (r, n) == (run, name)]


def proxy(width, seed=0, **changes):
    n = width**2 * 10
    fields = {"width": width, "seed": seed, "N": n, "loss": 2 + 30 * n**-0.3, "run_id": f"w{width}-{seed}", "B": 64}
    curve = [{"step": step, "loss": 5.0 - step / 10, "lr": 0.01} for step in (5, 10)]
    return make_run(**(fields | {"curve": curve} | changes))


def test_a_run_a_width_and_a_curve_a_seed_over_tokens():
    view = LiveView(sink := Memory())
    label = Label("proxy", 32, 0.01, 1, 64)
    view.row(label, 5, 4.5)
    view.row(label, 5, 4.5)  # a run that is continued says it again
    view.row(label, 10, 4.0)
    view.row(Label("grid", 32, 0.01, 0, 64), 5, 4.6)
    assert sink.curve("width 0032", "loss/seed 1") == [(320, 4.5), (640, 4.0)]
    assert sink.curve("search, width 0032", "loss/lr 0.01") == [(320, 4.6)]
    assert Label("target", 192, 0.01, 0, 64).run == "target, width 0192"


def test_a_finished_run_shows_what_was_not_seen_and_its_held_out_loss():
    view = LiveView(sink := Memory())
    view.row(Label("proxy", 32, 0.01, 0, 64), 5, 4.5)
    view.finished(run := proxy(32))
    assert sink.curve("width 0032", "loss/seed 0") == [(320, 4.5), (640, 4.0)]
    assert sink.curve("width 0032", "held-out loss/seed 0") == [(run.D, run.loss)]
    view.finished(proxy(64, status="diverged", loss=None))
    assert sink.curve("width 0064", "loss/seed 0") and not sink.curve("width 0064", "held-out loss/seed 0")


def test_the_prediction_follows_the_proxies():
    def predict(runs):
        if len(runs) < 4:
            return None
        return PowerLaw(objective="least_squares").fit([vars(run) for run in runs]).predict(N=1e6)

    view = LiveView(sink := Memory(), predict)
    for width in (32, 48, 64):
        view.finished(proxy(width))
    view.finished(make_run(role="grid", width=16, run_id="g"))
    assert not sink.curve(SERIES, "target/predicted loss")
    view.finished(proxy(96))
    view.finished(proxy(96))  # the same run again is no news
    view.finished(proxy(128))
    (first, second) = sink.curve(SERIES, "target/predicted loss")
    assert first[0] < second[0] and second[1] == pytest.approx(2 + 30 * 1e6**-0.3, rel=0.02)
    assert [v for _, v in sink.curve(SERIES, "target/proxies")] == [4, 5]
    assert sink.curve(SERIES, "target/low")[1][1] <= second[1] <= sink.curve(SERIES, "target/high")[1][1]


def test_time_left_is_the_rest_at_the_pace_so_far(monkeypatch):
    view = LiveView(sink := Memory())
    bars = SeriesProgress([30.0, 10.0], enabled=False, view=view)
    assert bars.seconds_left is None
    bars.began = time.monotonic() - 60
    bars.advance(10.0)
    assert bars.seconds_left == pytest.approx(180, abs=1)
    bars.skip(10.0)  # read back: it takes no time
    assert bars.seconds_left == pytest.approx(120, abs=1)
    assert sink.curve(SERIES, "progress/done, %") == [(0, 25.0)]
    assert sink.curve(SERIES, "progress/time left, minutes")[0][1] == pytest.approx(3, abs=0.1)
    bars.advance(1.0)
    assert len(sink.curve(SERIES, "progress/done, %")) == 1  # not at every step
    bars.close()


def test_a_failing_view_says_so_once(caplog):
    view = LiveView(Memory(fails_at=0), predict=lambda runs: 1 / 0)
    before = np.random.get_state()[1].tolist()
    with caplog.at_level(logging.WARNING):
        view.row(Label("proxy", 32, 0.01, 0, 64), 5, 4.5)
        view.finished(proxy(32))
        view.time_left(0.5, 10.0)
        view.close()
    assert [r.message for r in caplog.records if "live view" in r.message] == [
        "The live view stopped (OSError: the disk of the tracker is full). Training goes on without it; its records "
        "are complete."
    ]
    assert np.random.get_state()[1].tolist() == before


def test_what_is_not_known_or_not_installed_is_refused(monkeypatch, tmp_path, caplog):
    with pytest.raises(ConfigurationError, match="one of none, auto, trackio, tensorboard"):
        check_view("wandb")
    with pytest.raises(ConfigurationError, match="unknown; use one of"):
        tiny_experiment(tmp_path, live="wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install trackio"):
        check_view("trackio")
    with caplog.at_level(logging.WARNING):
        assert check_view("auto") == "none" and open_view("auto", tmp_path) is None
    assert "neither trackio nor tensorboard" in caplog.text


def test_trackio_gets_a_run_a_width_that_stay_open(monkeypatch, capsys):
    """Against a stand-in with trackio's rule: `init` finishes the run that is current in its context."""
    import contextvars

    current, runs = contextvars.ContextVar("current", default=None), {}

    class FakeRun:
        def __init__(self, name):
            self.rows, self.open = [], True
            runs[name] = self

        def log(self, values, step=None):
            assert self.open
            self.rows.append((step, values))

        def finish(self):
            self.open = False

    def init(project, name, **options):
        if current.get() is not None:
            current.get().finish()
        print("* Created new run")
        current.set(run := FakeRun(name))
        return run

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    sink = TrackioSink("series-1")
    for width in (32, 64, 32):
        sink.log(f"width {width}", {"loss/seed 0": 4.0}, 640)
    assert sorted(runs) == [SERIES, "width 32", "width 64"] and all(run.open for run in runs.values())
    assert runs["width 32"].rows == [(640, {"loss/seed 0": 4.0})] * 2
    sink.close()
    assert not any(run.open for run in runs.values()) and "Created" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_view_changes_no_run_even_when_it_fails(tmp_path, caplog):
    config = tiny_experiment(tmp_path, steps=12)
    setup = prepare_experiment(config, progress=False)
    args = config.training_arguments()
    losses = {}
    for name, view in (("without", None), ("with", LiveView(Memory())), ("failing", LiveView(Memory(fails_at=2)))):
        jobs = [Job(setup.base.at_width(width), args, seed=0) for width in (16, 32)]
        bars = SeriesProgress([job.cost(128) for job in jobs], enabled=False, view=view)
        data = (setup.train_dataset, setup.heldout_dataset, tmp_path / name)
        runs = run_jobs(jobs, *data, progress=bars, data_collator=setup.data_collator, save_model=False)
        losses[name] = [(run.loss, [row["loss"] for row in run.curve]) for run in runs]
        if name == "with":
            sink = view.sink
            for run in runs:  # every row of the curve, at its tokens
                shown = sink.curve(f"width {run.width:04d}", "loss/seed 0")
                assert shown == [(row["step"] * run.B, row["loss"]) for row in run.curve] and len(shown) > 2
            assert len(sink.curve(SERIES, "progress/done, %")) >= 1
    assert losses["without"] == losses["with"] == losses["failing"]
    assert caplog.text.count("live view stopped") == 1


@pytest.mark.slow
def test_an_experiment_in_tensorboard(tmp_path, capsys):
    """The whole job with worker processes, whose curves come back over their messages; then again, from records."""
    config = tiny_experiment(tmp_path, live="tensorboard", threads=2, placement="apart", widths=[8, 16, 32], steps=20)
    for again in (False, True):
        assert main(["run-series", *flags(config)]) == 0
        assert "Live view: tensorboard --logdir" in capsys.readouterr().err
        folder = max((Path(config.output_dir) / "live").iterdir())
        files = {path.parent.name: read_events(path) for path in folder.rglob("*tfevents*")}
        assert set(files) == {SERIES, "search, width 0016", "width 0008", "width 0016", "width 0032"}
        series = {run.width: run for run in Series.from_jsonl(Path(config.output_dir) / "runs.jsonl")}
        for width in (8, 16, 32):
            shown = files[f"width {width:04d}"].scalars["loss/seed 0"]
            curve = {int(row["tokens"]): row["loss"] for row in series[width].curve}
            assert shown == pytest.approx(curve, rel=1e-6), again
        assert len(files["search, width 0016"].scalars) == 4  # two rates, trained and held out
        assert files[SERIES].scalars["target/predicted loss"] and files["width 0008"].scalars["held-out loss/seed 0"]
        time.sleep(1)  # views are named by the second


@pytest.mark.slow
def test_trackio_itself(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="needs the extra trackio")
    view = open_view("trackio", tmp_path / "series")
    project = view.sink.project
    for width in (32, 64):
        view.finished(proxy(width))
    view.close()
    assert not view.failed
    try:
        stored = {run.name: run for run in trackio.Api().runs(project)}
        assert {"width 0032", "width 0064"} <= set(stored)
    finally:
        trackio.delete_project(project, force=True)

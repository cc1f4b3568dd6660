"""Modules for evaluate: right numbers, bad input by name, from a folder, from the Hub and inside MuTrainer."""

import math
import subprocess
import sys

import evaluate
import numpy as np
import pytest

from hf_muscaling import PowerLaw
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.hub.metrics import push_metric
from hf_muscaling.metrics import METRICS, load_metric, metric_path
from hf_muscaling.metrics.training import loss_metrics
from tests.hub.conftest import environment, hub, hub_server  # noqa: F401  the loopback Hub's fixtures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "metrics")


def test_prediction_error_is_what_a_law_says_of_itself():
    sizes = np.array([1e5, 2e5, 4e5, 8e5, 1.6e6, 3.2e6])
    loss = (2 + 50 * sizes**-0.3) * (1 + 0.01 * np.cos(sizes))
    law = PowerLaw().fit({"N": sizes[:4], "loss": loss[:4]})
    expected, p = law.evaluate({"N": sizes, "loss": loss}), law.predict(N=sizes)
    found = load_metric("prediction_error").compute(predictions=p.loss, references=loss, low=p.low, high=p.high)
    assert found["are"] == pytest.approx(expected.are) and found["coverage"] == expected.coverage
    assert found["worst"] == pytest.approx(np.abs(expected.errors).max()) and found["worst"] > found["are"]
    assert found["bias"] == pytest.approx(expected.errors.mean())
    assert found["width"] == pytest.approx(np.mean((p.high - p.low) / loss))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"references": [0.0]}, "finite and positive"),
        ({"predictions": [math.nan]}, "must be finite"),
        ({"low": [1.0]}, "both low and high"),
        ({"low": [2.0], "high": [1.0]}, "low <= high"),
        ({"low": [1.0, 1.0], "high": [2.0, 2.0]}, "one value a prediction"),
    ],
)
def test_bad_predictions(settings, message):
    with pytest.raises(ValueError, match=message):
        load_metric("prediction_error").compute(**{"predictions": [3.0], "references": [3.0], **settings})


def test_bits_per_byte():
    metric = load_metric("bits_per_byte")
    found = metric.compute(predictions=[[9.0, 1.0], [3.0]], references=[[-100, 5], [0]], bytes_per_target=2.5)
    assert found["loss"] == 2.0 and found["targets"] == 2 and found["perplexity"] == pytest.approx(math.exp(2))
    assert found["bits_per_byte"] == pytest.approx(2 / math.log(2) / 2.5)
    assert "bits_per_byte" not in metric.compute(predictions=[[1.0]], references=[[1]])
    for settings, message in (
        ({"references": [[1, 2]]}, "one loss a target"),
        ({"references": [[-100]]}, "No target is counted"),
        ({"references": [[1]], "bytes_per_target": 0}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            load_metric("bits_per_byte").compute(predictions=[[1.0]], **settings)


def test_names():
    with pytest.raises(ConfigurationError, match="unknown; use one of prediction_error"):
        metric_path("accuracy")
    for name in METRICS:
        assert isinstance(evaluate.load(metric_path(name)), evaluate.Metric)


def test_in_mu_trainer(architecture, tmp_path):
    """Perplexity is exp of the held-out loss that MuTrainer itself reports, for every objective."""
    import torch

    from hf_muscaling import MuTrainer, MuTrainingArguments

    config = architecture.base()
    model = architecture.model(config)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(6):
        ids = torch.randint(1, 64, (12,), generator=generator)
        labels = ids.clone()
        if architecture.name == "bert":
            labels[torch.arange(12) % 4 != 1] = -100
        rows.append({"input_ids": ids, "labels": labels})
    args = MuTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none", per_device_eval_batch_size=4
    )
    trainer = MuTrainer(model, args, train_dataset=rows, eval_dataset=rows, **loss_metrics(model, bytes_per_target=3.0))
    found = trainer.evaluate()
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-4)
    assert found["eval_bits_per_byte"] == pytest.approx(found["eval_loss"] / math.log(2) / 3, rel=1e-4)


def test_a_loss_that_is_no_mean_over_tokens():
    import hf_muscaling

    config = hf_muscaling.MuBertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1
    )
    with pytest.raises(ConfigurationError, match="no mean over tokens"):
        loss_metrics(hf_muscaling.MuBertForSequenceClassification(config))


def test_from_the_hub(hub, tmp_path):  # noqa: F811  a fixture
    pushed = push_metric("prediction_error", "me/prediction_error")
    assert pushed.url == f"{hub.url}/spaces/me/prediction_error"
    assert set(hub.repo("me/prediction_error", "space").files) == {"README.md", "index.html", "prediction_error.py"}
    program = (
        "import evaluate\n"
        "metric = evaluate.load('me/prediction_error')\n"
        "print(metric.compute(predictions=[2.0], references=[4.0])['are'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.split() == ["0.5"]
    with pytest.raises(ConfigurationError, match="needs the metric's name"):
        push_metric("bits_per_byte", "me/bpb")

"""What is written into the page: designs, intervals as data, test vectors, sources, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hf_muscaling import MuBertConfig, MuGPT2Config, MuLlamaConfig, MuT5Config, PowerLaw, count_parameters
from hf_muscaling.cli import main
from hf_muscaling.counting import step_flops
from hf_muscaling.errors import ConfigurationError, HubError, MuScalingError, RecordError
from hf_muscaling.laws.base import ScalingLaw
from hf_muscaling.memory import training_memory
from hf_muscaling.space import Design, space_files, write_space
from hf_muscaling.space.sources import runs_cost
from tests.hub.helpers import experiment_folder, small_law

CONFIGS = {
    "gpt2": MuGPT2Config(vocab_size=500, n_positions=64, n_embd=96, n_head=6, n_layer=3),
    "llama": MuLlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=172, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, tie_word_embeddings=True,
    ),
    "bert": MuBertConfig(vocab_size=500, hidden_size=64, intermediate_size=256, num_attention_heads=4,
                         num_hidden_layers=2, max_position_embeddings=64),
    "t5": MuT5Config(vocab_size=500, d_model=64, d_kv=16, d_ff=256, num_heads=4, num_layers=2, num_decoder_layers=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_design_is_exact_at_any_width_and_depth(kind):
    config, targets = CONFIGS[kind], 15 if kind == "t5" else None
    design = Design.of(config, 48, targets=targets)
    width, depth = 11 * design.width_step, 7
    model = config.replace(**dict.fromkeys(config.mu_depth_fields, depth)).at_width(width)
    assert design.at("N", width, depth) == count_parameters(model)
    assert design.at("N_non_embedding", width, depth) == count_parameters(model, "non_embedding")
    if targets is None:
        assert design.at("step_flops", width, depth) == pytest.approx(step_flops(depth, width, 48, 500, 1), rel=1e-12)
    for precision in ("fp32", "bf16"):
        for checkpointing in (False, True):
            expected = training_memory(model, 3, 48, targets, precision=precision, checkpointing=checkpointing).total
            assert design.memory(width, depth, 3, precision, checkpointing) == pytest.approx(expected, rel=1e-12)
    assert design.at("N", width + design.width_step, depth) != count_parameters(model)


def test_a_design_that_is_no_polynomial_is_refused(monkeypatch):
    from hf_muscaling.space import designs

    real = designs._quantities
    bent = lambda config, *rest: real(config, *rest) | {"N": real(config, *rest)["N"] + config.hidden_size**3}  # noqa: E731
    monkeypatch.setattr(designs, "_quantities", bent)
    with pytest.raises(ConfigurationError, match="N is no polynomial"):
        Design.of(CONFIGS["gpt2"], 48)


def test_the_interval_as_data_is_the_laws_own(laws):
    """For every law, inside and far outside its range; and a wrong drift or misfit would show."""
    rng = np.random.default_rng(3)
    for law in laws.values():
        data = law.interval_data()
        for _ in range(6):
            at = {n: float(np.exp(rng.uniform(np.log(lo / 9), np.log(99 * hi)))) for n, (lo, hi) in law.range_.items()}
            low, high = (v[0] for v in law._interval({n: np.array([v]) for n, v in at.items()}, 0.8))
            np.testing.assert_allclose(data.bounds(law.loss, at, 0.8), [low, high], rtol=1e-9)
        far = {n: 50 * hi for n, (_, hi) in law.range_.items()}
        wrong = replace(data, power=data.power + 0.5)
        if nearby := data.neighbourhood:
            misfit = replace(nearby.misfit, gram=1.1 * nearby.misfit.gram)
            wrong = replace(data, tau=data.tau + 1e-3, neighbourhood=replace(nearby, misfit=misfit))
        wrong = wrong.bounds(law.loss, far, 0.8)
        assert not np.allclose(wrong, data.bounds(law.loss, far, 0.8), rtol=1e-6)
    law = laws["chinchilla"]
    data, inside = law.interval_data(), {"N": 1e8, "D": 5e9}
    bare = replace(data, neighbourhood=replace(data.neighbourhood, widest=1.0)).bounds(law.loss, inside, 0.8)
    assert np.ptp(bare) < 0.999 * np.ptp(data.bounds(law.loss, inside, 0.8)), "the widening is not tested"


def test_a_page_is_not_written_if_its_interval_is_not_the_laws(laws, monkeypatch):
    law = PowerLaw().fit(laws["power"]._columns)
    spoiled = law.interval_data()
    monkeypatch.setattr(law, "_draws", law._draws | {"sigma": law._draws["sigma"] * 1.01})
    monkeypatch.setattr(law, "interval_data", lambda: spoiled)
    with pytest.raises(ConfigurationError, match="does not follow"):
        space_files(law)


def test_other_laws_are_refused(laws):
    class Other(PowerLaw):
        interval_data = ScalingLaw.interval_data

    law = Other().fit(laws["power"]._columns)
    with pytest.raises(ConfigurationError, match="a page computes PowerLaw"):
        space_files(law)
    with pytest.raises(ConfigurationError, match="does not give its interval"):
        law.interval_data()


def test_the_cost_of_the_runs(laws):
    rows = laws["chinchilla"]._columns
    assert runs_cost(laws["chinchilla"]) == {"flops": pytest.approx(float((6 * rows["N"] * rows["D"]).sum()))}
    assert runs_cost(laws["steps"])["flops"] == pytest.approx(runs_cost(laws["chinchilla"])["flops"])
    assert runs_cost(laws["power"]) == {"parameters": float(laws["power"]._columns["N"].sum())}
    tokens = [1e8, 2e8, 4e8, 8e8]
    assert runs_cost(PowerLaw(variable="D").fit({"D": tokens, "loss": [2 + 900 * d**-0.4 for d in tokens]})) is None


def test_an_experiment_brings_its_design_and_costs(tmp_path):
    folder = experiment_folder(tmp_path / "llama", models=True)
    series = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in series:  # what training records
        run["config"] |= {
            "vocab_size": 64, "intermediate_size": 2 * run["width"], "num_attention_heads": run["width"] // 8,
            "num_key_value_heads": run["width"] // 8, "num_hidden_layers": 1, "head_dim": 8,
            "max_position_embeddings": 32, "hidden_size": run["width"],
        } | {"mup_base": None}  # fmt: skip
        run["settings"]["batch_size"] = 16
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in series))
    record = json.loads(space_files(folder)["space.json"])
    (design,), (law,) = record["designs"], record["laws"]
    assert design["name"] == "Models of llama" and design["sequence"] == 512 // 16
    behind = [run for run in series if run["role"] != "target"]
    assert law["cost"]["flops"] == pytest.approx(sum(run["C"] for run in behind))
    expected = sum(step_flops(1, run["width"], 32, 64, 16) * run["D"] / run["B"] for run in behind)
    assert law["cost"]["nanolm"] == pytest.approx(expected)
    assert [run["loss"] for run in law["targets"]] == [run["loss"] for run in series if run["role"] == "target"]
    assert record["start"]["D"] == 5120 and record["start"]["B"] == 512


@pytest.mark.parametrize(
    "change",
    [{}, {"model_type": "<script>"}, {"num_attention_heads": 0}, {"hidden_size": "x"}, {"vocab_size": -3},
     {"vocab_size": 10**30}, {"mup_base": [1]}],
    ids=str,
)  # fmt: skip
def test_an_experiment_of_unknown_models_falls_back(tmp_path, change):
    folder = experiment_folder(tmp_path / "llama")
    series = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in series:
        run["config"] |= change
        run["settings"] |= {"batch_size": 16} if change else {}
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in series))
    with pytest.warns(UserWarning, match="stock designs"):
        record = json.loads(space_files(folder)["space.json"])
    assert [design["name"] for design in record["designs"]] == ["Llama shapes", "GPT-2 shapes"]


def test_the_command_writes_a_page(tmp_path, capsys):
    small_law().to_json(tmp_path / "first.json")
    small_law(objective="huber").to_json(tmp_path / "second.json")
    sources = [str(tmp_path / "first.json"), str(tmp_path / "second.json")]
    assert main(["space", *sources, "--output", str(tmp_path / "out"), "--title", "Two laws"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")
    record = json.loads((tmp_path / "out" / "space.json").read_text())
    assert [law["name"] for law in record["laws"]] == ["first", "second"] and record["title"] == "Two laws"
    assert sorted(p.name for p in (tmp_path / "out" / "laws").iterdir()) == ["first.json", "second.json"]
    again = ScalingLaw.from_json(tmp_path / "out" / "laws" / "first.json")
    assert again.predict(N=1e7) == small_law().predict(N=1e7)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert "innerHTML" not in page and "eval(" not in page


def test_the_same_laws_give_the_same_page():
    assert space_files({"a": small_law()}) == space_files({"a": small_law()})


HOSTILE = {
    "not json": "]", "not a law": "{}", "deep": "[" * 100_000, "nan": '{"format": NaN}',
    "another class": lambda r: r | {"law": "os.system"},
    "edited": lambda r: r | {"params": r["params"] | {"c": 1.0}},
    "infinite": lambda r: r | {"params": r["params"] | {"a": 10**400}},
    "text for numbers": lambda r: r | {"rows": r["rows"] | {"loss": ["<script>"] * 5}},
    "range": lambda r: r | {"range": {"N": [1, 2]}},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_law_files_are_refused(case, tmp_path):
    change = HOSTILE[case]
    text = change if isinstance(change, str) else json.dumps(change(json.loads(small_law().to_json())))
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(RecordError):
        write_space(tmp_path / "law.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_else_is_refused(tmp_path, capsys):
    law = small_law()
    with pytest.raises(ConfigurationError, match="1 to 6 laws"):
        space_files({str(i): law for i in range(7)})
    with pytest.raises(ConfigurationError, match="1 to 6 laws"):
        space_files([])
    with pytest.raises(MuScalingError, match="not fitted"):
        space_files(PowerLaw())
    with pytest.raises(ConfigurationError, match="needs laws"):
        space_files(3)
    with pytest.raises((HubError, RecordError)):
        space_files(str(tmp_path / "missing.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write the page"):
        write_space(law, tmp_path / "file")
    law.to_json(tmp_path / "law.json")
    assert main(["space", str(tmp_path / "law.json")]) == 2
    assert "--output" in capsys.readouterr().err

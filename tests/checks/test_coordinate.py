"""The coordinate check passes under μP for every architecture, and fails for each way of getting it wrong."""

import json
import math

import pytest
import torch

from hf_muscaling import CoordinateCheck, MuAdamW, MuReadout, MuT5ForConditionalGeneration, coordinate_check
from hf_muscaling.checks.coordinate import random_batch
from hf_muscaling.checks.coordinates import Coordinates, loglog_slope
from hf_muscaling.cli import main
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models import pretraining_objective

WIDTHS = [64, 256]
# Two widths and two seeds measure a slope to about ±0.1; the slow test has the default tolerances.
QUICK = {"widths": WIDTHS, "seeds": 2, "steps": 6, "tolerance": 0.35, "tolerance_initial": 0.35}


def nanolm(architecture, **settings):
    """Return a config with nanoLM's settings: the readout, untied, and the query start at zero."""
    spread = {} if architecture.name == "t5" else {"initializer_range": 0.05}
    zero = {"tie_word_embeddings": False, "zero_readout": True, "zero_query": True}
    return architecture.base(**({"width": 64, "heads": 4, "layers": 1} | spread | zero | settings))


def check(config, **settings) -> CoordinateCheck:
    return coordinate_check(config, **(QUICK | {"control": False} | settings))


def slope(found: CoordinateCheck, quantity: str, name: str) -> float:
    return next(s.slope for s in found.slopes if s.quantity == quantity and s.name == name)


@pytest.fixture(scope="module")
def found():
    """One check of Llama with its control, shared by the tests of what a check can tell."""
    from tests.conftest import Architecture

    return coordinate_check(nanolm(Architecture("llama")), **QUICK)


class TestVerdict:
    """μP passes; standard parametrisation and every broken variant fail."""

    def test_mup_passes_and_standard_parametrisation_fails(self, architecture):
        config = nanolm(architecture)
        found = check(config, control=True)
        assert found.passed, str(found)
        assert found.control_worst.slope > 1 and found.worst_update.excess < 0.2
        own = check(config.replace(parametrization="sp"))
        assert not own.passed and own.worst.slope == found.control_worst.slope

    def test_a_random_readout_passes(self, architecture, tied):
        """Its logits shrink as r**-0.5 at first, which is allowed; a tied one keeps the input token's own logit."""
        found = check(architecture.base(width=64, heads=4, layers=1, tie_word_embeddings=tied))
        assert found.passed, str(found)
        logits = next(name for name, kind in found.mup.kinds.items() if kind == "logits")
        assert -0.65 < slope(found, "initial", logits) < (0 if tied else -0.35)

    def test_a_flat_learning_rate_fails(self, architecture):
        found = check(
            nanolm(architecture), optimizer=lambda model, lr: torch.optim.AdamW(model.parameters(), lr, weight_decay=0)
        )
        assert not found.passed and found.worst.slope > 0.5
        assert found.worst_update.slope > 0.8
        assert all(s.passed for s in found.slopes if s.quantity == "initial")

    def test_a_missing_initialisation_fails_at_the_first_step(self, architecture):
        """The stock spread at every width; six steps later the changes alone would hardly tell."""

        def stock_spread(config):
            model = architecture.model_class(config)
            with torch.no_grad():
                for name, scale in model.mu_table().items():
                    if scale.role == "hidden":
                        model.get_parameter(name).mul_(scale.fan_in**0.5)
            return model

        found = check(nanolm(architecture), model_class=stock_spread)
        assert not found.passed and found.worst_initial.slope > 0.4

    def test_a_multiplier_in_training_only_fails(self, architecture):
        class HalfReadout(MuReadout):
            def forward(self, input):
                return super().forward(input if self.training else input / self.multiplier)

        def broken(config):
            model = architecture.model_class(config)
            model.get_output_embeddings().__class__ = HalfReadout
            return model

        found = check(nanolm(architecture), model_class=broken)
        assert not found.passed
        assert found.worst.kind == "logits" and found.worst.slope > 0.7

    def test_cross_attention_at_the_full_rate_fails(self, t5):
        class Forgotten(MuT5ForConditionalGeneration):
            """The matrix list of much public μP code: self-attention and FFN."""

            def mu_table(self):
                from hf_muscaling.parametrization import ParameterScale

                table = super().mu_table()
                return {n: ParameterScale("vector") if "EncDecAttention" in n else s for n, s in table.items()}

        def forgotten_rate(model, lr):
            model.__class__ = Forgotten
            optimizer = MuAdamW(model, lr=lr, weight_decay=0)
            model.__class__ = MuT5ForConditionalGeneration
            return optimizer

        found = check(nanolm(t5), optimizer=forgotten_rate)
        guilty = [s.name for s in found.failures if s.quantity == "update"]
        assert not found.passed and len(guilty) == 4 and all("EncDecAttention" in name for name in guilty)
        assert max(s.slope for s in found.failures if s.quantity == "change") > 0.4

    def test_an_optimizer_that_does_nothing_fails(self, llama):
        found = check(nanolm(llama), steps=1, judged_step=1, optimizer=lambda m, lr: torch.optim.SGD(m.parameters(), 0))
        assert not found.passed and "No activation moved" in str(found)

    def test_a_diverged_run_fails(self, llama):
        found = check(llama.base(layers=1), optimizer=lambda m, lr: torch.optim.SGD(m.parameters(), 1e30))
        assert not found.passed and found.worst.slope == math.inf
        json.dumps(found.to_dict(), allow_nan=False)

    @pytest.mark.slow
    def test_four_widths_three_seeds(self, architecture):
        """The README's figures. T5's weights start 20 times larger than the others', so its steps may be larger."""
        config = nanolm(architecture, layers=2, vocabulary=256)
        found = coordinate_check(
            config, [64, 128, 256, 512], steps=6, learning_rate=2**-8 if architecture.name == "t5" else 2**-9
        )
        print(found.headline())
        assert found.passed and found.control_worst.slope > 1
        assert found.worst.excess <= 0.2, found.headline()


class TestMeasurement:
    """What is measured, by hand."""

    def test_sizes_of_one_run_equal_those_computed_by_hand(self, gpt2):
        config, batch = gpt2.base(layers=1), random_batch(gpt2.base())
        found = check(config, widths=[32, 64], seeds=1, steps=2, judged_step=2, batch=batch, learning_rate=0.01)
        model = gpt2.model(config.at_width(64), seed=0)

        def logits():
            with torch.no_grad():
                return model.eval()(**batch).logits

        before, start = logits(), model.transformer.h[0].mlp.c_fc.weight.detach().clone()
        optimizer = MuAdamW(model, lr=0.01, weight_decay=0)
        for step in range(2):
            optimizer.zero_grad()
            model.train()(**batch).loss.backward()
            optimizer.step()
            change = (logits() - before).square().mean().sqrt().item()
            assert found.mup.changes["lm_head"][step, 1, 0] == pytest.approx(change, rel=1e-4)
        assert found.mup.initial["lm_head"][1, 0] == pytest.approx(before.square().mean().sqrt().item(), rel=1e-5)
        moved = (model.transformer.h[0].mlp.c_fc.weight - start).square().mean().sqrt().item()
        assert found.mup.updates["transformer.h.0.mlp.c_fc.weight"][1, 1, 0] == pytest.approx(2 * moved, rel=1e-3)

    def test_every_module_that_gives_a_tensor_is_there(self, t5):
        kinds = check(t5.base(layers=1), widths=[32, 64], seeds=1, steps=1, judged_step=1).mup.kinds
        names = ("encoder.embed_tokens", "encoder.block.0.layer.0.SelfAttention.q", "encoder.final_layer_norm")
        for name in (*names, "decoder.block.0.layer.1.EncDecAttention", "decoder.block.0", "lm_head"):
            assert name in kinds
        assert kinds["lm_head"] == "logits" and kinds["encoder.embed_tokens"] == "embedding"
        assert kinds["decoder.block.0"] == "block" and kinds["encoder.final_layer_norm"] == "norm"

    def test_random_batches_fit_the_objective(self, architecture):
        config = architecture.base(pad_token_id=3)
        batch = random_batch(config, sequences=8, length=32)
        assert not (batch["input_ids"] == 3).any() and batch["input_ids"].max() < 64
        assert torch.equal(batch["input_ids"], random_batch(config, 8, 32)["input_ids"])
        chosen = batch["labels"] != -100
        objective = pretraining_objective(config)
        if objective == "causal":
            assert torch.equal(batch["input_ids"], batch["labels"])
        elif objective == "masked":
            assert chosen.sum() == round(0.15 * 256)
            assert (batch["labels"] == batch["input_ids"])[chosen].float().mean() < 0.2
        else:
            assert chosen.all() and not torch.equal(batch["input_ids"], batch["labels"])

    def test_the_random_state_of_the_caller_is_kept(self, llama):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        check(llama.base(layers=1), widths=[32, 64], seeds=1, steps=1, judged_step=1)
        assert torch.equal(torch.rand(1), expected)

    def test_slopes(self):
        widths = [64, 128, 256]
        sizes = [[w**0.5 * noise for noise in (1.0, 3.0)] for w in widths]
        assert loglog_slope(widths, sizes) == (pytest.approx(0.5), pytest.approx(0, abs=1e-9))
        tilted = [[w**0.25, w**0.75] for w in widths]
        assert loglog_slope(widths, tilted) == (pytest.approx(0.5), pytest.approx(0.25))
        assert loglog_slope(widths, [[0.0]] * 3) == (None, None)
        for bad in (0.0, math.nan, math.inf):
            assert loglog_slope(widths, [[1.0], [bad], [1.0]])[0] == math.inf


class TestRules:
    """Which slope passes where, on made-up sizes."""

    def coordinates(self, initial, change, readout=1.0):
        widths = torch.tensor([64.0, 128.0, 256.0])[:, None].numpy()
        table = {"layer": widths**initial, "head": readout * widths**initial}
        moved = dict.fromkeys(table, (widths**change)[None])
        kinds = {"layer": "layer", "head": "logits"}
        return Coordinates("mup", (64, 128, 256), kinds, table, moved, {"layer.weight": moved["layer"] ** 0})

    @pytest.mark.parametrize(
        ("initial", "change", "readout", "guilty"),
        [
            (0.0, 0.0, 1.0, set()),
            (0.1, -0.1, 1.0, set()),
            (0.3, 0.0, 1.0, {("initial", "layer"), ("initial", "head")}),
            (-0.5, 0.0, 1.0, {("initial", "layer")}),  # random logits may shrink, hidden activations may not
            (0.0, 0.3, 1.0, {("change", "layer"), ("change", "head")}),
            (0.0, -0.5, 1.0, {("change", "layer")}),
            (0.0, -0.5, 0.0, {("change", "layer"), ("change", "head")}),  # a zero readout leaves no noise
            (0.0, -0.9, 1.0, {("change", "layer"), ("change", "head")}),
        ],
    )
    def test_bounds(self, initial, change, readout, guilty):
        found = CoordinateCheck("M", self.coordinates(initial, change, readout), None, 1, 0.2, 0.2)
        assert {(s.quantity, s.name) for s in found.failures} == guilty
        assert found.passed is not bool(guilty)


class TestReport:
    """Printing, JSON, plot and command line."""

    def test_text(self, found):
        text = str(found)
        assert "MuLlama PASSED: widths 64, 256, 2 seeds" in text and "Standard parametrisation: +" in text
        assert all(name in text for name in found.mup.initial)
        assert "FAILED" in found.__class__(**{**vars(found), "tolerance": 1e-9}).headline()

    def test_json(self, found, tmp_path):
        found.to_json(tmp_path / "check.json")
        document = json.loads((tmp_path / "check.json").read_text())
        assert document["passed"] is True and document["worst"]["control"] > 1
        assert len(document["mup"]["changes"]["lm_head"]) == 6 and document["settings"]["seeds"] == 2
        assert {row["quantity"] for row in document["slopes"]} == {"initial", "change", "update"}

    def test_plot(self, found, tmp_path):
        figure = found.plot(tmp_path / "check.png")
        assert (tmp_path / "check.png").stat().st_size > 20_000
        titles = [axes.get_title() for axes in figure.axes]
        assert titles[0] == "μP: at initialisation" and titles[-1] == "standard parametrisation: change, step 6"
        drawn = [line for line in figure.axes[2].get_lines() if len(line.get_xdata()) == 2]
        assert len(drawn) == sum(s.quantity == "change" and s.slope is not None for s in found.slopes)

    def test_command_line(self, llama, tmp_path, capsys):
        folder, plot, out = tmp_path / "model", tmp_path / "p.png", tmp_path / "c.json"
        nanolm(llama).save_pretrained(folder)
        flags = ["--widths", "64", "256", "--seeds", "1", "--steps", "6"]
        assert main(["coord-check", str(folder), *flags, "--plot", str(plot), "--json", str(out)]) == 0
        assert "PASSED" in capsys.readouterr().out and plot.exists() and json.loads(out.read_text())["passed"]
        nanolm(llama, parametrization="sp").save_pretrained(folder)
        assert main(["coord-check", str(folder / "config.json"), *flags, "--no_control", "--json", "-"]) == 1
        assert json.loads(capsys.readouterr().out)["passed"] is False

    def test_command_line_reads_an_experiment(self, tmp_path, capsys):
        file = tmp_path / "e.yaml"
        file.write_text("architecture: gpt2\nnum_hidden_layers: 1\nvocab_size: 64\ninit_stds: [5e-2]\n")
        assert main(["coord-check", str(file), "--widths", "32", "64", "--seeds", "1", "--steps", "6"]) == 0
        assert "MuGPT2 PASSED" in capsys.readouterr().out

    @pytest.mark.parametrize("content", [None, "[]", '{"model_type": "unheard_of"}', '{"model_type": "llama"}'])
    def test_command_line_with_bad_input(self, tmp_path, capsys, content):
        file = tmp_path / "config.json"
        if content is not None:
            file.write_text(content)
        assert main(["coord-check", str(file)]) == 2
        assert "ConfigurationError" in capsys.readouterr().err


class TestRefusals:
    """Bad input fails before any model is built."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"widths": [64]}, "two different widths"),
            ({"widths": [64, 64]}, "two different widths"),
            ({"widths": [64, 100]}, "Width 100"),
            ({"seeds": 0}, "seeds must be a positive whole number"),
            ({"steps": 2.0}, "steps must be a positive whole number"),
            ({"steps": 3, "judged_step": 6}, "judged_step=6 is past the last of 3 steps"),
        ],
    )
    def test_settings(self, llama, settings, message):
        with pytest.raises(ConfigurationError, match=message):
            coordinate_check(llama.base(), model_class=lambda config: pytest.fail("built"), **(QUICK | settings))

    def test_stock_configs(self, llama):
        with pytest.raises(ConfigurationError, match=r"needs a μP config, got LlamaConfig: build one with mu_config"):
            coordinate_check(llama.base().to_stock_config(), WIDTHS)

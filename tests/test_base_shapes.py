"""Base-shape files: ours and `mup`'s are one format, and `mup`'s width multipliers and learning rates are ours."""

import pytest
import torch
import yaml

from hf_muscaling import MuAdamW, MuLlamaConfig
from hf_muscaling.base_shapes import (
    base_shapes,
    check_base_shapes,
    config_with_base_shapes,
    read_base_shapes,
    write_base_shapes,
)
from hf_muscaling.errors import ConfigurationError


@pytest.fixture
def mup():
    return pytest.importorskip("mup")


def wide_config(architecture, **settings):
    """Return a config at three times the base width whose FFN, where it has a field, follows too."""
    return architecture.base(width=32, heads=4, layers=2, vocabulary=80, **settings).at_width(96)


def set_shapes(mup, model, file):
    """Give a model `mup`'s infshapes from a file; the model is already initialised by us and has our readout."""
    mup.set_base_shapes(model, str(file), rescale_params=False, do_assert=False)
    return {name: p.infshape for name, p in model.named_parameters()}


class TestFiles:
    """Written, read, and read into a config."""

    def test_round_trip(self, architecture, tied, tmp_path):
        config = wide_config(architecture, tie_word_embeddings=tied)
        write_base_shapes(config, tmp_path / "base.bsh")
        shapes = read_base_shapes(tmp_path / "base.bsh")
        model = architecture.model(config)
        assert shapes == base_shapes(config) == base_shapes(model) == base_shapes(config.base_config())
        assert list(shapes) != [] and set(shapes) == {n for n, _ in model.named_parameters()}
        check_base_shapes(model, shapes)

    def test_a_file_gives_a_config_its_base(self, architecture, tmp_path):
        """The config knows the target's shapes only; the base has another FFN ratio than it."""
        ffn = {"gpt2": "n_inner", "t5": "d_ff"}.get(architecture.name, "intermediate_size")
        base = architecture.base(width=32, heads=4).replace(**{ffn: 72})
        target = base.at_width(96).replace(**{ffn: 360})
        write_base_shapes(target, tmp_path / "base.bsh")
        stock = target.to_stock_config()
        stock.tie_word_embeddings = target.tie_word_embeddings
        blank = architecture.config_class.from_stock(stock)
        assert blank.is_base and blank.hidden_size == 96
        found = config_with_base_shapes(blank, tmp_path / "base.bsh")
        assert found.mup_base == target.mup_base and found.mup_base[ffn] == 72
        assert architecture.model(found).mu_table() == architecture.model(target).mu_table()

    def test_llamas_heads_are_solved_for(self):
        base = MuLlamaConfig(
            vocab_size=64, hidden_size=48, num_attention_heads=8, num_key_value_heads=4, head_dim=16,
            intermediate_size=80, num_hidden_layers=1,
        )  # fmt: skip  # heads × head size is no longer the hidden size
        target = base.at_width(96)
        blank = MuLlamaConfig.from_stock(target.to_stock_config())
        assert config_with_base_shapes(blank, base_shapes(base)).mup_base == target.mup_base

    def test_names_may_be_wrapped(self, llama, tmp_path):
        shapes = base_shapes(llama.base())
        (tmp_path / "w.bsh").write_text(yaml.safe_dump({f"module.{n}": list(s) for n, s in shapes.items()}))
        assert read_base_shapes(tmp_path / "w.bsh") == shapes

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "must map parameter names"),
            ("- 3", "must map parameter names"),
            ("a: [1, 2", "not valid YAML"),
            ("!!python/object/apply:os.getcwd []", "not valid YAML"),
            ("a.weight: 64", r"'a\.weight' must be .* and 64 a list"),
            ("3: [64]", "3 must be a parameter's name"),
            ("a.weight: [64, 0]", r"shape \[64, 0\] of a\.weight"),
            ("a.weight: [64, 1.5]", r"of a\.weight must hold positive whole numbers or null"),
            ("a.weight: [true]", r"of a\.weight"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, text, message):
        (tmp_path / "bad.bsh").write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            read_base_shapes(tmp_path / "bad.bsh")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"none\.bsh does not exist"):
            read_base_shapes(tmp_path / "none.bsh")

    def test_foreign_shapes_name_the_parameter(self, llama, gpt2):
        config = llama.base(width=32, heads=4).at_width(96)
        good = base_shapes(config)
        down = "model.layers.0.mlp.down_proj.weight"
        key = "model.layers.1.self_attn.k_proj.weight"
        for bad, message in (
            (base_shapes(gpt2.base()), "Parameter model.embed_tokens.weight is not in the base shapes"),
            ({k: v for k, v in good.items() if k != down}, rf"{down} is not in the base shapes"),
            (good | {"extra.weight": (3,)}, r"extra\.weight has base shape \[3\]; the model has no such parameter"),
            (good | {down: (32, 87)}, rf"{down} has base shape \[32, 87\]; \[32, 88\] was expected"),
            (good | {key: (None, 32)}, rf"{key} has base shape \[None, 32\]; \[16, 32\]"),  # constant kv heads
        ):
            with pytest.raises(ConfigurationError, match=message):
                check_base_shapes(config, bad)
        blank = config.replace(mup_base=None)
        with pytest.raises(ConfigurationError, match=r"embed_tokens.* must be there"):
            config_with_base_shapes(blank, {})
        with pytest.raises(ConfigurationError, match=r"k_proj.* has base shape \[None, 32\]"):
            config_with_base_shapes(blank, good | {key: (None, 32)})
        with pytest.raises(ConfigurationError, match="intermediate_size|down_proj"):
            config_with_base_shapes(blank, good | {down: (32, 89)})
        with pytest.raises(ConfigurationError, match=r"k_proj.*num_key_value_heads would be 2\.5 .*not a whole number"):
            config_with_base_shapes(blank, good | {key.replace(".1.", ".0."): (20, 32)})
        with pytest.raises(ConfigurationError, match="need a μP config or model, got LlamaConfig"):
            base_shapes(config.to_stock_config())


class TestMupAsOracle:
    """The `mup` package, where it is installed."""

    def test_the_same_file(self, mup, architecture, tied, tmp_path):
        config = wide_config(architecture, tie_word_embeddings=tied)
        narrow, delta = (architecture.model(c) for c in (config.base_config(), config.base_config().at_width(64)))
        mup.make_base_shapes(narrow, delta, str(tmp_path / "theirs.bsh"))
        write_base_shapes(config, tmp_path / "ours.bsh")
        assert (tmp_path / "ours.bsh").read_text() == (tmp_path / "theirs.bsh").read_text()

    def test_width_multipliers_are_the_tables_ratios(self, mup, architecture, tied, tmp_path):
        config = wide_config(architecture, tie_word_embeddings=tied)
        write_base_shapes(config, tmp_path / "base.bsh")
        model = architecture.model(config)
        infshapes = set_shapes(mup, model, tmp_path / "base.bsh")
        table = model.mu_table()
        assert set(table) == set(infshapes)
        for name, scale in table.items():
            ours = {"hidden": scale.fan_in, "readout": scale.fan_in, "finite": 1.0}.get(scale.role, scale.fan_out)
            assert infshapes[name].width_mult() == ours, name
            assert infshapes[name].ninf() == {"hidden": 2, "finite": 0}.get(scale.role, 1), name
        assert {s.width_mult() for s in infshapes.values()} == {1.0, 3.0} - (
            {1.0} if architecture.name != "bert" else set()
        )

    def test_a_conv1d_of_another_ffn_ratio_is_where_mup_errs(self, mup, gpt2, tmp_path):
        """GPT-2 stores (in, out); `mup` takes the last infinite dimension for the fan-in, wrongly in c_proj."""
        config = gpt2.base(width=32, heads=4, n_inner=128).at_width(96).replace(n_inner=128 * 6)
        write_base_shapes(config, tmp_path / "base.bsh")
        model = gpt2.model(config)
        infshapes = set_shapes(mup, model, tmp_path / "base.bsh")
        name = "transformer.h.0.mlp.c_proj.weight"
        assert model.mu_table()[name].fan_in == 6.0 and infshapes[name].width_mult() == 3.0

    def test_a_linear_of_another_ffn_ratio(self, mup, llama, tmp_path):
        base = llama.base(width=32, heads=4)
        config = base.at_width(96).replace(intermediate_size=5 * base.intermediate_size)
        write_base_shapes(config, tmp_path / "base.bsh")
        model = llama.model(config)
        infshapes = set_shapes(mup, model, tmp_path / "base.bsh")
        name = "model.layers.0.mlp.down_proj.weight"
        assert model.mu_table()[name].fan_in == infshapes[name].width_mult() == 5.0

    def test_learning_rates_and_decays(self, mup, architecture, tmp_path):
        config = wide_config(architecture, tie_word_embeddings=False)
        write_base_shapes(config, tmp_path / "base.bsh")
        model = architecture.model(config)
        set_shapes(mup, model, tmp_path / "base.bsh")
        settings = {"lr": 1e-2, "weight_decay": 0.1}

        def by_name(optimizer):
            groups = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
            return {name: groups[id(p)] for name, p in model.named_parameters()}

        theirs = by_name(mup.MuAdamW(model.parameters(), **settings))
        ours = by_name(MuAdamW(model, **settings, decay_vectors=True))
        assert theirs.keys() == ours.keys() and len({lr for lr, _ in ours.values()}) == 2
        for name, found in ours.items():
            assert found == pytest.approx(theirs[name], rel=1e-12), name
        flat = by_name(torch.optim.AdamW(model.parameters(), **settings))
        assert any(flat[name] != pytest.approx(theirs[name]) for name in theirs)

"""YAML and flags: flags win, unknown keys are refused, types are right."""

from pathlib import Path

import pytest

from hf_muscaling.configuration import parse_experiment
from hf_muscaling.errors import ConfigurationError

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"


def _file(tmp_path, text) -> list[str]:
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def test_flags_win_over_the_file(tmp_path):
    given = _file(tmp_path, "learning_rates: [2e-3, 4e-3]\nsteps: 100\nverify: true\n")
    config, _ = parse_experiment([*given, "--steps", "50"])
    assert (config.learning_rates, config.steps, config.verify) == ([0.002, 0.004], 50, True)


def test_model_fields_from_file_and_flag(tmp_path):
    config, _ = parse_experiment(_file(tmp_path, "model_fields: {attention_bias: true}"))
    assert config.base_config().attention_bias is True
    config, _ = parse_experiment(["--model_fields", "{attention_bias: true}"])
    assert config.base_config().attention_bias is True
    config, _ = parse_experiment(["--model_fields", "{attention_biass: true}"])
    with pytest.raises(ConfigurationError, match="no field attention_biass"):
        config.base_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key 'stepz'; did you mean 'steps'"),
        ("zzz: 3", "unknown key 'zzz'; known keys"),
        ("steps: many", "steps must be int, got 'many'"),
        ("steps: 2.5", "steps must be a whole number"),
        ("steps: true", "steps must be int"),
        ("learning_rates: 3", "learning_rates must be a list"),
        ("learning_rates: [a]", "learning_rates must be float, got 'a'"),
        ("verify: 3", "verify must be bool"),
        ("- a", "must hold 'key: value' lines"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system [echo]", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_experiment(_file(tmp_path, text))


def test_a_missing_file():
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml does not exist"):
        parse_experiment(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "steps must be positive"),
        (["--widths", "32", "48"], "give three widths or more"),
        (["--widths", "32", "32", "48"], "distinct positive"),
        (["--widths", "32", "48", "64", "--target_width", "64"], "predict a width not trained"),
        (["--learning_rates", "-1"], "distinct positive"),
        (["--level", "1.5"], "must lie between 0 and 1"),
        (["--count", "some"], "count='some' is unknown"),
        (["--hidden_share", "1.0"], r"hidden_share=1.0 must lie in \(0, 1\)"),
        (["--mean_span", "0.5"], "mean_span=0.5 must be 1 or more"),
    ],
)
def test_impossible_settings(flags, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_experiment(flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_width", "40"], "base_width=40 is not divisible by head_size=16"),
        (["--widths", "32", "40", "64"], "a width must be a multiple of 16; the nearest are 32 and 48"),
        (["--target_width", "200"], "multiple of 16"),
        (["--architecture", "mamba"], "architecture='mamba' is unknown; use one of bert, gpt2, llama"),
        (["--zero_readout", "--tie_word_embeddings"], "would zero the input embedding"),
        (["--parametrization", "ntk"], "'ntk' is unknown"),
    ],
)
def test_impossible_models_are_refused_before_training(flags, message):
    config, _ = parse_experiment(flags)
    with pytest.raises(ConfigurationError, match=message):
        config.base_config()


def test_options_of_training_reach_the_arguments(tmp_path):
    config, _ = parse_experiment(
        _file(tmp_path, "{gradient_checkpointing: true, compile: true, accumulation_steps: 4}")
    )
    args = config.training_arguments()
    assert args.gradient_checkpointing and args.torch_compile and args.gradient_accumulation_steps == 4
    args = parse_experiment([])[0].training_arguments()
    assert not args.gradient_checkpointing and not args.torch_compile


def test_bert_and_t5_follow_from_the_architecture():
    bert, _ = parse_experiment(["--architecture", "bert"])
    config = bert.base_config(1024, eos_token_id=0, pad_token_id=1)
    assert bert.training_objective == "masked"
    assert (config.intermediate_size, config.max_position_embeddings, config.pad_token_id) == (128, 64, 1)
    assert bert.data_config().special_tokens == ("<pad>", "<mask>")
    t5, _ = parse_experiment(["--architecture", "t5", "--init_stds", "0.05", "0.1", "--hidden_share", "0.3"])
    config = t5.base_config(1024, eos_token_id=0, pad_token_id=1)
    assert t5.training_objective == "seq2seq"
    assert (config.d_ff, config.d_kv, config.num_heads, config.num_decoder_layers) == (128, 16, 2, 2)
    assert (config.eos_token_id, config.pad_token_id, config.decoder_start_token_id) == (0, 1, 1)
    assert t5.data_config().special_tokens[-1] == "<extra_id_5>"  # 0.3 · 64 hidden in spans of 3
    assert parse_experiment(["--architecture", "t5", "--tokenizer", "x"])[0].data_config().special_tokens == ()


def test_t5s_initialisation_is_given_as_the_std_of_its_attention_at_base_width():
    import torch
    from transformers import AutoModelForSeq2SeqLM

    t5, _ = parse_experiment(["--architecture", "t5", "--base_width", "128", "--init_stds", "0.07"])
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(t5.base_config())
    assert model.encoder.block[0].layer[0].SelfAttention.k.weight.std().item() == pytest.approx(0.07, rel=0.05)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_possible(path):
    config, _ = parse_experiment(["--config", str(path)])
    assert config.base_config().is_base


def test_an_unknown_schedule_is_named_with_those_there_are():
    config, _ = parse_experiment(["--lr_scheduler", "nonsense"])
    with pytest.raises(ConfigurationError, match="lr_scheduler='nonsense' is not known.*cosine"):
        config.training_arguments()

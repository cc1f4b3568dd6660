"""Designs that do not compare are refused with both values and the remedy; others are put on one held-out text."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hf_muscaling.data import prepare_data, train_tokenizer
from hf_muscaling.designs.comparability import check_designs, common_ground, heldout_documents, with_heldout
from hf_muscaling.designs.compare import compare_designs, read_designs
from hf_muscaling.designs.targets import next_proxy, width_for
from hf_muscaling.errors import ConfigurationError
from tests.series_helpers import tiny_experiment


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def one(tmp_path):
    return tiny_experiment(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "bert"}, r"'a' and 'b'.*objective is 'causal' in one and 'masked'"),
        ({"seed": 3}, r"seed is 0 in one and 3.*one --seed for all"),
        ({"steps": 60}, r"horizon D in tokens.*is 3840 in one and 7680.*--different_horizons"),
        ({"count": "non_embedding"}, r"count is 'total' in one and 'non_embedding'"),
        ({"domains": ["code"]}, r"domains, and so the held-out text, is \['prose'\].*--heldout_of NAME"),
        ({"data_files": ["other.txt"]}, r"data_files, and so the held-out text.*other\.txt"),
    ],
)
def test_what_does_not_compare_is_refused_before_anything_is_read(one, changes, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        compare_designs({"a": one, "b": replace(one, **changes)}, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_masked_losses_have_no_bits_per_byte(one):
    masked = replace(one, architecture="bert")
    with pytest.raises(ConfigurationError, match=r"tokenizer.*Only causal losses"):
        check_designs({"a": masked, "b": replace(masked, vocab_size=400)})
    with pytest.raises(ConfigurationError, match=r"hidden_share is 0\.15 in one and 0\.3"):
        check_designs({"a": masked, "b": replace(masked, hidden_share=0.3)})


def test_what_is_asked_for_is_allowed(one):
    check_designs({"a": one, "b": replace(one, steps=60)}, different_horizons=True)
    check_designs({"a": one, "b": replace(one, domains=["code"])}, heldout_of="a")
    with pytest.raises(ConfigurationError, match="heldout_of='c' is no design"):
        check_designs({"a": one, "b": one}, heldout_of="c")
    with pytest.raises(ConfigurationError, match="two designs or more, got 1"):
        check_designs({"a": one})


def test_arguments_are_checked(one, tmp_path):
    with pytest.raises(ConfigurationError, match="not both"):
        compare_designs({"a": one, "b": one}, 1e6, target_width=128)
    for bad in (0, -1e6, math.nan):
        with pytest.raises(ConfigurationError, match="positive number of parameters"):
            compare_designs({"a": one, "b": one}, bad)
    with pytest.raises(ConfigurationError, match="threshold"):
        compare_designs({"a": one, "b": one}, threshold=1.0)
    with pytest.raises(ConfigurationError, match=r"'\.\./x' must do as the name of a folder"):
        read_designs({"../x": one, "b": one})
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "design.yaml").write_text("steps: 30\n")
    with pytest.raises(ConfigurationError, match="called 'design'; rename"):
        read_designs([tmp_path / "x" / "design.yaml", tmp_path / "y" / "design.yaml"])
    read = read_designs([tmp_path / "x" / "design.yaml"], ["--steps", "40", "--seed", "2"])
    assert (read["design"].steps, read["design"].seed) == (40, 2)


def test_equal_designs_share_their_held_out_tokens(one):
    ground = common_ground({"a": one, "b": replace(one, architecture="gpt2")}, progress=False)
    assert ground.unit == "nats per token"
    assert set(ground.scales.values()) == {1.0}
    assert ground.setups["a"].hashes == ground.setups["b"].hashes


def test_other_tokenizers_compare_in_bits_per_byte_of_one_text(one):
    configs = {"a": one, "b": replace(one, vocab_size=400)}
    ground = common_ground(configs, progress=False)
    assert ground.unit == "bits per byte"
    texts = {name: [d.text for d in heldout_documents(setup.data)] for name, setup in ground.setups.items()}
    assert texts["a"][:-1] == texts["b"][:-1]
    ends = [t[-1] for t in texts.values()]  # a block ends elsewhere in other tokens
    assert min(ends, key=len) == max(ends, key=len)[: len(min(ends, key=len))]
    assert "held-out documents of a" in ground.heldout
    # the same text in fewer tokens of the larger vocabulary; a token of it is worth more bytes
    counts = {name: setup.data.info["heldout"] for name, setup in ground.setups.items()}
    assert counts["a"]["bytes"] == counts["b"]["bytes"]
    assert counts["b"]["tokens"] < counts["a"]["tokens"]
    for name, setup in ground.setups.items():
        assert ground.scales[name] == pytest.approx(1 / (math.log(2) * setup.data.info["bytes_per_token"]))
        assert setup.heldout_dataset is setup.data.heldout
    alone = {n: prepare_data(c.data_config(), c.tokens_per_run, progress=False) for n, c in configs.items()}
    assert alone["a"].data_hash == ground.setups["a"].data.data_hash  # its own text, in the very same tokens
    assert alone["b"].data_hash != ground.setups["b"].data.data_hash  # no run on the other text is taken for one of it


def test_other_block_lengths_stay_in_nats(one):
    ground = common_ground({"a": one, "b": replace(one, sequence_length=48, batch_size=8, steps=10)}, progress=False)
    assert ground.unit == "nats per token"
    flat = [np.asarray(s.data.heldout.blocks).reshape(-1) for s in ground.setups.values()]
    length = min(map(len, flat))
    assert (flat[0][:length] == flat[1][:length]).all()
    assert abs(len(flat[0]) - len(flat[1])) < 48


def test_other_data_are_evaluated_on_the_text_that_was_asked_for(one, tmp_path):
    lines = (tmp_path / "text.jsonl").read_text().splitlines()
    (tmp_path / "half.jsonl").write_text("\n".join(lines[::2]) + "\n")
    other = replace(one, data_files=[str(tmp_path / "half.jsonl")], heldout_tokens=512)
    ground = common_ground({"a": one, "b": other}, heldout_of="b", progress=False)
    own = prepare_data(other.data_config(), other.tokens_per_run, progress=False)
    text = [d.text for d in heldout_documents(own)]
    assert ground.unit == "bits per byte"  # each data set has trained a tokenizer of its own
    assert "held-out documents of b" in ground.heldout
    for setup in ground.setups.values():
        read = [d.text for d in heldout_documents(setup.data)]
        assert read[:-1] == text[:-1] and text[-1].startswith(read[-1])
        assert setup.data.info["heldout"]["bytes"] == sum(len(t.encode()) for t in text)


def test_a_tokenizer_that_loses_text_is_refused(one):
    from tokenizers import normalizers

    data = prepare_data(one.data_config(), one.tokens_per_run, progress=False)
    documents = heldout_documents(data)
    assert with_heldout(data, documents, "a").info["heldout"]["documents"] == len(documents)
    lower = train_tokenizer((d.text for d in documents), 300, progress=False)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigurationError, match=r"tokenizer of design 'b' does not give the held-out text back"):
        with_heldout(replace(data, tokenizer=lower), documents, "b")


def test_each_design_takes_the_width_nearest_to_the_target(one):
    from hf_muscaling import count_parameters

    for config in (one, replace(one, num_hidden_layers=2), replace(one, architecture="gpt2")):
        base = config.base_config()
        width = width_for(config, base, 3e5)
        off = {w: abs(count_parameters(base.at_width(w)) - 3e5) for w in (width - 8, width, width + 8)}
        assert min(off, key=off.__getitem__) == width
        between, N = next_proxy(replace(config, target_width=width), base)
        assert max(config.widths) < between < width
        assert count_parameters(base.at_width(between)) == N
    with pytest.raises(ConfigurationError, match=r"not above the widest proxy \(64"):
        width_for(one, one.base_config(), 2e4)


def test_a_width_that_grouped_queries_forbid_is_passed_over(one):
    grouped = replace(one, base_width=32, widths=[32, 64, 96], model_fields="{num_key_value_heads: 2}")
    width = width_for(grouped, grouped.base_config(), 3e5)
    assert width % 16 == 0  # two query heads of 8 to each key/value head

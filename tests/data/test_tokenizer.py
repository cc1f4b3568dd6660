import json
import logging
import subprocess
import sys

import pytest

from hf_muscaling.data import load_tokenizer, tokenizer_hash, train_tokenizer
from hf_muscaling.data import tokenizer as module
from hf_muscaling.errors import ConfigurationError, DataError


def test_any_text_comes_back(tokenizer):
    assert len(tokenizer) == 300
    for text in ["the width of a model", "naïve 模型 🙂 \x00\x7f\u200b", " two  spaces \n\ttab ", ""]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_and_their_ids(texts):
    tokenizer = train_tokenizer(texts, 320, extra_special_tokens=["<mask>", "<extra_id_0>", "<extra_id_1>"])
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.mask_token == "<mask>" and tokenizer.mask_token_id == 1
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"]) == [2, 3]
    assert len(tokenizer) == 320
    assert tokenizer("the<extra_id_1>")["input_ids"][-1] == 3


def test_padding_can_be_a_token_of_its_own(texts, tmp_path):
    """BERT keeps the embedding of its padding token at zero, which must not be the end of a text."""
    tokenizer = train_tokenizer(texts, 320, extra_special_tokens=["<pad>", "<mask>"])
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, load_tokenizer(str(tmp_path))):
        assert (each.eos_token_id, each.pad_token_id, each.mask_token_id) == (0, 1, 2)
        assert sorted(each.all_special_ids) == [0, 1, 2]


def test_hash_is_the_same_after_a_folder_and_another_use(tokenizer, texts, tmp_path):
    before = tokenizer_hash(tokenizer)
    tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=4)  # sets the backend's padding
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(load_tokenizer(str(tmp_path))) == before
    assert tokenizer_hash(train_tokenizer(texts, 300)) == before
    assert tokenizer_hash(train_tokenizer(texts, 301)) != before
    assert tokenizer_hash(train_tokenizer(texts[:50], 300)) != before


def test_another_process_and_hash_seed_train_the_same(jsonl, tokenizer):
    script = (
        "import sys, json; from hf_muscaling.data import train_tokenizer, tokenizer_hash\n"
        "texts = [json.loads(line)['text'] for line in open(sys.argv[1], encoding='utf-8')]\n"
        "print(tokenizer_hash(train_tokenizer(texts, 300)))"
    )
    import os

    run = [sys.executable, "-c", script, str(jsonl)]
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == tokenizer_hash(tokenizer)


def test_only_the_sample_is_read(texts):
    def endless():
        yield from texts
        raise AssertionError("read past the sample")

    size = sum(len(text.encode()) for text in texts)
    short = train_tokenizer(endless(), 300, sample_bytes=size // 2)
    assert tokenizer_hash(short) != tokenizer_hash(train_tokenizer(texts, 300))


def test_cache_is_used_and_a_corrupt_one_trained_again(texts, tmp_path, caplog, monkeypatch):
    first = tokenizer_hash(train_tokenizer(texts, 300, cache_dir=tmp_path))
    (path,) = (tmp_path / "tokenizers").iterdir()
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_train", lambda *args: pytest.fail("trained although it was cached"))
        assert tokenizer_hash(train_tokenizer(texts, 300, cache_dir=tmp_path)) == first
    path.write_bytes(good.replace(b'"type"', b'"tipe"', 1))
    with caplog.at_level(logging.WARNING):
        assert tokenizer_hash(train_tokenizer(texts, 300, cache_dir=tmp_path)) == first
    assert "corrupt" in caplog.text and path.read_bytes() == good
    json.loads(good.partition(b"\n")[2])  # a plain JSON file below its hash


def test_errors_name_the_remedy(texts, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="at least 257.*raise vocab_size"):
        train_tokenizer(texts, 256)
    with pytest.raises(ConfigurationError, match="distinct"):
        train_tokenizer(texts, 300, extra_special_tokens=["<mask>", "<mask>"])
    with pytest.raises(DataError, match="every text is empty"):
        train_tokenizer(["", ""], 300)
    with pytest.raises(DataError, match="save_pretrained"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_eos_is_refused(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no eos token"):
        load_tokenizer(str(tmp_path))

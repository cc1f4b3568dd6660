"""Small texts, made the same way every time."""

import json
import random

import pytest

TEXT = (
    "the width of a model grows and its loss falls as a power of size while small proxies are trained first "
    "naïve café Größe 模型 🙂 with one learning rate for every layer"
)
WORDS = TEXT.split()


def make_texts(count, seed=0, words=120):
    """Return distinct documents; number i alone holds the word `document{i}x`."""
    generator = random.Random(seed)
    return [f"document{i}x " + " ".join(generator.choices(WORDS, k=words)) for i in range(count)]


@pytest.fixture(scope="session")
def texts():
    return make_texts(300)


@pytest.fixture(scope="session")
def jsonl(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(texts):
    from hf_muscaling.data import train_tokenizer

    return train_tokenizer(texts, vocab_size=300)

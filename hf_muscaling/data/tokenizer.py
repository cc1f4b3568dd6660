"""Byte-level BPE of a small vocabulary, trained on the training part: a large one outweighs a narrow model's body."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hf_muscaling.data.cache import cache_folder, digest, write_atomically
from hf_muscaling.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES = 10_000_000  # enough for a few thousand merges; seconds on one core


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 1024,
    *,
    extra_special_tokens: Sequence[str] = (),
    sample_bytes: int = SAMPLE_BYTES,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the first `sample_bytes` bytes of the texts; the same texts give the same tokenizer.

    Args:
        texts: documents in a fixed order; those after `sample_bytes` are not read.
        vocab_size: tokens, with the 256 bytes, `<|endoftext|>` (beginning, end and padding) and the extra ones.
        extra_special_tokens: for other objectives, as `["<mask>"]` or `["<extra_id_0>", "<extra_id_1>"]`; their ids
            come right after `<|endoftext|>`; `<mask>` or `[MASK]` becomes the tokenizer's mask token, `<pad>` or
            `[PAD]` its padding token.
        sample_bytes: bytes (UTF-8).
        cache_dir: None trains; a folder keeps the tokenizer under the sha256 of its sample.

    Raises:
        ConfigurationError: the vocabulary has no room for the bytes and the special tokens, or a special token repeats.
        DataError: the texts are empty.

    Example:
        >>> tokenizer = train_tokenizer(["to be or not to be"], vocab_size=260)
        >>> tokenizer.decode(tokenizer("to be")["input_ids"])
        'to be'
    """
    specials = [END_OF_TEXT, *extra_special_tokens]
    if len(set(specials)) < len(specials) or not all(specials):
        raise ConfigurationError(f"special tokens must be distinct and not empty, got {specials}")
    if vocab_size < 256 + len(specials):
        raise ConfigurationError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(specials)} special tokens need at least "
            f"{256 + len(specials)}; raise vocab_size"
        )
    sample = _sample(texts, sample_bytes)
    if cache_dir is None:
        return _wrap(_train(sample, vocab_size, specials, progress), extra_special_tokens)
    import tokenizers

    key = digest([hashlib.sha256("\0".join(sample).encode()).hexdigest(), vocab_size, specials, tokenizers.__version__])
    path = cache_folder(cache_dir) / "tokenizers" / f"{key[:32]}.json"
    text = _read(path)
    if text is None:
        text = _train(sample, vocab_size, specials, progress)
        write_atomically(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    return _wrap(text, extra_special_tokens)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a ready tokenizer from a folder or the Hub; it must be a fast one with an end-of-text token.

    Raises:
        DataError: there is none of this name, it is not fast, or it has no eos token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"no tokenizer could be loaded from {name!r} ({type(error).__name__}); give a folder written by "
            "save_pretrained, a Hub name, or none to train one on the data"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"the tokenizer {name!r} is not a fast one; convert it, or give none to train one on the data")
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {name!r} has no eos token, which joins documents; set its eos_token and save it"
        )
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of a tokenizer's canonical JSON: vocabulary, merges, rules and roles of special tokens.

    Padding and truncation are left out: calling a tokenizer changes them, not what a token is.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    roles = {
        role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token")
    }
    return digest([content, roles])


def _sample(texts: Iterable[str], sample_bytes: int) -> list[str]:
    sample, size = [], 0
    for text in texts:
        if size >= sample_bytes:
            break
        if text:
            sample.append(text)
            size += len(text.encode())
    if not sample:
        raise DataError("the tokenizer cannot be trained: every text is empty; check the text column and the files")
    return sample


def _train(sample: list[str], vocab_size: int, specials: list[str], progress: bool) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        # Sorted: the alphabet comes as a set, whose order depends on PYTHONHASHSEED.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(sample, trainer=trainer, length=len(sample))
    return tokenizer.to_str()


def _wrap(text: str, extra_special_tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    mask = next((token for token in extra_special_tokens if token in ("<mask>", "[MASK]")), None)
    pad = next((token for token in extra_special_tokens if token in ("<pad>", "[PAD]")), None)
    others = [token for token in extra_special_tokens if token not in (mask, pad)]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=pad or END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        **({"mask_token": mask} if mask else {}),
        **({"extra_special_tokens": others} if others else {}),
    )


def _read(path: os.PathLike[str]) -> str | None:
    """Return the cached tokenizer's JSON, or None when there is none or its sha256 is not the one on its first line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            expected, _, text = file.read().partition("\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(text.encode()).hexdigest() != expected:
        logger.warning("the cached tokenizer %s is corrupt; it is trained again", os.path.basename(path))
        return None
    return text

"""Whether designs compare at all, and on what text: refused early, with both values and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.experiment import ExperimentSetup, prepare_experiment

if TYPE_CHECKING:
    from hf_muscaling.data import PackedBlocks, PackedData
    from hf_muscaling.data.corpus import Document

TEXT = (
    "dataset", "dataset_config", "dataset_revision", "dataset_split", "heldout_split", "mixture", "data_files",
    "text_column", "domains",
)  # fmt: skip
"""The settings that decide which text is held out."""


@dataclass(frozen=True)
class CommonGround:
    """What the designs are compared on: each one's setup, the unit of the loss, and the factors that lead to it.

    `scales` turn each design's nats per token into `unit`: 1, or 1/(ln 2 · bytes per token) for bits per byte.
    `heldout` says in a sentence which text all losses are measured on.
    """

    setups: Mapping[str, ExperimentSetup]
    unit: str
    scales: Mapping[str, float]
    heldout: str


def check_designs(
    configs: Mapping[str, ExperimentConfig], *, heldout_of: str | None = None, different_horizons: bool = False
) -> None:
    """Raise ConfigurationError where the designs' losses would not compare, before anything is read or trained."""
    if len(configs) < 2:
        raise ConfigurationError(f"A comparison needs two designs or more, got {len(configs)}.")
    if heldout_of is not None and heldout_of not in configs:
        raise ConfigurationError(f"heldout_of={heldout_of!r} is no design; give one of {', '.join(configs)}.")

    def same(what: str, read: Callable[[ExperimentConfig], Any], remedy: str) -> None:
        (first, *others) = configs
        for other in others:
            ours, theirs = read(configs[first]), read(configs[other])
            if ours != theirs:
                raise ConfigurationError(
                    f"Designs {first!r} and {other!r} do not compare: {what} is {ours!r} in one and {theirs!r} in the "
                    f"other. {remedy}"
                )

    same("the objective", lambda c: c.training_objective, "A loss compares with losses of its own objective only.")
    same("seed", lambda c: c.seed, "All designs see the batches in one order: give one --seed for all.")
    same("count", lambda c: c.count, "Both laws must count parameters alike: give one --count for all.")
    if next(iter(configs.values())).training_objective != "causal":
        remedy = "The difficulty of the task would differ: give one value for all."
        same("hidden_share", lambda c: c.hidden_share, remedy)
        same("mean_span", lambda c: c.mean_span, remedy)
        same("the tokenizer", lambda c: (c.tokenizer, c.vocab_size), "Only causal losses turn into bits per byte.")
    if not different_horizons:
        same(
            "the horizon D in tokens (steps · batch_size · sequence_length)",
            lambda c: c.tokens_per_run,
            "Train both equally long, or allow it: different_horizons=True (--different_horizons).",
        )
    if heldout_of is None:
        for name in TEXT:
            same(
                f"{name}, and so the held-out text,",
                lambda c, name=name: getattr(c, name),  # type: ignore[misc]
                "Say whose held-out text all designs are evaluated on: heldout_of=NAME (--heldout_of NAME).",
            )


def common_ground(
    configs: Mapping[str, ExperimentConfig], *, heldout_of: str | None = None, progress: bool = True
) -> CommonGround:
    """Prepare the designs' data and put all of them on the same held-out text.

    Where the designs' held-out tokens differ, since tokenizer, block length or data do, the text of `heldout_of` (by
    default the first design) is encoded for each. With one tokenizer for all the losses stay in nats per token;
    otherwise they compare in bits per byte of that text. Raises ConfigurationError for a tokenizer that loses text.
    """
    setups = {name: prepare_experiment(config, progress) for name, config in configs.items()}
    owner = heldout_of or next(iter(configs))
    reference = setups[owner].data
    one_tokenizer = len({setup.data.tokenizer_hash for setup in setups.values()}) == 1
    flat = {name: np.asarray(setup.data.heldout.blocks).reshape(-1) for name, setup in setups.items()}
    equal = all(np.array_equal(flat[owner], other) for other in flat.values())
    if one_tokenizer and equal:
        scales, unit = dict.fromkeys(configs, 1.0), "nats per token"
        text = f"the held-out documents that all designs share ({reference.heldout.tokens:,} tokens)"
        return CommonGround(setups, unit, scales, text)
    documents = heldout_documents(reference)
    size = sum(len(document.text.encode()) for document in documents)
    bytes_per_token = {}
    for name, setup in setups.items():
        data = with_heldout(setup.data, documents, name)
        bytes_per_token[name] = float(data.info["bytes_per_token"])
        setups[name] = _with_data(configs[name], setup, data)
    text = f"the held-out documents of {owner} ({size:,} bytes), encoded with each design's tokenizer and block length"
    if one_tokenizer:
        return CommonGround(setups, "nats per token", dict.fromkeys(configs, 1.0), text)
    scales = {name: 1 / (math.log(2) * value) for name, value in bytes_per_token.items()}
    return CommonGround(setups, "bits per byte", scales, text)


def heldout_documents(data: PackedData) -> list[Document]:
    """Return the documents of a held-out set, decoded from its blocks; the last one is as long as it is there."""
    from hf_muscaling.data.corpus import Document

    ids = np.asarray(data.heldout.blocks).reshape(-1).astype(np.int64)
    ends = np.flatnonzero(ids == data.tokenizer.eos_token_id)
    backend = data.tokenizer.backend_tokenizer
    parts = np.split(ids, ends + 1)
    texts = [
        backend.decode(part[part != data.tokenizer.eos_token_id].tolist(), skip_special_tokens=False) for part in parts
    ]
    texts[-1] = texts[-1].rstrip("\N{REPLACEMENT CHARACTER}")  # a character that was cut in two
    return [Document(f"heldout-{k}", text) for k, text in enumerate(texts) if text]


def with_heldout(data: PackedData, documents: list[Document], name: str) -> PackedData:
    """Return the data with these documents as its held-out set, in its own tokens and block length."""
    from hf_muscaling.data import pack_documents
    from hf_muscaling.data.prepare import data_hash

    backend = data.tokenizer.backend_tokenizer
    for document in documents:
        ids = backend.encode(document.text, add_special_tokens=False).ids
        if backend.decode(ids, skip_special_tokens=False) != document.text:
            raise ConfigurationError(
                f"The tokenizer of design {name!r} does not give the held-out text back (it normalises it), so that "
                "its bits per byte would be those of another text. Use a tokenizer that keeps text as it is "
                "(byte-level BPE), or the same one for all designs."
            )
    heldout, count = pack_documents(documents, data.tokenizer, data.train.block_size)
    info = {**data.info, "bytes_per_token": count.bytes / count.tokens}
    info["heldout"] = {
        "blocks": len(heldout), "tokens": heldout.tokens, "documents": count.documents, "bytes": count.bytes,
        "sha256": heldout.sha256, "shared": True,
    }  # fmt: skip
    return replace(data, heldout=heldout, info=info, data_hash=data_hash(data.train, heldout, info))


def _with_data(config: ExperimentConfig, setup: ExperimentSetup, data: PackedData) -> ExperimentSetup:
    from hf_muscaling.data import objective_blocks

    train: PackedBlocks | Any
    train, heldout = objective_blocks(data, config.training_objective, seed=config.seed, **config.objective_options())
    return replace(setup, train_dataset=train, heldout_dataset=heldout, data=data)

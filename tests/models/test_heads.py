"""The heads other than language models: each is a readout, and each round-trips."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification, AutoModelForTokenClassification

import hf_muscaling
from hf_muscaling import MuReadout, MuTrainer, MuTrainingArguments
from tests.models.helpers import derived_role

HEADS = {
    "MuGPT2DoubleHeadsModel": {"lm_head", "multiple_choice_head.summary"},
    "MuGPT2ForSequenceClassification": {"score"},
    "MuGPT2ForTokenClassification": {"classifier"},
    "MuLlamaForSequenceClassification": {"score"},
    "MuLlamaForTokenClassification": {"score"},
    "MuBertForPreTraining": {"cls.predictions.decoder", "cls.seq_relationship"},
    "MuBertForSequenceClassification": {"classifier"},
    "MuBertForTokenClassification": {"classifier"},
    "MuT5ForSequenceClassification": {"classification_head.out_proj"},
    "MuT5EncoderModel": set(),
    "MuT5Model": set(),
    "MuBertModel": set(),
}


def build(request, name, **settings):
    settings = {"num_labels": 3, "eos_token_id": 1, "pad_token_id": 0, **settings}
    if name == "MuGPT2DoubleHeadsModel":
        settings |= {"summary_type": "last", "summary_use_proj": True, "num_labels": 1}
    short = next(a for a in ("gpt2", "llama", "bert", "t5") if a in name.lower())
    base = request.getfixturevalue(short).base(**settings)
    return base, getattr(hf_muscaling, name)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_a_readout_and_every_role_fits_the_shapes(request, name):
    base, model_class = build(request, name, output_multiplier=3.0)
    torch.manual_seed(0)
    narrow, wide = model_class(base), model_class(base.at_width(128))
    readouts = {n: m.multiplier for n, m in wide.named_modules() if isinstance(m, MuReadout)}
    assert set(readouts) == HEADS[name]
    for head, multiplier in readouts.items():  # τ belongs to the token logits
        assert multiplier == (0.75 if head in ("lm_head", "cls.predictions.decoder") else 0.25)
    shapes = {n: p.shape for n, p in narrow.named_parameters()}
    derived = {n: derived_role(n, wide, shapes[n], p.shape) for n, p in wide.named_parameters()}
    assert derived == {n: s.role for n, s in wide.mu_table().items()}
    for head in set(HEADS[name]) - {"lm_head", "cls.predictions.decoder"}:  # the same spread at both widths
        ratio = wide.get_parameter(f"{head}.weight").std() / narrow.get_parameter(f"{head}.weight").std()
        assert 0.6 < ratio < 1.6


@pytest.mark.parametrize("name", [n for n, heads in HEADS.items() if heads])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_save_and_load(request, name, tied, tmp_path):
    base, model_class = build(request, name, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = model_class(base.at_width(64)).eval()
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path).eval()
    tokens = torch.randint(2, 64, (2, 8))
    tokens[:, -1] = 1
    with torch.no_grad():
        first, second = model(tokens), again(tokens)
    stored = again.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    for a, b in zip(first.to_tuple(), second.to_tuple(), strict=True):
        if isinstance(a, torch.Tensor):  # loaded weights lie elsewhere in memory, which may turn the last bit of a sum
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_auto_classes(request):
    bert = request.getfixturevalue("bert").base()
    llama = request.getfixturevalue("llama").base()
    assert type(AutoModelForPreTraining.from_config(bert)).__name__ == "MuBertForPreTraining"
    assert type(AutoModelForSequenceClassification.from_config(llama)).__name__ == "MuLlamaForSequenceClassification"
    assert type(AutoModelForTokenClassification.from_config(bert)).__name__ == "MuBertForTokenClassification"


def test_an_untied_bert_has_no_dead_bias(bert, tokens):
    model = bert.model(bert.base(tie_word_embeddings=False).at_width(64))
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_untied_t5_shares_its_embedding_between_encoder_and_decoder(t5):
    config = t5.base(tie_word_embeddings=False).at_width(64)
    for name in ("MuT5ForConditionalGeneration", "MuT5Model", "MuT5ForSequenceClassification"):
        model = getattr(hf_muscaling, name)(config)
        core = getattr(model, "transformer", model)
        assert core.encoder.embed_tokens.weight is core.shared.weight is core.decoder.embed_tokens.weight
    embeddings = [m for m in t5.model(config).modules() if isinstance(m, nn.Embedding) and m.num_embeddings == 64]
    assert len({m.weight for m in embeddings}) == 1


@pytest.mark.parametrize("name", ["MuBertForSequenceClassification", "MuGPT2ForSequenceClassification"])
def test_a_classifier_trains_with_its_own_loss(request, name, tmp_path):
    base, model_class = build(request, name, layers=1)
    torch.manual_seed(0)
    model = model_class(base.at_width(64))
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(2, 64, (8,), generator=generator), "labels": torch.tensor(k % 3)} for k in range(8)
    ]
    batch = {
        "input_ids": torch.stack([d["input_ids"] for d in data]),
        "labels": torch.stack([d["labels"] for d in data]),
    }
    expected = model(**batch).loss.item()
    args = MuTrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=1e-2, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = MuTrainer(model, args, train_dataset=data, eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert trainer.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert trainer.curve[-1]["loss"] < expected


def test_attention_is_scaled_once_where_a_head_builds_its_model_by_an_auto_class(request):
    base, model_class = build(request, "MuLlamaForSequenceClassification")
    config = base.at_width(64).replace(head_dim=64, num_attention_heads=1, num_key_value_heads=1)
    found = {m.scaling for m in model_class(config).modules() if isinstance(getattr(m, "scaling", None), float)}
    assert found == {64**-0.5 * 0.5}  # 1/√d · √(16/64)

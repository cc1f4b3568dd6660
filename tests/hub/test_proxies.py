"""Proxies of every architecture: the card's shapes and rates, the right Auto class, the folded copy."""

import pytest
from huggingface_hub import ModelCard

from hf_muscaling.errors import RecordError
from hf_muscaling.hub.proxies import proxy_card, proxy_files
from tests.hub.helpers import small_run
from tests.hub.markdown import images, tables

AUTO = {
    "llama": ("AutoModelForCausalLM", "text-generation", "causal"),
    "gpt2": ("AutoModelForCausalLM", "text-generation", "causal"),
    "bert": ("AutoModelForMaskedLM", "fill-mask", "masked"),
    "t5": ("AutoModelForSeq2SeqLM", "text2text-generation", "seq2seq"),
}


@pytest.mark.filterwarnings("ignore")
def test_every_architecture(architecture, tmp_path):
    import transformers

    from hf_muscaling.training import config_record

    auto, pipeline, objective = AUTO[architecture.name]
    config = architecture.base().at_width(64)
    model = architecture.model(config)
    model.save_pretrained(tmp_path / "model")
    settings = {"optim": "adamw_torch"} | ({} if objective == "causal" else {"objective": {"name": objective}})
    run = small_run(64, config=config_record(config), settings=settings)
    files = proxy_files(tmp_path / "model", run, "me/x", tmp_path / "scratch", None)
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == pipeline and f"import {auto}" in card.text
    facts, shapes, rates, settings_table = tables(card.text)
    assert ["width", "`32`", "`64`"] in shapes and ["attention heads", "`2`", "`4`"] in shapes
    assert rates[1][2] == "0.005" and rates[2][2] == "0.01"
    assert {image.target for image in images(card.text)} == {"curve.png"}
    assert "standard/model.safetensors" in files and 'subfolder="standard"' in card.text
    stock = getattr(transformers, auto).from_pretrained(tmp_path / "scratch" / "standard")
    assert type(stock).__module__.startswith("transformers.")
    other = small_run(32, config=config_record(architecture.base()), settings=settings)
    with pytest.raises(RecordError, match="another model than that of the run"):
        proxy_files(tmp_path / "model", other, "me/x", tmp_path / "scratch2", None)


def test_a_converted_model_loads_through_our_auto_class():
    text = proxy_card(small_run(config={"model_type": "mu_mistral"}), "me/x", False, False, None, None, True)
    assert "from hf_muscaling import MuAutoModelForCausalLM" in text and "hf_muscaling.models" not in text
    assert "import hf_muscaling.models" in proxy_card(small_run(), "me/x", False, False, None, None, True)


def test_a_control_without_mup_says_so(gpt2, tmp_path):
    from hf_muscaling.training import config_record

    config = gpt2.base(parametrization="sp").at_width(64)
    gpt2.model(config).save_pretrained(tmp_path / "model")
    run = small_run(64, config=config_record(config), settings={"optim": "sgd"})
    text = proxy_files(tmp_path / "model", run, "me/x", tmp_path / "s", None, standard=False)["README.md"].decode()
    assert "A control: this model is not parametrised by μP" in text and "Without the package" not in text
    assert "learning rate of AdamW" not in text and "is 0.01" in text

"""Small models of every architecture, and the environment of all tests: offline, no spinning threads."""

import os
from dataclasses import dataclass
from typing import Any

import pytest

# Two spinning threads on shared cores cost a factor of 3; no test may reach for the network.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NAMES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "bert": ("BertConfig", "BertForMaskedLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}


@dataclass(frozen=True)
class Architecture:
    """One μP architecture under generic names; torch and transformers are imported when a test asks for a model."""

    name: str

    @property
    def config_class(self) -> Any:
        import hf_muscaling

        return getattr(hf_muscaling, f"Mu{NAMES[self.name][0]}")

    @property
    def model_class(self) -> Any:
        import hf_muscaling

        return getattr(hf_muscaling, f"Mu{NAMES[self.name][1]}")

    @property
    def stock_class(self) -> Any:
        import transformers

        return getattr(transformers, NAMES[self.name][1])

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        return self.name != "bert"

    def base(self, *, width: int = 32, heads: int = 2, layers: int = 2, vocabulary: int = 64, **settings: Any) -> Any:
        """Return a small config; Llama shares each key/value head between two query heads and has an FFN of 2.75·w."""
        shapes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers}
        if self.name == "llama":
            shapes |= {"num_key_value_heads": max(heads // 2, 1), "intermediate_size": width * 11 // 4}
        if self.name == "bert":
            shapes |= {"intermediate_size": width * 4}
        if self.name == "t5":
            shapes |= {"d_ff": width * 4, "num_decoder_layers": layers, "relative_attention_num_buckets": 8}
            # T5 has no initializer_range: its matrices start at fan-in**-0.5 times a factor
            settings = {k if k != "initializer_range" else "initializer_factor": v for k, v in settings.items()}
        settings = {"bos_token_id": 0, "eos_token_id": 0, **settings}
        if self.name != "t5":
            settings = {"max_position_embeddings": 64, **settings}
        config = self.config_class(vocab_size=vocabulary, **settings)
        return config.replace(**shapes, **({"head_dim": width // heads} if self.name in ("llama", "t5") else {}))

    def model(self, config: Any, seed: int = 0) -> Any:
        """Return the model of a config, initialised with a seed."""
        import torch

        torch.manual_seed(seed)
        return self.model_class(config)

    def stock(self, config: Any, seed: int = 0) -> Any:
        """Return transformers' own model of the same shapes, initialised with a seed."""
        import torch

        torch.manual_seed(seed)
        model = self.stock_class(config.to_stock_config())
        if self.name == "t5" and not config.tie_word_embeddings:  # which a T5Config cannot ask for
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
            torch.nn.init.normal_(model.lm_head.weight, std=config.initializer_factor)
        return model


@pytest.fixture(params=list(NAMES))
def architecture(request) -> Architecture:
    return Architecture(request.param)


@pytest.fixture
def gpt2() -> Architecture:
    return Architecture("gpt2")


@pytest.fixture
def llama() -> Architecture:
    return Architecture("llama")


@pytest.fixture
def bert() -> Architecture:
    return Architecture("bert")


@pytest.fixture
def t5() -> Architecture:
    return Architecture("t5")


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture
def tokens():
    """Return a fixed batch of 4 blocks of 16 tokens."""
    import torch

    return torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))

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


@dataclass(frozen=True)
class Architecture:
    """One μP architecture under generic names; torch and transformers are imported when a test asks for a model."""

    name: str

    @property
    def config_class(self) -> Any:
        import hf_muscaling

        return {"gpt2": hf_muscaling.MuGPT2Config, "llama": hf_muscaling.MuLlamaConfig}[self.name]

    @property
    def model_class(self) -> Any:
        import hf_muscaling

        return {"gpt2": hf_muscaling.MuGPT2LMHeadModel, "llama": hf_muscaling.MuLlamaForCausalLM}[self.name]

    def base(self, *, width: int = 32, heads: int = 2, layers: int = 2, vocabulary: int = 64, **settings: Any) -> Any:
        """Return a small config; Llama shares each key/value head between two query heads and has an FFN of 2.75·w."""
        shapes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers}
        if self.name == "llama":
            shapes |= {"num_key_value_heads": max(heads // 2, 1), "intermediate_size": width * 11 // 4}
        settings = {"bos_token_id": 0, "eos_token_id": 0, **settings}
        config = self.config_class(vocab_size=vocabulary, max_position_embeddings=64, **settings)
        return config.replace(**shapes, **({"head_dim": width // heads} if self.name == "llama" else {}))

    def model(self, config: Any, seed: int = 0) -> Any:
        """Return the model of a config, initialised with a seed."""
        import torch

        torch.manual_seed(seed)
        return self.model_class(config)

    def stock(self, config: Any, seed: int = 0) -> Any:
        """Return transformers' own model of the same shapes, initialised with a seed."""
        import torch
        import transformers

        name = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[self.name]
        torch.manual_seed(seed)
        return getattr(transformers, name)(config.to_stock_config())


@pytest.fixture(params=["gpt2", "llama"])
def architecture(request) -> Architecture:
    return Architecture(request.param)


@pytest.fixture
def gpt2() -> Architecture:
    return Architecture("gpt2")


@pytest.fixture
def llama() -> Architecture:
    return Architecture("llama")


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture
def tokens():
    """Return a fixed batch of 4 blocks of 16 tokens."""
    import torch

    return torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))

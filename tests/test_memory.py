"""The memory formulas against what autograd saves, what Adam holds, and the peak of a training step."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_muscaling import MuAdamW
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.memory import ElementSizes, activation_bytes, model_sizes, training_memory
from hf_muscaling.models import pretraining_class
from hf_muscaling.trainer import token_mean_loss

ARCHITECTURES = ("gpt2", "llama", "bert", "t5")
INPUTS, TARGETS, SEQUENCES = 48, 12, 4


def small_config(architecture, **fields):
    """Two layers, four heads, a vocabulary and lengths that no other dimension equals."""
    import hf_muscaling

    common = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
    own = {
        "gpt2": {"max_position_embeddings": INPUTS},
        "llama": {"intermediate_size": 176},
        "bert": {"intermediate_size": 256},
        "t5": {"d_ff": 256, "d_kv": 16},
    }[architecture]
    name = {"gpt2": "GPT2", "llama": "Llama", "bert": "Bert", "t5": "T5"}[architecture]
    config_class = getattr(hf_muscaling, f"Mu{name}Config")
    given = common | own | fields
    return config_class(**{config_class.attribute_map.get(k, k): v for k, v in given.items()}, use_cache=False)


def model_and_batch(config):
    torch.manual_seed(0)
    model = pretraining_class(config).from_config(config).train()
    ids = torch.randint(3, 300, (SEQUENCES, INPUTS))
    if config.model_type == "mu_t5":
        return model, {"input_ids": ids, "labels": torch.randint(3, 300, (SEQUENCES, TARGETS))}
    return model, {"input_ids": ids, "labels": ids}


def expected(config, size):
    kept = activation_bytes(config, INPUTS, TARGETS if config.model_type == "mu_t5" else None, size)
    return SEQUENCES * (kept.layers + kept.ends)


def loss_of(model, batch):
    """The loss as MuTrainer computes it: outside of classes that would not take it in fp32."""
    if model.mu_counts_targets:
        return model(**batch).loss
    labels = batch["labels"]
    inputs = {"input_ids": batch["input_ids"]}
    if model.mu_objective == "seq2seq":
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return token_mean_loss(model(**inputs), labels)


def saved_bytes(model, batch, autocast=False):
    """Bytes of the distinct storages that autograd saves, without parameters, buffers and the batch."""
    known = [*model.parameters(), *model.buffers(), *batch.values()]
    known = {t.untyped_storage().data_ptr() for t in known}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage  # holding it keeps the address from being used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss_of(model, batch)
    return sum(storage.nbytes() for storage in held.values())


CASES = [
    *((a, {}) for a in ARCHITECTURES),
    ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
    ("gpt2", {"num_attention_heads": 2, "n_inner": 96}),
    ("llama", {"num_key_value_heads": 2}),
    ("t5", {"feed_forward_proj": "gated-gelu"}),
    ("bert", {"hidden_act": "relu"}),
]


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize(("architecture", "fields"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_activations_are_what_autograd_saves(architecture, fields, precision):
    config = small_config(architecture, **fields)
    model, batch = model_and_batch(config)
    size = ElementSizes.of("fp32" if precision == "fp32" else "bf16", "fsdp2" if precision == "bf16" else "none")
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    found = saved_bytes(model, batch, autocast=precision == "autocast")
    casts = 2 * model_sizes(config).matrices if size.casts else 0
    assert found == pytest.approx(expected(config, size) + casts, rel=0.03)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_gradients_and_adam_are_bytes_of_the_real_ones(architecture):
    config = small_config(architecture)
    model, batch = model_and_batch(config)
    optimizer = MuAdamW(model, lr=1e-3)
    loss_of(model, batch).backward()
    optimizer.step()
    state = [t for values in optimizer.state.values() for t in values.values()]
    planned = training_memory(config, SEQUENCES, INPUTS, TARGETS)
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert planned.optimizer == sum(t.nbytes for t in state)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage(), given)
        return result

    def _follow(self, storage, given):
        if storage in self.known or storage.data_ptr() in given:
            return
        self.known.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size):
        self.alive -= size


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_peak_of_a_step_stays_below_the_plan(architecture, checkpointing):
    """The plan adds what does not all live at once, so it is above the peak, though by less than half of itself."""
    config = small_config(architecture, num_hidden_layers=6)
    model, batch = model_and_batch(config)
    optimizer = MuAdamW(model, lr=1e-3)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    planned = training_memory(config, SEQUENCES, INPUTS, TARGETS, checkpointing=checkpointing)
    for _ in range(2):  # the second step has Adam's state from the start
        meter = LiveBytes()
        with meter:
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = meter.peak + planned.weights + planned.optimizer
    assert 0.5 < peak / planned.total < 1.02


def test_checkpointing_saves_most_of_the_layers():
    config = small_config("llama", num_hidden_layers=24)
    whole, less = (training_memory(config, SEQUENCES, INPUTS, checkpointing=c) for c in (False, True))
    assert less.activations < 0.25 * whole.activations
    assert less.weights == whole.weights


def test_sharding_divides_what_is_held_and_adds_what_is_gathered():
    config = small_config("gpt2")
    one = training_memory(config, SEQUENCES, INPUTS)
    ddp = training_memory(config, SEQUENCES, INPUTS, devices=4, sharding="ddp")
    fsdp = training_memory(config, SEQUENCES, INPUTS, devices=4, sharding="fsdp2")
    assert (ddp.weights, ddp.optimizer, ddp.gradients) == (one.weights, one.optimizer, 2 * one.gradients)
    assert (4 * fsdp.weights, 4 * fsdp.gradients) == (one.weights, one.gradients)
    assert 4 * fsdp.optimizer == pytest.approx(one.optimizer, rel=0.01)
    assert fsdp.workspace > one.workspace == ddp.workspace
    assert fsdp.activations == one.activations


def test_korthikantis_formula_is_ours_without_dropout_and_scores():
    """34·s·b·h less dropout's two masks; statistics of norms and attention's log-sum-exp are a few bytes more."""
    config = small_config(
        "gpt2", hidden_size=2048, num_attention_heads=16, num_hidden_layers=1, activation_function="gelu_pytorch_tanh"
    )
    kept = activation_bytes(config, INPUTS, size=ElementSizes(stream=2, matrix=2, casts=False))
    assert kept.layers / (INPUTS * 2048) == pytest.approx(34 - 2, rel=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": 0}, "devices=0"),
        ({"sharding": "zero3"}, "sharding='zero3' is unknown"),
        ({"precision": "fp8"}, "precision='fp8' is unknown"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ConfigurationError, match=message):
        training_memory(small_config("gpt2"), SEQUENCES, INPUTS, **change)


def test_an_architecture_without_a_formula_is_refused():
    from transformers import MistralConfig

    from hf_muscaling import mu_config

    config = mu_config(MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
                                     num_key_value_heads=2, num_hidden_layers=1))  # fmt: skip
    with pytest.raises(ConfigurationError, match="known for gpt2, llama, bert and t5"):
        activation_bytes(config, INPUTS)

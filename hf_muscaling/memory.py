"""Memory of one training step on one device: weights, gradients, Adam's state, and what the backward pass keeps.

Counted from the config, without allocating anything. With b sequences of s tokens, width h, FFN size f, a heads, a
layer of a transformer keeps s·b·h·(34 + 5·a·s/h) bytes in 16 bits (Korthikanti et al. 2022, "Reducing Activation
Recomputation in Large Transformer Models", eq. 1): the inputs of norms, matrices, activation function and attention,
and dropout's masks. Fused attention (sdpa) keeps no scores, so that the term in s² goes, dropout is 0 here, and
32·s·b·h are left: 16 elements a token and unit of width. Each architecture keeps other things besides (see
`layer_bytes`), which is why the sum is written out for each of them.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_muscaling.counting import meta_model
from hf_muscaling.errors import ConfigurationError

Sharding = Literal["none", "ddp", "fsdp2"]
PRECISIONS = ("fp32", "bf16")
SHARDINGS = ("none", "ddp", "fsdp2")


@dataclass(frozen=True)
class ElementSizes:
    """Bytes of an element: `stream` of the residual stream, `matrix` of what matrix products and attention read.

    Under autocast (`casts`) weights and residual stream stay fp32 and every matrix keeps its own 16-bit copy of its
    input and its weight; FSDP2's mixed precision runs wholly in 16 bits.
    """

    stream: int
    matrix: int
    casts: bool

    @classmethod
    def of(cls, precision: str, sharding: str = "none") -> "ElementSizes":
        """Return the sizes under a precision; bf16 is autocast but under FSDP2. Raises ConfigurationError."""
        if precision not in PRECISIONS:
            raise ConfigurationError(f"precision={precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
        if sharding not in SHARDINGS:
            raise ConfigurationError(f"sharding={sharding!r} is unknown; use one of {', '.join(SHARDINGS)}.")
        if precision == "fp32":
            return cls(stream=4, matrix=4, casts=False)
        return cls(stream=2, matrix=2, casts=False) if sharding == "fsdp2" else cls(stream=4, matrix=2, casts=True)

    def input(self, matrices: int) -> int:
        """Return the bytes an element kept for an input that so many matrices read."""
        return self.matrix * (matrices if self.casts else 1)

    @property
    def rms_norm(self) -> int:
        """Return the bytes an element that an RMS norm keeps: its input in fp32, and the normed stream."""
        return 4 + self.stream


_ACTIVATION = {"relu": 0, "silu": 1, "gelu": 1, "gelu_pytorch_tanh": 1, "gelu_python": 3, "gelu_new": 4}
"""Elements that an activation function keeps besides its output, which the next matrix keeps: `gelu_new` is written in
Python and keeps x, x/2, tanh and 1 + tanh; ReLU keeps its output alone. Others are counted as the largest."""


def _kept(activation: str) -> int:
    return _ACTIVATION.get(activation, max(_ACTIVATION.values()))


_T5_NORM = 8
"""Bytes an element: input and normed stream in fp32; in 16 bits the input both in fp32 and as it came."""


def layer_bytes(config: Any, size: ElementSizes) -> float:
    """Return the bytes a token that one layer of GPT-2, Llama or BERT keeps for the backward pass.

    Each sum in the order of the layer, in elements a token: norm, input of the query, key and value matrices (and
    these), output of attention, norm, input of the FFN, its activation, input of its last matrix. Llama's norm, written
    in Python, keeps two tensors, and its gated FFN four of its size (gate, activated gate, up, product). Norms and
    attention keep a few fp32 scalars a token as well: mean and deviation, or the latter; a log-sum-exp a head.
    """
    h, a = config.hidden_size, config.num_attention_heads
    q = a * config.head_size
    kind = config.model_type.removeprefix("mu_")
    if kind == "gpt2":
        f = config.n_inner or 4 * h
        attention = size.input(1) * h + size.matrix * (3 * q + q)
        ffn = size.input(1) * h + size.matrix * f * (_kept(config.activation_function) + 1)
        return size.stream * 2 * h + attention + ffn + 4 * (4 + a)
    if kind == "llama":
        f = config.intermediate_size
        kv = config.num_key_value_heads * config.head_size
        attention = size.input(3) * h + size.matrix * (2 * q + 2 * kv)
        ffn = size.input(2) * h + size.matrix * f * (_kept(config.hidden_act) + 3)
        return 2 * size.rms_norm * h + attention + ffn + 4 * (2 + a)
    if kind == "bert":
        f = config.intermediate_size
        attention = size.input(3) * h + size.matrix * (3 * q + q)
        ffn = size.input(1) * h + size.matrix * f * (_kept(config.hidden_act) + 1)
        return size.stream * 2 * h + attention + ffn + 4 * (4 + a)
    raise ConfigurationError(
        f"Activation memory is known for gpt2, llama, bert and t5, not for {config.model_type!r}; the other columns "
        "hold for it: plan with one of these that has its shapes."
    )


def t5_layer_bytes(config: Any, size: ElementSizes, inputs: int, targets: int) -> tuple[float, float]:
    """Return the bytes a sequence that a layer of T5's encoder and one of its decoder keep.

    As `layer_bytes`. T5 adds a learned bias to the scores of its self-attention, for which no fused kernel on a CPU
    has a gradient: queries, keys, values and the scores after softmax (a·s² of them) stay, in fp32. A GPU's kernel may
    keep less. The cross-attention has no bias; its keys and values are as many as inputs. T5's norm keeps its input in
    its own precision and in fp32, and its FFN copies ReLU's output, which ReLU keeps, once more under autocast.
    """
    h, a, f = config.d_model, config.num_heads, config.d_ff
    q = a * config.d_kv
    norm = _T5_NORM * h + 4
    gated = config.is_gated_act
    copied = size.casts and not gated and config.dense_act_fn == "relu"
    kept = _kept(config.dense_act_fn) + (3 if gated else 1) + copied
    ffn = norm + size.input(2 if gated else 1) * h + size.matrix * f * kept
    own = norm + size.input(3) * h + 4 * 3 * q + size.matrix * q
    cross = norm + size.input(1) * h + size.matrix * 2 * q + 4 * a
    keys = (size.input(2) * h if size.casts else 0) + size.matrix * 2 * q
    encoder = inputs * (own + ffn) + 4 * a * inputs**2
    decoder = targets * (own + cross + ffn) + 4 * a * targets**2 + inputs * keys
    return encoder, decoder


@dataclass(frozen=True)
class Activations:
    """Bytes that one sequence's forward pass keeps: in all `layers`, in the largest `layer`, in the `inputs` of layers
    (what gradient checkpointing keeps), and at the `ends`: last norm, readout, and the loss's V fp32 numbers a target.
    `logits` are the two fp32 copies of these that the loss and its gradient need for a moment.
    """

    layers: float
    layer: float
    inputs: float
    ends: float
    logits: float


def activation_bytes(config: Any, sequence: int, targets: int | None = None, size: ElementSizes | None = None):
    """Return the `Activations` of one sequence of so many tokens; `targets` is the length of T5's decoder.

    Checked against the tensors that autograd saves for the four architectures (tests/test_memory.py: within 3 %).
    Raises ConfigurationError for another architecture. Example, GPT-2 in 16 bits with a fused GELU, bytes / (s·h):

    >>> from hf_muscaling import MuGPT2Config
    >>> config = MuGPT2Config(n_embd=4096, n_head=32, n_layer=1, activation_function="gelu_pytorch_tanh")
    >>> kept = activation_bytes(config, sequence=1024, size=ElementSizes(stream=2, matrix=2, casts=False))
    >>> round(kept.layers / (1024 * 4096), 1)
    32.0
    """
    size = size or ElementSizes.of("fp32")
    h, layers, V = config.hidden_size, config.num_hidden_layers, config.vocab_size
    kind = config.model_type.removeprefix("mu_")
    if kind == "t5":
        if targets is None:
            raise ConfigurationError("T5's activations need the number of targets a sequence besides its inputs.")
        encoder, decoder = t5_layer_bytes(config, size, sequence, targets)
        decoders = config.num_decoder_layers
        norms = (sequence + targets) * (_T5_NORM * h + 4)
        ends = norms + (0 if size.casts else size.matrix * h * sequence) + targets * (size.input(1) * h + 4 * V)
        inputs = size.stream * h * (layers * sequence + decoders * targets)
        return Activations(
            layers * encoder + decoders * decoder, max(encoder, decoder), inputs, ends, 8.0 * V * targets
        )
    layer = layer_bytes(config, size) * sequence
    last_norm = {"gpt2": size.stream * h + 8, "llama": size.rms_norm * h + 4, "bert": size.stream * h + 8}[kind]
    # BERT's head: a matrix, its GELU and its norm before the readout.
    head = size.input(1) * h + (size.matrix * h * (2 + _kept(config.hidden_act)) + 8 if kind == "bert" else 0)
    ends = sequence * (last_norm + head + 4 * V + 8)
    return Activations(layers * layer, layer, size.stream * h * layers * sequence, ends, 8.0 * V * sequence)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device during training. `workspace` lives for a moment: gathered weights, logits and their gradient.

    `weights`, `gradients` (DDP keeps a second copy in its buckets) and `optimizer` (AdamW's two moments, a step count a
    tensor) are fp32 and, under FSDP2, shared out; `activations` grow with the sequences a device holds at once.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """Return the sum: an upper bound, as gradients come while activations go."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a model by what decides their memory: all, of the largest layer, outside layers, of matrices."""

    total: int
    layer: int
    outside: int
    matrices: int
    tensors: int
    non_embedding: int


def model_sizes(config: Any) -> ModelSizes:
    """Count a config's parameters on `meta` once: nothing is allocated, whatever the size."""
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.pytorch_utils import Conv1D

    from hf_muscaling.counting import count_parameters

    model = meta_model(config)
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    per_layer = [sum(p.numel() for p in layer.parameters()) for layer in layers] or [0]
    from torch import nn

    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)))
    total = count_parameters(model)
    return ModelSizes(
        total=total,
        layer=max(per_layer),
        outside=total - sum(per_layer),
        matrices=matrices,
        tensors=len(list(model.parameters())),
        non_embedding=count_parameters(model, "non_embedding"),
    )


def training_memory(
    config: Any,
    sequences: int,
    sequence: int,
    targets: int | None = None,
    *,
    devices: int = 1,
    sharding: Sharding = "none",
    precision: str = "fp32",
    checkpointing: bool = False,
    sizes: ModelSizes | None = None,
) -> Memory:
    """Return the bytes on each device that training a config with AdamW takes.

    `sequences` is the micro-batch of one device. Weights 4·N, gradients 4·N, AdamW 8·N (Rajbhandari et al. 2020, ZeRO,
    §3.1, here with fp32 master weights that are the weights), divided by `devices` under FSDP2, which gathers a layer
    and the next one at a time and the parameters outside layers for the whole step. Under DDP the gradients' buckets
    double them. With gradient checkpointing every layer keeps its input and one layer at a time is computed again.

    Raises ConfigurationError for an unknown sharding, precision or architecture, or fewer than one device.

    >>> from hf_muscaling import MuGPT2Config
    >>> large = MuGPT2Config(vocab_size=100256, n_positions=2048, n_embd=8192, n_head=128, n_layer=64)  # 52B
    >>> memory = training_memory(large, 1, 2048, devices=64, sharding="fsdp2", precision="bf16", checkpointing=True)
    >>> round(memory.weights / 1e9, 2), memory.total < 80e9
    (3.27, True)
    """
    size = ElementSizes.of(precision, sharding)
    if devices < 1 or sequences < 1:
        raise ConfigurationError(f"devices={devices} and sequences a device={sequences} must be 1 or more.")
    sizes = sizes or model_sizes(config)
    kept = activation_bytes(config, sequence, targets, size)
    shards = devices if sharding == "fsdp2" else 1
    casts = 2.0 * sizes.matrices if size.casts else 0.0
    layers = kept.inputs + kept.layer if checkpointing else kept.layers
    workspace = sequences * kept.logits
    if sharding == "fsdp2":
        workspace += size.matrix * (sizes.outside + 2 * sizes.layer) + size.matrix * sizes.layer
    return Memory(
        weights=4.0 * sizes.total / shards,
        gradients=4.0 * sizes.total / shards * (2 if sharding == "ddp" else 1),
        optimizer=8.0 * sizes.total / shards + 4.0 * sizes.tensors,
        activations=sequences * (layers + kept.ends) + casts,
        workspace=workspace,
    )

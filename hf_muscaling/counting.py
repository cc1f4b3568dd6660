"""N, D and C with each convention named: parameters, tokens and training FLOPs. Models are counted on `meta`."""

from typing import TYPE_CHECKING, Any, Literal

from hf_muscaling.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

Count = Literal["total", "without_positions", "non_embedding"]


def meta_model(config: Any) -> "nn.Module":
    """Return the model of a config on the `meta` device: shapes without memory, whatever the size."""
    import torch

    from hf_muscaling.models import pretraining_class

    with torch.device("meta"):
        return pretraining_class(config).from_config(config)


def count_parameters(config_or_model: Any, count: Count = "total") -> int:
    """Return N, the number of parameters (unit: 1), of a model or of the language model of a config.

    * `total`: every parameter once, a tied embedding counted once (the N of Hoffmann et al. and of our laws);
    * `without_positions`: total without learned positions, nanoLM's N (its tables follow V·w + 12·l·w² + norms);
    * `non_embedding`: total without token embeddings, learned positions and the readout (Kaplan et al. 2020, §2.1).

    Raises ConfigurationError for an unknown convention. Example:

    >>> from hf_muscaling import MuGPT2Config, count_parameters
    >>> count_parameters(MuGPT2Config(vocab_size=50304, n_embd=128, n_head=2), "without_positions") / 1e6
    8.818432
    """
    from torch import nn

    model = config_or_model if isinstance(config_or_model, nn.Module) else meta_model(config_or_model)
    parameters = dict(model.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    positions = {n for n in parameters if n.endswith(("wpe.weight", "position_embeddings.weight"))}
    if count == "total":
        return total
    if count == "without_positions":
        return total - sum(parameters[n].numel() for n in positions)
    if count == "non_embedding":
        ends = [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
        own = {id(p) for m in ends for p in m.parameters()}
        return sum(p.numel() for n, p in parameters.items() if id(p) not in own and n not in positions)
    raise ConfigurationError(f"count={count!r} is unknown; use 'total', 'without_positions' or 'non_embedding'.")


def step_flops(layers: int, width: int, sequence: int, vocabulary: int, batch: int) -> float:
    """Return the FLOPs of one training step: 96·b·s·l·w²·(1 + s/(6w) + V/(16·l·w)).

    `batch` in sequences, `sequence` in tokens. Forward, backward and recomputed activations, as Narayanan et al. 2021
    (eq. 3) count and nanoLM uses in its cost ratio.

    >>> step_flops(layers=32, width=8192, sequence=512, vocabulary=100256, batch=512) > 5e16
    True
    """
    attention_and_head = 1 + sequence / (6 * width) + vocabulary / (16 * layers * width)
    return 96.0 * batch * sequence * layers * width**2 * attention_and_head


def encoder_decoder_step_flops(
    layers: int, width: int, inputs: int, targets: int, vocabulary: int, batch: int
) -> float:
    """Return the FLOPs of one training step of an encoder and a decoder of so many layers each (T5).

    As `step_flops` counts: 2 FLOPs a weight and token forward, four times that with backward and recomputation. A
    layer of the encoder has 12·w² weights; of the decoder's 16·w², keys and values of the cross-attention (2·w²) see
    the inputs and the others the targets. Attention costs 4·w a pair of tokens; logits, 2·V·w a target, are not
    recomputed. `inputs` and `targets` in tokens, `batch` in sequences.

    >>> alone = step_flops(layers=2, width=64, sequence=50, vocabulary=0, batch=8)
    >>> both = encoder_decoder_step_flops(layers=2, width=64, inputs=50, targets=15, vocabulary=0, batch=8)
    >>> alone < both < 2 * alone
    True
    """
    weights = width**2 * (12 * inputs + 14 * targets + 2 * inputs)
    attention = 2 * width * (inputs**2 + targets**2 + inputs * targets)
    return batch * (8.0 * layers * (weights + attention) + 6.0 * vocabulary * width * targets)


def training_flops(N: float, D: float) -> float:
    """Return C = 6·N·D, the training FLOPs of N parameters on D tokens (Kaplan et al. 2020, §2.1).

    >>> training_flops(N=70e9, D=1.4e12)
    5.88e+23
    """
    return 6.0 * N * D


def cost_ratio(base_step: float, trials: int, proxy_steps: list[float], target_step: float) -> float:
    """Return nanoLM's Eq. 1: (t·M(w_1) + Σ_{i≥2} M(w_i)) / M(w_t), each M the FLOPs of one step.

    `proxy_steps` lists every proxy that is trained besides the grid's t trials at base width.

    >>> cost_ratio(base_step=1.0, trials=8, proxy_steps=[2.0, 4.0], target_step=100.0)
    0.14
    """
    return (trials * base_step + sum(proxy_steps)) / target_step

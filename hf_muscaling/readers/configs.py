"""N from a model's config.json, counted on the `meta` device: no weights, no remote code, no network.

torch and transformers are imported when a config has to be counted, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UnknownQuantityError

_MANY = 4096  #: of layers or experts: building more modules would take minutes, and no such model is known
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
           "decoder_layers", "num_local_experts", "num_experts", "n_routed_experts")  # fmt: skip
_DROPPED = ("auto_map", "_name_or_path", "quantization_config", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Counted:
    """Parameters of a config: all, without embeddings (Kaplan), and as Trainer counts for its `total_flos`."""

    N: int
    N_non_embedding: int
    in_total_flos: int

    def tokens(self, total_flos: float) -> float:
        """Tokens seen, from Trainer's `total_flos` = 6·tokens·(parameters outside `nn.Embedding` modules)."""
        return total_flos / (6 * self.in_total_flos)


def count_config(document: Any, where: str) -> Counted:
    """Count the causal language model that a config describes.

    Raises UnknownQuantityError, which asks for N, when the config is missing, of an unknown type, or impossible.
    """
    if not isinstance(document, Mapping):
        _ask(where, "it is not a JSON object")
    kind = document.get("model_type")
    if not isinstance(kind, str):
        _ask(where, "it has no model_type")
    if (size := _largest(document)) > 2**33:
        _ask(where, f"it holds the size {size}")
    for name in _DEPTHS:
        if isinstance(document.get(name), int) and document[name] > _MANY:
            _ask(where, f"{name} = {document[name]}")
    from transformers import AutoConfig

    import hf_muscaling.models  # noqa: F401  registers the μP variants with AutoConfig

    from ..counting import count_parameters, meta_model

    fields = {str(k): v for k, v in document.items() if k not in (*_DROPPED, "model_type")}
    try:
        model: Any = meta_model(AutoConfig.for_model(kind, **fields))
        counted = Counted(
            count_parameters(model),
            count_parameters(model, "non_embedding"),
            model.num_parameters(exclude_embeddings=True),
        )
    except Exception as error:  # a config's class may raise anything for values it does not expect
        _ask(where, f"{type(error).__name__}: {str(error).strip()[:120]}")
    if min(counted.N, counted.N_non_embedding, counted.in_total_flos) <= 0:
        _ask(where, "it has no parameters")
    return counted


def _largest(value: Any, depth: int = 0) -> int:
    if isinstance(value, bool) or depth > 8:
        return 0
    if isinstance(value, int):
        return abs(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max((_largest(item, depth + 1) for item in items), default=0)


def _ask(where: str, why: str) -> Any:
    raise UnknownQuantityError(
        f"{where} does not say how many parameters the model has: {why}. Pass N=… (--N on the command line), a number "
        "or a dict run_id → number."
    )

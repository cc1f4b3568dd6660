"""A μP model as a stock transformers model: every multiplier folded into a weight, so that anything can run it.

μP changes a forward pass in three places, and each is a number that some weight can absorb:

* attention logits, q·k·s with s other than the stock scaling: the query projection takes the ratio (weight and bias;
  in GPT-2 the first third of `c_attn`);
* a module with a `multiplier` m and a weight of its own (an untied readout, a residual branch): that weight takes m,
  whatever the architecture, and hidden states stay what they were;
* a *tied* readout: its weight is also the input embedding and must not change, so the last norm before it takes m.

Arithmetic alone decides, not the name of a class: a module counts as foldable if its stock counterpart, with the weight
scaled, returns what the μP module returns; otherwise the error names it.
"""

import copy
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init

from hf_muscaling import models
from hf_muscaling.convert.auto import register_saved
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.base import _matches
from hf_muscaling.models.config import MuConfigMixin, stock_class
from hf_muscaling.models.pretraining import pretraining_class

Format = Literal["standard", "granite"]

RESIDUAL_PROJECTIONS = ("o_proj", "down_proj")
"""The last projections of Llama's two residual branches."""

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template.*"
)  # fmt: skip


def to_standard(model: Any) -> PreTrainedModel:
    """Return the stock transformers model with the same outputs: `model.to_standard()` calls this.

    Its logits equal the μP model's up to rounding (exactly where multipliers are powers of two); in bf16 a folded
    weight is rounded once. Device, dtypes, buffers, training mode, `requires_grad`, attention implementation and
    generation settings are the μP model's, which is left untouched. Training it further under μP's learning rates
    is not what it is for: the table of ratios stays with the μP model.

    An untied T5 head has no stock config of its own (`T5Config` and its like tie whatever they are told). The model
    and its saved folder still hold both tensors, and transformers, on loading two that differ, warns and does not tie
    them; only `tie_weights()` or `resize_token_embeddings()` on the *loaded* stock model would.

    Raises ConfigurationError naming the module whose multiplier no weight can take, or a parameter that is sharded or
    quantised. Source: transformers' modules and Table 8 of Tensor Programs V (Yang et al. 2022), which moves a
    multiplier between a weight and its input freely. Example:

    >>> import torch
    >>> from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> model = MuLlamaForCausalLM(base.at_width(128))
    >>> stock = model.to_standard()
    >>> type(stock).__name__, type(stock.lm_head).__name__
    ('LlamaForCausalLM', 'Linear')
    >>> ids = torch.tensor([[1, 2, 3]])
    >>> torch.allclose(model(ids).logits, stock(ids).logits, atol=1e-5)
    True
    """
    if hasattr(model, "require_exportable"):
        model.require_exportable()
    stock = _rebuilt(model, stock_class(type(model)), model.config.to_stock_config())
    with torch.no_grad():
        _fold_attention(model, stock)
        for name, module in _with_multiplier(model, stock):
            _fold_multiplier(model, stock, name, module)
    if hasattr(model, "require_exportable") and model.device.type != "meta":
        _require_equal(model, stock)  # a derived class: nobody has read its forward
    return stock


def to_granite(model: Any) -> PreTrainedModel:
    """Return a μP Llama as a Granite model: the same weights bit for bit, the multipliers in the config.

    Granite is Llama with four multipliers: attention logits are q·k·`attention_multiplier`, logits are divided by
    `logits_scaling` = r/τ, embeddings times `embedding_multiplier` = 1, residual branches times `residual_multiplier`
    (1, unless every `o_proj` and `down_proj` carries the same multiplier). Serving engines that know Granite run it.

    Raises ConfigurationError for another architecture, for attention scalings that differ between layers, and as
    `to_standard` does for multipliers that Granite has no place for and no weight can take. Example:

    >>> from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1, output_multiplier=2.0)
    >>> granite = MuLlamaForCausalLM(base.at_width(128)).to_granite()
    >>> granite.config.model_type, granite.config.logits_scaling, granite.config.attention_multiplier
    ('granite', 2.0, 0.25)
    """
    target = {"LlamaForCausalLM": GraniteForCausalLM, "LlamaModel": GraniteModel}.get(stock_class(type(model)).__name__)
    if target is None:
        raise ConfigurationError(
            f"Only MuLlamaForCausalLM and MuLlamaModel have a Granite form, got {type(model).__name__}; use "
            "to_standard() (muscaling export --format standard)."
        )
    scalings = {m.scaling for m in model.modules() if isinstance(getattr(m, "scaling", None), float)}
    if len(scalings) != 1:
        raise ConfigurationError(
            f"Granite has one attention_multiplier for all layers, this model has {sorted(scalings)}; use "
            "to_standard()."
        )
    head = model.get_output_embeddings()
    residual = _common_residual_multiplier(model)
    stock_config = model.config.to_stock_config().to_dict()
    skip = ("model_type", "transformers_version", "architectures", "pretraining_tp")
    config = GraniteConfig(
        **{k: v for k, v in stock_config.items() if k not in skip},
        attention_multiplier=scalings.pop(),
        embedding_multiplier=1.0,
        residual_multiplier=residual,
        logits_scaling=1.0 if head is None else 1.0 / head.multiplier,
    )
    granite = _rebuilt(model, target, config)
    with torch.no_grad():
        for name, module in _with_multiplier(model, granite):
            in_config = module is head or (residual != 1.0 and name.endswith(RESIDUAL_PROJECTIONS))
            if not in_config:
                _fold_multiplier(model, granite, name, module)
    return granite


def export_folder(folder: str | Path, output: str | Path, format: Format = "standard") -> float:
    """Export a saved μP model to another folder, tokenizer included; return the largest difference of its outputs.

    Reads and writes safetensors only. Before anything is written, both models are run on the same random tokens and
    must agree to half the digits of their dtype. `muscaling export FOLDER --output DIR` calls this.

    Raises ConfigurationError if the folder is missing, incomplete or not a μP model's, if the output exists and is not
    empty, for an unknown format, and as `to_standard` and `to_granite` do.
    """
    folder, output = Path(folder), Path(output)
    if format not in get_args(Format):
        raise ConfigurationError(f"format={format!r} is unknown; use one of {get_args(Format)}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"The output {output} exists and is not an empty folder; name a new one.")
    model = _load(folder)
    exported = to_granite(model) if format == "granite" else to_standard(model)
    difference = _require_equal(model, exported)
    exported.save_pretrained(output)
    for pattern in TOKENIZER_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, output / file.name)
    return difference


def _load(folder: Path) -> Any:
    """Return the model of a folder, in the class that saved it, complete."""
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder} is not the folder of a saved model: it has no config.json; check the path.")
    try:
        register_saved(folder)
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigurationError(f"{folder}/config.json is not a config that can be read: {error}") from error
    is_mu = isinstance(config, MuConfigMixin)
    if not is_mu:
        raise ConfigurationError(
            f"{folder} holds a {type(config).__name__}, not a μP model of this package: there is nothing to fold."
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{folder} has no .safetensors file; save the model again with save_pretrained.")
    name = next(iter(getattr(config, "architectures", None) or ()), None)  # the class that saved it
    cls: Any = getattr(models, name or "", None) or pretraining_class(config)
    model, info = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    wrong = {k: sorted(v) for k, v in info.items() if k in ("missing_keys", "unexpected_keys", "mismatched_keys") and v}
    if wrong or (name and type(model).__name__ != name):
        raise ConfigurationError(
            f"{folder} was saved by {name} and does not load completely as {type(model).__name__}: {wrong}."
        )
    return model.eval()


def _require_equal(model: Any, exported: Any) -> float:
    """Return the largest difference of the outputs. Raises ConfigurationError if it is more than rounding."""
    difference, scale = _output_difference(model, exported)
    if not difference <= torch.finfo(model.dtype).eps ** 0.5 * scale:
        raise ConfigurationError(
            f"The exported {type(exported).__name__} differs from {type(model).__name__} by {difference:.2g} "
            f"(outputs up to {scale:.2g}), so nothing was written: the μP class computes what folding cannot express."
        )
    return difference


@torch.no_grad()
def _output_difference(model: Any, exported: Any) -> tuple[float, float]:
    """Return the largest difference between the two models' outputs on random tokens, and the largest output."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (2, 16), generator=draw).to(model.device)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    training = model.training
    outputs = [m.eval()(**inputs).to_tuple() for m in (model, exported)]  # dropout would make any two differ
    model.train(training), exported.train(training)
    pairs = [(a, b) for a, b in zip(*outputs, strict=True) if isinstance(a, torch.Tensor)]
    return max((a - b).abs().max().item() for a, b in pairs), max(a.abs().max().item() for a, _ in pairs)


def _rebuilt(model: Any, target: type, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of class `target` that holds copies of all parameters and buffers."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if isinstance(parameter, DTensor):
            raise ConfigurationError(
                f"Parameter {name} is sharded over devices: save the model with save_pretrained and export the folder."
            )
        if not parameter.is_floating_point():
            raise ConfigurationError(
                f"Parameter {name} has dtype {parameter.dtype}: export the model before it is quantised."
            )
    config.dtype = model.dtype
    with init.no_init_weights(), torch.device(model.device):  # every tensor is overwritten below
        stock = target(config)
    stock.tie_weights()
    counterparts = dict(stock.named_parameters(remove_duplicate=False))
    unmatched = set(parameters) ^ set(counterparts)
    if unmatched:
        raise ConfigurationError(
            f"Parameter {min(unmatched)} is in only one of {type(model).__name__} and {target.__name__}: "
            "only a model with the stock class's own parameters can be exported; remove what was added."
        )
    # One copy a weight that is tied in both: MuBert ties two biases that an untied stock BERT saves apart, and T5 ties
    # a head that MuT5 may keep apart.
    copies: dict[tuple[int, int], nn.Parameter] = {}
    for name, parameter in parameters.items():
        key = id(parameter), id(counterparts[name])
        if key not in copies:
            copies[key] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        _set(stock, name, copies[key])
    for name, buffer in model.named_buffers():  # rotary frequencies, which a cast may have rounded
        _set(stock, name, buffer.detach().clone())
    _keep_untied(model, stock)
    if model.can_generate():
        stock.generation_config = copy.deepcopy(model.generation_config)
    stock.set_attn_implementation(model.config._attn_implementation)
    return stock.train(model.training)


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    prefix, _, short = name.rpartition(".")
    setattr(model.get_submodule(prefix), short, tensor)


def _keep_untied(model: Any, stock: Any) -> None:
    """Keep an untied head untied where the stock config ties it regardless, as T5's does."""
    head = stock.get_output_embeddings()
    if head is None or not stock.config.tie_word_embeddings or _is_tied(stock, head.weight):
        return
    stock.config.tie_word_embeddings = False  # so that tie_weights() leaves it alone; T5Config drops it on loading
    names = {n for n, p in stock.named_parameters(remove_duplicate=False) if p is head.weight}
    stock.all_tied_weights_keys = {k: v for k, v in stock.all_tied_weights_keys.items() if k not in names}


def _is_tied(model: nn.Module, weight: torch.Tensor | None) -> bool:
    return weight is not None and sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) > 1


def _multiplier(module: nn.Module) -> float | None:
    value = getattr(module, "multiplier", None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _with_multiplier(model: nn.Module, stock: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules whose multiplier the stock model does not have, by name."""
    found = []
    for name, module in model.named_modules():
        if _multiplier(module) not in (None, 1.0):
            try:
                counterpart = stock.get_submodule(name)
            except AttributeError as error:
                raise _unfoldable(name, module, f"{type(stock).__name__} has no module of that name") from error
            if _multiplier(counterpart) != _multiplier(module):
                found.append((name, module))
    # A tied readout last: folding it rescales the last norm, and undoes that in the norm's other readers.
    return sorted(found, key=lambda item: _is_tied(model, getattr(item[1], "weight", None)))


def _unfoldable(name: str, module: nn.Module, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The multiplier {_multiplier(module):g} of {name} ({type(module).__name__}) cannot be folded into a weight: "
        f"{reason}. Keep this model in its μP class, or put the multiplier on a linear layer, an embedding or a norm."
    )


def _fold_attention(model: Any, stock: nn.Module) -> None:
    """Multiply each query projection by (μP scaling / stock scaling) of its attention module."""
    for name, attention in model.named_modules():
        ours = getattr(attention, "scaling", None)
        if not isinstance(ours, float):
            continue
        counterpart: Any = stock.get_submodule(name)
        if ours == counterpart.scaling:
            continue
        queries = [
            (f"{name}.{short}", dim, blocks)
            for short, _ in attention.named_parameters()
            for pattern, (dim, blocks) in model.mu_query.items()
            if _matches(f"{name}.{short}", pattern)
        ]
        if len(queries) != 1:
            raise ConfigurationError(
                f"{name} scales attention by {ours:g} instead of {counterpart.scaling:g}, but {len(queries)} of its "
                f"parameters match mu_query of {type(model).__name__} instead of one; add the query projection there."
            )
        weight, dim, blocks = queries[0]
        projection: Any = stock.get_submodule(weight.rpartition(".")[0])
        ratio = ours / counterpart.scaling
        projection.weight.narrow(dim, 0, projection.weight.shape[dim] // blocks).mul_(ratio)
        if projection.bias is not None:
            projection.bias.narrow(0, 0, projection.bias.shape[0] // blocks).mul_(ratio)


def _fold_multiplier(model: Any, stock: Any, name: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise _unfoldable(name, module, "the module has no weight of its own")
    multiplier = _multiplier(module)
    assert multiplier is not None
    if not _is_tied(model, weight):
        inputs = _probe(module)
        if not _scaled_until_equal(stock.get_submodule(name), multiplier, inputs, module.forward(inputs)):
            raise _unfoldable(name, module, "a scaled weight does not give what the module returns")
        return
    if module is not model.get_output_embeddings():
        raise _unfoldable(name, module, "its weight is tied to another, which must not change")
    norm = getattr(model, "mu_last_norm", None)
    if norm is None:
        raise _unfoldable(
            name,
            module,
            "its weight is tied to the embedding, which must not change, and no norm before it is known: train with "
            f"tie_word_embeddings=False, or name the norm in a subclass ({type(model).__name__}.mu_last_norm)",
        )
    inputs = _probe(model.get_submodule(norm))
    expected = model.get_submodule(norm).forward(inputs) * multiplier
    if not _scaled_until_equal(stock.get_submodule(norm), multiplier, inputs, expected):
        raise _unfoldable(name, module, f"its weight is tied, and {norm} does not scale with its own")
    for other in _other_readers(model, name, norm):
        stock.get_submodule(other).weight.div_(multiplier)


def _other_readers(model: Any, readout: str, norm: str) -> list[str]:
    """Return the linear layers besides the readout that read the last norm (GPT-2's second head); undo it for them."""
    if not norm.startswith(f"{model.base_model_prefix}."):
        return []  # the norm belongs to the readout's own head, as BERT's does
    readers = []
    for name, head in model.named_children():
        if name in (model.base_model_prefix, readout) or not list(head.parameters()):
            continue
        layers = [n for n, m in head.named_modules() if list(m.parameters(recurse=False))]
        layer = head.get_submodule(layers[0])
        if len(layers) != 1 or not isinstance(layer, nn.Linear):
            raise _unfoldable(
                readout, model.get_submodule(readout), f"its weight is tied, and {name} reads {norm} as well"
            )
        readers.append(f"{name}.{layers[0]}".rstrip("."))
    return readers


def _probe(module: nn.Module) -> torch.Tensor:
    """Return inputs for a module: for vectors a zero row, which shows its bias alone, and two others."""
    weight: Any = module.weight
    if isinstance(module, nn.Embedding):
        return torch.arange(min(weight.shape[0], 8), device=weight.device)
    width: Any = getattr(module, "in_features", weight.shape[0])
    rows = torch.arange(3.0 * width, device=weight.device).reshape(3, width).sin()
    rows[0] = 0.0
    return rows.to(weight.dtype)


def _scaled_until_equal(module: Any, multiplier: float, inputs: torch.Tensor, expected: torch.Tensor) -> bool:
    """Scale the weight, then if need be the bias, in place; return whether the outputs became those expected."""
    for name in ("weight", "bias"):
        parameter = getattr(module, name, None)
        if parameter is not None:
            parameter.mul_(multiplier)
            if not inputs.is_meta and _equal(module.forward(inputs), expected):
                return True
    return inputs.is_meta  # nothing to compare


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether each row agrees to half the digits of its dtype: rounding passes, a forgotten factor does not."""
    tolerance = torch.finfo(b.dtype).eps ** 0.5
    scale = b.abs().amax(-1, keepdim=True)
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * scale).all())


def _common_residual_multiplier(model: nn.Module) -> float:
    """Return the multiplier that every residual branch's output projection carries, or 1 if they differ."""
    found = {_multiplier(m) for n, m in model.named_modules() if n.endswith(RESIDUAL_PROJECTIONS)}
    common = found.pop() if len(found) == 1 else None
    return 1.0 if common is None else common

"""Measure on narrow models what shapes do not show: stock initialisation, and whether the multipliers are used.

Everything here runs on the CPU in well under a second and leaves the random state as it was.
"""

import json
from collections import defaultdict
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_muscaling.convert.roles import collapse
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.config import stock_class

_VOCABULARY = 512
_SEEDS = 4
_exponents: dict[tuple[type, str], dict[str, float]] = {}
_verified: set[tuple[type, str]] = set()


def narrow_base(config: Any) -> Any:
    """Return a base config of the same design at its smallest width, with a small vocabulary."""
    vocabulary = min(config.vocab_size, _VOCABULARY)
    tokens = {
        k: min(v, vocabulary - 1) for k, v in config.to_dict().items()
        if k.endswith("_token_id") and type(v) is int and k in config.__dataclass_fields__
    }  # fmt: skip
    small = config.base_config().at_width(config.smallest_width())
    plain = {"mup_base": None, "parametrization": "mup", "zero_readout": False, "zero_query": False}
    return small.replace(vocab_size=vocabulary, **plain, **tokens)


def stock_init_exponents(stock_model: type, config: Any) -> dict[str, float]:
    """Return e such that the stock initialisation of a parameter has std ∝ width**e, by name with layers as `*`.

    0 for a constant `initializer_range`, -0.5 for a fan-in initialisation. Measured as the ratio of root mean squares
    at the narrowest width and at four times that, over layers and seeds, and rounded to a multiple of 1/2.

    Raises ConfigurationError if a parameter's spread follows no such power.
    """
    base = narrow_base(config)
    key = (stock_model, json.dumps(base.to_dict(), sort_keys=True, default=str))
    if key not in _exponents:
        narrow, wide = (_spreads(stock_model, c.to_stock_config()) for c in (base, base.at_width(4 * base.hidden_size)))
        found = {}
        for name, spread in narrow.items():
            raw = 0.0 if spread == 0 or wide[name] == 0 else float(torch.tensor(wide[name] / spread).log2()) / 2
            found[name] = round(2 * raw) / 2
            if abs(raw - found[name]) > 0.2 or (spread == 0) != (wide[name] == 0):
                raise ConfigurationError(
                    f"{stock_model.__name__}: the initial spread of {name} goes from {spread:.3g} to {wide[name]:.3g} "
                    "at 4 times the width, which is no power of 1/2; write a subclass that overrides stock_init_ratio."
                )
        _exponents[key] = found
    return _exponents[key]


def _spreads(stock_model: type, config: Any) -> dict[str, float]:
    squares: dict[str, list[torch.Tensor]] = defaultdict(list)
    with _undisturbed():
        for seed in range(_SEEDS):
            torch.manual_seed(seed)
            for name, parameter in stock_model(config).named_parameters():
                squares[collapse(name)].append(parameter.detach().float().square().mean())
    return {name: float(torch.stack(values).mean().sqrt()) for name, values in squares.items()}


@contextmanager
def _undisturbed():
    """Build on the CPU in single precision, whatever the surroundings, and give the random state back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def verify_variant(model_class: Any, config: Any) -> None:
    """Prove on narrow models of a design that its μP variant does what it says. Raises ConfigurationError if not.

    At base width parameters and outputs equal the stock model's bit for bit with the same seed; every attention's
    `scaling` and the readout's multiplier change the output; and from one width to four times that, at initialisation,
    the embedding's output and the readout's input keep their size, and logits that of the readout's output, so that no
    forward pass multiplies by the width out of sight.
    """
    base = narrow_base(config)
    key = (model_class, json.dumps(base.to_dict(), sort_keys=True, default=str))
    if key in _verified:
        return
    with _undisturbed(), torch.no_grad():
        _require_stock_at_base(model_class, base)
        _require_scaling_used(model_class, base)
        _require_sizes_kept(model_class, base)
    _verified.add(key)


def last_norm(model_class: Any, config: Any) -> str | None:
    """Return the name of the norm whose very output the readout reads, None if something lies between them.

    Found by running a narrow model of the design; a slice of the norm's output over all positions counts as it.
    """
    with _undisturbed(), torch.no_grad():
        model = _build(model_class, narrow_base(config))
        seen: dict[tuple[int, torch.Size], str] = {}
        kept, found = [], []  # outputs stay alive, lest an address be used again
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 1:

                def remember(_module: nn.Module, _inputs: Any, output: torch.Tensor, name: str = name) -> None:
                    kept.append(output)
                    seen[output.data_ptr(), output.shape] = name

                module.register_forward_hook(remember)
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _m, given: found.append(seen.get((given[0].data_ptr(), given[0].shape))))
        model(**_inputs(model.config))
    return found[0] if found else None


def _inputs(config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = min(16, (getattr(config, "max_position_embeddings", None) or 18) - 2)
    tokens = torch.randint(0, config.vocab_size, (2, 4, length), generator=generator)
    special = {v for k, v in config.to_dict().items() if k.endswith("_token_id") and type(v) is int}
    free = next(t for t in range(config.vocab_size) if t not in special)
    for token in special:
        tokens[tokens == token] = free
    inputs = {"input_ids": tokens[0]}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[1]
    return inputs


def _build(cls: Any, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return cls(config).eval()


def _output(model: nn.Module, config: Any) -> torch.Tensor:
    return model(**_inputs(config))[0]


def _require_stock_at_base(model_class: Any, base: Any) -> None:
    ours, stock = _build(model_class, base), _build(stock_class(model_class), base.to_stock_config())
    mine, theirs = ours.state_dict(), stock.state_dict()
    different = [n for n in theirs if n not in mine or not torch.equal(mine[n], theirs[n])]
    if different or not torch.equal(_output(ours, base), _output(stock, base)):
        what = f"parameter {different[0]}" if different else "the output"
        raise ConfigurationError(f"{model_class.__name__}: {what} differs from the stock model's at base width.")


def _require_scaling_used(model_class: Any, base: Any) -> None:
    model = _build(model_class, base)
    for parameter in model.parameters():  # far from initialisation, where attention is all but uniform
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    before = _output(model, base)
    kinds = {
        collapse(n): m
        for n, m in model.named_modules()
        if isinstance(getattr(m, "scaling", None), float) and n not in model.mu_derivation.fixed_heads
    }
    for name, module in kinds.items():
        value, module.scaling = module.scaling, module.scaling * 4
        if torch.equal(_output(model, base), before):
            raise ConfigurationError(
                f"{model_class.__name__}: {name}.scaling does not reach the output, so attention cannot follow 1/d; "
                f'add plan={{"{name}": "fixed_head"}} if the head size stays.'
            )
        module.scaling = value


def _require_sizes_kept(model_class: Any, base: Any) -> None:
    sizes = [_sizes(model_class, base.at_width(r * base.hidden_size)) for r in (1, 4)]
    for what, hint in (
        ("embedding", "the embedding's output is multiplied by the width"),
        ("readout", "the readout's input is multiplied by the width"),
        ("logits", "the logits are multiplied by the width after the readout"),
    ):
        if what in sizes[0] and not 2 / 3 < sizes[1][what] / sizes[0][what] < 3 / 2:
            raise ConfigurationError(
                f"{model_class.__name__}: at 4 times the width {hint} ({sizes[0][what]:.3g} → {sizes[1][what]:.3g}) "
                "where no attribute of a module shows it; write a subclass that corrects it (mu_readout_multiplier)."
            )


def _sizes(model_class: Any, config: Any) -> dict[str, float]:
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)
    for seed in range(2):
        model = _build(model_class, config, seed)
        head = model.get_output_embeddings()
        found: dict[str, torch.Tensor] = {}
        if head is not None:
            head.register_forward_hook(lambda _m, i, o, found=found: found.update(readout=i[0], raw=o))
        out = model(**_inputs(config), output_hidden_states=True)
        states = out.get("hidden_states") or out.get("encoder_hidden_states")
        if states:
            seen["embedding"].append(_rms(states[0]))
        if head is not None:
            if "raw" not in found:
                raise ConfigurationError(
                    f"{model_class.__name__}: its forward does not call the layer of get_output_embeddings(), so the "
                    "readout's multiplier would not reach the logits."
                )
            seen["readout"].append(_rms(found["readout"]))
            seen["logits"].append(_rms(out[0]) / _rms(found["raw"]))
    return {what: float(torch.stack(values).mean()) for what, values in seen.items()}


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.float().square().mean().sqrt()

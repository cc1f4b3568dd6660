"""Base shapes as `mup` files them: read its `.bsh` YAML into a μP config, and write one for a μP model.

A `.bsh` file maps each parameter's name to its shape at base width, `null` standing for a finite dimension:

    model.layers.0.mlp.down_proj.weight: [64, 176]
    lm_head.weight: [null, 64]

Here the base shapes live in the config (`mup_base`, a few numbers); a file says the same parameter by parameter.
Format: `save_base_shapes` and `load_base_shapes` of the `mup` package, which is not needed to read or write it.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models import MuConfigMixin, pretraining_class, require_mu_model

BaseShapes = dict[str, tuple[int | None, ...]]

_HEADER = """\
# This is a base shape file encoded in yaml
# - `null` indicates a dimension is "finite", i.e. a non-"width" dimension
# - a number indicates the base dimension of an "infinite" dimension, i.e. some notion of "width"
"""


def base_shapes(config_or_model: Any) -> BaseShapes:
    """Return each parameter's shape at base width, None for a dimension that does not grow with width.

    A config stands for its language model. Depth is the config's own: names, and thus files, are for one depth.
    Dimensions are infinite if they differ between the base and twice its width, both on the `meta` device. Example:

    >>> from hf_muscaling import MuLlamaConfig
    >>> base = MuLlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=176, num_attention_heads=4)
    >>> shapes = base_shapes(base.at_width(256))
    >>> shapes["lm_head.weight"], shapes["model.layers.0.mlp.down_proj.weight"], shapes["model.norm.weight"]
    ((None, 64), (64, 176), (64,))

    Raises ConfigurationError for what is no μP config or model.
    """
    if isinstance(config_or_model, nn.Module):
        model: Any = require_mu_model(config_or_model, "base_shapes")
        config, build = model.config, type(model)
    else:
        config = _require_mu_config(config_or_model)
        build = pretraining_class(config).from_config
    base = config.base_config()
    with torch.device("meta"):
        narrow, wide = (build(c) for c in (base, base.at_width(2 * base.hidden_size)))
    shapes = {name: tuple(p.shape) for name, p in narrow.named_parameters()}
    return {
        name: tuple(b if b != d else None for b, d in zip(shapes[name], p.shape, strict=True))
        for name, p in wide.named_parameters()
    }


def write_base_shapes(config_or_model: Any, file: str | Path) -> None:
    """Write the `.bsh` file that `mup.set_base_shapes(model, file)` reads; raises as `base_shapes` does."""
    shapes = {name: list(shape) for name, shape in base_shapes(config_or_model).items()}
    Path(file).write_text(_HEADER + yaml.safe_dump(shapes, indent=4), encoding="utf-8")


def read_base_shapes(file: str | Path) -> BaseShapes:
    """Return the base shapes that a `.bsh` file holds; names may carry DistributedDataParallel's prefix `module.`.

    Raises ConfigurationError if the file is missing, not YAML, or a shape in it is not a list of whole numbers and
    nulls, naming the parameter.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigurationError(f"The base-shape file {path} does not exist; check the path.")
    try:
        shapes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(shapes, dict) or not shapes:
        raise ConfigurationError(f"{path} must map parameter names to shapes, as mup.save_base_shapes writes them.")
    for name, shape in shapes.items():
        if not isinstance(name, str) or not isinstance(shape, list):
            raise ConfigurationError(f"{path}: {name!r} must be a parameter's name and {shape!r} a list of dimensions.")
        if not all(size is None or (type(size) is int and size > 0) for size in shape):
            raise ConfigurationError(f"{path}: the shape {shape} of {name} must hold positive whole numbers or null.")
    wrapped = all(name.startswith("module.") for name in shapes)
    return {name.removeprefix("module.") if wrapped else name: tuple(shape) for name, shape in shapes.items()}


def check_base_shapes(config_or_model: Any, shapes: BaseShapes) -> None:
    """Refuse base shapes that are not those of a μP config or model. Raises ConfigurationError naming a parameter."""
    ours = base_shapes(config_or_model)
    for name in ours | shapes:
        if ours.get(name) != shapes.get(name):
            there = "is not in the base shapes" if name not in shapes else f"has base shape {list(shapes[name])}"
            here = f"{list(ours[name])} was expected" if name in ours else "the model has no such parameter"
            raise ConfigurationError(
                f"Parameter {name} {there}; {here} (None: finite). The base shapes are of another design or depth, or "
                "let another set of dimensions grow."
            )


def config_with_base_shapes(config: Any, shapes: BaseShapes | str | Path) -> Any:
    """Return a μP config with the base that a `.bsh` file (or what `read_base_shapes` returned) prescribes.

    The base width is the input embedding's, FFN size and heads are solved for from the shapes that they decide, the
    head size is the config's. Example:

    >>> from hf_muscaling import MuLlamaConfig
    >>> base = MuLlamaConfig(hidden_size=64, intermediate_size=176, num_attention_heads=4, num_hidden_layers=1)
    >>> config = MuLlamaConfig.from_stock(base.at_width(256).to_stock_config())        # knows no base yet
    >>> config_with_base_shapes(config, base_shapes(base)).mup_base["intermediate_size"]
    176

    Raises ConfigurationError as `read_base_shapes` and `check_base_shapes` do.
    """
    config = _require_mu_config(config)
    if not isinstance(shapes, dict):
        shapes = read_base_shapes(shapes)
    with torch.device("meta"):
        model = pretraining_class(config).from_config(config)
    table = model.get_input_embeddings().weight
    embedding = next(name for name, p in model.named_parameters() if p is table)
    width = shapes.get(embedding, (None,))[-1]
    if width is None:
        raise ConfigurationError(
            f"The base shapes give no base width: {embedding} must be there, its last dimension infinite."
        )
    base = config.to_mup_base()
    hidden, heads, *others = config.mu_width_fields
    fixed = config.mu_fixed_fields()
    base |= {hidden: width, heads: width // config.head_size} | {field: getattr(config, field) for field in fixed}
    for field in [heads, *others] if fixed else others:
        if base[field] is not None:
            base[field] = _solve(config, field, shapes)
    found = config.replace(mup_base=base)
    check_base_shapes(found, shapes)
    return found


def _solve(config: Any, field: str, shapes: BaseShapes) -> int:
    """Return a field's base value from a dimension that is proportional to it: doubling the field doubles it alone."""
    stock = config.to_stock_config()
    doubled = config.to_stock_config()
    setattr(doubled, field, 2 * getattr(stock, field))
    with torch.device("meta"):
        ours, wide = (pretraining_class(c).from_config(c) for c in (stock, doubled))
    for (name, here), there in zip(ours.named_parameters(), wide.parameters(), strict=True):
        for i, (size, twice) in enumerate(zip(here.shape, there.shape, strict=True)):
            base = shapes.get(name, ())[i : i + 1]
            if twice == 2 * size and base and base[0] is not None:
                value = base[0] * getattr(stock, field) / size
                if value != round(value):
                    raise ConfigurationError(
                        f"Parameter {name} has base shape {list(shapes[name])}: {field} would be {value:g} at base "
                        "width, not a whole number; the base shapes are of another design."
                    )
                return round(value)
    return getattr(stock, field)  # no infinite dimension depends on it: the check that follows says which


def _require_mu_config(config: Any) -> Any:
    if not isinstance(config, MuConfigMixin):
        raise ConfigurationError(
            f"Base shapes need a μP config or model, got {type(config).__name__}; use Mu…Config.from_stock(config)."
        )
    return config

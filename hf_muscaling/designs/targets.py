"""Each design's own width for a target of so many parameters."""

from typing import Any

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import ConfigurationError

STEPS = 6  #: multiples of the head size tried on either side of the estimate


def width_for(config: ExperimentConfig, base: Any, N: float) -> int:
    """Return the width, a multiple of the head size, at which a design's parameters come nearest to N.

    N counts as `config.count` says. Raises ConfigurationError if that width is not above the widest proxy.
    """
    from hf_muscaling.counting import count_parameters

    def count(width: int) -> int:
        return count_parameters(base.at_width(width), config.count)  # type: ignore[arg-type]

    # N = p·w + q·w², up to norms and biases: two counts give the neighbourhood, exact counts the nearest width
    small, large = min(config.widths), max(config.widths)
    q = (count(large) / large - count(small) / small) / (large - small)
    p = count(large) / large - q * large
    middle = round((-p + (p * p + 4 * q * N) ** 0.5) / (2 * q) / config.head_size)
    found: dict[int, float] = {}
    for k in range(max(middle - STEPS, 1), middle + STEPS + 1):
        try:
            found[k * config.head_size] = abs(count(k * config.head_size) - N)
        except ConfigurationError:  # a width that another dimension (grouped queries, FFN) does not allow
            continue
    if not found:
        raise ConfigurationError(
            f"{config.architecture}: no width near {middle * config.head_size} is possible for N = {N:.4g}; give "
            "--target_width."
        )
    width = min(found, key=lambda w: (found[w], w))
    if width <= large:
        raise ConfigurationError(
            f"target N = {N:.4g} is reached at width {width}, which is not above the widest proxy ({large}, N = "
            f"{count(large):.4g}). Give a larger target or narrower proxies (--widths)."
        )
    return width


def next_proxy(config: ExperimentConfig, base: Any) -> tuple[int, int]:
    """Return width and N of one more proxy: the possible width halfway (in log) between widest proxy and target.

    The target itself, if nothing lies between.
    """
    from hf_muscaling.counting import count_parameters

    largest, target = max(config.widths), config.target_width
    step = config.head_size
    between = sorted(
        (w for w in range(step * (largest // step + 1), target, step)),
        key=lambda w: abs(w - (largest * target) ** 0.5),
    )
    for width in [*between, target]:
        try:
            return width, count_parameters(base.at_width(width), config.count)  # type: ignore[arg-type]
        except ConfigurationError:
            continue
    raise ConfigurationError(f"{config.architecture}: no width up to {target} is possible.")

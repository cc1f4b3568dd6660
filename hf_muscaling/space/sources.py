"""Where a page's laws come from: law files, repositories, and folders of experiments with what their runs cost."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.hub import text
from hf_muscaling.hub.client import fetch, is_repo_id
from hf_muscaling.hub.laws import MAX_BYTES, read_record
from hf_muscaling.runs import Run, Series, read_json

if TYPE_CHECKING:
    from hf_muscaling.laws.base import ScalingLaw
    from hf_muscaling.space.designs import Design

MAX_LAWS = 6
"""Laws in one page: as many as can be told apart in a chart."""


@dataclass
class Source:
    """One law of a page, and what is known of its runs.

    `flops` is what all of them cost, the search included, as 6·N·D, `nanolm` with attention and recomputation as nanoLM
    counts; None where the law's own rows must tell. `run` is the largest
    proxy of an experiment, `targets` are runs that were trained after the prediction. `counts_all` says that N is known
    to count embeddings.
    """

    name: str
    law: "ScalingLaw"
    repo_id: str = ""
    flops: float | None = None
    nanolm: float | None = None
    run: Run | None = None
    targets: list[Run] = field(default_factory=list)
    target_width: int | None = None
    design: "Design | None" = None
    counts_all: bool = False


def read_sources(sources: Any) -> list[Source]:
    """Return the laws of a page from a law, a mapping name → law, or paths and names of repositories.

    Raises ConfigurationError for none or too many, RecordError for what is no law, HubError if the Hub refuses.
    """
    from hf_muscaling.laws.base import ScalingLaw

    if isinstance(sources, ScalingLaw):
        sources = {type(sources).__name__: sources}
    elif isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    if isinstance(sources, Mapping):
        found = [Source(text.plain(name), law) for name, law in sources.items()]
    elif isinstance(sources, Sequence):
        found = [_read(source) for source in sources]
    else:
        raise ConfigurationError(f"A page needs laws, got {type(sources).__name__}: pass laws or paths of law.json.")
    if not 1 <= len(found) <= MAX_LAWS:
        raise ConfigurationError(f"A page shows 1 to {MAX_LAWS} laws, got {len(found)}.")
    seen: dict[str, int] = {}
    for source in found:
        source.law._check_fitted()
        seen[source.name] = seen.get(source.name, 0) + 1
        if seen[source.name] > 1:
            source.name = f"{source.name} ({seen[source.name]})"
    return found


def _read(source: str | os.PathLike[str]) -> Source:
    from hf_muscaling.laws import ScalingLaw, store

    path = Path(source)
    if os.path.isdir(source) and (path / "law.json").is_file() and (path / "runs.jsonl").is_file():
        return _experiment(path)
    if os.path.isdir(source) or (is_repo_id(str(source)) and not path.exists()):
        law = ScalingLaw.from_pretrained(source)
        return Source(text.plain(path.resolve().name), law, "" if os.path.isdir(source) else str(source))
    where = repr(text.public(str(source)[-200:]))
    record = read_record(fetch(path.parent, [path.name], limit=MAX_BYTES), where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the fit warned of belongs to the fit
        law = store.read(ScalingLaw, record, where)  # type: ignore[type-abstract]
    name = path.stem if path.stem not in ("law", "config") else path.resolve().parent.name
    return Source(text.plain(name), law)


def _experiment(folder: Path) -> Source:
    """Return the law of what `run_experiment` wrote, the cost of its runs and the design of its models."""
    from hf_muscaling.laws import ScalingLaw

    law = ScalingLaw.from_json(folder / "law.json")
    series = Series.from_jsonl(folder / "runs.jsonl", name=folder.resolve().name)
    behind = [run for run in series if run.role != "target"]
    targets = [run for run in series if run.role == "target" and run.finished]
    largest = max((run for run in behind if run.finished), key=lambda run: run.N, default=None)
    source = Source(
        text.plain(folder.resolve().name), law, flops=sum(run.C for run in behind) or None, run=largest,
        targets=targets, counts_all=True,
    )  # fmt: skip
    if (folder / "prediction.json").is_file():
        width = (read_json(folder / "prediction.json") or {}).get("target_width")
        source.target_width = width if isinstance(width, int) and not isinstance(width, bool) else None
    if largest is not None and largest.config:
        try:
            source.design = design = _design(largest, folder)
            source.nanolm = sum(
                design.at("step_flops", run.width, design.depth) * run.D / design.tokens for run in behind
            )
        except Exception as error:  # whatever a config of unknown origin makes transformers and torch raise
            warnings.warn(
                f"The page cannot compute sizes of {text.plain(largest.config.get('model_type'), 40)!r} models and "
                f"offers stock designs instead: {text.plain(error, 300)}",
                stacklevel=4,
            )
    return source


def _design(run: Run, folder: Path) -> "Design":
    """Return the design of a run's model, with the sequences it was trained on."""
    import hf_muscaling
    from hf_muscaling.space.designs import Design

    kind = str(run.config.get("model_type", "")).removeprefix("mu_")
    config = getattr(hf_muscaling, {"gpt2": "MuGPT2Config", "llama": "MuLlamaConfig", "bert": "MuBertConfig",
                                    "t5": "MuT5Config"}[kind]).from_dict(dict(run.config))  # fmt: skip
    tokens = run.B // int(run.settings["batch_size"])
    sequence, targets = tokens, None
    if kind == "t5":
        from hf_muscaling.configuration import ExperimentConfig
        from hf_muscaling.data import span_lengths

        experiment = ExperimentConfig(**read_json(folder / "experiment.json")["config"])
        lengths = span_lengths(experiment.sequence_length, **experiment.objective_options())
        sequence, targets = lengths.inputs, lengths.targets
    return Design.of(
        config, sequence, targets=targets, tokens=tokens, name=f"Models of {text.plain(folder.resolve().name)}"
    )


def runs_cost(law: "ScalingLaw") -> dict[str, float] | None:
    """Return what the fitted runs cost, as far as their rows tell: `flops`, or the sum of `parameters` at equal tokens.

    FLOPs are C, or 6·N·D at each run's last row.
    """
    from hf_muscaling.laws.selection import run_index

    rows = law._columns
    run = run_index(rows)
    n = rows.get("N", rows.get("N_non_embedding"))
    if "C" in rows:
        compute, key = rows["C"], "flops"
    elif n is not None and "D" in rows:
        compute, key = 6 * n * rows["D"], "flops"
    elif n is not None and "S" in rows and "B" in rows:
        compute, key = 6 * n * rows["S"] * rows["B"], "flops"
    elif n is not None:
        compute, key = n, "parameters"
    else:
        return None
    most = np.zeros(int(run.max()) + 1)
    np.maximum.at(most, run, compute)
    return {key: float(most.sum())}

"""A fitted law as a repository: `config.json` (the record of `to_json` and where it comes from), card and plot.

The record holds the rows that were fitted, and reading checks parameters against them, so one file is the whole law.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_muscaling.errors import MuScalingError, RecordError
from hf_muscaling.hub import cards, text
from hf_muscaling.hub.client import Pushed, check_repo_id, fetch, is_repo_id, push_files

if TYPE_CHECKING:
    from hf_muscaling.laws.base import ScalingLaw
    from hf_muscaling.laws.prediction import Evaluation
    from hf_muscaling.runs import Series

FILE = "config.json"
MAX_BYTES, MAX_ROWS, MAX_PROXIES = 32 * 2**20, 500_000, 1000
SHOWN, SCORED, PROFILED = 40, 400, 100
"""Rows in a card's table, and rows whose intervals are computed: of long curves an even sample and the largest.
The parameters of longer tables than the third get resampled intervals."""
AHEAD = (2.0, 5.0, 10.0)
SOURCES = {
    "PowerLaw": "The law: Yao et al. 2023, nanoLM; the method of transfer: Yang et al. 2022, Tensor Programs V.",
    "ChinchillaLaw": "The law: Hoffmann et al. 2022, Training Compute-Optimal Large Language Models.",
    "KaplanLaw": "The law: Kaplan et al. 2020, Scaling Laws for Neural Language Models.",
    "KaplanStepLaw": "The law: Su et al. 2024, Unraveling the Mystery of Scaling Laws: Part I; Kaplan et al. 2020.",
}


@dataclass(frozen=True)
class Provenance:
    """Where a law comes from: its series and its proxies as `repo@revision`, the hashes of data and tokenizer."""

    series: str = ""
    proxies: tuple[str, ...] = ()
    data_hash: str = ""
    tokenizer_hash: str = ""

    def __post_init__(self) -> None:
        if len(self.proxies) > MAX_PROXIES:
            raise RecordError(f"A law names {len(self.proxies)} proxies, more than {MAX_PROXIES}.")
        for reference in (*self.proxies, *filter(None, [self.series])):
            repo_id, revision = cards.split_reference(reference) if isinstance(reference, str) else ("", None)
            if not is_repo_id(repo_id) or not (revision is None or is_repo_id(revision)):
                raise RecordError(f"{text.plain(reference, 60)!r} must be a repository, 'user/name@revision'.")
        for name in ("data_hash", "tokenizer_hash"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 128 or not (value.isalnum() or not value):
                raise RecordError(f"{name} must be a hash in letters and digits, got {text.plain(value, 60)!r}.")

    @classmethod
    def read(cls, record: Any) -> "Provenance":
        """Return a checked provenance from JSON. Raises RecordError."""
        known = set(cls.__dataclass_fields__)
        if (
            not isinstance(record, Mapping)
            or not set(record) <= known
            or not isinstance(record.get("proxies", []), list)
        ):
            raise RecordError(f"'provenance' must be an object with {', '.join(sorted(known))}.")
        return cls(**{**record, "proxies": tuple(record.get("proxies", []))})

    @classmethod
    def of(
        cls, law: "ScalingLaw", series: "Series | Pushed | str | None", proxies: Sequence["Pushed | str"]
    ) -> "Provenance":
        """Return what is said of a law: given references, the hashes of a Series, else what it was loaded with."""
        known: Provenance = getattr(law, "provenance_", None) or cls()
        names = tuple(p.reference if isinstance(p, Pushed) else p for p in proxies) or known.proxies
        if series is None:
            return cls(known.series, names, known.data_hash, known.tokenizer_hash)
        if isinstance(series, (str, Pushed)):
            where = series if isinstance(series, str) else series.reference
            return cls(where, names, known.data_hash, known.tokenizer_hash)
        hashes = {name: {getattr(run, name) for run in series} for name in ("data_hash", "tokenizer_hash")}
        same = {name: values.pop() if len(values) == 1 else "" for name, values in hashes.items()}
        return cls(known.series, names, same["data_hash"], same["tokenizer_hash"])


def law_files(
    law: "ScalingLaw",
    repo_id: str,
    *,
    title: str | None = None,
    targets: Any = None,
    level: float = 0.9,
    series: Any = None,
    proxies: Sequence[Any] = (),
    license: str | None = None,
    tags: Sequence[str] = cards.TAGS,
) -> dict[str, bytes]:
    """Return the repository of a law as name → content; see `ScalingLaw.push_to_hub` for the arguments."""
    provenance = Provenance.of(law, series, proxies)
    record = text.public_record(json.loads(law.to_json()))
    record["provenance"] = asdict(provenance)
    own = law.evaluate(_sample(law, record["rows"]), level)
    tested = None if targets is None else law.evaluate(targets, level)
    card = _card(
        law, repo_id, text.plain(title or repo_id.split("/")[-1]), own, tested, level, provenance, license, tags
    )
    return {
        "README.md": card.encode(),
        FILE: (json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "law.png": cards.png(_figure(law, tested, level)),
    }


def push_law(law: "ScalingLaw", repo_id: str, *, private, revision, token, message, **card: Any) -> Pushed:
    """Push a law; see `ScalingLaw.push_to_hub`."""
    files = law_files(law, check_repo_id(repo_id), **card)
    message = message or f"Upload {type(law).__name__}"
    return push_files(repo_id, files, private=private, revision=revision, token=token, message=message)


def save_law(law: "ScalingLaw", folder: str | os.PathLike[str], **card: Any) -> None:
    """Write a law's repository to a folder; see `ScalingLaw.save_pretrained`."""
    path = Path(folder)
    files = law_files(law, path.resolve().name if is_repo_id(path.resolve().name) else "law", **card)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (path / name).write_bytes(content)
    except OSError as error:
        raise RecordError(
            f"Cannot write the law to {str(folder)!r}: {error.strerror}. Choose another folder."
        ) from error


def load_law(cls: type["ScalingLaw"], source: Any, *, revision: str | None, token: str | bool | None) -> Any:
    """Read a law from a folder or a repository; see `ScalingLaw.from_pretrained`."""
    import hf_muscaling.laws  # noqa: F401  every law must be known before the stored one is looked up
    from hf_muscaling.laws import store

    path = fetch(source, [FILE, "law.json"], revision=revision, token=token, limit=MAX_BYTES)
    where = repr(text.public(f"{source}/{path.name}"[-200:]))  # what was given, not where a download is kept
    record = read_record(path, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the fit warned of belongs to the fit
        law = store.read(cls, record, where)
    if cls.equation and type(law) is not cls:
        raise RecordError(
            f"{text.public(str(source))} holds a {type(law).__name__}, not a {cls.__name__}. Load it with "
            f"{type(law).__name__}.from_pretrained or ScalingLaw.from_pretrained."
        )
    law.provenance_ = Provenance.read(record.get("provenance", {}))
    return law


def read_record(path: Path, where: str | None = None) -> dict[str, Any]:
    """Return a law's record as JSON, its rows few enough to work with. Raises RecordError, which calls it `where`."""
    from hf_muscaling.laws import store

    record, where = store.parse(path, where)
    rows = record.get("rows") if isinstance(record, dict) else None
    if not isinstance(rows, dict):
        store.refuse(where, "it has no 'rows'")
    if any(isinstance(column, list) and len(column) > MAX_ROWS for column in rows.values()):
        store.refuse(where, f"it has more than {MAX_ROWS:,} rows")
    return record


# -- the card ----------------------------------------------------------------------------------------------------------


def _card(law, repo_id, title, own, tested, level, provenance, license, tags) -> str:
    from huggingface_hub import EvalResult, constants

    from hf_muscaling import __version__

    series = cards.links([provenance.series] if provenance.series else [], "datasets/")
    body = cards.render(
        "law.md",
        title=title,
        repo_id=repo_id,
        url=f"{constants.ENDPOINT}/{repo_id}",
        version=__version__,
        law=type(law).__name__,
        equation=law.equation_text,
        objective=law.objective,
        selection=law.selection_,
        level_text=f"{100 * level:g} %",
        parameters=_parameters(law, level),
        variables=[{"name": n, "unit": law.units[n], "low": lo, "high": hi} for n, (lo, hi) in law.range_.items()],
        are=own.are,
        rows=_rows(own)[:SHOWN],
        shown=min(SHOWN, len(own.errors)),
        scored=len(own.errors),
        total=law.n_runs_,
        targets=_rows(tested) if tested else [],
        inside_targets=round(tested.coverage * len(tested.errors)) if tested else 0,
        target_are=tested.are if tested else None,
        ahead=_ahead(law, level),
        example=", ".join(
            f"{name}={_round(10 * high):g}".replace("e+0", "e").replace("e+", "e")
            for name, (_, high) in law.range_.items()
        ),
        names=list(law.range_),
        series=series,
        proxies=cards.links(provenance.proxies),
        data_hash=provenance.data_hash,
        tokenizer_hash=provenance.tokenizer_hash,
        notes=law.caveats(),
        source=SOURCES.get(type(law).__name__, ""),
    )
    data_set = cards.split_reference(provenance.series)[0] if provenance.series else ""

    def results(name: str, split: str, found: "Evaluation") -> list[EvalResult]:
        scores = {
            "are": ("mean relative error", found.are),
            "coverage": (f"share inside the {100 * level:g} % interval", found.coverage),
        }
        return [
            EvalResult(
                task_type="other",
                task_name="Predicting the loss of a training run",
                dataset_type=data_set or "runs",
                dataset_name=name,
                dataset_split=split,
                metric_type=kind,
                metric_name=label,
                metric_value=float(f"{value:.6g}"),
            )
            for kind, (label, value) in scores.items()
        ]

    entries = results("the runs that were fitted", "train", own)
    if tested is not None:
        entries += results("runs that were not fitted", "test", tested)
    return cards.model_card(
        body, name=title, library=cards.LIBRARY, results=entries, tags=tags, license=license,
        datasets=[data_set] if data_set else (),
    )  # fmt: skip


def _parameters(law: "ScalingLaw", level: float) -> list[dict[str, Any]]:
    """Return each parameter's row: its value and an interval where the law has one.

    That of a long table comes from resampled runs: a profile likelihood refits the law tens of times a parameter.
    """
    draws = law.bootstrap(400) if law.n_runs_ > PROFILED and hasattr(law, "bootstrap") else {}
    rows = []
    for name in law.parameters:
        ends: tuple[float, float] | None = None
        try:
            if name in draws:
                low, high = np.quantile(draws[name], (0.5 * (1 - level), 0.5 * (1 + level)))
                ends = (float(low), float(high))
            elif hasattr(law, "parameter_interval"):
                ends = law.parameter_interval(name, level)
        except MuScalingError:
            ends = None  # fixed, or a letter of the equation that this fit does not have
        text_of = "—" if ends is None or ends[0] == ends[1] else _interval(*ends)
        fixed = name in getattr(law, "fixed", {})
        rows.append({"name": name, "value": law.params_[name], "interval": "fixed, not fitted" if fixed else text_of})
    return rows


def _interval(low: float, high: float) -> str:
    return f"{text.number(low)} … {text.number(high) if np.isfinite(high) else '∞'}"


def _sample(law: "ScalingLaw", rows: Mapping[str, list]) -> dict[str, list]:
    """Return at most `SCORED` of the rows: the `SHOWN` largest, and others evenly from the rest."""
    order = np.lexsort([np.asarray(rows[name]) for name in reversed(list(law.columns.values()))])
    if len(order) > SCORED:
        rest = order[:-SHOWN]
        even = np.linspace(0, len(rest) - 1, SCORED - SHOWN).round().astype(int)
        order = np.concatenate([rest[even], order[-SHOWN:]])
    return {name: [values[i] for i in order] for name, values in rows.items()}


def _rows(found: "Evaluation") -> list[dict[str, Any]]:
    """Return predicted and measured losses as rows, the largest run first."""
    p = found.prediction
    loss, low, high = (np.atleast_1d(v) for v in (p.loss, p.low, p.high))
    measured = loss / (1 + found.errors)
    at = {name: np.atleast_1d(values) for name, values in p.at.items()}
    order = np.lexsort([*reversed(list(at.values()))])[::-1]
    return [
        {
            "at": [float(values[i]) for values in at.values()],
            "measured": float(measured[i]),
            "loss": float(loss[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "error": float(found.errors[i]),
            "inside": bool(low[i] <= measured[i] <= high[i]),
        }
        for i in order
    ]


def _ahead(law: "ScalingLaw", level: float) -> list[dict[str, Any]]:
    """Return predictions beyond the runs, all variables scaled alike."""
    rows = []
    for factor in AHEAD:
        at = {name: _round(factor * high) for name, (_, high) in law.range_.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            p = law.predict(level=level, **at)
        rows.append({"at": list(at.values()), "loss": p.loss, "low": p.low, "high": p.high, "beyond": p.extrapolation})
    return rows


def _round(value: float) -> float:
    return float(f"{value:.2g}")


def _figure(law: "ScalingLaw", tested: "Evaluation | None", level: float) -> Any:
    """Return the law's own plot, far enough to hold the tested runs, which are marked."""
    axis = next(iter(law.range_))
    if tested is None:
        return law.plot(level=level)
    at = np.atleast_1d(tested.prediction.at[axis])
    measured = np.atleast_1d(tested.prediction.loss) / (1 + tested.errors)
    figure = law.plot(level=level, reach=max(10.0, 1.5 * float(at.max()) / law.range_[axis][1]))
    axes = figure.axes[0]
    axes.plot(at, measured, "*", ms=11, color="black", label="measured, not fitted")
    axes.legend(frameon=False, fontsize=8)
    return figure

"""A whole experiment on the Hub and back: proxies, series, law and plots as one Collection.

Repositories are named after the experiment: `user/name-law`, `user/name-series`, and a model a run, `user/name-w64-s0`.
The law names the others by revision, so that what is pulled later is what was pushed.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_muscaling.errors import ConfigurationError, HubError, RecordError
from hf_muscaling.hub import cards
from hf_muscaling.hub.client import Pushed, collect, explained, fetch, is_repo_id, list_files, safe_name
from hf_muscaling.hub.laws import Provenance
from hf_muscaling.hub.proxies import MODEL_FILES, TOKENIZER_FILES, push_proxy
from hf_muscaling.hub.text import plain, public
from hf_muscaling.runs import Run, Series, read_json

if TYPE_CHECKING:
    from hf_muscaling.laws.base import ScalingLaw

logger = logging.getLogger(__name__)

MAX_MODEL_BYTES = 20 * 10**9
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy", "*.npz")
SHARED_ROLES = ("proxy", "target")


@dataclass
class PushedExperiment:
    """What was pushed: proxies, series and law, and the address of their Collection."""

    proxies: list[Pushed] = field(default_factory=list)
    series: Pushed | None = None
    law: Pushed | None = None
    collection: str = ""

    @property
    def repositories(self) -> list[Pushed]:
        """Return the repositories pushed so far, the law first."""
        return [*(p for p in (self.law, self.series) if p is not None), *self.proxies]

    def __str__(self) -> str:
        return "\n".join([f"Collection: {self.collection}", *(f"  {pushed}" for pushed in self.repositories)])


def check_login(to: str, token: str | bool | None = None) -> None:
    """Refuse a name that no repository can have, and a Hub that does not know the user, before hours of training.

    Raises ConfigurationError or HubError.
    """
    _check_name(to)
    from huggingface_hub import HfApi

    with explained("logging in", to, "model"):
        HfApi(token=token).whoami()


def push_experiment(
    folder: str | os.PathLike[str],
    to: str,
    *,
    private: bool | None = None,
    proxies: bool = True,
    license: str | None = None,
    token: str | bool | None = None,
) -> PushedExperiment:
    """Push what `run_experiment` wrote to `folder` and return where everything is.

    `to` is `user/name`. Pushing again sends only what changed. Raises RecordError if the folder is no finished
    experiment, HubError with what was pushed so far; the folder keeps everything, and the same command continues.
    """
    _check_name(to)
    root = Path(folder)
    series, law, level, models = _read_folder(root)
    pushed = PushedExperiment()
    settings: dict[str, Any] = {"private": private, "token": token}
    tokenizer = root / "tokenizer" if (root / "tokenizer").is_dir() else None
    try:
        for run in models if proxies else []:
            model = root / "runs" / safe_name(run.run_id, "runs.jsonl") / "model"
            name = f"{to}-{_short(run, models)}"
            law_name = f"{to}-law"
            pushed.proxies.append(
                push_proxy(model, run, name, tokenizer=tokenizer, law=law_name, license=license, **settings)
            )
            logger.info("Pushed %s", pushed.proxies[-1])
        landscape = root / "landscape.png"
        pushed.series = series.push_to_hub(
            f"{to}-series", license=license, title=to.split("/")[-1],
            landscape=landscape.read_bytes() if landscape.is_file() else None, **settings,
        )  # fmt: skip
        targets = Series([run for run in series if run.role == "target" and run.finished])
        law.provenance_ = Provenance.of(law, series, ())
        pushed.law = law.push_to_hub(
            f"{to}-law", title=f"{to.split('/')[-1]}: scaling law", level=level, targets=targets or None,
            series=pushed.series, proxies=pushed.proxies, license=license, **settings,
        )  # fmt: skip
        title = to.split("/")[-1]
        pushed.collection = collect(title, to.split("/")[0], pushed.repositories, private=private, token=token)
    except HubError as error:
        done = ", ".join(p.repo_id for p in pushed.repositories) or "nothing"
        raise HubError(
            f"{error} Pushed so far: {done}. {public(str(root))} keeps everything; the same command continues."
        ) from error
    return pushed


def _check_name(to: str) -> None:
    if not is_repo_id(to) or "/" not in to or len(to) > 70:
        raise ConfigurationError(f"{plain(to, 60)!r} must be 'user/name', in letters, digits, '.', '_' and '-'.")


def _read_folder(root: Path) -> tuple[Series, "ScalingLaw", float, list[Run]]:
    """Return the series, the law, the level of its intervals, and the runs whose models are there."""
    from hf_muscaling.laws import ScalingLaw

    if not (root / "runs.jsonl").is_file() or not (root / "law.json").is_file():
        raise RecordError(
            f"{public(str(root))} holds no runs.jsonl and law.json: it is no finished experiment. Run "
            "`muscaling run-series --output_dir …` to its end first."
        )
    series = Series.from_jsonl(root / "runs.jsonl", name=root.resolve().name)
    law = ScalingLaw.from_json(root / "law.json")
    level = 0.9
    if (root / "prediction.json").is_file():
        stored = read_json(root / "prediction.json")
        level = stored.get("level", level) if isinstance(stored, dict) else level
    for run in series:
        safe_name(run.run_id, "runs.jsonl")
    models = [r for r in series if r.role in SHARED_ROLES and (root / "runs" / r.run_id / "model").is_dir()]
    return series, law, level, sorted(models, key=lambda run: (run.width, run.seed, run.lr))


def _short(run: Run, runs: Sequence[Run]) -> str:
    """Return a run's name in its repository's: width and seed, and what else tells it from the others."""
    same = [other for other in runs if (other.width, other.seed) == (run.width, run.seed)]
    name = f"w{run.width}-s{run.seed}"
    return name if len(same) == 1 else f"{name}-{run.run_id.rpartition('-')[2]}"


# -- pull --------------------------------------------------------------------------------------------------------------


def pull_experiment(
    name: str,
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    proxies: bool = True,
    token: str | bool | None = None,
    max_bytes: int = MAX_MODEL_BYTES,
) -> tuple["ScalingLaw", Series | None]:
    """Fetch `user/name`'s law and what it names, at the revisions it names, into a new folder; return law and series.

    Writes `law.json`, `runs.jsonl` and `models/NAME/…` below `output`: records that were read, checked and written
    anew, safetensors and tokenizer files, never pickles or code. Raises RecordError for what does not hold up, HubError
    if the Hub refuses.
    """
    _check_name(name)
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"{public(str(target))} exists and is not an empty folder; name a new one (--output).")
    from hf_muscaling.laws import ScalingLaw

    law = ScalingLaw.from_pretrained(f"{name}-law", revision=revision, token=token)
    series = None
    if law.provenance_.series:
        repo_id, pinned = cards.split_reference(law.provenance_.series)
        series = Series.from_hub(repo_id, revision=pinned, token=token)
    wanted = {reference: _model_files(reference, token, max_bytes) for reference in law.provenance_.proxies if proxies}
    with _whole_folder(target) as draft:
        law.to_json(draft / "law.json")
        if series is not None:
            series.to_jsonl(draft / "runs.jsonl")
        for reference, files in wanted.items():
            _fetch_model(reference, files, draft / "models", token, max_bytes)
    return law, series


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that becomes `target` at the end, so that a pull is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield draft
        if target.exists():
            target.rmdir()  # empty, as was checked
        draft.rename(target)
        target.chmod(0o755)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _model_files(reference: str, token: Any, max_bytes: int) -> list[str]:
    """Return the files of a proxy that are worth having. Raises RecordError if its weights are no safetensors."""
    repo_id, revision = cards.split_reference(reference)
    sizes = list_files(repo_id, revision=revision, token=token)
    known = (*MODEL_FILES, *TOKENIZER_FILES, "README.md", "curve.png")
    files = [
        name for name in sizes
        if any(fnmatch(name.removeprefix("standard/"), pattern) for pattern in known) and name.count("/") <= 1
        and ("/" not in name or name.startswith("standard/"))
    ]  # fmt: skip
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(name for name in sizes if any(fnmatch(name, pattern) for pattern in PICKLES))
        what = f"pickled weights only ({plain(pickled[0])}), which can run code when read" if pickled else "no model"
        raise RecordError(f"{repo_id} holds {what}; only safetensors are fetched.")
    total = sum(sizes[name] or 0 for name in files)
    if total > max_bytes:
        raise RecordError(f"{repo_id} has {total:,} bytes, more than the {max_bytes:,} allowed; nothing was fetched.")
    return files


def _fetch_model(reference: str, files: Sequence[str], models: Path, token: Any, limit: int) -> None:
    repo_id, revision = cards.split_reference(reference)
    folder = models / safe_name(repo_id.split("/")[-1], reference)
    for name in files:
        path = fetch(repo_id, [name], revision=revision, token=token, limit=limit)
        place = folder / safe_name(name, repo_id)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.get("auto_map"):
        raise RecordError(f"{repo_id} asks for code of its own (auto_map in config.json); nothing was kept.")

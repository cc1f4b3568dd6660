"""Talking to the Hub: files up in one commit, one file down; tried again where that helps, explained where not.

A push is one commit on top of the head it was compared with, so that two people who push at the same moment cannot
leave a mixture, and a commit whose answer was lost is found again instead of made twice.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

from hf_muscaling.errors import ConfigurationError, HubError, RecordError
from hf_muscaling.hub.text import plain, public

logger = logging.getLogger(__name__)

WAITS = (1.0, 3.0, 9.0)
"""Seconds before each further try after a failure that may pass."""
PASSING = (408, 429, 500, 502, 503, 504)
KINDS = {"model": "", "dataset": "datasets/", "space": "spaces/"}
T = TypeVar("T")


@dataclass(frozen=True)
class Pushed:
    """Where something was pushed: the repository, its kind, and the commit that holds it."""

    repo_id: str
    repo_type: str
    revision: str
    url: str

    @property
    def reference(self) -> str:
        """Return `repo@revision`, which never changes its meaning."""
        return f"{self.repo_id}@{self.revision}"

    def __str__(self) -> str:
        return f"{self.url} (revision {self.revision[:12]})"


def push_files(
    repo_id: str,
    files: Mapping[str, bytes | Path],
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str,
    kept: str | None = None,
) -> Pushed:
    """Create the repository if need be and put files into it in one commit; unchanged files are not sent again.

    `files` maps names in the repository to bytes or local files. `private=True` makes a new repository private and
    refuses one that is public. Failures that may pass are tried again. `kept` says where the content stays if the push
    fails; without it the files are written to the cache folder, and the error names that place.

    Raises HubError with the reason and how to continue.
    """
    from huggingface_hub import HfApi

    from hf_muscaling import __version__

    api = HfApi(token=token, library_name="hf_muscaling", library_version=__version__)

    def once() -> Pushed:
        return _commit(api, repo_id, files, repo_type, private, revision, message)

    try:
        with explained(f"pushing to {repo_id}", repo_id, repo_type):
            pushed = _tried(once)
    except HubError as error:
        raise HubError(f"{error} {kept or _keep(repo_id, files)}") from error.__cause__
    return pushed


def _commit(api, repo_id, files, repo_type, private, revision, message) -> Pushed:
    """Compare with the head, send what differs, and commit on top of exactly that head."""
    from huggingface_hub import CommitOperationAdd

    sdk = "static" if repo_type == "space" else None  # free for everyone, and no server
    full = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk).repo_id
    if revision is not None:
        api.create_branch(full, repo_type=repo_type, branch=revision, exist_ok=True)
    info = api.repo_info(full, repo_type=repo_type, revision=revision)
    if private and not info.private:
        raise HubError(
            f"{full} exists and is public, and private=True was asked for: nothing was sent. Make it private in its "
            "settings, or choose another name."
        )
    operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
    commit = api.create_commit(
        full, operations, repo_type=repo_type, revision=revision, commit_message=message, parent_commit=info.sha
    )
    return Pushed(full, repo_type, commit.oid, f"{api.endpoint}/{KINDS[repo_type]}{full}")


def collect(
    title: str, namespace: str, items: Sequence[Pushed], *, private: bool | None, token: str | bool | None
) -> str:
    """Put repositories into one Collection, made if need be, and return its address. Raises HubError."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)

    def once() -> str:
        made = api.create_collection(title, namespace=namespace, private=bool(private), exists_ok=True)
        present = {(item.item_type, item.item_id) for item in made.items}
        for item in items:
            if (item.repo_type, item.repo_id) not in present:
                api.add_collection_item(made.slug, item.repo_id, item.repo_type, exists_ok=True)  # type: ignore[arg-type]
        return made.url

    with explained(f"making the Collection {title!r}", f"{namespace}/{title}", "collection"):
        return _tried(once)


def fetch(
    source: str | os.PathLike[str],
    names: Sequence[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    limit: int,
) -> Path:
    """Return the path of a file: in a local folder the first of `names` that is there, in a repository the first name.

    The Hub is asked for the size before anything is downloaded. Without a connection the cached file is returned.
    Raises RecordError if there is no such file or it is larger than `limit` bytes, HubError if the Hub refuses.
    """
    folder = Path(source)
    if os.path.isdir(source):  # unlike Path.is_dir it answers for any text
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise RecordError(f"{public(str(folder))} holds no {' or '.join(names)}: it is not what was looked for.")
        return _checked(found, limit)
    if not is_repo_id(str(source)):
        raise HubError(f"{public(str(source))[:200]!r} is neither a folder here nor a repository's name ('user/name').")
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    repo_id, name = str(source), names[0]

    def once() -> Path:
        url = hf_hub_url(repo_id, name, repo_type=repo_type, revision=revision)
        try:
            size = get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT).size
        except EntryNotFoundError:
            raise
        except _failures():
            size = None  # the download asks again, and falls back to the cache
        if size is not None and size > limit:
            raise RecordError(f"{repo_id}: {name} has {size:,} bytes, more than the {limit:,} allowed; not downloaded.")
        return Path(hf_hub_download(repo_id, name, repo_type=repo_type, revision=revision, token=token))

    with explained(f"reading {name} of {repo_id}", repo_id, repo_type):
        return _checked(_tried(once), limit)


def list_files(
    repo_id: str, *, repo_type: str = "model", revision: str | None = None, token: str | bool | None = None
) -> dict[str, int]:
    """Return name → size in bytes of every file in a repository whose name is a plain relative path.

    Raises RecordError if a name leaves the folder or holds characters that no file of ours has; HubError as `fetch`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    def once() -> dict[str, int]:
        tree = HfApi(token=token).list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    with explained(f"listing {repo_id}", repo_id, repo_type):
        files = _tried(once)
    for name in files:
        safe_name(name, repo_id)
    return files


def safe_name(name: str, where: str) -> str:
    """Return a file's name if it is a plain relative path. Raises RecordError for what could leave the folder."""
    path = PurePosixPath(name)
    plain = re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)*", name)
    if path.is_absolute() or ".." in path.parts or not plain or len(name) > 200:
        raise RecordError(f"{where} holds a file called {name[:80]!r}, which is no plain name; nothing was written.")
    return name


def is_repo_id(text: str) -> bool:
    """Whether a text can be the name of a repository: `user/name` or `name`."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    return re.fullmatch(rf"(?:{part}/)?{part}", text) is not None and "--" not in text and ".." not in text


def check_repo_id(name: str) -> str:
    """Return a repository's name. Raises ConfigurationError if no repository can have it."""
    if not isinstance(name, str) or not is_repo_id(name):
        raise ConfigurationError(
            f"{plain(name, 60)!r} cannot be a repository: 'user/name', in letters, digits, '.', '_' and '-'."
        )
    return name


# -- failures ----------------------------------------------------------------------------------------------------------


@contextmanager
def explained(doing: str, repo_id: str, repo_type: str) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into a HubError that says what to do."""
    try:
        yield
    except (HubError, RecordError):
        raise
    except _failures() as error:
        _refuse(error, doing, repo_id, repo_type)


def _refuse(error: Exception, doing: str, repo_id: str, repo_type: str) -> NoReturn:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{KINDS.get(repo_type, '')}{repo_id}"
    cause, status = _root(error), _status(error)
    if _any(error, errors.OfflineModeIsEnabled):
        reason = "offline mode is on. Unset HF_HUB_OFFLINE and repeat the command."
    elif _any(error, errors.GatedRepoError):
        reason = f"the repository is gated. Ask for access at {page} and log in with `hf auth login`."
    elif status == 401 or _any(error, errors.LocalTokenNotFoundError):
        reason = "the Hub does not know you, or the repository is not yours to see. Log in with `hf auth login`."
    elif _any(error, errors.RevisionNotFoundError):
        reason = f"it has no such revision. Its branches and commits are at {page}."
    elif _any(error, errors.EntryNotFoundError) and not _any(error, errors.LocalEntryNotFoundError):
        reason = f"it holds no such file, so it was not pushed by hf_muscaling as such. Look at {page}."
    elif _any(error, errors.RepositoryNotFoundError):
        reason = f"there is no such {repo_type}, or it is private. Check the name, or log in with `hf auth login`."
    elif status == 403:
        reason = (
            f"your token may not do that. Use one with access to {repo_id.split('/')[0]!r} (to push: write access)."
        )
    elif status == 412:
        reason = "somebody else pushed to it at the same moment. Look at their commit, then repeat to put yours on top."
    elif status == 409:
        reason = f"another operation on it is under way, or its name is taken ({_said(cause)}). Wait, then repeat."
    elif status is not None and status in PASSING:
        reason = f"the Hub answered {status} again and again. It is likely to pass: repeat the command later."
    elif _passing(error) or _any(error, errors.LocalEntryNotFoundError):
        reason = f"the connection failed ({type(cause).__name__}). Check the network, then repeat the command."
    else:
        reason = f"{_said(cause)}."
    raise HubError(f"{doing[0].upper()}{doing[1:]} failed: {reason}") from error


def _tried(job: Callable[[], T]) -> T:
    """Do a job, again after each failure that may pass."""
    for wait in (*WAITS, None):
        try:
            return job()
        except _failures() as error:
            if wait is None or not _passing(error):
                raise
            logger.info("The Hub failed (%s); trying again in %g s.", _said(_root(error)), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself: an overloaded server, a lost connection."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if _any(error, OfflineModeIsEnabled):
        return False
    status = _status(error)
    if status is not None:
        return status in PASSING
    if _any(error, HfHubHTTPError):
        return False
    # an overloaded server may answer with a page where the client expects JSON
    return _any(error, (ConnectionError, TimeoutError, json.JSONDecodeError, *_transport()))


def _transport() -> tuple[type[Exception], ...]:
    """Return the base of the HTTP library's own errors (httpx, whichever one huggingface_hub uses)."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if base.__module__.partition(".")[0].startswith("httpx"))


def _failures() -> tuple[type[Exception], ...]:
    """Return what a call to huggingface_hub may raise: the Hub's answers, lost connections, refused arguments."""
    return (OSError, ValueError, RuntimeError, *_transport())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _any(error: BaseException, kinds: Any) -> bool:
    return any(isinstance(one, kinds) for one in _chain(error))


def _status(error: BaseException) -> int | None:
    responses = (getattr(one, "response", None) for one in _chain(error))
    return next((response.status_code for response in responses if response is not None), None)


def _root(error: BaseException) -> BaseException:
    """Return the error of the chain that says most: the Hub's answer, or else the last."""
    chain = list(_chain(error))
    return next((one for one in chain if getattr(one, "response", None) is not None), chain[-1])


def _said(error: BaseException) -> str:
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return public(" ".join(text.split()))[:200].rstrip(".")


def _keep(repo_id: str, files: Mapping[str, bytes | Path]) -> str:
    """Write what could not be pushed to the cache folder and say how to continue."""
    root = Path(os.environ.get("HF_MUSCALING_CACHE") or Path.home() / ".cache" / "hf_muscaling").expanduser()
    folder = root / "unpushed" / re.sub(r"[^A-Za-z0-9_.-]", "--", repo_id)
    try:
        for name, content in files.items():
            path = folder / safe_name(name, repo_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
    except OSError as error:
        return f"(The files could not be kept either: {error.strerror}.)"
    return f"Nothing is lost: the files are in {public(str(folder))}; pushing again sends only what is missing."


def _checked(path: Path, limit: int) -> Path:
    size = path.stat().st_size
    if size > limit:
        raise RecordError(f"{public(str(path))} has {size:,} bytes, more than the {limit:,} allowed.")
    return path

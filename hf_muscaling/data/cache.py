"""The cache folder on disk: where it is, and how a file or folder appears in it whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_muscaling.errors import DataError


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder: the argument, `$HF_MUSCALING_CACHE`, or hf_muscaling in `$XDG_CACHE_HOME` or `~/.cache`.

    Example:
        >>> cache_folder("somewhere").name
        'somewhere'
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if chosen := os.environ.get("HF_MUSCALING_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf_muscaling"


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder of the cache.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise DataError(
            f"the cache folder {path} cannot be written ({error.strerror}); set HF_MUSCALING_CACHE to another"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that another process sees the old content or the new, never a part."""
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` at the end of the block; another process's folder stays."""
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise  # a full disk or a read-only folder, not another process
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that may be in use: it is renamed first, so that no process finds half of it under its name."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        os.rename(path, aside / "old")
    except FileNotFoundError:
        pass  # another process removed it a moment ago: what was wanted
    finally:
        shutil.rmtree(aside, ignore_errors=True)

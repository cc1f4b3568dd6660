"""Output folders: proved writable before hours of compute, and locked so that no two processes train the same run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hf_muscaling.errors import TrainingError


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and prove that files can be written there. Raises TrainingError before hours of compute."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_text("ok", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise TrainingError(
            f"The output folder {folder} cannot be written to ({error.strerror}): choose another one (--output_dir), "
            "or make room and give yourself write permission."
        ) from error
    return folder


@contextmanager
def exclusive(folder: Path, main: bool = True, wait: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock while the block runs, in the main process.

    The lock is the operating system's (flock) on `.lock`: it goes with the process that holds it, however that ends,
    and so is never stale; the file stays. `wait` seconds are granted to a process that is just ending.

    Raises TrainingError if another process holds it, or if the file system has no locks (some cluster file systems
    mounted without them, NFS without its lock service).
    """
    lock = FileLock(folder / ".lock")
    if main:
        try:
            lock.acquire(timeout=wait)
        except Timeout as error:
            raise TrainingError(
                f"Another process is training in {folder}: wait for it, stop it, or choose another output folder."
            ) from error
        except (NotImplementedError, OSError) as error:
            raise TrainingError(
                f"{folder} cannot be locked ({error}), so two commands might train the same run there. Choose an "
                "output folder on a file system with locks (Lustre: mounted with -o flock; NFS: with its lock service)."
            ) from error
    try:
        yield
    finally:
        lock.release()

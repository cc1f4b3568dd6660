"""What the loopback Hub remembers: repositories with their commits, faults to come, requests that were answered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


def git_oid(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    sha: str
    files: dict[str, bytes]
    message: str = ""


@dataclass
class Repo:
    """One repository: its branches' commits, oldest first."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = [self._commit({}, "initial commit", "")]

    def _commit(self, files: dict[str, bytes], message: str, parent: str) -> Commit:
        listing = "".join(f"{path} {git_oid(content)}\n" for path, content in sorted(files.items()))
        return Commit(
            hashlib.sha1(f"{self.kind}{self.id}{parent}{message}{listing}".encode()).hexdigest(), files, message
        )

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> Commit:
        commits = self.branches[branch]
        commits.append(self._commit(files, message, commits[-1].sha))
        return commits[-1]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or an id."""
        revision = revision.removeprefix("refs/heads/")
        if revision in self.branches:
            return self.branches[revision][-1]
        wanted = self.tags.get(revision, revision)
        commits = [c for branch in self.branches.values() for c in branch]
        return next((c for c in commits if len(wanted) >= 7 and c.sha.startswith(wanted)), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1].files


@dataclass
class Fault:
    """What goes wrong with the requests whose "METHOD /path" holds `match`: a status, a wait, or a cut connection.

    `cut` closes the connection after so many bytes of the request's body were read; `wait` answers late.
    `after` does the request's work first, so that only the answer is lost.
    """

    match: str
    status: int = 0
    times: int = 1
    wait: float = 0.0
    cut: int | None = None
    after: bool = False
    code: str = ""
    message: str = ""


@dataclass
class Seen:
    """One request that was answered."""

    method: str
    path: str
    size: int
    status: int
    token: str

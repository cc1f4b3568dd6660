"""A Hub in one process, for the real client: repositories, commits, LFS, cards, collections, and faults on demand.

Only what `huggingface_hub` asks for is here, with the status codes and headers it acts on. Everything is in memory.
A `Fault` is put in front of the requests it matches and used up after `times` of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.card_rules import card_problems, front_matter
from tests.hub.state import Commit, Fault, Repo, Seen, git_oid

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
LFS = ("*.safetensors", "*.parquet", "*.png", "*.bin")
DATE = "2026-01-01T00:00:00.000Z"


class HubServer:
    """The state behind the handler, and the thread that serves it."""

    def __init__(self) -> None:
        self.reset()
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """An empty Hub with two users, of whom `reader` may only read."""
        self.lock = threading.RLock()
        self.users = {
            "hf_loopback_me": ("me", "write"),
            "hf_loopback_reader": ("me", "read"),
            "hf_you": ("you", "write"),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[(kind, name)]

    def create(self, name: str, kind: str = "model", **settings: Any) -> Repo:
        self.repos[(kind, name)] = Repo(kind, name, **settings)
        return self.repos[(kind, name)]

    def fail(self, match: str, status: int = 0, **settings: Any) -> Fault:
        """Put a fault in front of the requests that match."""
        self.faults.append(Fault(match, status, **settings))
        return self.faults[-1]

    def requests(self, *words: str) -> list[Seen]:
        """The requests so far whose "METHOD /path" holds every word."""
        return [s for s in self.seen if all(word in f"{s.method} {s.path}" for word in words)]

    @contextmanager
    def watch(self) -> Iterator[list[Seen]]:
        """The requests made inside the block."""
        start, found = len(self.seen), []
        yield found
        found.extend(self.seen[start:])


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        self.status, self.message, self.code, self.body = status, message, code, body


class _Cut(Exception):
    """The connection is to be closed without an answer."""


class _Handler(BaseHTTPRequestHandler):
    state: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 45 ms a call otherwise
    wbufsize = -1

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        fault, body = self._fault(), b""
        try:
            body = self._body(fault)
            if fault is not None and not fault.after:
                self._strike(fault)
            with self.state.lock:
                status, answer, headers = self._answer(body)
            if fault is not None and fault.after:
                self._strike(fault)
        except _Refusal as refusal:
            status = refusal.status
            answer = {"error": refusal.message, **refusal.body}
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
        except (_Cut, ConnectionError):
            self.close_connection = True
            self.state.seen.append(Seen(self.command, self.route, 0, 0, self.token))
            return
        self._send(status, answer, headers, len(body))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _fault(self) -> Fault | None:
        with self.state.lock:
            for fault in self.state.faults:
                if fault.match in f"{self.command} {self.route}" and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _strike(self, fault: Fault) -> None:
        if fault.wait:
            time.sleep(fault.wait)
        if fault.after and not fault.status:
            raise _Cut
        if fault.status:
            raise _Refusal(fault.status, fault.message or f"injected {fault.status}", fault.code)

    def _body(self, fault: Fault | None) -> bytes:
        if fault is not None and fault.cut is not None:
            self.rfile.read(min(fault.cut, int(self.headers.get("Content-Length") or fault.cut)))
            raise _Cut
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, answer: Any, headers: dict[str, str], received: int) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.state.seen.append(Seen(self.command, self.route, received, status, self.token))
        try:
            self.send_response(status)
            kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
            for name, value in ({"Content-Type": kind, "Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            self.wfile.flush()
        except ConnectionError:
            self.close_connection = True  # the client gave up waiting

    # -- who may do what -----------------------------------------------------------------------------------------------

    def _user(self, needed: bool = False) -> tuple[str, str] | None:
        user = self.state.users.get(self.token)
        if user is None and (self.token or needed):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return user

    def _writer(self, namespace: str) -> str:
        user = self._user(needed=True)
        assert user is not None
        if user != (namespace, "write"):
            raise _Refusal(403, f"You don't have the rights to write under the namespace {namespace!r}")
        return user[0]

    def _repo(self, kind: str, name: str, write: bool = False) -> Repo:
        repo = self.state.repos.get((kind, name))
        user = self._user()
        owner = user is not None and user[0] == name.split("/")[0]
        if repo is None or (repo.private and not owner):
            raise _Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self._writer(name.split("/")[0])
        return repo

    def _commit_at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # -- routes --------------------------------------------------------------------------------------------------------

    def _answer(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for pattern, name in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {self.route}"):
                return getattr(self, name)(body, **match.groupdict())
        raise _Refusal(404, f"The loopback Hub has no {self.command} {self.route}")

    def whoami(self, body: bytes) -> Any:
        user = self._user(needed=True)
        assert user is not None
        return 200, {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": {"role": user[1]}}}, {}

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        user = self._user(needed=True)
        namespace = asked.get("organization") or (user[0] if user else "")
        self._writer(namespace)
        kind, name = asked.get("type") or "model", f"{namespace}/{asked['name']}"
        url = f"{self.state.url}/{'' if kind == 'model' else KINDS[kind] + '/'}{name}"
        if (kind, name) in self.state.repos:
            raise _Refusal(409, "You already created this repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.state.create(name, kind, private=private)
        return 200, {"url": url, "name": name, "private": private}, {}

    def validate(self, body: bytes) -> Any:
        asked = json.loads(body)
        errors, notes = card_problems(asked["content"], asked.get("repoType") or "model")
        answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in notes]}
        return (400 if errors else 200), answer | ({"error": "; ".join(errors)} if errors else {}), {}

    def preupload(self, body: bytes, kind: str, id: str, rev: str) -> Any:
        files = self._commit_at(self._repo(kind[:-1], id, write=True), rev).files
        answers = []
        for entry in json.loads(body)["files"]:
            path = entry["path"]
            large = entry["size"] > 10_000_000 or any(fnmatch(path, pattern) for pattern in LFS)
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in files:
                answer["oid"] = hashlib.sha256(files[path]).hexdigest() if large else git_oid(files[path])
            answers.append(answer)
        return 200, {"files": answers}, {}

    def lfs_batch(self, body: bytes, id: str, kind: str | None = None) -> Any:
        self._repo((kind or "models/")[:-2], id, write=True)
        objects = []
        for entry in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.state.objects:
                answer["actions"] = {"upload": {"href": f"{self.state.url}/storage/{entry['oid']}"}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def storage(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "the content is not what was announced")
        self.state.objects[oid] = body
        return 200, {}, {}

    def commit(self, body: bytes, kind: str, id: str, rev: str) -> Any:
        repo = self._repo(kind[:-1], id, write=True)
        head = self._commit_at(repo, rev)
        files, header = dict(head.files), {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
                if value.get("parentCommit") not in (None, head.sha):
                    raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    raise _Refusal(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = self.state.objects[value["oid"]]
            elif item["key"] in ("deletedFile", "deletedFolder"):
                gone = value["path"]
                files = {p: c for p, c in files.items() if p != gone and not p.startswith(gone.rstrip("/") + "/")}
        if "README.md" in files and (errors := card_problems(files["README.md"].decode(), repo.kind)[0]):
            raise _Refusal(400, "; ".join(errors))
        made = repo.commit(files, header.get("summary", ""), rev)
        return 200, {"commitUrl": f"{self._page(repo)}/commit/{made.sha}", "commitOid": made.sha}, {}

    def _page(self, repo: Repo) -> str:
        return f"{self.state.url}/{'' if repo.kind == 'model' else KINDS[repo.kind] + '/'}{repo.id}"

    def info(self, body: bytes, kind: str, id: str, rev: str = "main") -> Any:
        repo = self._repo(kind[:-1], id)
        commit = self._commit_at(repo, rev)
        card = front_matter(commit.files.get("README.md", b"").decode()) or {}
        siblings = [{"rfilename": p, "size": len(c), "blobId": git_oid(c)} for p, c in sorted(commit.files.items())]
        return 200, {
            "_id": "0", "id": repo.id, "modelId": repo.id, "sha": commit.sha, "private": repo.private,
            "gated": "auto" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0, "createdAt": DATE,
            "lastModified": DATE, "tags": list(card.get("tags") or []), "cardData": card, "siblings": siblings,
            "library_name": card.get("library_name"), "model-index": card.get("model-index"),
        }, {}  # fmt: skip

    def tree(self, body: bytes, kind: str, id: str, rev: str, path: str = "") -> Any:
        files = self._commit_at(self._repo(kind[:-1], id), rev).files
        prefix = f"{path.strip('/')}/" if path else ""
        inside = {p: c for p, c in files.items() if p.startswith(prefix)}
        if prefix and not inside:
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        shown = {p: c for p, c in inside.items() if deep or "/" not in p[len(prefix) :]}
        folders = {prefix + p[len(prefix) :].split("/")[0] for p in inside if "/" in p[len(prefix) :]}
        entries = [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in sorted(folders)]
        return 200, entries + [_entry(p, c) for p, c in sorted(shown.items())], {}

    def paths_info(self, body: bytes, kind: str, id: str, rev: str) -> Any:
        files = self._commit_at(self._repo(kind[:-1], id), rev).files
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
        return 200, [_entry(p, files[p]) for p in asked if p in files], {}

    def refs(self, body: bytes, kind: str, id: str) -> Any:
        repo = self._repo(kind[:-1], id)
        heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1].sha} for b, c in repo.branches.items()]
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": s} for t, s in repo.tags.items()]
        return 200, {"branches": heads, "tags": tags, "converts": []}, {}

    def branch(self, body: bytes, kind: str, id: str, name: str) -> Any:
        repo = self._repo(kind[:-1], id, write=True)
        if name in repo.branches:
            raise _Refusal(409, "Reference already exists")
        start = (json.loads(body) if body else {}).get("startingPoint") or "main"
        repo.branches[name] = [self._commit_at(repo, start)]
        return 200, {}, {}

    def tag(self, body: bytes, kind: str, id: str, rev: str) -> Any:
        repo = self._repo(kind[:-1], id, write=True)
        name = json.loads(body)["tag"]
        if name in repo.tags:
            raise _Refusal(409, "Tag already exists")
        repo.tags[name] = self._commit_at(repo, rev).sha
        return 200, {}, {}

    def resolve(self, body: bytes, id: str, rev: str, path: str, kind: str | None = None) -> Any:
        repo = self._repo((kind or "models/")[:-2], id)
        user = self._user()
        if repo.gated and (user is None or user[0] != id.split("/")[0]):
            raise _Refusal(403 if user else 401, f"Access to {repo.kind} {id} is restricted", "GatedRepo")
        commit = self._commit_at(repo, rev)
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        large = any(fnmatch(path, pattern) for pattern in LFS)
        oid = hashlib.sha256(content).hexdigest() if large else git_oid(content)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            if start >= len(content):
                raise _Refusal(416, "Range not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return 206, content[start : end + 1], headers
        return 200, content, headers

    # -- collections ---------------------------------------------------------------------------------------------------

    def collections(self, body: bytes) -> Any:
        owner = self.query.get("owner", [None])[0]
        return 200, [c for c in self.state.collections.values() if owner in (None, c["owner"])], {}

    def collection_new(self, body: bytes) -> Any:
        asked = json.loads(body)
        self._writer(asked["namespace"])
        words = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
        slug = f"{asked['namespace']}/{words}-{hashlib.sha1(asked['title'].encode()).hexdigest()[:24]}"
        if slug in self.state.collections:
            raise _Refusal(409, "This collection already exists", slug=slug)
        self.state.collections[slug] = {
            "slug": slug, "title": asked["title"], "owner": asked["namespace"], "items": [], "lastUpdated": DATE,
            "position": 0, "private": asked.get("private", False), "theme": "blue", "upvotes": 0,
            "description": asked.get("description"),
        }  # fmt: skip
        return 200, self.state.collections[slug], {}

    def collection(self, body: bytes, slug: str) -> Any:
        if slug not in self.state.collections:
            raise _Refusal(404, "Collection not found")
        return 200, self.state.collections[slug], {}

    def collection_add(self, body: bytes, slug: str) -> Any:
        self._writer(slug.split("/")[0])
        collection, item = self.collection(b"", slug)[1], json.loads(body)["item"]
        if (item["type"], item["id"]) not in self.state.repos:
            raise _Refusal(404, "This item does not exist")
        if any((i["type"], i["id"]) == (item["type"], item["id"]) for i in collection["items"]):
            raise _Refusal(409, "This item is already in the collection")
        position = len(collection["items"])
        collection["items"].append({"_id": f"{position:024x}", **item, "position": position})
        return 200, collection, {}


_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_PAGE = rf"/(?P<kind>datasets/|spaces/)?{_ID}"
_ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST {_API}/preupload/(?P<rev>.+)", "preupload"),
    (rf"POST {_PAGE}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /storage/(?P<oid>\w+)", "storage"),
    (rf"POST {_API}/commit/(?P<rev>.+)", "commit"),
    (rf"GET {_API}", "info"),
    (rf"GET {_API}/revision/(?P<rev>.+)", "info"),
    (rf"GET {_API}/tree/(?P<rev>[^/]+)(?P<path>/.*)?", "tree"),
    (rf"POST {_API}/paths-info/(?P<rev>.+)", "paths_info"),
    (rf"GET {_API}/refs", "refs"),
    (rf"POST {_API}/branch/(?P<name>.+)", "branch"),
    (rf"POST {_API}/tag/(?P<rev>.+)", "tag"),
    (rf"(?:GET|HEAD) {_PAGE}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    (r"GET /api/collections", "collections"),
    (r"POST /api/collections", "collection_new"),
    (r"GET /api/collections/(?P<slug>[\w.-]+/[\w.-]+)", "collection"),
    (r"POST /api/collections/(?P<slug>[\w.-]+/[\w.-]+)/items", "collection_add"),
]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": git_oid(content), "size": len(content)}
    if any(fnmatch(path, pattern) for pattern in LFS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry

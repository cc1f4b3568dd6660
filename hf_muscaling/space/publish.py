"""The page's files, in a folder or as a static Space: index.html, which holds everything, and the data beside it."""

import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any

from hf_muscaling.errors import RecordError
from hf_muscaling.hub import cards, text
from hf_muscaling.hub.client import Pushed, check_repo_id, push_files
from hf_muscaling.space.designs import Design
from hf_muscaling.space.record import space_record
from hf_muscaling.space.sources import Source, read_sources

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("laws.js", "numbers.js", "chart.js", "page.js")


def space_files(
    sources: Any, *, title: str | None = None, designs: list[Design] | None = None, license: str | None = None
) -> dict[str, bytes]:
    """Return a Space as name → content: `index.html` (which needs no other file), `space.json` with the same data,
    the laws, and a card. See `write_space` for the arguments.
    """
    found = read_sources(sources)
    title = text.plain(title or f"{found[0].name}: predicted loss")
    record = space_record(found, title, designs)
    data = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    files = {
        "index.html": _page(title, data).encode(),
        "space.json": data.encode(),
        "README.md": _card(title, found, license).encode(),
    }
    for source, name in zip(found, _file_names(found), strict=True):
        law = text.public_record(json.loads(source.law.to_json()))
        files[name] = (json.dumps(law, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    return files


def write_space(
    sources: Any,
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    designs: list[Design] | None = None,
    license: str | None = None,
) -> Path:
    """Write a page that predicts with the laws and return the path of its index.html, which opens without a server.

    `sources` is a law, a mapping name → law (up to 6, to compare), or paths and repositories: law files, folders of
    `save_pretrained`, or what `muscaling run-series` wrote, from which the models' design and the cost of the runs come
    too. `designs` are the architectures offered, by default the experiment's or Llama's and GPT-2's.

    Raises RecordError for what is no law or a folder that cannot be written, ConfigurationError for a law that a page
    cannot compute, HubError if the Hub refuses.

    >>> import tempfile
    >>> from hf_muscaling import PowerLaw
    >>> runs = {"N": [1e6, 2e6, 4e6, 8e6], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6)]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_space({"small models": PowerLaw().fit(runs)}, folder)
    ...     print(page.name, sorted(p.name for p in page.parent.iterdir()))
    index.html ['README.md', 'index.html', 'laws', 'space.json']
    """
    files = space_files(sources, title=title, designs=designs, license=license)
    root = Path(folder)
    try:
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise RecordError(
            f"Cannot write the page to {text.public(str(folder))!r}: {error.strerror}. Choose another folder."
        ) from error
    return root / "index.html"


def push_space(
    sources: Any,
    repo_id: str,
    *,
    title: str | None = None,
    designs: list[Design] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    license: str | None = None,
) -> Pushed:
    """Publish the page as a static Space, which is free and has no server, and return where it is.

    Arguments as in `write_space`. Raises HubError with the reason and how to continue.
    """
    check_repo_id(repo_id)
    files: dict[str, Any] = dict(space_files(sources, title=title, designs=designs, license=license))
    return push_files(repo_id, files, repo_type="space", private=private, token=token, message="Upload the page")


def _page(title: str, data: str) -> str:
    """Return the page with style, scripts and data inside.

    The data is JSON in a script element that is not run: with `<` written as an escape, no text in it can end the
    element. The policy allows the page's own script and style, by their hashes, and no connection anywhere.
    """
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "title": html.escape(title),
        "policy": policy,
        "style": style,
        "script": script,
        "data": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], page)


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _file_names(sources: list[Source]) -> list[str]:
    """Return a plain file name for each law, whatever it is called."""
    names: list[str] = []
    for source in sources:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name).strip("-")[:60] or "law"
        name = f"laws/{stem}.json"
        names.append(name if name not in names else f"laws/{stem}-{len(names)}.json")
    return names


def _card(title: str, sources: list[Source], license: str | None) -> str:
    """Return the Space's README: front matter that makes it static, and what the page is."""
    import yaml

    models = sorted({source.repo_id for source in sources if source.repo_id})
    front = {
        "title": title, "emoji": "📉", "colorFrom": "blue", "colorTo": "indigo", "sdk": "static", "pinned": False,
        "short_description": "Predicted loss of a model before it is trained", "tags": list(cards.TAGS),
    }  # fmt: skip
    front |= {"license": license} if license else {}
    front |= {"models": models} if models else {}
    body = cards.render(
        "space.md", title=title,
        laws=[{"name": s.name, "equation": s.law.equation_text, "file": f} for s, f in
              zip(sources, _file_names(sources), strict=True)],
    )  # fmt: skip
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n\n{body}"

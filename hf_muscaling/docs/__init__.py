"""The documentation, one Markdown page a concept, installed with the package: `muscaling docs` lists and prints it."""

import re
from importlib.resources import files

from hf_muscaling.errors import ConfigurationError


def pages() -> dict[str, str]:
    """Return the name of every page and its title; the index comes first.

    >>> list(pages())[0]
    'index'
    """
    found = {file.name.removesuffix(".md"): _title(file.read_text(encoding="utf-8"))
             for file in files(__name__).iterdir() if file.name.endswith(".md")}  # fmt: skip
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "index", name))}


def read_page(name: str) -> str:
    """Return the Markdown of a page. Raises ConfigurationError for a name that is none.

    >>> print(read_page("index").splitlines()[0])
    # Documentation
    """
    name = name.removesuffix(".md")
    if name not in pages():
        raise ConfigurationError(f"There is no page {name!r}. Pages: {', '.join(pages())}.")
    return (files(__name__) / f"{name}.md").read_text(encoding="utf-8")


def _title(text: str) -> str:
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    return heading.group(1) if heading else ""

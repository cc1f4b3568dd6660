"""Cards as a reader of Markdown sees them: the tokens of a CommonMark parser with GitHub's tables and raw HTML."""

from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Target:
    target: str
    text: str


def tokens(text: str) -> Iterator[Token]:
    for token in PARSER.parse(text):
        yield token
        yield from token.children or []


def html_of(text: str) -> list[str]:
    """Every piece of raw HTML that a browser would be given."""
    return [token.content for token in tokens(text) if token.type in ("html_block", "html_inline")]


def images(text: str) -> list[Target]:
    return [Target(str(t.attrs["src"]), t.content) for t in tokens(text) if t.type == "image"]


def links(text: str) -> list[Target]:
    return [Target(str(t.attrs["href"]), "") for t in tokens(text) if t.type == "link_open"]


def headings(text: str) -> list[str]:
    found = list(tokens(text))
    return [found[i + 1].content for i, token in enumerate(found) if token.type == "heading_open"]


def tables(text: str) -> list[list[list[str]]]:
    """Each table as rows of cells, the header first."""
    found: list[list[list[str]]] = []
    for token in PARSER.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level > 2:
            found[-1][-1].append(token.content)
    return found


def text_of(text: str) -> str:
    return " ".join(token.content for token in tokens(text) if token.content and token.type in ("text", "code_inline"))

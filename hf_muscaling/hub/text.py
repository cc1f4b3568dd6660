"""What may stand in a card: text of unknown origin as inert Markdown, and no token and no home folder in anything."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_NAME = 120
_TOKEN = re.compile(r"\b(?:hf|api|api_org)_[A-Za-z0-9]{16,}\b|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bsk-[A-Za-z0-9_-]{20,}\b")
_HOME = re.compile(r"(?:/home/[^/\s\"']+|/Users/[^/\s\"']+|/root|[A-Za-z]:\\+Users\\+[^\\\s\"']+)(?=[/\\\s\"',;:]|$)")


def public(text: str) -> str:
    """Return a text without access tokens and with home folders shortened to `~`, which hold a user's name.

    >>> public("/home/alice/data/c4.jsonl")
    '~/data/c4.jsonl'
    >>> public("token hf_abcdefghijklmnopqrstuv")
    'token [removed]'
    """
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=[/\\\s\"',;:]|$)", "~", text)
    return _HOME.sub("~", _TOKEN.sub("[removed]", text))


def public_record(value: Any) -> Any:
    """Return a JSON value with `public` applied to every text in it, keys included."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, Mapping):
        return {public(key) if isinstance(key, str) else key: public_record(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [public_record(item) for item in value]
    return value


def plain(value: object, limit: int = MAX_NAME) -> str:
    """Return one line of printable text, shortened: no line breaks, control or bidirectional characters.

    >>> plain("a\\n---\\nlicense: mit")
    'a --- license: mit'
    """
    text = " ".join(public(str(value)).split())
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def code(value: object, limit: int = MAX_NAME) -> str:
    """Return text of unknown origin as a Markdown code span, where neither HTML nor links nor images mean anything.

    A back-tick, which would end the span, and a bar, which would end a table's cell, become their look-alikes.

    >>> code("[click](javascript:x) <b>`|")
    '`[click](javascript:x) <b>ˋ¦`'
    """
    text = plain(value, limit).strip().replace("`", "ˋ").replace("|", "¦")
    return f"`{text}`" if text else "—"


def label(value: object, limit: int = MAX_NAME) -> str:
    """Return text of unknown origin as it is if it is words and numbers only, else as a code span.

    >>> label("llama, seed 0 (μP)"), label("<img src=x>"), label("see www.example.org")
    ('llama, seed 0 (μP)', '`<img src=x>`', '`see www.example.org`')
    """
    text = plain(value, limit)
    words = re.fullmatch(r"[\w ,.:;()=+%/−…·°-]*", text) and not re.search(r"www\.|://|__|^[\s\d.+=-]", text)
    return text if words and text.strip() else code(text, limit)


def number(value: Any, digits: int = 4) -> str:
    """Return a number for a table: thousands separated when it is a count, significant digits otherwise.

    >>> number(436704), number(3.3270317), number(1.4e11), number(None)
    ('436,704', '3.327', '1.4e+11', '—')
    """
    if value is None or isinstance(value, (str, bool)):
        return "—"
    if float(value).is_integer() and abs(value) < 1e10:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"

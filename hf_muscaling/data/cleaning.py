"""From Python source to text: docstrings become paragraphs of prose, source becomes code without its docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

# Directives whose body is prose; the body of any other (math, plot, code-block, …) goes.
PROSE_DIRECTIVES = {"note", "warning", "tip", "important", "seealso", "caution", "attention", "hint", "admonition"}
# A sentence of English holds some of these; a signature, a table row or a list of names does not.
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "has",
        "have",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "must",
        "no",
        "not",
        "of",
        "on",
        "or",
        "other",
        "same",
        "should",
        "so",
        "such",
        "than",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "use",
        "used",
        "uses",
        "was",
        "when",
        "where",
        "which",
        "will",
        "with",
        "you",
        "your",
    ]
)

# A run of comment lines, or a string; all branches start with a literal, which keeps the search fast.
_TOKEN = re.compile(
    r"\#[^\n]*(?:\n[ \t]*\#[^\n]*)*"
    r'|"""(?:.*?)(?<!\\)"""|"(?:[^"\\\n]|\\.)*"'
    r"|'''(?:.*?)(?<!\\)'''|'(?:[^'\\\n]|\\.)*'",
    re.DOTALL,
)
_COMMENT_MARK = re.compile(r"^[ \t]*#+[:!]?(?: |$)?", re.MULTILINE)
_DIRECTIVE = re.compile(r"^\.\. +([\w:-]+)::\s*(.*)$")
_DOCTEST = re.compile(r"^(>>>|\.\.\.|In \[\d+\]:|Out\[\d+\]:)( |$)")
_RULE = re.compile(r"^([-=~^\"'*+#`_.])\1{2,}$|^=+( +=+)+$|^-+( +-+)+$")
_TABLE = re.compile(r"^[|+]")
_ITEM = re.compile(
    r"^([-*+•] |\d{1,2}[.)] |:\w+[^:]*: |[\w*`, .]{1,60}\([^()]*(\([^()]*\)[^()]*)*\) ?:|[`\w*.]{1,40}: )"
)
_FIELD_HEADER = re.compile(r"^[`*\w., /-]{1,60} ?: [^.]{0,160}$")  # NumPy style: `x : array_like, optional`
_LETTERS = re.compile(r"[A-Za-z .,;']+")
_INLINE = [
    (re.compile(r":[\w:+-]+:`([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    (re.compile(r":[\w:+-]+:`[~!.]?([^`]*)`"), r"\1"),  # :func:`name`
    (re.compile(r"\[`~?([^`\]]*)`\](\([^)]*\))?"), r"\1"),  # [`~Class.method`]
    (re.compile(r"!?\[([^\]\n]+)\]\([^)\s]+\)"), r"\1"),  # [text](address)
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # `text <address>`_
    (re.compile(r"`{1,2}([^`]*)`{1,2}_?"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*])"), r"\1"),
    (re.compile(r" ?\[[\w#*]{1,20}\]_"), ""),  # [1]_
    (re.compile(r"</?\w+[^<>]*>"), ""),
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"^([-*+•]|\d{1,2}[.)])\s+"), ""),
    (re.compile(r"^:(?:param|arg|type|raises?|keyword|ivar|cvar|var)\s+(?:[\w.]+\s+)?(\**\w+):"), r"\1:"),
    (re.compile(r"^:(?:returns?|rtype|yields?):\s*"), ""),
    (re.compile(r"^([\w*, .]{1,40}?) ?\([^()]*(?:\([^()]*\)[^()]*)*\) ?:"), r"\1:"),  # `x (type, *optional*): …`
    (re.compile(r"\s+"), " "),
]


def paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of English prose in a docstring, without markup, doctests, code, tables and headings.

    Example:
        >>> paragraphs("Return the :class:`~x.Width` of the model as a number.\\n\\n>>> width(model)\\n64")
        ['Return the x.Width of the model as a number.']
    """
    joined = (" ".join(lines) for lines in _units(_prose_lines(inspect.cleandoc(docstring))))
    plain = (_plain(text) for text in joined if text.count(" ") >= 5)
    return [text for text in plain if is_prose(text)]


def is_prose(text: str) -> bool:
    """Say whether a paragraph reads as English: six words, mostly letters, and one word in ten a function word."""
    words = re.findall(r"[A-Za-z']+", text)
    if len(words) < 6 or _FIELD_HEADER.match(text) and not text.endswith("."):
        return False
    if sum(map(len, _LETTERS.findall(text))) < 0.85 * len(text):
        return False
    return sum(word in FUNCTION_WORDS for word in text.lower().split()) >= 0.1 * len(words)


def _prose_lines(text: str) -> Iterator[str]:
    """Yield the lines of a docstring; an empty line stands for what was taken out."""
    fenced = doctest = False
    skip_deeper_than: int | None = None  # the indent of a directive or `::`; its body is deeper
    for raw in text.expandtabs(4).splitlines():
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if line.startswith(("```", "~~~")):
            fenced = not fenced
            yield ""
            continue
        if fenced:
            continue
        if not line:
            doctest = False
            yield ""
            continue
        if skip_deeper_than is not None:
            if indent > skip_deeper_than:
                continue
            skip_deeper_than = None
        doctest = doctest or bool(_DOCTEST.match(line))
        if doctest or _RULE.match(line) or _TABLE.match(line):
            yield ""  # also the output below a doctest, up to the next empty line
        elif directive := _DIRECTIVE.match(line):
            yield ""
            if directive[1] in PROSE_DIRECTIVES:
                yield " " * indent + directive[2]
            else:
                skip_deeper_than = indent
        elif line.endswith("::"):
            yield raw.rstrip()[:-1]
            skip_deeper_than = indent
        elif not line.startswith(".. "):  # comments, footnotes and link targets
            yield raw.rstrip()


def _units(lines: Iterator[str]) -> Iterator[list[str]]:
    """Group lines into paragraphs and list items, by empty lines, item marks and hanging indents."""
    unit: list[str] = []
    first = last = 0
    for raw in lines:
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        back = bool(unit) and (indent < first or indent == first < last)  # out of an indent, or from a hanging one
        header = len(unit) == 1 and indent > first and bool(_FIELD_HEADER.match(unit[0]))
        if unit and (not line or back or header or _ITEM.match(line)):
            yield unit
            unit = []
        if line:
            if not unit:
                first = indent
            unit.append(line)
            last = indent
    if unit:
        yield unit


def _plain(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


def documentation(source: str, *, comments: bool = False) -> list[str]:
    """Return a module's triple-quoted strings, and its blocks of comments if asked for, in the order of the file.

    Strings that are no docstrings count too: NumPy and PyTorch attach documentation by calls. They are found by their
    quotes, which takes a tenth of the time of parsing the module.

    Example:
        >>> documentation("def f():\\n    '''Return the width of the model as a number.'''\\n    return 64  # at first")
        ['Return the width of the model as a number.']
    """
    found = []
    for match in _TOKEN.finditer(source):
        text = match[0]
        if text[0] == "#":
            start = source.rfind("\n", 0, match.start()) + 1
            if comments and len(text) > 60 and (start == match.start() or source[start : match.start()].isspace()):
                found.append(_COMMENT_MARK.sub("", text))
        elif len(text) > 40 and text[1] == text[0] == text[2]:
            prefix = source[max(0, match.start() - 2) : match.start()].lower()
            if prefix.endswith(("f", "b", "fr", "br")):
                continue  # templates and bytes
            found.append(text[3:-3] if prefix.endswith("r") else _unescape(text[3:-3]))
    return found


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return text.replace("\\\n", "").replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")


def code_without_docstrings(source: str) -> str:
    """Return the source with its docstrings taken out, so that the domains prose and code share no text.

    Raises:
        SyntaxError: the source is not valid for this Python.
    """
    lines: list[str | None] = list(source.splitlines())
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or not node.body:
            continue
        first = node.body[0]
        if not (
            isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        ):
            continue
        end = first.end_lineno or first.lineno
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        lines[first.lineno - 1 : end] = [None] * (end - first.lineno + 1)
        if alone:
            lines[first.lineno - 1] = " " * first.col_offset + "..."
    kept = "\n".join(line.rstrip() for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n") + "\n"


def top_level_blocks(code: str) -> list[str]:
    """Split code where two empty lines stand: one definition, or one group of statements, each."""
    return [block for block in re.split(r"\n{3,}", code.strip("\n")) if block.strip()]

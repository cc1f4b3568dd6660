"""The API reference, `reference.md`, from signatures and docstrings: `python -m hf_muscaling.docs.reference` writes it.

Signatures are read from the source, so that they look the same under every version of Python and transformers.
"""

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import hf_muscaling

TITLES = {
    "models": "Models",
    "base_shapes": "Base shapes of mup",
    "optim": "Optimizers",
    "checks": "Checks",
    "convert": "Any other model",
    "designs": "Comparing designs",
    "counting": "Counting",
    "planning": "Planning",
    "study": "Search",
    "sweep": "Search",
    "configuration": "Experiments",
    "trainer": "Training",
    "series": "Series",
    "curves": "Loss curves",
    "trajectory": "Loss curves",
    "horizon": "Token horizon and batch size",
    "runs": "Records",
    "laws": "Laws",
    "budget": "Budgets",
    "readers": "Readers",
    "data": "Data",
    "hub": "Sharing",
}
"""The heading over each module's names; a module without one gets its own name."""

INTRODUCTION = """# API reference

Every public name: what it takes and the first paragraph of its docstring. `help(hf_muscaling.NAME)` shows the rest,
with an example that runs. This page is written by `python -m hf_muscaling.docs.reference`.
"""


def reference() -> str:
    """Return the page."""
    sections: dict[str, list[str]] = {}
    for module, names in hf_muscaling._HOME.items():
        area = module.partition(".")[0]
        sections.setdefault(TITLES.get(area, area), []).extend(names)
    parts = [INTRODUCTION]
    for title, listed in sections.items():
        parts += [f"## {title}\n", *(_entry(name) for name in sorted(listed, key=str.lower))]
    return "\n".join(parts)


def _entry(name: str) -> str:
    value = getattr(hf_muscaling, name)
    node = _nodes(inspect.getmodule(value))[value.__name__]
    lines = [f"### `{name}`\n", f"```text\n{_signature(name, node, value)}\n```\n", _first_paragraph(node)]
    if isinstance(node, ast.ClassDef):
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
        told = [f"* `{m.name}`: {_first_paragraph(m)}" for m in methods if ast.get_docstring(m)]
        lines += ["", *told] if told else []
    return "\n".join(lines) + "\n"


@cache
def _nodes(module: ModuleType) -> dict[str, Any]:
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def _signature(name: str, node: Any, value: Any) -> str:
    """Return the call; of a dataclass its fields, of a subclass of transformers' its bases."""
    if isinstance(node, ast.FunctionDef):
        arguments, returns = _arguments(node), f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return _wrapped(name, arguments, returns)
    foreign = [cls for cls in value.__mro__ if cls.__module__.startswith("transformers.")]
    for cls in value.__mro__[: 1 if foreign else None]:
        if cls.__module__.startswith("hf_muscaling."):
            for method in _nodes(inspect.getmodule(cls))[cls.__name__].body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return _wrapped(name, _arguments(method)[1:], "")
    bases = [ast.unparse(base) for base in node.bases]
    fields = [_field(line) for line in node.body if isinstance(line, ast.AnnAssign)]
    fields = [field for field in fields if "ClassVar" not in field]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) and fields:
        return _wrapped(name, [*fields, *([f"…, as {', '.join(bases)}"] if bases else [])], "")
    return f"class {name}({', '.join(bases)})"


def _field(line: ast.AnnAssign) -> str:
    """Return a dataclass's field; of `field(default=…)`, and of a helper that takes the default first, the default."""
    default = line.value
    if isinstance(default, ast.Call):
        named = {keyword.arg: keyword.value for keyword in default.keywords}
        default = named.get("default", default.args[0] if default.args else None)
    told = f"{ast.unparse(line.target)}: {ast.unparse(line.annotation)}"
    return f"{told} = {ast.unparse(default)}" if default else told


def _arguments(function: ast.FunctionDef) -> list[str]:
    """Return the arguments one by one, each with its annotation and default."""
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    found = [_argument(argument, default) for argument, default in zip(positional, defaults, strict=True)]
    if a.vararg:
        found.append("*" + _argument(a.vararg, None))
    elif a.kwonlyargs:
        found.append("*")
    found += [_argument(argument, default) for argument, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    return [*found, *(["**" + _argument(a.kwarg, None)] if a.kwarg else [])]


def _argument(argument: ast.arg, default: Any) -> str:
    text = ast.unparse(argument).replace("'", "")
    return (
        text
        if default is None
        else f"{text} = {ast.unparse(default)}"
        if ":" in text
        else f"{text}={ast.unparse(default)}"
    )


def _wrapped(name: str, arguments: list[str], returns: str) -> str:
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= 110:
        return line
    return f"{name}(\n" + textwrap.indent(",\n".join(arguments), "    ") + f"\n){returns}"


def _first_paragraph(node: Any) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


if __name__ == "__main__":
    path = Path(__file__).with_name("reference.md")
    path.write_text(reference(), encoding="utf-8")
    print(path.name)

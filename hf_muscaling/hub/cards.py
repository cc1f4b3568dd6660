"""Cards from the jinja templates beside this file: front matter by huggingface_hub, values as inert text."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_muscaling.hub import text

LIBRARY = "hf_muscaling"
TAGS = ("scaling-law", "mup", "hf_muscaling")
TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return a template's Markdown. Values are HTML-escaped; those of unknown origin go through the filter `code`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": lambda value: Markup(text.code(value)),  # a code span is inert; escaped, its text would show entities
        "number": text.number,
        "label": lambda value, limit=text.MAX_NAME: Markup(text.label(value, limit)),
        "percent": lambda value: f"{100 * value:+.2f} %",
    }
    return environment.get_template(template).render(**values)


def model_card(
    body: str,
    *,
    name: str,
    library: str,
    results: Sequence[Any],
    tags: Sequence[str] = TAGS,
    datasets: Sequence[str] = (),
    license: str | None = None,
    **further: Any,
) -> str:
    """Return a model repository's card: `results` (EvalResult) become its model-index."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=license,
        library_name=library,
        tags=list(tags),
        datasets=list(datasets) or None,
        model_name=text.plain(name) if results else None,
        eval_results=list(results) or None,
        **further,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def dataset_card(
    body: str, *, name: str, files: Mapping[str, str], tags: Sequence[str] = TAGS, license: str | None = None
) -> str:
    """Return a dataset repository's card: `files` maps a configuration's name to its parquet file for the viewer."""
    from huggingface_hub import DatasetCardData

    configs = [
        {"config_name": config, "data_files": [{"split": "train", "path": path}]} for config, path in files.items()
    ]
    data = DatasetCardData(license=license, pretty_name=text.plain(name), tags=list(tags), configs=configs)
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def png(figure: Any) -> bytes:
    """Return a matplotlib figure as a PNG that is the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def split_reference(reference: str) -> tuple[str, str | None]:
    """Return repository and revision of `repo@revision`.

    >>> split_reference("me/llama-series@0123abc")
    ('me/llama-series', '0123abc')
    """
    repo_id, _, revision = reference.partition("@")
    return repo_id, revision or None


def links(references: Sequence[str], kind: str = "") -> list[dict[str, str]]:
    """Return what a template needs to link to repositories at their revision; `kind` is a page's prefix."""
    from huggingface_hub import constants

    found = []
    for reference in references:
        repo_id, revision = split_reference(reference)
        page = f"{constants.ENDPOINT}/{kind}{repo_id}"
        short = f"{repo_id}@{revision[:7]}" if revision else repo_id  # the address holds the whole revision
        found.append({"reference": reference, "short": short, "url": f"{page}/tree/{revision}" if revision else page})
    return found

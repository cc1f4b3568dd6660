"""A metric of this package as a Space, from where `evaluate.load("user/name")` takes it."""

from pathlib import Path

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.hub import cards
from hf_muscaling.hub.client import Pushed, check_repo_id, push_files
from hf_muscaling.metrics import metric_path


def push_metric(name: str, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> Pushed:
    """Push a metric as a static Space and return where it is; the repository must have the metric's name.

    Raises ConfigurationError for another name, since `evaluate` looks for NAME/NAME.py, and HubError.
    """
    script = Path(metric_path(name)) / f"{name}.py"
    if check_repo_id(repo_id).split("/")[-1] != name:
        raise ConfigurationError(f"{repo_id!r}: evaluate needs the metric's name, 'user/{name}'.")
    source = script.read_bytes()
    purpose = source.decode().split('"""')[1]
    card = (
        f"---\ntitle: {name}\nsdk: static\npinned: false\ntags: [evaluate, metric, {cards.LIBRARY}]\n---\n\n"
        f'# {name}\n\n{purpose}\n\n```python\nimport evaluate\n\nmetric = evaluate.load("{repo_id}")\n'
        "print(metric.description, metric.inputs_description)\n```\n"
    )
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title>\n<h1>{name}</h1>\n'
        f'<p>{purpose}</p>\n<pre>import evaluate\n\nmetric = evaluate.load("{repo_id}")</pre>\n</html>\n'
    )
    files: dict[str, bytes | Path] = {"README.md": card.encode(), "index.html": page.encode(), script.name: source}
    return push_files(
        repo_id, files, repo_type="space", private=private, token=token, message=f"Upload the metric {name}"
    )

"""The Hub's rules for the front matter of cards, as far as they are documented, for the fields that we use."""

from __future__ import annotations

import re
from typing import Any

import yaml


def front_matter(text: str) -> Any:
    match = re.match(r"^---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def card_problems(text: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card's front matter, by the Hub's documented rules for the fields we use."""
    try:
        data = front_matter(text)
    except yaml.YAMLError as error:
        return [f"the front matter is not YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["the front matter must be a mapping"], []
    errors = []
    for key in ("tags", "datasets", "language", "configs", "model-index", "size_categories", "task_categories"):
        if key in data and not isinstance(data[key], (list, str) if key in ("datasets", "language") else list):
            errors.append(f'"{key}" must be an array')
    if any(not isinstance(t, str) or not t.strip() or len(t) > 100 for t in data.get("tags") or []):
        errors.append('"tags" must hold short texts')
    for key in ("library_name", "pipeline_tag", "license", "pretty_name"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for name in data.get("datasets") or []:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
            errors.append(f'"datasets" holds {str(name)[:40]!r}, which is no dataset id')
    for entry in data.get("model-index") or []:
        errors += _index_problems(entry)
    for config in data.get("configs") or []:
        files = config.get("data_files") if isinstance(config, dict) else None
        if not isinstance(config, dict) or "config_name" not in config or not files:
            errors.append('"configs" needs config_name and data_files')
    return errors, []


def _index_problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return ['"model-index[0].name" is required']
    errors = []
    for result in entry.get("results") or []:
        if "type" not in (result.get("task") or {}):
            errors.append('"model-index[0].results[0].task.type" is required')
        if not {"type", "name"} <= set(result.get("dataset") or {}):
            errors.append('"model-index[0].results[0].dataset" needs type and name')
        for metric in result.get("metrics") or [{}]:
            if "type" not in metric or "value" not in metric:
                errors.append('"model-index[0].results[0].metrics" needs type and value')
    return errors if entry.get("results") else ['"model-index[0].results" is required']

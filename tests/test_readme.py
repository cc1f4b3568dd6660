"""What the README lists is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_map_names_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## Map")[1].split("```")[1]
    listed = set(re.findall(r"\b(\w+\.py)\b", tree))
    there = {p.name for p in (ROOT / "hf_muscaling").rglob("*.py")}
    assert listed <= there
    top = {p.name for p in (ROOT / "hf_muscaling").glob("*.py")} - {"__init__.py", "errors.py"}
    assert top <= listed


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.py")), ids=lambda p: p.stem)
def test_recipes_use_the_public_package_only(path):
    source = path.read_text(encoding="utf-8")
    assert not re.findall(r"from hf_muscaling[\w.]* import .*\b_\w+", source)
    recipe, text = path.relative_to(ROOT), (ROOT / "README.md").read_text(encoding="utf-8")
    assert str(recipe) in text or f"`{recipe.parent}/`" in text

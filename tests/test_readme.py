"""What the README shows, runs."""

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_blocks_are_found():
    assert len(BLOCKS) == 5


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_a_python_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "interval" in shown or "PASSED" in shown


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
    assert str(path.relative_to(ROOT)) in (ROOT / "README.md").read_text(encoding="utf-8")

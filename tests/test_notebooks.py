"""The notebooks run from top to bottom; what is committed of them is small, complete and of no particular machine."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.test_docs import wrong_commands

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def executor():
    """Return notebooks/execute.py as a module."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@each_notebook
def test_it_runs(path):
    notebook = executor().execute(path)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_a_failing_cell_is_an_error(tmp_path):
    import nbformat
    from nbclient.exceptions import CellExecutionError

    path = tmp_path / "bad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")]), path)
    with pytest.raises(CellExecutionError, match="AssertionError"):
        executor().execute(path)


@each_notebook
def test_what_is_committed_is_the_result_of_one_run(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run notebooks/execute.py"
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert not [
        out for cell in code for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"
    ]
    assert path.stat().st_size < 300_000
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"/home/|/root/|/tmp/|/Users/|site-packages|\b20\d\d-\d\d-\d\d", text)


@each_notebook
def test_its_links_lead_somewhere_and_its_commands_exist(path):
    import nbformat

    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                assert link.startswith("https://") or (FOLDER / link.partition("#")[0]).exists(), link
            assert wrong_commands(cell.source) == []


def test_the_readme_of_the_folder_lists_every_notebook():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS] == re.findall(r"\]\(([^)]+\.ipynb)\)", text)

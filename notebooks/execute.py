"""Execute the notebooks from top to bottom and keep their outputs, without what differs between two machines.

    python notebooks/execute.py                    # all of them, in place
    python notebooks/execute.py notebooks/03*.ipynb

Each runs in a temporary folder of its own. Needs `pip install -e ".[test]"`.
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
SECONDS = 300


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with fresh outputs; raises CellExecutionError, which shows the cell, if one fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    return notebook


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without times, kernel versions, progress bars and warnings: what a reader of it needs."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}  # fmt: skip
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {}
        if cell.cell_type == "code":
            printed = "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
            shown = [out for out in cell.outputs if out.output_type != "stream"]
            for out in shown:
                out.metadata = {}
                if "image/png" in out.data:
                    out.data["image/png"] = smaller(out.data["image/png"])
            cell.outputs = ([nbformat.v4.new_output("stream", text=printed)] if printed else []) + shown
    return notebook


def smaller(png: str) -> str:
    """Return a base64 PNG in 128 colours, which is enough for a plot."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(paths: list[str]) -> None:
    """Execute the notebooks given, or all, and write them back."""
    for path in [Path(p) for p in paths] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(normalised(execute(path)), path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Execute the example notebooks and keep what they show, but nothing of the machine that they ran on.

    python examples/run.py [NOTEBOOK …]

Without names, all are executed, in about three minutes. Warnings and progress go to nobody: they hold paths and times.
"""

import io
import os
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path, *more: str) -> NotebookNode:
    """Return a notebook with its outputs, executed by a kernel of its own; `more` are cells that are run behind its own.

    Raises `CellExecutionError` where a cell does.
    """
    book = nbformat.read(path, as_version=4)
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in more]
    place = {"metadata": {"path": FOLDER}}
    # What a cell prints comes in as many pieces as its timing makes of it.
    NotebookClient(book, timeout=600, kernel_name="python3", coalesce_streams=True, resources=place).execute()
    return book


def tidied(book: NotebookNode) -> NotebookNode:
    """Take away times, warnings, displays that are empty (of finished progress), and what names the machine."""
    book.metadata = NotebookNode(METADATA)
    for cell in book.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_kept(output)]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _in_few_colours(output.data["image/png"])
    return book


def _in_few_colours(png: str) -> str:
    """Return a picture, in base64, that takes a third of the room and looks the same."""
    small = io.BytesIO()
    Image.open(io.BytesIO(b64decode(png))).quantize(128, Image.Quantize.FASTOCTREE).save(
        small, "PNG", optimize=True
    )
    return b64encode(small.getvalue()).decode()


def _is_kept(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return bool(output.name == "stdout")
    return output.output_type != "display_data" or output.data != {"text/plain": ""}


def main(paths: list[Path]) -> None:
    for path in paths:
        print(path.name, flush=True)
        nbformat.write(tidied(executed(path)), path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads
    main([Path(name) for name in sys.argv[1:]] or NOTEBOOKS)

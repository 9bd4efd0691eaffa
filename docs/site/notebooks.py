"""Makes the notebooks of examples/walkthroughs from their sources, in both languages.

    PRETUNE_DATA=FOLDER python docs/site/notebooks.py [NAME ...]

A source is a Markdown file: code between ```python fences, and prose after `<!-- en -->` or
`<!-- zh -->`. The code is run once, and NAME.en.ipynb and NAME.zh.ipynb get its outputs.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples/walkthroughs"
LANGUAGES = ("en", "zh")
#: Seconds that a cell may take.
PATIENCE = 900

_PART = re.compile(r"^<!-- (en|zh) -->$|^```python$(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """A piece of a source: `kind` is code, en or zh."""

    kind: str
    text: str


def cells_of(source: str) -> list[Cell]:
    """The cells of a source in their order."""
    cells, kind, at = [], "en", 0
    for part in _PART.finditer(source):
        prose = source[at : part.start()].strip()
        if prose:
            cells.append(Cell(kind, prose))
        at = part.end()
        if part[1]:
            kind = part[1]
        else:
            cells.append(Cell("code", part[2].strip()))
    rest = source[at:].strip()
    return [*cells, Cell(kind, rest)] if rest else cells


def sources() -> dict[str, list[Cell]]:
    """The cells of each source by its name."""
    files = sorted(path for path in FOLDER.glob("*.md") if path.stem != "README")
    return {path.stem: cells_of(path.read_text(encoding="utf-8")) for path in files}


def run(cells: list[Cell], folder: Path) -> list[Any]:
    """The outputs of each code cell, run in a folder of their own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; it is shown with its traceback.
    """
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell.text) for cell in cells if cell.kind == "code"]
    settings = {"timeout": PATIENCE, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(book, kernel_name="python3", **settings).execute()
    return [cell.outputs for cell in book.cells]


def notebook(cells: list[Cell], language: str, outputs: list[Any] | None) -> Any:
    """The notebook in a language; without outputs its code cells have none."""
    book, number = nbformat.v4.new_notebook(), 0
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    book.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in cells:
        if cell.kind == language:
            book.cells.append(nbformat.v4.new_markdown_cell(cell.text))
        elif cell.kind == "code":
            code = nbformat.v4.new_code_cell(cell.text)
            if outputs is not None:
                code.outputs = deepcopy(outputs[number])
            number += 1
            book.cells.append(code)
    for place, cell in enumerate(book.cells):
        cell.id = (
            f"cell-{place}"  # not drawn at random: a rebuilt notebook differs where it changed
        )
    return book


def main() -> None:
    """Run the sources that are named, or all, and write their notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    options = parser.parse_args()
    there = sources()
    unknown = sorted(set(options.names) - set(there))
    if unknown:
        sys.exit(f"no such walkthrough: {', '.join(unknown)}; there are: {', '.join(there)}")
    for name in options.names or there:
        with tempfile.TemporaryDirectory() as folder:
            outputs = run(there[name], Path(folder))
        for language in LANGUAGES:
            path = FOLDER / f"{name}.{language}.ipynb"
            nbformat.write(notebook(there[name], language, outputs), path)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()

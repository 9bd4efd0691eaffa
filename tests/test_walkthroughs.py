"""The notebooks of examples/walkthroughs: each runs, and is what its source says."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

from tests.site_tools import site_tool

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/walkthroughs"


TOOL = site_tool("notebooks")
SOURCES = TOOL.sources()


@pytest.mark.parametrize("language", TOOL.LANGUAGES)
@pytest.mark.parametrize("name", SOURCES)
def test_a_notebook_is_what_its_source_says(name: str, language: str) -> None:
    written = nbformat.read(FOLDER / f"{name}.{language}.ipynb", as_version=4)
    fresh = TOOL.notebook(SOURCES[name], language, None)
    texts = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (written, fresh)]
    assert texts[0] == texts[1], f"run: python docs/site/notebooks.py {name}"
    assert any(cell.get("outputs") for cell in written.cells), "outputs are kept"


@pytest.mark.parametrize("name", SOURCES)
def test_both_languages_have_equally_many_paragraphs(name: str) -> None:
    counts = [sum(cell.kind == language for cell in SOURCES[name]) for language in TOOL.LANGUAGES]
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_walkthrough_runs(
    name: str, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_DATA", str(data_folder))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    outputs = TOOL.run(SOURCES[name], tmp_path)
    assert len(outputs) == sum(cell.kind == "code" for cell in SOURCES[name])


def test_prose_is_told_from_code() -> None:
    cells = TOOL.cells_of("<!-- en -->\nOne.\n\n<!-- zh -->\n一。\n\n```python\nx = 1\n```\n")
    parts = [(cell.kind, cell.text) for cell in cells]
    assert parts == [("en", "One."), ("zh", "一。"), ("code", "x = 1")]

"""A notebook in a real kernel: what a person sees below each cell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CELLS = [
    """
import pandas as pd
import pretune
words = ["good", "bad"] * 20
frame = pd.DataFrame({"text": [f"the {w} film <b>x{i}</b>" for i, w in enumerate(words)],
                      "label": words})
""",
    """
run = pretune.train(
    {"task": {"name": "classify", "max_length": 16}, "model": {"from": MODEL},
     "data": {"train": "", "validation": 0.2},
     "train": {"epochs": 3, "batch_size": 4, "log_every": 1, "device": "cpu"}, "output": OUTPUT},
    data=frame,
)
""",
    "run",
    "model = pretune.load(run.folder)\nmodel",
    "answers = model(frame)\nanswers",
    "run.plot()",
    "model.evaluate(frame)",
    "pretune.describe(frame)",
    "pretune.train(3)",
]


@pytest.fixture(scope="module")
def outputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What each cell left below it."""
    import nbformat
    from nbclient import NotebookClient

    place = tmp_path_factory.mktemp("notebook")
    names = {"MODEL": str(tiny_folder), "OUTPUT": str(place / "run")}
    cells = []
    for source in CELLS:
        for name, value in names.items():
            source = source.replace(name, repr(value))
        cells.append(nbformat.v4.new_code_cell(source))
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook, timeout=900, allow_errors=True, resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    return [cell["outputs"] for cell in notebook["cells"]]


def html(output: Any) -> str:
    return str(output["data"]["text/html"])


def test_training_is_one_display_with_a_curve(outputs: list[list[Any]]) -> None:
    assert outputs[0] == []
    (progress,) = outputs[1]
    assert progress["output_type"] == "display_data"
    assert re.search(r"training 24 / 24 .* done", html(progress))
    assert html(progress).count("<polyline") == 2
    assert "accuracy" in html(progress)
    assert "from memory" not in html(progress)  # it is called what it is
    assert "train: 32 from the DataFrame" in html(progress)


@pytest.mark.parametrize("cell", [2, 3, 4, 6, 7])
def test_results_show_themselves_as_tables(outputs: list[list[Any]], cell: int) -> None:
    (result,) = outputs[cell]
    assert "<table>" in html(result)
    assert "<b>" not in html(result)


def test_a_model_is_one_line_in_plain_text(outputs: list[list[Any]]) -> None:
    (result,) = outputs[3]
    assert result["data"]["text/plain"].startswith("<Model ")
    assert "\n" not in result["data"]["text/plain"]


def test_a_chart_is_a_picture(outputs: list[list[Any]]) -> None:
    (picture,) = outputs[5]
    assert "image/png" in picture["data"]


def test_a_mistake_is_a_sentence(outputs: list[list[Any]]) -> None:
    (error,) = outputs[8]
    assert error["output_type"] == "error"
    (line,) = error["traceback"]
    assert line.startswith("DataError: an int is no table with columns")

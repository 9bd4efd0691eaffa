"""The tables of families and tasks in the docs, as `tasks.py` writes them."""

from __future__ import annotations

from pathlib import Path

from tests.parity.tasks import DocsTable


def test_cells_of_other_rows_and_columns_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n| family | task | train | old |\n|---|---|---:|---|\n"
        "| gpt2 | causal_lm | yes | 1 |\n| bert | tag | no | 2 |\nafter\n",
        encoding="utf-8",
    )
    table = DocsTable(("family", "task"), ("train", "serve"))
    line = table.add(("bert", "tag"), {"train": "yes", "serve": "refused: for a reason"})
    assert line == "| bert | tag | yes | refused |"
    table.put(page)
    assert page.read_text(encoding="utf-8") == (
        "before\n| family | task | train | serve |\n|---|---|---:|---:|\n"
        "| bert | tag | yes | refused |\n| gpt2 | causal_lm | yes |  |\nafter\n"
    )

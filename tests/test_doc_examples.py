"""The Python in README.md and in docs/ is what type checkers accept, each block by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What an example shows of pretune's answers, so that it is known to be typed.
REVEALED = """
import pretune
from pathlib import Path

typed = pretune.load("runs/tickets", answers=pretune.ClassPrediction)
answers: list[pretune.ClassPrediction] = typed.predict(["Where is my parcel?"])
reveal_type(typed(["a"])[0])
reveal_type(pretune.predict(typed, "a")[0].label)
reveal_type(pretune.load("minilm"))
"""


def blocks() -> dict[str, str]:
    """The blocks of all pages, by page and number."""
    return {
        f"{page.stem.replace('-', '_')}_{number}": block
        for page in PAGES
        for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), start=1)
    }


@pytest.mark.slow
def test_examples_are_well_typed(tmp_path: Path) -> None:
    examples = blocks()
    assert len(examples) > 15
    for name, block in {**examples, "revealed": REVEALED}.items():
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
    # With the settings and the cache of `make lint`; what others write need have no types.
    untyped = ("import-untyped", "import-not-found", "unused-ignore")
    files = sorted(str(path) for path in tmp_path.glob("*.py"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--follow-imports=silent"),
            *(f"--disable-error-code={code}" for code in untyped),
            *files,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
    )
    told = done.stdout.replace(f"{tmp_path}/", "")
    errors = [line for line in told.splitlines() if ": error:" in line]
    assert errors == [], told
    for kind in (
        'Revealed type is "pretune.tasks.classification.classify.ClassPrediction"',
        'Revealed type is "str"',
        'Revealed type is "pretune.model_object.Model[Any]"',
    ):
        assert kind in told.replace("builtins.", "")

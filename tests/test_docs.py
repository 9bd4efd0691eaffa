"""The docs in English and in Chinese say the same: headings, commands, options, figures, links."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

import pretune
from pretune.cli.app import app

SOURCE = Path(pretune.__file__).parent
ROOT = Path(__file__).parent.parent
ENGLISH = sorted((ROOT / "docs").glob("*.md"))
CHINESE = ROOT / "docs" / "zh-CN"

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(^|\s)#\s.*$")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def code_and_prose(path: Path) -> tuple[list[str], str]:
    """The lines of all code without comments, and what is left of the text."""
    text = path.read_text(encoding="utf-8")
    fenced = "\n".join(FENCE.findall(text)).split("\n")
    prose, indented, after_blank = [], [], True
    for line in FENCE.sub("", text).split("\n"):
        if line.startswith("    ") and after_blank:
            indented.append(line)
        else:
            prose.append(line)
            after_blank = not line.strip()
    code = [COMMENT.sub("", line).rstrip() for line in (*fenced, *indented)]
    return [line for line in code if line], "\n".join(prose)


def headings(prose: str) -> list[int]:
    return [len(line.split(" ")[0]) for line in prose.split("\n") if line.startswith("#")]


def table_figures(prose: str) -> list[Counter[str]]:
    """Of each row of a table the numbers in it."""
    rows = [line for line in prose.split("\n") if line.startswith("|")]
    return [Counter(re.findall(r"\d[\d,.]*\d|\d", row)) for row in rows]


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_both_languages_say_the_same(path: Path) -> None:
    other = CHINESE / path.name
    assert other.is_file(), f"{other} is missing: translate {path.name}"
    (code, prose), (their_code, their_prose) = code_and_prose(path), code_and_prose(other)
    assert their_code == code
    assert headings(their_prose) == headings(prose)
    assert table_figures(their_prose) == table_figures(prose)
    spans = [set(re.findall(r"`([^`\n]+)`", text)) for text in (prose, their_prose)]
    assert spans[0] == spans[1]
    assert f"(zh-CN/{path.name})" in prose
    assert f"(../{path.name})" in their_prose


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "README.zh-CN.md", *ENGLISH, *sorted(CHINESE.glob("*.md"))],
    ids=lambda path: f"{path.parent.name}-{path.stem}" if path.parent == CHINESE else path.stem,
)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, _ in LINK.findall(text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_chinese_docs_are_no_more_than_the_english_ones() -> None:
    assert {path.name for path in CHINESE.glob("*.md")} == {path.name for path in ENGLISH}


#: A stop of the traced sentence: | 3 | `training/run.py` | `train_recipe` | ... |
STOP = re.compile(r"^\| \d+ \| `([\w/]+\.py)` \| `([\w.]+)` \|", re.MULTILINE)
STOPS = STOP.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_the_traced_sentence_has_all_its_stops() -> None:
    assert len(STOPS) >= 25


@pytest.mark.parametrize(("file", "function"), sorted(set(STOPS)))
def test_a_stop_of_the_traced_sentence_exists(file: str, function: str) -> None:
    body = ast.parse((SOURCE / file).read_text(encoding="utf-8")).body
    *classes, last = function.split(".")
    for name in classes:
        (holder,) = (n for n in body if isinstance(n, ast.ClassDef) and n.name == name)
        body = holder.body
    assert last in {n.name for n in body if isinstance(n, ast.FunctionDef)}


def test_the_rooms_of_the_table_are_those_of_the_house() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") : text.index("## The ideas")]
    cells = "\n".join(row.split("|")[1] for row in table.split("\n") if row.startswith("| `"))
    named = set(re.findall(r"`(\w+)(?:/|\.py)`", cells))
    there = {path.stem for path in SOURCE.iterdir() if not path.name.startswith(("_", "."))}
    assert named == there - {"py"}


#: A command in the text, whether or not torchrun starts it; the first word alone names the program.
SPAN_OF_A_COMMAND = re.compile(r"`(?:torchrun [^`\n]* -m )?(pretune [a-z-]+[^`\n]*)`")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_commands_of_the_front_pages_can_be_typed(name: str) -> None:
    code, prose = code_and_prose(ROOT / name)
    lines = [line for line in code if line.startswith("pretune ")]
    typed = [*lines, *SPAN_OF_A_COMMAND.findall(prose)]
    assert len(typed) > 40
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for line in typed:
        words = shlex.split(line.partition(" > ")[0])[1:]
        with group.make_context("pretune", words) as context:
            _, command, rest = group.resolve_command(context, words)
            assert command is not None
            # Wrong options, and too many or too few arguments, are errors here.
            command.make_context(command.name, rest, parent=context).close()

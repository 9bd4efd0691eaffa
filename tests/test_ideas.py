"""The map of ideas leads to code, tests and recipes that there are."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache

import pytest
from typer.testing import CliRunner

from pretune.cli.app import COMMANDS, app
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe, builtin_recipes
from tests.ideas import ROOT, WALKS, Idea, Place, pages, sections

IDEAS = [idea for _, ideas in sections() for idea in ideas]


@cache
def _defined(file: str) -> frozenset[str]:
    """The functions, classes and methods of a file."""
    names = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return frozenset(names)


def _is_there(place: Place) -> bool:
    return not place.name or place.name in _defined(place.file)


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.names["en"])
def test_leads_somewhere(idea: Idea) -> None:
    for place in (*idea.code, idea.test):
        assert (ROOT / place.file).is_file(), place
        assert _is_there(place), place
    assert re.search(r"\d{4}|transformers|log-sum-exp", idea.paper)
    if idea.walk:
        assert (ROOT / WALKS / f"{idea.walk}.md").is_file(), idea.walk
    if not idea.shown.startswith("'"):
        assert idea.shown in builtin_recipes()
        return
    program, command, *words = shlex.split(idea.shown.strip("'"))
    assert program == "pretune"
    assert command in COMMANDS
    if command == "train":
        changes = [word for word in words[1:] if "=" in word]
        given = dict(word.split("=", 1) for word in changes)
        given.pop("model.from", None)  # a folder of the reader's
        if words[0] != "DATA":  # a file of the reader's
            Recipe.load(words[0], {key: yaml12.parse(value, key) for key, value in given.items()})
    options = {word for word in words if word.startswith("--")}
    assert options <= _options(command)


@cache
def _options(command: str) -> frozenset[str]:
    """The long options of a command, as its help lists them."""
    reply = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    return frozenset(re.findall(r"--[a-z][a-z-]+", reply.output))


def test_what_is_not_there_is_noticed() -> None:
    assert not _is_there(Place("src/pretune/models/layers.py", "NoSuchLayer"))
    assert not _is_there(Place("src/pretune/models/layers.py", "RMSNorm.backward"))


def test_pages_are_those_of_the_data() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m tests.ideas"

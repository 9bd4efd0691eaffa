"""The list of mutants fits the code: each can be made, and would be tested."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pretune
from tests.mutants.mutants import MUTANTS, Mutant

SOURCE = Path(pretune.__file__).parent
TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_what_is_broken_is_there_once(mutant: Mutant) -> None:
    text = (SOURCE / mutant.file).read_text(encoding="utf-8")
    broken = mutant.applied(text)
    # A fault that no interpreter accepts would be no test of the tests.
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_tests_that_shall_notice_it_exist(mutant: Mutant) -> None:
    assert mutant.tests
    assert [name for name in mutant.tests if not (TESTS / name).is_file()] == []


def test_every_room_is_broken_somewhere() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms - {mutant.file.partition("/")[0] for mutant in MUTANTS} == set()


def test_names_are_distinct() -> None:
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS) == 55


def test_a_text_that_moved_is_reported() -> None:
    mutant = Mutant("name", "file.py", "old", "new", ())
    with pytest.raises(ValueError, match="occurs 2 times"):
        mutant.applied("old old")

"""Whether a program runs in a notebook, and what errors look like there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pretune.errors import DataError
from pretune.text.notebook import in_kernel


@pytest.mark.parametrize(
    ("shell", "expected"),
    [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)],
)
def test_only_a_kernel_has_a_front_end(
    shell: object, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_kernel() is expected


def test_without_ipython_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_kernel()


def test_an_error_is_a_sentence_that_steers_nothing() -> None:
    (line,) = DataError("train.csv: \x1b[31mred", "Repair it.")._render_traceback_()
    assert line == "DataError: train.csv: \ufffd[31mred\n  Repair it."

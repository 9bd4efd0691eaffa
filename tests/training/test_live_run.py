"""The progress of a run in a notebook."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.render.notebook_views import html_of
from pretune.text import notebook
from pretune.training import live_run
from pretune.training.live_run import MAX_POINTS, LiveRun
from pretune.training.logging import Reporter, Step


class Handle:
    """Stands in for IPython's display: counts what is shown anew and what is replaced."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.updated: list[str] = []

    def display(self, content: Any, *, display_id: bool) -> Handle:
        assert display_id
        self.shown.append(content._repr_html_())
        return self

    def update(self, content: Any) -> None:
        self.updated.append(content._repr_html_())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()
    real = notebook.import_module
    monkeypatch.setattr("pretune.training.logging.in_kernel", lambda: True)
    monkeypatch.setattr(
        notebook, "import_module", lambda n: handle if n == "IPython.display" else real(n)
    )
    return handle


def entry(step: int, loss: float) -> Step:
    return Step(step, step / 10, loss, 1e-3, 1.0, 100.0, {})


def test_a_run_is_one_display(kernel: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_run, "PAUSE", 0.0)
    with Reporter() as reporter:
        reporter.say("<script>alert(1)</script>")
        with reporter.working("reading <train>", 10) as done:
            assert done is not None
            done(5)
        reporter.begin(20)
        for step in range(1, 21):
            reporter.step(entry(step, 3 / step), 20)
        reporter.evaluation(20, 2.0, {"loss": 0.5, "accuracy": 0.75}, 0.1, "")
    assert len(kernel.shown) == 1
    assert len(kernel.updated) > 20
    last = kernel.updated[-1]
    assert "training 20 / 20" in last
    assert "done" in last
    assert "accuracy 0.7500" in last
    assert "<polyline" in last
    assert not any("<script>" in html or "<train>" in html for html in kernel.updated)


def test_it_is_not_updated_all_the_time(kernel: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_run, "PAUSE", 1e9)
    with Reporter() as reporter:
        reporter.begin(1000)
        for step in range(1000):
            reporter.step(entry(step, 1.0), 1000)
    assert (len(kernel.shown), len(kernel.updated)) == (1, 1)  # how it began and how it ended


def test_an_error_is_told(kernel: Handle) -> None:
    reporter = Reporter()
    reporter.begin(10)
    reporter.__exit__(ValueError, ValueError("x"), None)
    assert "stopped" in kernel.updated[-1]


def test_quiet_shows_nothing(kernel: Handle) -> None:
    with Reporter(quiet=True) as reporter:
        reporter.begin(10)
        reporter.step(entry(1, 1.0), 10)
    assert kernel.shown == []


def test_a_long_curve_keeps_its_ends_and_few_points() -> None:
    run = LiveRun("training")
    for step in range(5000):
        run.add_point("training", step, 1.0)
    points = run.curves["training"]
    assert len(points) <= MAX_POINTS
    assert (points[0][0], points[-1][0]) == (0, 4999)


def test_numbers_that_are_not_finite_are_left_out_of_the_curve() -> None:
    run = LiveRun("training", curves={"training": [(1, 1.0), (2, float("nan")), (3, 2.0)]})
    html = html_of(run)
    assert "nan" not in html
    assert "loss 1.0000 to 2.0000" in html
    assert "<svg" not in html_of(LiveRun("training", curves={"training": [(1, 1.0)]}))

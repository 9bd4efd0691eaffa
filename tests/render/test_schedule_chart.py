from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from rich.console import Console

from pretune.errors import RunError
from pretune.experiments.schedule_plan import SchedulePlan
from pretune.recipe.recipe import Recipe
from pretune.render.schedule_chart import DOTS, draw_schedule, line_chart, schedule_view
from tests.render.test_attention_maps import size_of


def plan(updates: int, **train: Any) -> SchedulePlan:
    values = {
        "task": "classify",
        "data": {"train": "nowhere.tsv"},
        "train": {**train, "max_steps": updates},
    }
    return SchedulePlan.of(Recipe.of(values))


def shown(plan: SchedulePlan, *, unicode: bool = True) -> str:
    out = io.StringIO()
    Console(file=out, width=100, highlight=False).print(schedule_view(plan, unicode=unicode))
    return out.getvalue()


class TestPoints:
    def test_by_hand(self) -> None:
        points = plan(
            100,
            schedule="wsd",
            warmup=9,
            decay=0.2,
            floor=0.5,
            learning_rate=1e-3,
            batch_size=64,
            batch_ramp={"start": 4, "updates": 30},
        ).points()
        assert [(p.name, p.update, p.batch) for p in points] == [
            ("start", 1, 4),
            ("end of warm-up", 10, 22),
            ("1/4", 26, 54),
            ("whole batch", 31, 64),
            ("2/4", 51, 64),
            ("3/4", 76, 64),
            ("start of decay", 81, 64),
            ("end", 100, 64),
        ]
        rates = [1e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3 * (1 - 0.5 * 19 / 20)]
        assert [p.learning_rate for p in points] == pytest.approx(rates)

    def test_one_update_is_all_of_them(self) -> None:
        (point,) = plan(1, schedule="wsd").points()
        assert point.name == "start, 1/4, 2/4, 3/4, start of decay, end"
        assert point.update == 1


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """(column, row) of each dot of a chart in Braille, counted from the left and the top."""
    return {
        (2 * x + across, 4 * y + down)
        for y, line in enumerate(lines)
        for x, character in enumerate(line)
        for down, bits in enumerate(DOTS)
        for across, bit in enumerate(bits)
        if (ord(character) - 0x2800) & bit
    }


class TestLineChart:
    def test_ascii(self) -> None:
        assert line_chart([0, 1, 2, 3], 4, 4, unicode=False) == ["   *", "  * ", " *  ", "*   "]
        assert line_chart([5, 0], 2, 4, unicode=False) == ["* ", " *", " *", " *"]

    def test_braille(self) -> None:
        assert line_chart([1, 1, 1, 1], 2, 1) == ["⠉⠉"]
        assert dots(line_chart([0, 1, 2, 3], 2, 1)) == {(0, 3), (1, 2), (2, 1), (3, 0)}

    @given(st.lists(st.floats(0, 1), min_size=2, max_size=60), st.booleans())
    def test_has_no_gaps_and_ends_where_the_values_end(
        self, values: list[float], falling: bool
    ) -> None:
        values = sorted(values, reverse=falling)
        found = dots(line_chart(values, 10, 5))
        rows = [sorted(y for x, y in found if x == column) for column in range(20)]
        top = max(values) or 1.0
        ends = [19 - round(value / top * 19) for value in (values[0], values[-1])]
        assert ends[0] in rows[0]
        assert ends[1] in rows[-1]
        assert all(row == list(range(row[0], row[-1] + 1)) for row in rows)
        for left, right in itertools.pairwise(rows):
            assert right[0] - 1 <= left[-1]
            assert left[0] - 1 <= right[-1]

    def test_all_zero(self) -> None:
        assert line_chart([0.0, 0.0], 2, 2, unicode=False) == ["  ", "**"]


class TestPlanView:
    def test_shows_the_batches_where_they_grow(self) -> None:
        text = shown(plan(50, batch_tokens=1000, batch_ramp={"start": 10}))
        assert text.count("batch (tokens)") == 2, "of the table and of the chart"
        assert shown(plan(50, batch_tokens=1000)).count("batch (tokens)") == 1

    def test_ascii(self) -> None:
        text = shown(plan(50, batch_ramp={"start": 1}), unicode=False)
        charts = text.split("learning rate", 2)[2]
        assert charts.isascii()
        assert "*" in charts


class TestDrawPlan:
    def test_what_is_drawn_are_the_rates_and_the_batches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = []
        real = Axes.plot

        def spy(self: Axes, x: Any, y: Any, **more: Any) -> Any:
            drawn.append((list(x), list(y)))
            return real(self, x, y, **more)

        monkeypatch.setattr(Axes, "plot", spy)
        chosen = plan(4, warmup=1, batch_size=9, batch_ramp={"start": 3, "updates": 2})
        draw_schedule(chosen, tmp_path / "a.png")
        (updates, rates), (same, sizes) = drawn
        assert updates == same == [1, 2, 3, 4]
        assert rates == pytest.approx([2.5e-5, 5e-5, 5e-5 * 2 / 3, 5e-5 / 3])
        assert sizes == [3, 6, 9, 9]

    def test_a_long_run_has_its_corners(self, tmp_path: Path) -> None:
        draw_schedule(plan(10**7, schedule="wsd", warmup=3), tmp_path / "long.png")
        width, height = size_of(tmp_path / "long.png")
        assert width > height > 300

    def test_one_update(self, tmp_path: Path) -> None:
        draw_schedule(plan(1), tmp_path / "one.png")
        size_of(tmp_path / "one.png")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="cannot be written") as caught:
            draw_schedule(plan(5), tmp_path / "no" / "a.png")
        assert "--png" in str(caught.value)

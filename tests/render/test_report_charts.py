"""The curves of a training: which stand together, and what is drawn of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pretune.experiments.history import MetricHistory
from pretune.render import charts
from pretune.render.charts import COLOURS, STANDS_FOR
from pretune.render.report_charts import confusion_chart, frontier_chart, history_chart
from pretune.text.spoken_language import speaking


def history(*entries: dict[str, Any]) -> MetricHistory:
    return MetricHistory.of(json.dumps(entry) for entry in entries)


def evaluated(step: int, **figures: float) -> dict[str, Any]:
    return {"step": step, **{f"validation/{name}": value for name, value in figures.items()}}


PREFERENCES = history(
    evaluated(0, loss=0.7, chosen_log_prob=-9, rejected_log_prob=-10),
    {"step": 1, "train/loss": 0.6, "train/rejected_log_prob": -11},
    evaluated(2, loss=0.5, chosen_log_prob=-12, rejected_log_prob=-20),
)


def test_metrics_that_are_read_beside_each_other_share_a_panel() -> None:
    known = history(evaluated(1, reward=1, kl_k3=2, beta=1, kl=2), {"step": 1, "train/kl_k2": 1})
    assert known.panels == [("reward",), ("kl", "kl_k2", "kl_k3"), ("beta",)]
    assert history(evaluated(1, chosen_reward=1)).panels == [("chosen_reward",)]
    assert sorted(name for names in known.panels for name in names) == sorted(known.names)


def test_that_both_log_probabilities_fall_is_seen_in_one_panel() -> None:
    axes = next(a for a in history_chart(PREFERENCES).axes if "chosen" in a.get_title())
    assert axes.get_title() == "chosen log prob, rejected log prob"
    drawn = {
        (line.get_color(), line.get_linestyle()): [*map(float, line.get_ydata())]  # type: ignore[arg-type]
        for line in axes.lines
    }
    train, validation = COLOURS[:2]
    assert drawn == {
        (train, "--"): [-11],
        (validation, "-"): [-9, -12],
        (validation, "--"): [-10, -20],
    }
    assert [*map(float, axes.lines[-1].get_xdata())] == [0, 2]  # type: ignore[arg-type]
    legend = axes.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["chosen log prob", "rejected log prob"]


TRAINED = history({"step": 1, "train/loss": 2, "train/learning_rate": 1, "validation/f1": 1})


def titles() -> list[tuple[str, str | None]]:
    with speaking("zh"):
        return [(a.get_title(), a.title.get_gid()) for a in history_chart(TRAINED).axes[:3]]


@pytest.mark.parametrize("font", [True, False])
def test_panels_of_the_training_are_named_in_chinese(
    monkeypatch: pytest.MonkeyPatch, *, font: bool
) -> None:
    letters = frozenset(range(0x20, 0x7F)) | (frozenset(map(ord, "学习率")) if font else set())
    monkeypatch.setattr(charts, "_drawable", lambda: letters)
    # A font of this machine draws it, or else the browser: names of metrics stay as they are.
    rate = ("学习率", None) if font else ("learning rate", f"{STANDS_FOR}学习率")
    assert titles() == [("loss", None), ("f1", None), rate]


def test_a_row_without_examples_has_no_shares() -> None:
    axes = confusion_chart(["a", "b"], [[3, 1], [0, 0]]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["75%\n3", "25%\n1", "0", "0"]


def test_the_colours_are_explained_once() -> None:
    figure = history_chart(PREFERENCES)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    colours = [line.get_color() for line in legend.get_lines()]
    assert [*zip(names, colours, strict=True)] == [
        ("training", COLOURS[0]),
        ("validation", COLOURS[1]),
    ]


@pytest.mark.parametrize(("rest", "flat"), [(1e-9, True), (1e-3, False)])
def test_rounding_does_not_fill_a_panel(rest: float, flat: bool) -> None:
    rows = [{"step": n, "train/beta": 0.01 * (1 + rest * (n % 2))} for n in range(4)]
    low, high = history_chart(history(*rows)).axes[0].get_ylim()
    assert (high - low > 1e-3) == flat


def test_many_panels_stand_in_three_columns() -> None:
    for count, columns in ((6, 2), (7, 3)):
        names = {f"m{n}": 1.0 for n in range(count)}
        panels = history_chart(history(evaluated(1, **names))).axes
        assert len({axes.get_position().x0 for axes in panels}) == columns
        assert sum(axes.get_visible() for axes in panels) == count


def test_the_frontier_pairs_figures_of_the_same_evaluation() -> None:
    known = history(
        evaluated(0, reward=0.5, kl=0.0),
        evaluated(2, kl=1.0),
        evaluated(4, reward=0.7, kl=2.0),
        evaluated(6, reward=float("nan"), kl=3.0),
        {"step": 6, "train/reward": 9, "train/kl": 9},
        evaluated(8, reward=0.9, kl=2.5, judge=3.0),
    )
    assert known.frontier("reward") == [(0, 0.0, 0.5), (4, 2.0, 0.7), (8, 2.5, 0.9)]
    assert known.frontier("judge") == [(8, 2.5, 3.0)]
    assert known.frontier("win_rate") == history().frontier("reward") == []
    axes, *_ = frontier_chart(known, ["reward"]).axes
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[0, 0.5], [2, 0.7], [2.5, 0.9]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.texts] == ["before training", "8"]

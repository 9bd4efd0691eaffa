from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.batch_order import DataOrder
from pretune.errors import RunError
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import TrainSection
from pretune.training.schedule import BatchSize, Schedule, planned_updates, updates_of

KINDS = ["linear", "cosine", "constant", "inverse_sqrt", "wsd"]
#: The cosine after 5 and 9 of 20 updates; in degrees.
COS_45, COS_81 = math.cos(math.pi / 4), math.cos(0.45 * math.pi)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    total = draw(st.integers(1, 400))
    warmup, decay = draw(st.integers(0, total)), draw(st.integers(0, total))
    return Schedule("", total, warmup, decay, draw(st.floats(0, 1)))


def factors(schedule: Schedule, count: int | None = None) -> list[float]:
    return [schedule.factor(step) for step in range(count or schedule.total)]


class TestUpdatesOf:
    @pytest.mark.parametrize(
        ("value", "updates"),
        [(0.1, 34), (0.005, 2), (50, 50), (50.0, 50), (1, 1), (500, 345), (0, 0), (0.0, 0)],
    )
    def test_is_a_share_or_a_count(self, value: float, updates: int) -> None:
        assert updates_of(value, 345) == updates


class TestSchedule:
    def test_of_a_recipe(self) -> None:
        options = TrainSection(schedule="wsd", warmup=0.01, decay=50, floor=0.1)
        assert Schedule.of(options, 2000) == Schedule("wsd", 2000, 20, 50, 0.1)

    @pytest.mark.parametrize("kind", KINDS)
    @given(schedule=schedules())
    def test_rises_evenly_to_one_then_never_rises_again(
        self, kind: str, schedule: Schedule
    ) -> None:
        schedule = replace(schedule, kind=kind)
        found = factors(schedule, schedule.total + 5)
        w = schedule.warmup
        assert found[: w + 1] == pytest.approx([(i + 1) / (w + 1) for i in range(w + 1)])
        assert all(a >= b for a, b in itertools.pairwise(found[w:]))
        assert all(schedule.floor - 1e-12 <= f <= 1 for f in found[w:])

    @pytest.mark.parametrize("kind", KINDS)
    @given(schedule=schedules())
    def test_has_no_jumps(self, kind: str, schedule: Schedule) -> None:
        schedule = replace(schedule, kind=kind)
        drop = 1 - schedule.floor
        length = max(1, schedule.total - schedule.warmup)
        decay = max(1, min(schedule.decay, length))
        steepest = {
            "constant": 0.0,
            "linear": drop / length,
            "cosine": drop * math.pi / 2 / length,
            "inverse_sqrt": 1 / (2 * (schedule.warmup + 1)),
            "wsd": drop / decay,
        }[schedule.kind]
        steepest = max(steepest, 1 / (schedule.warmup + 1) if schedule.warmup else 0)
        steps = itertools.pairwise(factors(schedule, schedule.total + 1))
        assert all(abs(a - b) <= steepest + 1e-12 for a, b in steps)

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [  # at updates 0, 3 (the peak), 8, 12, 23 (one past the end), 299
            ("linear", [1 / 4, 1, 0.2 + 0.8 * 15 / 20, 0.2 + 0.8 * 11 / 20, 0.2, 0.2]),
            ("cosine", [1 / 4, 1, 0.6 + 0.4 * COS_45, 0.6 + 0.4 * COS_81, 0.2, 0.2]),
            ("constant", [1 / 4, 1, 1, 1, 1, 1]),
            ("inverse_sqrt", [1 / 4, 1, 2 / 3, 2 / math.sqrt(13), 2 / math.sqrt(24), 0.2]),
            ("wsd", [1 / 4, 1, 1, 1, 0.2, 0.2]),
        ],
    )
    def test_closed_forms(self, kind: str, expected: list[float]) -> None:
        schedule = Schedule(kind, total=23, warmup=3, decay=8, floor=0.2)
        assert [schedule.factor(s) for s in (0, 3, 8, 12, 23, 299)] == pytest.approx(expected)

    def test_the_fall_of_wsd(self) -> None:
        schedule = Schedule("wsd", total=23, warmup=3, decay=8, floor=0.2)
        expected = [1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
        assert factors(schedule)[14:] == pytest.approx(expected)

    def test_wsd_whose_rise_leaves_little_room_falls_in_what_is_left(self) -> None:
        schedule = Schedule("wsd", total=6, warmup=4, decay=5)
        assert factors(schedule, 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.5, 0])

    def test_inverse_sqrt_is_the_formula_of_the_paper(self) -> None:
        """Vaswani et al. 2017, equation 3, by its step_num (from 1) and its warmup_steps."""
        warmup_steps = 40
        schedule = Schedule("inverse_sqrt", total=300, warmup=warmup_steps - 1)
        paper = [min(n**-0.5, n * warmup_steps**-1.5) for n in range(1, 301)]
        assert factors(schedule) == pytest.approx([x / max(paper) for x in paper])

    def test_an_unknown_kind_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="zigzag"):
            Schedule("zigzag", 10).factor(5)


def theirs(make: Any, count: int, **arguments: Any) -> list[float]:
    """What a scheduler of transformers or torch makes of a rate of 1, from its second update on.

    Their rise begins at 0, ours one update later: one more update of warm-up is the same.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(count):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


class TestAgainstOthers:
    W, T = 7, 60

    def test_linear(self) -> None:
        make = transformers.get_linear_schedule_with_warmup
        expected = theirs(make, self.T, num_warmup_steps=self.W + 1, num_training_steps=self.T + 1)
        assert factors(Schedule("linear", self.T, self.W)) == pytest.approx(expected)

    def test_cosine(self) -> None:
        make = transformers.get_cosine_schedule_with_warmup
        expected = theirs(make, self.T, num_warmup_steps=self.W + 1, num_training_steps=self.T + 1)
        assert factors(Schedule("cosine", self.T, self.W)) == pytest.approx(expected)

    def test_constant(self) -> None:
        make = transformers.get_constant_schedule_with_warmup
        expected = theirs(make, self.T, num_warmup_steps=self.W + 1)
        assert factors(Schedule("constant", self.T, self.W)) == pytest.approx(expected)

    def test_inverse_sqrt(self) -> None:
        make = transformers.get_inverse_sqrt_schedule
        expected = theirs(make, self.T, num_warmup_steps=self.W + 1)
        assert factors(Schedule("inverse_sqrt", self.T, self.W)) == pytest.approx(expected)

    @pytest.mark.parametrize("floor", [0.0, 0.1])
    def test_wsd(self, floor: float) -> None:
        expected = theirs(
            transformers.get_wsd_schedule,
            self.T,
            num_warmup_steps=self.W + 1,
            num_decay_steps=20,
            num_training_steps=self.T + 1,
            decay_type="linear",
            min_lr_ratio=floor,
        )
        found = factors(Schedule("wsd", self.T, self.W, decay=20, floor=floor))
        start = self.W if floor else 0  # theirs rises from the floor, ours from 0
        assert found[start:] == pytest.approx(expected[start:])

    def test_cosine_with_a_floor(self) -> None:
        make = torch.optim.lr_scheduler.CosineAnnealingLR
        expected = theirs(make, self.T, T_max=self.T, eta_min=0.1)
        found = factors(Schedule("cosine", self.T, 0, floor=0.1), self.T + 1)
        assert found[1:] == pytest.approx(expected)


class TestBatchSize:
    def test_of_a_recipe(self) -> None:
        assert BatchSize.of(TrainSection(batch_size=8), 100) == BatchSize(8, 8)
        ramp = {"start": 512, "updates": 0.2}
        options = TrainSection(batch_tokens=4096, batch_ramp=ramp)
        assert BatchSize.of(options, 100) == BatchSize(4096, 512, 20)

    def test_by_hand(self) -> None:
        sizes = BatchSize(whole=10, start=4, updates=4)
        assert [sizes.at(step) for step in range(6)] == [4, 5, 7, 8, 10, 10]

    def test_without_a_ramp_it_is_whole_from_the_start(self) -> None:
        assert [BatchSize(32, 32).at(step) for step in (0, 1, 99)] == [32, 32, 32]

    @given(st.integers(1, 99), st.integers(0, 900), st.integers(1, 300))
    def test_grows_evenly(self, start: int, more: int, updates: int) -> None:
        sizes = BatchSize(start + more, start, updates)
        line = np.linspace(start, start + more, updates + 1)
        found = np.array([sizes.at(step) for step in range(updates + 1)])
        assert (found <= line + 1e-6).all()
        assert (found > line - 1 - 1e-6).all()
        assert sizes.at(0) == start
        assert sizes.at(updates) == start + more


@pytest.mark.parametrize("batch", [{"batch_tokens": 8}, {"batch_ramp": {"start": 1}}])
def test_more_epochs_than_can_be_counted_are_refused(batch: dict[str, Any]) -> None:
    options = TrainSection.model_validate({"epochs": 10**8, **batch})
    with pytest.raises(RunError, match=r"train\.epochs: .*too many to count"):
        planned_updates(DataOrder(np.ones(10, dtype=np.int64), seed=0), options)
    total, _ = planned_updates(
        DataOrder(np.ones(10, dtype=np.int64), seed=0),
        options.model_copy(update={"max_steps": 7}),
    )
    assert total == 7


def test_the_recipe_of_the_docs_is_that_of_gpt3() -> None:
    """Brown et al. 2020, appendix B and the first row of table 2.1."""
    text = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    block = text.partition("## A recipe for pre-training")[2].split("```yaml\n")[1]
    options = Recipe.of(yaml12.parse(block.split("```")[0], "docs")).train
    assert (options.beta1, options.beta2, options.eps) == (0.9, 0.95, 1e-8)
    assert (options.weight_decay, options.clip) == (0.1, 1.0)
    assert options.learning_rate == 6e-4
    assert options.max_steps is not None
    schedule = Schedule.of(options, options.max_steps)
    assert 0.001 <= schedule.warmup / schedule.total <= 0.005
    assert schedule.factor(schedule.warmup) == 1
    assert schedule.factor(schedule.total) == pytest.approx(0.1)
    sizes = BatchSize.of(options, options.max_steps)
    assert sizes.at(0) == 2**15
    assert sizes.at(schedule.total) == 2**19

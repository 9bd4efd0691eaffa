from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretune.bundle.bundle import load
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.data.batch_order import Cursor
from pretune.errors import RunError
from pretune.recipe.schema import TrainSection
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.base import Loss
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize
from pretune.training import loop
from pretune.training.data import read_data
from pretune.training.distributed import World
from pretune.training.logging import Reporter
from pretune.training.loop import (
    Trainer,
    check_batches_stay_whole,
    check_nothing_is_written,
)
from pretune.training.state import TrainingState, seed_everything
from pretune.training.stop import Stopped
from pretune.training.validation import Evaluation


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, float, dict[str, float]]] = []

    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        self.entries.append((step, epoch, dict(figures)))

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class Memory:
    """A store that records what it is given."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, bool]] = []

    def save(self, step: int, state: TrainingState, *, best: bool) -> None:
        self.saved.append((step, best))

    def newest(self, at_most: int | None = None) -> None:
        return None


def epoch_rows(trainer: Trainer, epoch: int) -> list[list[int]]:
    """The features of each batch of an epoch."""
    at, found = Cursor(epoch), []
    while at.epoch == epoch:
        which, at = trainer.order.take(at, trainer.sizes.whole)
        found.append(which.tolist())
    return found


@pytest.fixture
def make_trainer(toy_recipe: Callable[..., Any]) -> Callable[..., Trainer]:
    def make(
        *, validation: bool = True, task: Classify | None = None, more: Any = None, **options: Any
    ) -> Trainer:
        recipe = toy_recipe()
        records, held_out = read_data(recipe)
        assert held_out is not None
        task = task or Classify(recipe.task)
        task.fit(records)
        seed_everything(0)
        bundle = load(recipe.model.source, task=task)
        values = {**recipe.train.model_dump(), **options}
        if "batch_tokens" in options:
            values["batch_size"] = None
        return Trainer(
            task,
            bundle.model,
            featurize(task, records, bundle.tokenizer),
            featurize(task, held_out, bundle.tokenizer) if validation else None,
            options=TrainSection.model_validate(values),
            **(more or {}),
        )

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in trainer.model.state_dict().items()}


def test_learns(make_trainer: Callable[..., Trainer]) -> None:
    history = make_trainer(epochs=10, learning_rate=5e-3).fit()
    assert history.best is not None
    assert history.best.metrics["accuracy"] == 1.0
    assert history.steps == 10 * 6
    assert history.examples == 10 * 48


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_gives_the_update_of_the_whole_batch(
    make_trainer: Callable[..., Trainer], parts: int
) -> None:
    """Parts of uneven length and size: the mean of means would be another update.

    The gradient of a key's bias is 0 (it shifts all scores of a query alike); with AdamW's usual
    eps the rounding noise there would be blown up to the size of the learning rate.
    """
    whole = make_trainer(max_steps=3, batch_size=7, eps=1e-3)
    whole.fit()
    split = make_trainer(max_steps=3, batch_size=7, eps=1e-3, accumulate=parts)
    split.fit()
    for name, expected in weights(whole).items():
        assert torch.allclose(weights(split)[name], expected, atol=2e-6), name


def test_an_update_is_the_mean_over_all_sequences(make_trainer: Callable[..., Trainer]) -> None:
    """Against autograd on the mean loss and torch's own clipping and AdamW."""
    trainer = make_trainer(max_steps=1, batch_size=5, accumulate=2, warmup=0, clip=0.1, eps=1e-3)
    reference = make_trainer(max_steps=1)
    model = reference.model.train()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # as the optimizer of a trainer asks for
    batch = trainer.train.batch(np.array(epoch_rows(trainer, 0)[0]))
    logits = model(batch)
    nn.functional.cross_entropy(logits, batch.targets["label"]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-3, eps=1e-3).step()
    trainer.fit()
    for name, expected in model.state_dict().items():
        assert torch.allclose(weights(trainer)[name], expected, atol=3e-6), name


def test_the_same_seed_gives_the_same_bits(make_trainer: Callable[..., Trainer]) -> None:
    one, two = make_trainer(), make_trainer()
    one.fit()
    two.fit()
    for name, expected in weights(one).items():
        assert torch.equal(weights(two)[name], expected), name


def test_another_seed_gives_another_order(make_trainer: Callable[..., Trainer]) -> None:
    one, two = make_trainer(), make_trainer(more={"seed": 1})
    assert epoch_rows(one, 0)[0] != epoch_rows(two, 0)[0]


def test_epochs_have_other_orders_and_each_example_once(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    orders = [[i for rows in epoch_rows(trainer, epoch) for i in rows] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(48))


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"epochs": 2, "batch_size": 8}, 12),
        ({"epochs": 0.5, "batch_size": 8}, 3),
        ({"epochs": 1.5, "batch_size": 8}, 9),
        ({"epochs": 0.01, "batch_size": 8}, 1),
        ({"max_steps": 5}, 5),
        ({"max_steps": 50, "batch_size": 48}, 50),
    ],
)
def test_how_many_updates_there_are(
    make_trainer: Callable[..., Trainer], options: dict[str, Any], total: int
) -> None:
    trainer = make_trainer(validation=False, **options)
    assert trainer.total == total
    assert trainer.fit().steps == total


def test_a_token_budget_counts_the_batches_of_each_epoch(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(validation=False, epochs=3, batch_tokens=40)
    counts = [len(epoch_rows(trainer, epoch)) for epoch in range(3)]
    assert trainer.total == sum(counts)
    history = trainer.fit()
    assert history.steps == sum(counts)
    assert history.examples == 3 * 48
    assert trainer.epoch == 3.0


class TestEvaluation:
    def test_after_each_epoch(self, make_trainer: Callable[..., Trainer]) -> None:
        history = make_trainer(epochs=3).fit()
        assert [step for step, _, _ in history.evaluations] == [6, 12, 18]

    def test_every_so_many_updates_and_at_the_end(
        self, make_trainer: Callable[..., Trainer]
    ) -> None:
        history = make_trainer(max_steps=7, eval_every=3).fit()
        assert [step for step, _, _ in history.evaluations] == [3, 6, 7]

    def test_before_the_first_update_if_asked(self, make_trainer: Callable[..., Trainer]) -> None:
        memory = Memory()
        history = make_trainer(max_steps=7, eval_at_start=True, more={"store": memory}).fit()
        assert [step for step, _, _ in history.evaluations] == [0, 6, 7]
        assert memory.saved[0] == (0, True)

    @pytest.mark.parametrize("validation", [True, False])
    def test_without_updates_the_start_is_saved(
        self, make_trainer: Callable[..., Trainer], validation: bool
    ) -> None:
        memory = Memory()
        trainer = make_trainer(max_steps=0, validation=validation, more={"store": memory})
        before = {name: weight.clone() for name, weight in weights(trainer).items()}
        history = trainer.fit()
        assert [step for step, _, _ in history.evaluations] == [0] * validation
        assert memory.saved == [(0, validation)]
        assert all(torch.equal(weights(trainer)[name], old) for name, old in before.items())

    def test_saves_each_time_and_says_which_is_best(
        self, make_trainer: Callable[..., Trainer]
    ) -> None:
        memory = Memory()
        history = make_trainer(epochs=4, more={"store": memory}).fit()
        saved = memory.saved
        assert [step for step, _ in saved] == [6, 12, 18, 24]
        assert max(step for step, best in saved if best) == history.best_step
        accuracies = {step: metrics["accuracy"] for step, _, metrics in history.evaluations}
        assert accuracies[history.best_step or 0] == max(accuracies.values())

    def test_the_lowest_loss_is_best_if_asked(self, make_trainer: Callable[..., Trainer]) -> None:
        history = make_trainer(epochs=4, best="loss").fit()
        losses = {step: metrics["loss"] for step, _, metrics in history.evaluations}
        assert losses[history.best_step or 0] == min(losses.values())

    def test_a_value_that_is_no_number_is_never_the_best(
        self, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """First NaN, then numbers, then NaN again."""
        history = self._with_losses([math.nan, 3.0, 2.0, math.nan, 2.5], make_trainer, monkeypatch)
        assert history.best_step == 18
        assert history.best.metrics["loss"] == 2.0

    def test_where_no_value_is_a_number_the_first_stays(
        self, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self._with_losses([math.nan] * 3, make_trainer, monkeypatch).best_step == 6

    def _with_losses(self, losses: list[float], make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        left, real = iter(losses), loop.evaluate_features

        def told(*given: Any, **options: Any) -> Any:
            found = real(*given, **options)
            found.metrics["loss"] = next(left)
            return found

        monkeypatch.setattr(loop, "evaluate_features", told)
        return make(epochs=len(losses), best="loss").fit()

    @pytest.mark.parametrize(
        ("figures", "step"),
        [
            ([(1.0, 2.0), (1.0, 0.1)], 2),  # as many right answers, surer ones
            ([(1.0, 0.1), (1.0, 2.0)], 1),
            ([(1.0, 0.1), (1.0, 0.1)], 1),
            ([(1.0, 2.0), (0.5, 0.1)], 1),
            ([(0.5, 0.1), (1.0, 2.0)], 2),
        ],
    )
    def test_of_equals_the_surer_one_is_the_best(
        self,
        figures: list[tuple[float, float]],
        step: int,
        make_trainer: Callable[..., Trainer],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        results = iter(figures)

        def evaluated(*given: Any, **options: Any) -> Evaluation:
            accuracy, loss = next(results)
            return Evaluation({"accuracy": accuracy, "loss": loss}, 1, 0.0)

        monkeypatch.setattr(loop, "evaluate_features", evaluated)
        history = make_trainer(max_steps=2, eval_every=1, best="accuracy").fit()
        assert history.best_step == step

    def test_an_unknown_metric_is_refused_before_training(
        self, make_trainer: Callable[..., Trainer]
    ) -> None:
        with pytest.raises(RunError, match="Did you mean 'accuracy'"):
            make_trainer(best="acuracy")

    def test_without_validation_the_last_is_saved(
        self, make_trainer: Callable[..., Trainer]
    ) -> None:
        memory = Memory()
        make_trainer(validation=False, max_steps=4, more={"store": memory}).fit()
        assert memory.saved[-1] == (4, False)

    def test_does_not_disturb_the_training(self, make_trainer: Callable[..., Trainer]) -> None:
        one, two = make_trainer(eval_every=1), make_trainer(eval_every="epoch")
        one.fit()
        two.fit()
        for name, expected in weights(two).items():
            assert torch.equal(weights(one)[name], expected), name


class TestPatience:
    def test_ends_when_nothing_gets_better(self, make_trainer: Callable[..., Trainer]) -> None:
        memory = Memory()
        history = make_trainer(
            epochs=10, patience=2, learning_rate=1e-12, best="accuracy", more={"store": memory}
        ).fit()
        assert history.early
        assert [step for step, _, _ in history.evaluations] == [6, 12, 18]
        assert history.best_step == 6
        assert memory.saved[-1] == (18, False)

    def test_starts_anew_with_each_best(self, make_trainer: Callable[..., Trainer]) -> None:
        """The loss falls all the time: patience never runs out."""
        history = make_trainer(epochs=6, patience=1, learning_rate=1e-4, best="loss").fit()
        assert not history.early
        assert history.steps == 36


def test_a_growing_batch_grows(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = FeatureSet.batch

    def noting(self: FeatureSet, which: Any, *, sort: bool = True) -> PackedBatch:
        sizes.append(len(which))
        return original(self, which, sort=sort)

    trainer = make_trainer(
        validation=False, max_steps=8, batch_size=8, batch_ramp={"start": 2, "updates": 6}
    )
    monkeypatch.setattr(FeatureSet, "batch", noting)
    trainer.fit()
    assert sizes == [2, 3, 4, 5, 6, 7, 8, 8]


def test_a_growing_batch_is_split_into_fewer_parts(make_trainer: Callable[..., Trainer]) -> None:
    """Parts are as large as the whole batch's, so that a small batch is not cut to crumbs."""
    trainer = make_trainer(
        validation=False,
        max_steps=4,
        batch_size=8,
        accumulate=4,
        batch_ramp={"start": 2, "updates": 4},
    )
    parts = []
    original = trainer.gradients

    def counting(batch: Any) -> Any:
        parts.append(len(batch.micro_batches))
        return original(batch)

    trainer.gradients = counting  # type: ignore[method-assign]
    trainer.fit()
    assert parts == [1, 2, 3, 3]


class _Diverging(Classify):
    """Its loss turns into NaN in the third batch."""

    calls = 0

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        found = super().loss(outputs, batch)
        self.calls += 1
        return Loss(found.sum * (float("nan") if self.calls == 3 else 1.0), found.count)


def test_a_loss_that_is_not_finite_stops_before_the_update(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(
        validation=False, task=_Diverging(ClassifyOptions(max_length=16)), max_steps=5
    )
    with pytest.raises(RunError, match=r"the loss is nan in update 3 of 5.*not applied") as caught:
        trainer.fit()
    assert "train.learning_rate" in str(caught.value)
    assert trainer.history.steps == 2
    assert all(bool(w.isfinite().all()) for w in weights(trainer).values())


class _Speechless(Classify):
    """Nothing in the third batch counts."""

    calls = 0

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        found = super().loss(outputs, batch)
        self.calls += 1
        return Loss(found.sum * 0.0, 0) if self.calls == 3 else found


def test_an_update_of_nothing_that_counts_changes_nothing(
    make_trainer: Callable[..., Trainer],
) -> None:
    recorder, changed = Recorder(), []
    task = _Speechless(ClassifyOptions(max_length=16))
    trainer = make_trainer(
        validation=False,
        task=task,
        max_steps=5,
        log_every=1,
        ema=0.5,
        more={"reporter": Reporter((recorder,), quiet=True)},
    )
    make, before = trainer._update, [weights(trainer)]

    def watched(batch: Any) -> Any:
        trouble = make(batch)
        after = weights(trainer)
        changed.append(any(not torch.equal(w, before[0][name]) for name, w in after.items()))
        before[0] = after
        return trouble

    trainer._update = watched  # type: ignore[method-assign]
    trainer.fit()
    assert trainer.history.steps == 5
    assert changed == [True, True, False, True, True]
    assert [step for step, _, _ in recorder.entries] == [1, 2, 4, 5]
    for _, _, figures in recorder.entries:
        assert all(map(math.isfinite, figures.values()))


def test_a_request_to_stop_saves_and_leaves(make_trainer: Callable[..., Trainer]) -> None:
    memory = Memory()
    asked = iter([False, False, True])
    more = {"store": memory, "should_stop": lambda: next(asked)}
    with pytest.raises(Stopped) as caught:
        make_trainer(more=more).fit()
    assert caught.value.step == 3
    assert memory.saved == [(3, False)]


def test_nothing_to_train_on_is_an_error(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    with pytest.raises(RunError, match="nothing to train on"):
        Trainer(trainer.task, trainer.model, FeatureSet.of([]), options=trainer.options)


def test_the_log_has_means_and_rates(make_trainer: Callable[..., Trainer]) -> None:
    recorder = Recorder()
    trainer = make_trainer(
        validation=False,
        max_steps=5,
        log_every=2,
        warmup=0,
        learning_rate=1e-12,
        more={"reporter": Reporter((recorder,), quiet=True)},
    )
    trainer.fit()
    assert [step for step, _, _ in recorder.entries] == [2, 4, 5]
    # The rate is so small that the loss of a step is that of the model as it was.
    _, epoch, figures = recorder.entries[0]
    rows = [i for rows in epoch_rows(trainer, 0)[:2] for i in rows]
    batch = trainer.train.batch(torch.tensor(rows).numpy())
    with torch.no_grad():
        loss = nn.functional.cross_entropy(trainer.model(batch), batch.targets["label"])
    assert figures["train/loss"] == pytest.approx(float(loss), abs=1e-5)
    assert figures["train/learning_rate"] == pytest.approx(1e-12 * 4 / 5)
    assert epoch == pytest.approx(2 / 6)


def test_tokens_per_second_by_a_clock_that_is_known(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every update takes a quarter of a second; the tokens are those of its examples."""
    recorder, ticks = Recorder(), itertools.count(step=0.25)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    trainer = make_trainer(
        validation=False,
        max_steps=5,
        log_every=3,
        more={"reporter": Reporter((recorder,), quiet=True)},
    )
    trainer.fit()
    tokens = [int(trainer.train.lengths[rows].sum()) for rows in epoch_rows(trainer, 0)]
    assert [figures["train/tokens_per_second"] for _, _, figures in recorder.entries] == [
        sum(tokens[:3]) / 0.75,
        sum(tokens[3:5]) / 0.5,
    ]
    assert len(set(tokens[:5])) > 1
    assert trainer.history.tokens == sum(tokens[:5])


def test_bf16_on_the_cpu_learns_too(make_trainer: Callable[..., Trainer]) -> None:
    history = make_trainer(epochs=10, learning_rate=5e-3, precision="bf16").fit()
    assert history.best is not None
    assert history.best.metrics["accuracy"] > 0.9


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_trains_on_cuda(toy_recipe: Callable[..., Any], tmp_path: Path) -> None:
    from pretune.training.run import train_recipe

    result = train_recipe(
        toy_recipe(train__device="cuda", train__epochs=10, train__learning_rate=5e-3), quiet=True
    )
    assert result.metrics["accuracy"] > 0.9


def test_a_shard_of_a_model_writes_nothing() -> None:
    """Each process would wait for the others at another token."""
    check_nothing_is_written(Dpo(DpoOptions(samples=0)))
    with pytest.raises(RunError, match="whole of the model") as error:
        check_nothing_is_written(Dpo(DpoOptions()))
    assert "task.samples=0" in (error.value.hint or "")


def test_a_batch_stays_whole_where_its_loss_is_no_sum() -> None:
    alone, several = World(), World(rank=0, size=2)
    kto, pairs = Dpo(DpoOptions(loss="kto")), Dpo(DpoOptions())
    check_batches_stay_whole(kto, TrainSection(), alone)
    check_batches_stay_whole(pairs, TrainSection(accumulate=2), several)
    with pytest.raises(RunError, match="2 processes: the loss of dpo compares"):
        check_batches_stay_whole(kto, TrainSection(), several)

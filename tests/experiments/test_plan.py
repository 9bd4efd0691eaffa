from __future__ import annotations

import io
import itertools
import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pretune.bundle.bundle import outline
from pretune.errors import DataError, RunError
from pretune.experiments import plan as planning
from pretune.experiments.plan import RunPlan, plan_run
from pretune.experiments.schedule_plan import SchedulePlan
from pretune.inspection.inspect import inspect_model
from pretune.recipe.recipe import Recipe
from pretune.render.experiment_views import plan_view
from pretune.tokenizers.load import load_tokenizer
from pretune.training.run import train_recipe
from pretune.training.run_result import RunResult
from tests.tasks.alignment.preferences import recipe, saved

Make = Callable[..., Recipe]
#: tests/conftest.py's tiny BERT.
HIDDEN, INNER, LAYERS = 32, 64, 2
FILES = {"train": "train.tsv", "validation": "dev.tsv"}


@pytest.fixture
def make(tiny_folder: Path, tmp_path: Path) -> Make:
    def recipe(**changes: Any) -> Recipe:
        rows = [f"{'the ' * (i % 7)}film\t{'ab'[i % 2]}" for i in range(50)]
        (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
        values = {
            "task": {"name": "classify", "max_length": 16},
            "model": {"from": str(tiny_folder)},
            "data": {"train": str(tmp_path / "a.tsv"), "validation": 0.2},
            "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
        return Recipe.of(values).changed(
            {key.replace("__", "."): value for key, value in changes.items()}
        )

    return recipe


@contextmanager
def little_memory(gibibytes: int) -> Iterator[None]:
    """Context in which this process may take only so much more address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + gibibytes * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_model_that_this_machine_cannot_hold(make: Make, tiny_folder: Path) -> None:
    task = {"name": "causal_lm", "max_length": 16}
    sizes = {"from": "mistral-7b", "tokenizer": str(tiny_folder)}
    large = make(task=task, model=sizes, train__batch_size=1, train__epochs=1)
    with little_memory(4):
        plan = plan_run(large, measure=False)
        updates = SchedulePlan.of(large).schedule.total
    # transformers counts 7,241,732,096 with 32,000 rows in each of both tables.
    vocabulary = load_tokenizer(tiny_folder).vocab_size
    assert plan.parameters == 7_241_732_096 - 2 * 4096 * (32_000 - vocabulary)
    assert plan.checkpoint_bytes == 4 * plan.parameters
    assert plan.process_bytes > 4 * plan.checkpoint_bytes
    assert updates == plan.updates


@pytest.mark.parametrize(
    "changes", [{}, {"model__new_tokens": ["<new>"]}, {"train__freeze": "backbone"}]
)
def test_sizes_alone_are_planned_as_the_model_is(
    changes: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(**changes)
    without_values = plan_run(recipe, measure=False).to_dict()
    prepare = planning._prepare
    monkeypatch.setattr(planning, "_prepare", lambda recipe, hollow: prepare(recipe))
    with_values = plan_run(recipe, measure=False).to_dict()
    different = {key for key, value in with_values.items() if value != without_values[key]}
    assert different <= {"reading_seconds", "hours"}


def planned_and_done(recipe: Recipe) -> tuple[RunPlan, RunResult]:
    return plan_run(recipe, measure=False), train_recipe(recipe, quiet=True)


class TestAgainstTheRunItself:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"train__epochs": 3, "train__batch_size": 7},
            {"train__batch_size": None, "train__batch_tokens": 40},
            {"train__max_steps": 7},
            {"train__epochs": 1.5},
            {"train__eval_every": 4},
            {"data__validation": None},
            {"train__accumulate": 3},
            {"train__freeze": "backbone"},
        ],
    )
    def test_updates_tokens_and_evaluations(self, make: Make, changes: dict[str, Any]) -> None:
        recipe = make(**changes)
        plan, done = planned_and_done(recipe)
        assert plan.updates == done.steps
        if float(plan.epochs).is_integer():
            assert plan.tokens == done.tokens
            assert plan.examples * plan.epochs == done.examples
        text = (Path(recipe.output) / "metrics.jsonl").read_text(encoding="utf-8")
        assert text.count("validation/loss") == (plan.evaluations if done.metrics else 0)

    def test_a_part_of_an_epoch_is_about_right(self, make: Make) -> None:
        plan, done = planned_and_done(make(train__max_steps=12))
        assert plan.tokens == pytest.approx(done.tokens, rel=0.15)
        assert plan.epochs == 12 / 5

    def test_the_logged_pace_is_that_of_the_run(self, make: Make) -> None:
        """Tokens by tokens per second are seconds, and all of them are the training time."""
        rows = "".join(f"the film\t{'ab'[i % 2]}\n" for i in range(40))
        recipe = make(train__log_every=1, data__validation=None)
        Path(recipe.data.train).write_text("text\tlabel\n" + rows, encoding="utf-8")
        done = train_recipe(recipe, quiet=True)
        lines = (Path(recipe.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rates = [json.loads(line)["train/tokens_per_second"] for line in lines]
        assert len(rates) == done.steps == 10
        assert sum(8 * 4 / rate for rate in rates) == pytest.approx(done.seconds, rel=1e-3)

    def test_the_size_of_a_checkpoint(self, make: Make) -> None:
        recipe = make()
        plan, _ = planned_and_done(recipe)
        size = (Path(recipe.output) / "last" / "model.safetensors").stat().st_size
        # Besides the weights the file has a header of names and shapes.
        assert plan.checkpoint_bytes <= size <= plan.checkpoint_bytes + 10_000


class TestCosts:
    def test_flops_are_those_of_the_formula(self, make: Make) -> None:
        plan = plan_run(make(), measure=False)
        length = round(plan.tokens_per_epoch / plan.examples)
        each_token = 2 * LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * INNER)
        each_token += 4 * length * HIDDEN * LAYERS
        each_sequence = 2 * (HIDDEN**2 + HIDDEN * 2)  # pooler and classifier
        assert plan.flops_per_token == round(3 * (each_token + each_sequence / length))
        assert plan.flops == plan.flops_per_token * plan.tokens

    def test_what_is_frozen_costs_less(self, make: Make) -> None:
        whole, half, none = (
            plan_run(make(train__freeze=what), measure=False)
            for what in ("none", {"layers": 1}, "backbone")
        )
        assert half.flops_per_token == pytest.approx(whole.flops_per_token * 2 / 3, abs=1)
        assert none.flops_per_token == pytest.approx(whole.flops_per_token / 3, abs=1)
        # Read once for both epochs.
        assert none.flops == none.flops_per_token * none.tokens_per_epoch
        assert none.trained == 2 * HIDDEN + 2
        assert whole.trained == whole.parameters == half.parameters
        assert none.memory.optimizer == 2 * 4 * none.trained
        assert none.process_bytes < half.process_bytes < whole.process_bytes

    def test_the_largest_batch_is_what_memory_is_for(self, make: Make) -> None:
        plan = plan_run(make(), measure=False)
        assert plan.memory.batch == 8
        assert plan_run(make(train__accumulate=3), measure=False).memory.batch == math.ceil(8 / 3)


class TestMeasuring:
    def test_gives_a_time_and_writes_nothing(self, make: Make, tmp_path: Path) -> None:
        recipe = make()
        before = sorted(tmp_path.rglob("*"))
        plan = plan_run(recipe)
        assert sorted(tmp_path.rglob("*")) == before
        assert plan.speed is not None
        assert plan.training_seconds == pytest.approx(
            plan.tokens / plan.speed.training_tokens_per_second
        )
        assert plan.hours is not None
        assert plan.hours > 0
        found = json.loads(json.dumps(plan.to_dict()))
        assert found["hours"] == plan.hours

    def test_updates_that_take_a_second_each(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A clock that moves by a second whenever it is read: at the start and end of an update."""
        for name, count in (("train", 40), ("dev", 12)):
            rows = "".join(f"the film\t{'ab'[i % 2]}\n" for i in range(count))
            (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")
        files = {f"data__{kind}": str(tmp_path / file) for kind, file in FILES.items()}
        seconds = itertools.count()
        monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
        speed = plan_run(make(**files)).speed
        assert speed is not None
        # A batch is 8 records of [CLS] the film [SEP]; an evaluation reads all 12 at once.
        assert speed.training_tokens_per_second == 8 * 4
        assert speed.evaluation_tokens_per_second == 12 * 4
        assert speed.updates == 3

    def test_needs_no_place_to_write(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        plan_run(make(output=str(tmp_path / "file" / "below")), measure=False)

    def test_is_as_right_after_it_as_before(self, make: Make) -> None:
        timed, not_timed = plan_run(make()).to_dict(), plan_run(make(), measure=False).to_dict()
        for name in ("speed", "training_seconds", "evaluation_seconds", "reading_seconds", "hours"):
            timed.pop(name)
            not_timed.pop(name)
        assert timed == not_timed

    def test_bad_data_is_an_error(self, make: Make) -> None:
        with pytest.raises(DataError):
            plan_run(make(data__train="nowhere.tsv"))


def test_a_tagger_with_a_crf(tiny_folder: Path, tmp_path: Path) -> None:
    """Its head takes a choice of tokens, in the plan and in the inspection of what was trained."""
    (tmp_path / "a.conll").write_text("the O\nfilm B-A\n\nfilm B-A\n\n" * 8, encoding="utf-8")
    recipe = Recipe.of(
        {
            "task": {"name": "tag", "crf": True, "max_length": 16, "overlap": 4},
            "model": {"from": str(tiny_folder)},
            "data": {"train": str(tmp_path / "a.conll"), "validation": 0.25},
            "train": {"epochs": 1, "batch_size": 4, "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
    )
    plan = plan_run(recipe)
    assert plan.updates == train_recipe(recipe, quiet=True).steps
    assert plan.memory.activations > plan.memory.forward > 0
    assert plan.hours is not None
    inspected = inspect_model(outline(tmp_path / "run"), batch=2, length=8)
    assert inspected.memory.step > 0


def test_is_shown(make: Make) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(plan_view(plan_run(make(train__max_steps=3))))
    console.print(plan_view(plan_run(make(), measure=False)))
    assert "real updates on a copy of the model" in out.getvalue()
    assert "no time was measured" in out.getvalue()


def test_of_a_policy_the_updates_are_known_and_the_costs_are_not(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    options = {"task.max_new_tokens": 4, "task.rollout": 4, "task.passes": 2, "train.epochs": 1}
    own = recipe("ppo", tmp_path, **options, **{"task.reward": {"length": 9}})
    # 6 prompts in rollouts of 4 and 2, each in 2 passes of batches of 2.
    assert SchedulePlan.of(own).schedule.total == 6
    assert train_recipe(own, quiet=True).steps == 6
    with pytest.raises(RunError, match="is not known before"):
        plan_run(own)


def test_with_a_reference_its_copy_is_counted(tmp_path: Path) -> None:
    """The copy is there where evaluations write replies, unless the model has an adapter."""
    saved(tmp_path / "sft")
    plans = []
    for changes in ({}, {"task.samples": 0}, {"train.lora": {"rank": 2}}):
        own = recipe("dpo", tmp_path, **{"task.max_new_tokens": 4, "train.epochs": 1, **changes})
        plans.append(plan_run(own, measure=not changes))
    whole, alone, adapted = plans
    assert whole.speed is not None
    assert whole.speed.evaluation_tokens_per_second
    assert whole.process_bytes - alone.process_bytes == 4 * whole.parameters
    assert adapted.process_bytes < whole.process_bytes


@pytest.fixture(scope="module")
def school(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher and its data, half of which have no label."""
    folder = tmp_path_factory.mktemp("school")
    rows = [f"{'the ' * (i % 7)}film\t{'ab'[i % 2]}" for i in range(50)]
    (folder / "a.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    values = {
        "task": {"name": "classify", "max_length": 16},
        "model": {"from": str(tiny_folder)},
        "data": {"train": str(folder / "a.tsv"), "validation": 0.2},
        "train": {"max_steps": 1, "device": "cpu"},
        "output": str(folder / "teacher"),
    }
    train_recipe(Recipe.of(values), quiet=True)
    bare = [row.split("\t")[0] for row in rows]
    (folder / "b.tsv").write_text("\n".join(["text", *bare]) + "\n", encoding="utf-8")
    return folder


class TestATeacher:
    """It takes time and memory of its own, once or with each batch."""

    def recipe(self, school: Path, **changes: Any) -> Recipe:
        values = {
            "teacher": {"from": str(school / "teacher")},
            "model": {"layers": [0]},
            "data": {"train": str(school / "a.tsv"), "validation": 0.2},
            "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
            "output": str(school / "student"),
        }
        return Recipe.of(values).changed({k.replace("__", "."): v for k, v in changes.items()})

    def test_that_is_asked_once_has_a_time_of_its_own(
        self, school: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A clock that moves by a second whenever it is read."""
        seconds = itertools.count()
        monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
        plan = plan_run(self.recipe(school))
        # It is timed on the 40 training examples; it also reads the 10 others.
        every = plan_run(self.recipe(school, data__validation=None), measure=False)
        assert plan.teacher_seconds is not None
        share = every.tokens_per_epoch / plan.tokens_per_epoch
        assert plan.teacher_seconds / share == pytest.approx(2)  # a second, and a look inside
        assert plan.hours is not None
        parts = (plan.reading_seconds, plan.training_seconds, plan.evaluation_seconds)
        assert 3600 * plan.hours == pytest.approx(
            plan.teacher_seconds + sum(part or 0 for part in parts)
        )

    def test_that_reads_each_batch_is_in_the_memory(self, school: Path) -> None:
        live = self.recipe(school, teacher__keep=False)
        plan = plan_run(live, measure=False)
        parameters = sum(p.numel() for p in outline(school / "teacher").model.parameters())
        assert plan.teacher_bytes > 4 * parameters
        assert plan.teacher_seconds is None
        assert plan.process_bytes - plan.teacher_bytes < plan.process_bytes
        out = io.StringIO()
        Console(file=out, width=200).print(plan_view(plan))
        assert "of it for the teacher" in out.getvalue()

    @pytest.mark.parametrize("keep", [None, False])
    def test_records_without_labels(self, school: Path, keep: bool | None) -> None:
        bare = {"data__train": str(school / "b.tsv"), "teacher__keep": keep}
        plan = plan_run(self.recipe(school, **bare))
        assert plan.hours is not None

"""Functions of answers and truths, objects of torchmetrics, and losses, that a person registers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score

import pretune
from pretune.bundle.bundle import Bundle, load
from pretune.errors import PretuneError, RecipeError, RunError
from pretune.plugins import KINDS
from pretune.tasks.added_metrics import AllMetrics, lower_is_better
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize
from pretune.training.validation import evaluate_features
from tests.tasks.every_task import CASES


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for registry in KINDS.values():
        for name in [*registry.own]:
            registry.own.discard(name)
            registry._loaded.pop(name)


@pytest.fixture(scope="module")
def bundles(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    names = ("classify", "multilabel", "regress", "choose", "tag")
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for name in names:
        (folder / name).mkdir()
        made[name] = CASES[name].bundle(tiny_folder, folder / name)
        made[name].task.fit(CASES[name].records())  # type: ignore[union-attr]
    return made


def figures(bundle: Bundle, name: str, *metrics: str, batch_tokens: int = 64) -> dict[str, float]:
    task = bundle.task
    assert task is not None
    changed = type(task)(task.options.model_copy(update={"metrics": [*metrics]}))
    own = changed.with_state(task.state())
    features = featurize(own, CASES[name].records(), bundle.tokenizer)
    return evaluate_features(own, bundle.model, features, batch_tokens=batch_tokens).metrics


def test_a_function_gets_all_answers_and_truths_in_order(bundles: dict[str, Bundle]) -> None:
    seen: list[tuple[list[Any], list[Any]]] = []

    @pretune.register("metric")
    def right(answers: list[str], truths: list[str]) -> float:
        seen.append((answers, truths))
        return sum(a == t for a, t in zip(answers, truths, strict=True)) / len(truths)

    result = figures(bundles["classify"], "classify", "right")
    assert result["right"] == result["accuracy"]
    ((answers, truths),) = seen
    assert truths == [str(row["label"]) for row in CASES["classify"].rows(24)]
    assert set(answers) <= set(truths)
    # Whatever the batches.
    figures(bundles["classify"], "classify", "right", batch_tokens=10**6)
    assert seen[1] == (answers, truths)


@pytest.mark.parametrize(
    ("name", "kind"), [("regress", float), ("multilabel", list), ("choose", int), ("tag", str)]
)
def test_what_answers_are(name: str, kind: type, bundles: dict[str, Bundle]) -> None:
    seen: list[Any] = []
    pretune.register("metric", "kinds")(
        lambda answers, truths: seen.extend([*answers, *truths]) or 1
    )
    assert figures(bundles[name], name, "kinds")["kinds"] == 1.0
    assert {type(value) for value in seen} == {kind}
    if name == "regress":
        assert seen[24:] == pytest.approx([row["score"] for row in CASES[name].rows(24)])


def test_processes_are_put_together(bundles: dict[str, Bundle]) -> None:
    pretune.register("metric", "count")(lambda answers, truths: len(answers))
    task = bundles["classify"].task
    assert task is not None
    own = Classify(ClassifyOptions(metrics=["count"]), task.labels)  # type: ignore[attr-defined]
    features = featurize(own, CASES["classify"].records(), bundles["classify"].tokenizer)
    parts = [AllMetrics.of(own, features) for _ in range(2)]
    for part, which in zip(parts, ([0, 2, 4], [1, 3]), strict=True):
        batch = features.batch(np.array(which))
        part.update(torch.zeros(len(which), 2), batch)
    parts[0].merge(parts[1])
    assert parts[0].result()["count"] == 5
    assert math.isnan(AllMetrics.of(own).result()["count"]), "only the name is known before"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda a, t: 1 / 0, "the metric bad failed: ZeroDivisionError"),
        (lambda a: 1, "the metric bad failed: TypeError"),
        (lambda a, t: "good", "the metric bad gave a str, not a number"),
        (lambda a, t: [1.0, 2.0], "the metric bad gave a list, not a number"),
    ],
)
def test_one_that_fails_is_named(function: Any, told: str, bundles: dict[str, Bundle]) -> None:
    pretune.register("metric", "bad")(function)
    with pytest.raises(RunError, match=told):
        figures(bundles["classify"], "classify", "bad")


def test_objects_of_torchmetrics(bundles: dict[str, Bundle]) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    labels = bundles["classify"].task.labels  # type: ignore[union-attr]
    pretune.register("metric", "kappa")(
        torchmetrics.CohenKappa(task="multiclass", num_classes=len(labels))
    )
    pairs: list[Any] = []
    pretune.register("metric", "pairs")(lambda a, t: pairs.append((a, t)) or 0)
    result = figures(bundles["classify"], "classify", "kappa", "pairs")
    assert result["kappa"] == pytest.approx(cohen_kappa_score(*pairs[0]), abs=1e-6)
    again = figures(bundles["classify"], "classify", "kappa", batch_tokens=10**6)
    assert again["kappa"] == result["kappa"], "each evaluation begins anew"
    pretune.register("metric", "both")(
        torchmetrics.MetricCollection(
            {"far": torchmetrics.MeanAbsoluteError(), "near": torchmetrics.PearsonCorrCoef()}
        )
    )
    scores = figures(bundles["regress"], "regress", "both")
    assert scores["far"] == pytest.approx(scores["mae"], rel=1e-5)
    assert scores["near"] == pytest.approx(scores["pearson"], abs=1e-5)
    with pytest.raises(RunError, match="tag has no scores for it"):
        figures(bundles["tag"], "tag", "kappa")
    with pytest.raises(RunError, match="the metric kappa failed: "):
        figures(bundles["regress"], "regress", "kappa")


def test_the_name_or_the_person_says_what_is_better(tmp_path: Path) -> None:
    pretune.register("metric", "cost", lower_is_better=True)(lambda a, t: 0)
    pretune.register("metric", "gain")(lambda a, t: 0)
    assert (lower_is_better("cost"), lower_is_better("gain")) == (True, False)


class TestLosses:
    def loss(self, bundle: Bundle, name: str, function: Any) -> Any:
        task = bundle.task
        assert task is not None
        pretune.register("loss", "mine")(function)
        own = type(task)(task.options.model_copy(update={"criterion": "mine"}))
        own = own.with_state(task.state())
        features = featurize(own, CASES[name].records(), bundle.tokenizer)
        batch = features.batch(np.arange(6))
        outputs = own.forward(bundle.model, batch)
        return own.loss(outputs, batch), task.loss(outputs, batch), outputs, batch

    def test_takes_the_place_of_the_tasks_own(self, bundles: dict[str, Bundle]) -> None:
        def plain(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(outputs, targets, reduction="none")

        mine, own, outputs, batch = self.loss(bundles["classify"], "classify", plain)
        assert (float(mine.sum), mine.count) == pytest.approx((float(own.sum), own.count))
        module = torch.nn.MultiMarginLoss(reduction="none")
        mine, _, outputs, batch = self.loss(bundles["classify"], "classify", module)
        assert float(mine.sum) == pytest.approx(
            float(module(outputs, batch.targets["label"]).sum())
        )
        mine, own, *_ = self.loss(bundles["regress"], "regress", torch.nn.MSELoss(reduction="none"))
        assert float(mine.sum) == pytest.approx(float(own.sum))
        each = lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none").sum(1)  # noqa: E731
        mine, own, *_ = self.loss(bundles["multilabel"], "multilabel", each)
        assert float(mine.sum) == pytest.approx(float(own.sum), rel=1e-6)

    @pytest.mark.parametrize(
        ("function", "told"),
        [
            (F.cross_entropy, r"gave \[\] for 6 examples\n.*reduction='none'"),
            (lambda o, t: 0.5, "gave a float for 6 examples"),
            (lambda o, t: o[:, 9], r"the loss mine failed: IndexError.*\n.*given outputs \[6, "),
            (lambda o, t: o.detach()[:, 0], "does not depend on the outputs"),
        ],
    )
    def test_one_that_is_none_is_named(
        self, function: Any, told: str, bundles: dict[str, Bundle]
    ) -> None:
        with pytest.raises(RunError, match=told):
            self.loss(bundles["classify"], "classify", function)

    def test_options_of_the_other_loss_are_refused(self) -> None:
        with pytest.raises(
            ValueError, match="criterion takes the place of the loss: no focal_gamma"
        ):
            ClassifyOptions(criterion="mine", focal_gamma=2)
        assert "criterion" not in ClassifyOptions().model_dump()
        assert ClassifyOptions(criterion="mine").model_dump(mode="json")["criterion"] == "mine"

    def test_a_model_answers_without_the_file_and_is_not_evaluated(
        self, bundles: dict[str, Bundle], tmp_path: Path
    ) -> None:
        from pretune.bundle.bundle import save
        from pretune.inference.predict import Predictor

        bundle = bundles["classify"]
        task = bundle.task
        assert task is not None
        own = Classify(ClassifyOptions(criterion="gone", max_length=32), task.labels)  # type: ignore[attr-defined]
        save(Bundle(bundle.model, bundle.tokenizer, bundle.family, own), tmp_path)
        predictor = Predictor(load(tmp_path))
        assert len(predictor.predict(predictor.records(["a film"]))) == 1
        told = r"no loss is called 'gone'\n(.*\n)*.*--plugin FILE\.py"
        with pytest.raises(RecipeError, match=told):
            pretune.evaluate(load(tmp_path), CASES["classify"].records())


def test_what_cannot_be_registered_is_said() -> None:
    with pytest.raises(PretuneError, match="the task 'classify' is built in"):
        pretune.register("task")(Classify)
    with pytest.raises(PretuneError, match=r"no kind of thing is called 'metrics'\n.*'metric'"):
        pretune.register("metrics")
    with pytest.raises(PretuneError, match="lower_is_better is about a metric"):
        pretune.register("loss", "x", lower_is_better=True)
    with pytest.raises(PretuneError, match="this metric has no name of its own"):
        pretune.register("metric")(lambda a, t: 0)
    with pytest.raises(RunError, match=r"the metric x: expected a function, .* found an int"):
        pretune.register("metric", "x")(3)

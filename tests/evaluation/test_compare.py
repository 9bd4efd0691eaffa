from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from pretune.errors import RunError
from pretune.evaluation.compare import Compared, compare, holm
from pretune.evaluation.examine import Examined, Example, examine
from pretune.render.result_views import comparison_view
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.grading import Grade
from pretune.tasks.translation.translate import Translate
from tests.tasks.every_task import CASES

LABELS = ["bad", "good"]


def shown(table: Any) -> str:
    """As in a terminal."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def classified(guesses: Any, truths: Any, losses: Any | None = None) -> Examined:
    """A classifier's answers, without a classifier."""
    task = Classify(ClassifyOptions(), LABELS)
    examples = []
    for row, (guess, truth) in enumerate(zip(guesses, truths, strict=True)):
        counts = np.zeros((3, 2))
        counts[0, truth] = guess == truth
        counts[1, truth] = counts[2, guess] = 1
        grade = Grade(
            LABELS[truth], LABELS[guess], bool(guess == truth), counts=tuple(counts.ravel())
        )
        loss = 1.0 if losses is None else float(losses[row])
        examples.append(Example(row, (row,), loss, 1, 3, grade))
    bundle: Any = SimpleNamespace(task=task)
    records: Any = SimpleNamespace(
        lines=range(2, len(examples) + 2), rows=[{"text": f"t{i}"} for i in range(len(examples))]
    )
    nothing: Any = None
    found = Examined(bundle, records, nothing, tuple(examples), np.zeros(0), {}, {})
    return replace(found, metrics=task.figures(found.sums.sum(0)))


def draws(count: int, right: float, seed: int) -> tuple[Any, Any]:
    """Truths, and guesses of which so many are right."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(2, size=count)
    return truths, np.where(rng.random(count) < right, truths, 1 - truths)


def test_intervals_are_those_of_the_percentile_bootstrap() -> None:
    truths, guesses = draws(200, 0.8, 0)
    losses = np.random.default_rng(1).exponential(size=200)
    one = classified(guesses, truths, losses)
    found = compare(["a", "b"], [one, one], resamples=4000).figures[0]
    for name, values in (("accuracy", (guesses == truths) * 1.0), ("loss", losses)):
        wanted = scipy.stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=4000, rng=2
        ).confidence_interval
        assert found[name].value == pytest.approx(values.mean())
        spread = wanted.high - wanted.low
        assert found[name].low == pytest.approx(wanted.low, abs=0.05 * spread)
        assert found[name].high == pytest.approx(wanted.high, abs=0.05 * spread)


@pytest.mark.parametrize(("better", "worse"), [(9, 2), (14, 12), (20, 4), (1, 0)])
def test_of_accuracies_the_test_is_mcnemars(better: int, worse: int) -> None:
    """Only the examples on which two models differ count, and each is a toss (McNemar 1947)."""
    truths = np.zeros(100, dtype=int)
    first, second = truths.copy(), truths.copy()
    first[:better] = 1
    second[better : better + worse] = 1
    found = compare(
        ["a", "b"], [classified(g, truths) for g in (first, second)], resamples=20_000
    ).differences[0]["accuracy"]
    exact = scipy.stats.binomtest(better, better + worse).pvalue
    assert found.value == pytest.approx((better - worse) / 100)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_differences_are_paired() -> None:
    """Two models that are wrong on the same examples differ by less than their intervals say."""
    truths, guesses = draws(300, 0.7, 3)
    other = guesses.copy()
    other[np.flatnonzero(guesses != truths)[:6]] = truths[np.flatnonzero(guesses != truths)[:6]]
    found = compare(["a", "b"], [classified(g, truths) for g in (guesses, other)])
    difference, figures = found.differences[0]["accuracy"], found.figures[0]["accuracy"]
    assert difference.value == pytest.approx(6 / 300)
    assert difference.high - difference.low < 0.4 * (figures.high - figures.low)
    assert difference.p < 0.05


def test_a_model_is_no_better_than_itself() -> None:
    truths, guesses = draws(50, 0.7, 4)
    one = classified(guesses, truths)
    found = compare(["a", "b"], [one, one], resamples=200)
    for difference in found.differences[0].values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.p == 1
    assert found.apart(1) == ([], [])


def test_several_differences_count_as_several_chances() -> None:
    """Holm 1979: the smallest p times their number, the next times one less, never falling."""
    truths, guesses = draws(80, 0.5, 5)
    better = [np.where(np.arange(80) < n, truths, guesses) for n in (60, 12, 6)]
    models = [classified(g, truths) for g in (guesses, *better)]
    found = compare(list("abcd"), models, resamples=20_000)
    alone = [
        compare(["a", "x"], [models[0], model], resamples=20_000).differences[0]["accuracy"].p
        for model in models[1:]
    ]
    adjusted = [x["accuracy"].p for x in found.differences]
    order = np.argsort(alone)
    wanted = np.minimum(np.maximum.accumulate(np.array(alone)[order] * [3, 2, 1]), 1)
    np.testing.assert_allclose(np.array(adjusted)[order], wanted, rtol=0.15, atol=0.01)


def test_holm_by_hand() -> None:
    """An example of four: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 lifted to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6, 0.7]) == [1, 1, 1]
    assert holm([0.02]) == [0.02]


def test_the_seed_decides() -> None:
    truths, guesses = draws(60, 0.7, 6)
    models = [classified(guesses, truths), classified(1 - guesses, truths)]
    first, again, other = (
        compare(["a", "b"], models, resamples=300, seed=seed).to_dict() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_examples_that_one_gets_right_and_the_other_wrong() -> None:
    truths = np.array([0, 0, 1, 1, 1])
    first = classified([0, 1, 1, 0, 0], truths, [0.1, 2.0, 0.3, 1.0, 4.0])
    second = classified([1, 0, 1, 1, 1], truths, [1.5, 0.1, 0.2, 0.8, 0.5])
    found = compare(["a", "b"], [first, second], resamples=100)
    assert found.apart(1) == ([0], [4, 1, 3])
    text = shown(comparison_view(found, 2))
    assert "only a is right: 1; only b is right: 3" in text
    assert "t4" in text
    assert "t3" not in text
    row = found.rows()[4]
    assert (row["line"], row["text"], row["truth"]) == (6, "t4", "good")
    assert [(m["name"], m["answer"], m["right"]) for m in row["models"]] == [
        ("a", "bad", False),
        ("b", "good", True),
    ]


@pytest.mark.parametrize("name", CASES)
def test_models_of_every_task(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    case = CASES[name]
    records, found = case.records(10), []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        bundle = case.bundle(tiny_folder, tmp_path / str(number))
        for parameter in bundle.model.parameters():
            parameter.data += 0.1 * number * parameter.data.roll(1)
        found.append(examine(bundle, records, device="cpu"))
    result: Compared = compare(["a", "b"], found, resamples=200)
    for one, figures in zip(found, result.figures, strict=True):
        assert figures
        for metric, interval in figures.items():
            assert interval.value == pytest.approx(one.metrics[metric], rel=1e-4, abs=1e-6)
            assert interval.low <= interval.high or math.isnan(interval.low)
    assert all(0 < d.p <= 1 for d in result.differences[0].values())
    better, worse = result.apart(1)
    assert not set(better) & set(worse)
    assert "b minus a" in shown(comparison_view(result, 2))
    assert len(result.rows()) == len(found[0].examples)


@pytest.mark.parametrize("weighted", [0, 1, 2])
def test_a_loss_with_weights_is_not_compared_with_a_plain_one(weighted: int) -> None:
    """Focal loss and class weights: `evaluate` tells another loss than the examples' mean."""
    truths, guesses = draws(60, 0.8, 0)
    models = [classified(guesses, truths) for _ in range(3)]
    metrics = {**models[weighted].metrics, "loss": 0.25}
    models[weighted] = replace(models[weighted], metrics=metrics)
    result = compare(["a", "b", "c"], models, resamples=100)
    assert result.left_out == ("loss",)
    assert result.note is not None
    assert "loss, as not all models define it" in result.note
    assert all("loss" not in own and "accuracy" in own for own in result.figures)
    assert "accuracy" in shown(comparison_view(result, 3))
    # Where all have such a loss, there is none to compare.
    alike = [replace(model, metrics=metrics) for model in models]
    assert not compare(["a", "b", "c"], alike, resamples=100).left_out


def test_what_cannot_be_compared() -> None:
    truths, guesses = draws(20, 0.7, 7)
    one = classified(guesses, truths)
    other = replace(one, bundle=SimpleNamespace(task=Classify(ClassifyOptions(), ["x", "y"])))
    fewer = classified(guesses[:9], truths[:9])
    for models, said in (
        ([one], "one model alone cannot be compared"),
        ([one, other], "other labels: bad, good and x, y"),
        ([one, fewer], "in different chunks"),
    ):
        with pytest.raises(RunError, match=said):
            compare(["a", "b"][: len(models)], models)


@pytest.fixture
def translated(tiny_folder: Path, tmp_path: Path) -> Examined:
    """A translator's answers."""
    case = CASES["translate"]
    return examine(case.bundle(tiny_folder, tmp_path), case.records(10), device="cpu")


def in_pieces(examined: Examined) -> Examined:
    """As with a tokenizer that makes three tokens of one, each as hard to foretell."""
    examples = [replace(e, loss=3 * e.loss, terms=3 * e.terms) for e in examined.examples]
    return replace(examined, examples=tuple(examples))


def test_losses_of_other_tokens_are_not_compared(translated: Examined) -> None:
    """BLEU is of texts and remains; a smaller loss of a token says nothing of the text."""
    alike = compare(["a", "b"], [translated, translated], resamples=100)
    assert alike.left_out == ()
    assert alike.to_dict()["note"] is None
    assert "first_better" in alike.to_dict()["runs"][1]
    found = compare(["a", "b"], [translated, in_pieces(translated)], resamples=100)
    for figures in (*found.figures, *found.differences):
        assert list(figures) == ["bleu"]
    assert found.figures[1]["bleu"].value == pytest.approx(translated.metrics["bleu"])
    assert found.left_out == ("loss", "perplexity")
    assert found.apart(1) == ([], [])
    given = found.to_dict()
    assert "Not compared: loss, perplexity, as the models cut" in given["note"]
    assert not {"first_better", "this_better"} & set(given["runs"][1])
    text = shown(comparison_view(found, 3))
    assert given["note"] in text
    assert "predicts best" not in text


def test_where_every_figure_is_a_token_nothing_is_compared() -> None:
    truths, guesses = draws(20, 0.7, 8)
    task: Any = SimpleNamespace(name="x", metric_options=(), output_meaning=dict, figures=mean_loss)
    one = replace(classified(guesses, truths), bundle=SimpleNamespace(task=task))
    one = replace(one, metrics={"loss": 1.0})
    assert compare(["a", "b"], [one, one], resamples=100).figures[0]["loss"].value == 1
    with pytest.raises(RunError, match=r"their metrics \(loss\) are all per token"):
        compare(["a", "b"], [one, in_pieces(one)])


def mean_loss(sums: Any) -> dict[str, Any]:
    return {"loss": sums[..., 0] / sums[..., 1]}


def test_bleu_of_another_kind_is_not_compared(translated: Examined) -> None:
    options = translated.task.options
    for change, said in (
        ({"bleu_tokenizer": "char"}, "a has task.bleu_tokenizer=auto, b char"),
        ({"bleu_lowercase": True}, "a has task.bleu_lowercase=false, b true"),
    ):
        other = replace(
            translated,
            bundle=SimpleNamespace(task=Translate(options.model_copy(update=change))),
        )
        with pytest.raises(RunError, match=said) as caught:
            compare(["a", "b"], [translated, other])
        assert "--set bleu_tokenizer=auto --set bleu_lowercase=false" in str(caught.value)


def test_f1_of_another_label_is_not_compared() -> None:
    one = classified(*draws(20, 0.7, 9))
    other = Classify(ClassifyOptions(positive="bad"), LABELS)
    theirs = replace(one, bundle=SimpleNamespace(task=other))
    # An option that files leave out where it is the default.
    with pytest.raises(RunError, match=r"a has task\.positive=null, b bad") as caught:
        compare(["a", "b"], [one, theirs])
    assert "--set positive=null" in str(caught.value)


def test_the_way_to_the_same_pieces() -> None:
    truths, guesses = draws(20, 0.7, 9)
    with pytest.raises(RunError) as caught:
        compare(["a", "b"], [classified(guesses[:n], truths[:n]) for n in (20, 9)])
    for option in ("max_length", "stride", "boundaries"):
        assert f"task.{option}" in str(caught.value)
        assert f"--set {option}=" in str(caught.value)

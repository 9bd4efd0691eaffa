"""BLEU and chrF of translations beside sacrebleu's own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import corpus_bleu, corpus_chrf

from pretune.bundle.bundle import Bundle
from pretune.decoding.continuations import Generation
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.features import featurize
from pretune.tasks.translation.rewriting import Rewritten
from pretune.tasks.translation.translate import (
    BleuKind,
    Translate,
    TranslateMetrics,
    TranslateOptions,
    TranslationPrediction,
    bleu_counts,
    bleu_of,
    tokenization_for,
)
from tests.tasks.translations import PAIRS, records, translator


@pytest.fixture(scope="module")
def bpe() -> Bundle:
    return translator()


def generation(text: str) -> Generation:
    return Generation((), 0, text, "stop_token", (1,), (-0.5,))


def scores(count: int) -> Scores:
    zero = torch.zeros(())
    return Scores(zero, count, torch.tensor(2.0 * count), zero, count // 2, torch.zeros(count))


def test_metrics_are_those_of_sacrebleu(bpe: Bundle) -> None:
    features = featurize(bpe.task, records(), bpe.tokenizer, evaluation=True)
    texts = [
        "A dog runs over the meadow.",
        "Two men cook.",
        "A girl climbs.",
        "A book is.",
        "Dogs.",
    ]
    batch = features.batch(np.array([3, 1, 4, 0, 2]), sort=False)
    parts = [TranslateMetrics(features, BleuKind()) for _ in range(2)]
    for number, which in enumerate(([3, 1], [4, 0, 2])):
        batch = features.batch(np.array(which), sort=False)
        found = [[generation(texts[i] + " ")] for i in which]
        parts[number].update(Rewritten(scores(10), found), batch)
    parts[0].merge(parts[1])
    references = [[target for _, target in PAIRS]]
    result, details = parts[0].result(), parts[0].details()
    assert result["bleu"] == pytest.approx(corpus_bleu(texts, references).score)
    assert result["chrf"] == pytest.approx(corpus_chrf(texts, references).score)
    assert result["perplexity"] == pytest.approx(np.exp(2.0))
    assert result["accuracy"] == 0.5
    assert details["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert details["translations"][1] == {
        "source": PAIRS[1][0],
        "translation": "Two men cook.",
        "reference": PAIRS[1][1],
    }
    assert set(TranslateMetrics(None, BleuKind()).result()) == set(result)


def test_chinese_references_are_taken_apart_by_characters() -> None:
    assert tokenization_for(["我喜欢猫。", "OK"]) == "zh"
    assert tokenization_for(["I like cats", "猫"]) == "13a"


def test_metrics_go_to_other_processes_without_the_data(bpe: Bundle) -> None:
    features = featurize(bpe.task, records(), bpe.tokenizer, evaluation=True)
    metrics = TranslateMetrics(features, BleuKind())
    batch = features.batch(np.array([1]), sort=False)
    metrics.update(Rewritten(scores(4), [[generation("Two men.")]]), batch)
    sent = pickle.dumps(metrics)
    assert b"Spielhaus" not in sent
    whole = TranslateMetrics(features, BleuKind())
    whole.merge(pickle.loads(sent))  # noqa: S301 - its own
    assert whole.result() == metrics.result()


@pytest.mark.parametrize("lowercase", [False, True])
def test_capitals_may_count_as_small_letters(bpe: Bundle, lowercase: bool) -> None:
    task = Translate(TranslateOptions(max_length=40, bleu_lowercase=lowercase))
    features = featurize(task, records(), bpe.tokenizer, evaluation=True)
    texts = [target.upper() for _, target in PAIRS]
    metrics = task.metrics(features)
    batch = features.batch(np.arange(len(PAIRS)), sort=False)
    metrics.update(Rewritten(scores(4), [[generation(text)] for text in texts]), batch)
    expected = corpus_bleu(texts, [[target for _, target in PAIRS]], lowercase=lowercase)
    assert metrics.result()["bleu"] == pytest.approx(expected.score)
    assert (metrics.result()["bleu"] == pytest.approx(100.0)) is lowercase
    case = "lc" if lowercase else "mixed"
    assert f"case:{case}" in metrics.details()["signatures"]["bleu"]
    grade = task.grader(records())
    answers = [TranslationPrediction(text, 0.0) for text in texts]
    counts = np.sum([grade(answer, i).counts for i, answer in enumerate(answers)], axis=0)
    assert float(bleu_of(counts)) == pytest.approx(expected.score)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=7).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=6))
def test_bleu_of_sums_is_that_of_the_corpus(pairs: list[tuple[str, str]]) -> None:
    texts, references = map(list, zip(*pairs, strict=True))
    metric = BleuKind("13a").metric(references)
    sums = np.sum([bleu_counts(metric, *pair) for pair in pairs], axis=0)
    expected = corpus_bleu(texts, [references]).score
    assert float(bleu_of(sums)) == pytest.approx(expected, abs=1e-6)
    assert bleu_of(np.stack([sums, sums]))[1] == pytest.approx(expected, abs=1e-6)


@torch.inference_mode()
def test_each_example_has_its_loss_and_its_part_of_bleu(bpe: Bundle) -> None:
    features = featurize(bpe.task, records(), bpe.tokenizer, evaluation=True)
    batch = features.batch(np.arange(len(PAIRS)), sort=False)
    outputs = bpe.task.write(bpe.model, bpe.task.forward(bpe.model, batch), batch)
    each = bpe.task.each_loss(outputs, batch)
    assert float(each.sums.sum()) == pytest.approx(float(outputs.scores.cross_entropy), rel=1e-5)
    grade = bpe.task.grader(records())
    answers = bpe.task.predict(outputs, batch)
    rows = [
        [float(each.sums[i]), int(each.counts[i]), *grade(answer, i).counts]
        for i, answer in enumerate(answers)
    ]
    figures = bpe.task.figures(np.sum(rows, axis=0))
    texts = [answer.translation for answer in answers]
    assert figures["bleu"] == pytest.approx(corpus_bleu(texts, [[t for _, t in PAIRS]]).score)
    metrics = bpe.task.metrics(features)
    metrics.update(outputs, batch)
    assert figures["perplexity"] == pytest.approx(metrics.result()["perplexity"], rel=1e-4)

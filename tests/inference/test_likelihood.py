"""Log-likelihoods beside transformers', and that sharing what prompts have in common is no news."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.bundle.bundle import load
from pretune.data.batch import PackedBatch
from pretune.errors import DataError, RunError
from pretune.inference.likelihood import LikelihoodScorer, Pair
from pretune.models.classics.common import ClassicLM
from pretune.models.classics.ngram import NGram
from pretune.models.classics.nnlm import NnlmConfig, NnlmModel
from pretune.models.classics.rnn import RnnConfig, RnnModel
from tests.inference.conftest import CONTEXT
from tests.inference.conftest import Pair as Checkpoint

VOCABULARY = 23


def nnlm() -> ClassicLM:
    config = NnlmConfig(vocab_size=VOCABULARY, embedding_size=5, hidden_size=7, order=4)
    return ClassicLM(NnlmModel(config))


def rnn(cell: str) -> ClassicLM:
    config = RnnConfig(vocab_size=VOCABULARY, embedding_size=6, hidden_size=9, cell=cell)
    return ClassicLM(RnnModel(config))


def ngram() -> NGram:
    texts = np.random.default_rng(0).integers(VOCABULARY, size=(20, 30))
    return NGram.fit(texts.tolist(), order=3, vocab_size=VOCABULARY)


MODELS: dict[str, Any] = {
    "nnlm": nnlm,
    "rnn": lambda: rnn("rnn"),
    "lstm": lambda: rnn("lstm"),
    "ngram": ngram,
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = MODELS[request.param]()
    if isinstance(made, torch.nn.Module):
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return made


def scorer(pair: Checkpoint, **options: Any) -> LikelihoodScorer:
    return LikelihoodScorer.of(pair.bundle, device="cpu", **options)


@torch.inference_mode()
def one_by_one(model: Any, pair: Pair) -> list[float]:
    """The log-probabilities by `start` and `step`, the way text is generated."""
    logits, state = model.start([list(pair.context)])
    found = []
    for token in pair.continuation:
        found.append(float(logits.float().log_softmax(-1)[0, token]))
        logits = model.step(torch.tensor([token]), state)
    return found


def pairs_with_a_common_beginning(count: int, shared: int, vocabulary: int) -> list[Pair]:
    random = np.random.default_rng(count + shared)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(random.integers(1, vocabulary, size=size).tolist())

    beginning = ids(shared)
    found = []
    for _ in range(count):
        context = beginning + ids(int(random.integers(1, 7)))
        found += [Pair(context, ids(size)) for size in (1, 3, 1, 6)]
    return found


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "shared", "batch_tokens"),
    [
        *(("bpe", shared, tokens) for shared in (0, 25) for tokens in (40, 300, 8192)),
        ("llama", 25, 300),
        ("mistral", 25, 300),
    ],
)
def test_the_figures_are_those_of_transformers(
    request: pytest.FixtureRequest, name: str, shared: int, batch_tokens: int
) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    pairs = pairs_with_a_common_beginning(9, shared, 300)
    found = scorer(checkpoint, batch_tokens=batch_tokens).score(pairs)
    for pair, one in zip(pairs, found, strict=True):
        ids = torch.tensor([pair.context + pair.continuation])
        logs = checkpoint.theirs(ids).logits[0, len(pair.context) - 1 : -1].log_softmax(-1)
        expected = [float(logs[i, token]) for i, token in enumerate(pair.continuation)]
        assert one.logprobs == pytest.approx(expected, abs=1e-5)
        assert one.total == pytest.approx(sum(expected), abs=1e-4)
        assert one.greedy == (logs.argmax(-1).tolist() == list(pair.continuation))


@torch.inference_mode()
def test_what_is_most_probable_is_known_to_be(bpe: Checkpoint) -> None:
    (ids,) = bpe.theirs.generate(
        torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=6, eos_token_id=None
    ).tolist()
    best, wrong = tuple(ids[2:]), (*ids[2:7], (ids[7] + 1) % 300)
    found = scorer(bpe).score([Pair((5, 6), best), Pair((5, 6), wrong), Pair((5, 6), best[:1])])
    assert [one.greedy for one in found] == [True, False, True]
    # After a first token that is not the best, the best ones are no greedy text either.
    other = (best[0] + 1) % 300
    (ids,) = bpe.theirs.generate(
        torch.tensor([[5, 6, other]]), do_sample=False, max_new_tokens=3, eos_token_id=None
    ).tolist()
    first, rest = scorer(bpe).score(
        [Pair((5, 6), tuple(ids[2:])), Pair((5, 6, other), tuple(ids[3:]))]
    )
    assert (first.greedy, rest.greedy) == (False, True)


def test_reading_the_common_beginning_once_changes_nothing(bpe: Checkpoint, model: Any) -> None:
    for one, vocabulary in ((bpe.bundle.model, 300), (model, VOCABULARY)):
        pairs = pairs_with_a_common_beginning(5, 20, vocabulary)
        found = [
            LikelihoodScorer(one, bpe.bundle.tokenizer, device="cpu", share=share).score(pairs)
            for share in (True, False)
        ]
        for shared, alone in zip(*found, strict=True):
            assert shared.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_the_common_beginning_is_read_once(
    bpe: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scorer(bpe, batch_tokens=200)
    pairs = pairs_with_a_common_beginning(8, 30, 300)
    read = []
    start = asked.model.start
    monkeypatch.setattr(asked.model, "start", lambda ids: (read.extend(ids), start(ids))[1])
    asked.score(pairs)
    assert read == [pairs[0].context[:30]]


def test_every_model_is_asked_through_one_interface(bpe: Checkpoint, model: Any) -> None:
    pairs = pairs_with_a_common_beginning(4, 6, VOCABULARY)
    found = LikelihoodScorer(model, bpe.bundle.tokenizer, device="cpu").score(pairs)
    for pair, one in zip(pairs, found, strict=True):
        assert one.logprobs == pytest.approx(one_by_one(model, pair), abs=1e-5)


@torch.inference_mode()
@settings(max_examples=15)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_several_tokens_at_once_are_one_after_the_other(
    model: Any, sizes: list[tuple[int, int]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    begun = [random.integers(VOCABULARY, size=size).tolist() for size, _ in sizes]
    more = [random.integers(VOCABULARY, size=size).tolist() for _, size in sizes]
    every = model.follow(more, model.start(begun)[1], every=True).float().log_softmax(-1)
    last = model.follow(more, model.start(begun)[1]).float().log_softmax(-1)
    ends = np.cumsum([len(ids) for ids in more]) - 1
    torch.testing.assert_close(every[ends], last, atol=1e-5, rtol=1e-5)
    for i, end in enumerate(ends):
        logits, state = model.start([begun[i]])
        for j, token in enumerate(more[i]):
            logits = model.step(torch.tensor([token]), state)
            row = int(end) - len(more[i]) + 1 + j
            expected = logits.float().log_softmax(-1)[0]
            torch.testing.assert_close(every[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("context", "answer"),
    [("The film was", " good"), ("The film was ", "good"), ("中国电影", "好看"), ("a\n\n", "b")],
)
def test_an_answer_is_what_it_adds_to_the_joint_encoding(
    bpe: Checkpoint, context: str, answer: str
) -> None:
    pair = scorer(bpe).pair(context, answer)
    tokenizer = bpe.bundle.tokenizer
    whole = tokenizer.engine.encode(context + answer).ids
    assert list(pair.context) == tokenizer.engine.encode(context.rstrip()).ids
    assert list(pair.context + pair.continuation) == whole


def test_space_before_an_answer_is_part_of_it(bpe: Checkpoint) -> None:
    asked = scorer(bpe)
    assert asked.pair("The film was ", "good") == asked.pair("The film was", " good")


def test_without_a_context_the_beginning_of_a_text_is_one(
    bpe: Checkpoint, wordpiece: Checkpoint
) -> None:
    end = bpe.bundle.tokenizer.special_id("eos_token")
    assert scorer(bpe).pair("", "The").context == (end,)
    assert scorer(bpe).pair(" ", "The").continuation == scorer(bpe).pair("", " The").continuation
    tokenizer = wordpiece.bundle.tokenizer
    found = scorer(wordpiece).pair("", "the film")
    start = tokenizer.special_id("cls_token")
    assert found == Pair((start,), tuple(tokenizer.engine.encode("the film").ids[1:-1]))


def test_a_bert_vocabularys_end_of_text_is_not_between(wordpiece: Checkpoint) -> None:
    tokenizer = wordpiece.bundle.tokenizer
    pair = scorer(wordpiece).pair("the film", " good")
    assert (
        list(pair.context + pair.continuation) == tokenizer.engine.encode("the film good").ids[:-1]
    )


def test_a_token_across_the_border_belongs_to_the_answer(wordpiece: Checkpoint) -> None:
    """Nothing is between the two: as one word they have other tokens than as two."""
    pair = scorer(wordpiece).pair("the x", "y")
    tokens = wordpiece.bundle.tokenizer.tokens
    assert tokens(pair.context) == ["[CLS]", "the", "x"]
    assert tokens(pair.continuation) == ["##y"]


def test_an_answer_without_tokens_is_refused(bpe: Checkpoint) -> None:
    with pytest.raises(DataError, match="adds no token"):
        scorer(bpe).pair("The film", "")


def test_a_pair_beyond_the_context_is_refused(bpe: Checkpoint) -> None:
    longest = Pair(tuple(range(CONTEXT)), (1,))
    assert len(scorer(bpe).score([longest])) == 1
    with pytest.raises(ValueError, match=f"more than {CONTEXT} tokens"):
        scorer(bpe).score([Pair(tuple(range(CONTEXT)), (1, 2))])


def test_a_model_that_sees_all_at_once_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(RunError, match="bert model cannot"):
        LikelihoodScorer.of(load(tiny_folder))


def test_progress_counts_to_the_end(bpe: Checkpoint) -> None:
    pairs = pairs_with_a_common_beginning(6, 3, 300)
    counts: list[int] = []
    scorer(bpe, batch_tokens=60).score(pairs, progress=counts.append)
    assert counts == sorted(set(counts))
    assert counts[-1] == len(pairs)
    assert len(counts) > 1


@torch.inference_mode()
def test_packed_rows_of_scores_are_the_models(bpe: Checkpoint) -> None:
    """The same from the task's own path: `forward` with labels."""
    pair = pairs_with_a_common_beginning(1, 4, 300)[3]
    whole = pair.context + pair.continuation
    scores = bpe.bundle.model(PackedBatch.of([whole[:-1]]), labels=torch.tensor(whole[1:]))
    (found,) = scorer(bpe).score([pair])
    expected = (-scores.nats[-len(pair.continuation) :]).tolist()
    assert found.logprobs == pytest.approx(expected, abs=1e-5)

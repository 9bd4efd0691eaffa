"""Conversations: what the model is told, and which reply is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import Feature
from pretune.data.records import Records
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError, PretuneError
from pretune.inference.chat import Conversation, Reranker
from pretune.inference.generate import TextGenerator
from pretune.tasks.dialogue.dialogue import Chat, ChatOptions, Instruct, InstructOptions
from pretune.tasks.dialogue.layouts import TurnLayout
from tests.inference.conftest import CONTEXT, Pair


@pytest.fixture
def bundle(wordpiece: Pair) -> Bundle:
    options = ChatOptions(max_length=CONTEXT, max_new_tokens=8, top_k=20)
    return load(wordpiece.folder, task=Chat(options))


def said(talk: Conversation, message: str) -> str:
    return "".join(piece.text for piece in talk.say(message)).strip()


def test_a_reply_goes_on_from_all_that_was_said(bundle: Bundle) -> None:
    talk = Conversation(bundle, device="cpu")
    writer = TextGenerator.of(bundle, device="cpu")
    layout = TurnLayout.of(bundle.tokenizer)
    turns: list[str] = []
    for message in ("the film", "good?", "中国"):
        turns.append(message)
        ids = layout.history(turns, CONTEXT - 8).ids
        decoding = Decoding(max_new_tokens=8, top_k=20, top_p=0.9, seed=len(turns) - 1)
        (expected,) = writer.generate([ids], decoding)
        turns.append(said(talk, message))
        assert turns[-1] == expected.text.strip() != ""
        assert talk.turns == turns
    talk.reset()
    assert said(talk, "the film") == turns[1], "nothing is left of what was said"


def test_what_is_stopped_is_the_reply(bundle: Bundle) -> None:
    talk = Conversation(bundle, Decoding(max_new_tokens=40, seed=3), device="cpu")
    pieces, text = talk.say("the film"), ""
    while not text.strip():
        text += next(pieces).text
    pieces.close()
    assert talk.turns == ["the film", text.strip()]
    unheard = talk.say("good")
    next(unheard)
    talk.turns[-1] = ""
    unheard.close()
    assert talk.turns == ["the film", text.strip()], "no reply at all: nothing was said"


def test_the_history_stays_in_the_window(bundle: Bundle) -> None:
    talk = Conversation(bundle, device="cpu")
    for _ in range(6):
        said(talk, "bad film")
        assert len(talk.fit("good").ids) <= CONTEXT - 8
    assert talk.fit("good").dropped > 0
    assert talk.fit("bad " * 100).cut > 0
    assert said(talk, "bad " * 100)


@pytest.fixture
def backwards(wordpiece: Pair) -> Bundle:
    options = ChatOptions(max_length=CONTEXT, reverse=True, learn="replies")
    return load(wordpiece.folder, task=Chat(options))


@pytest.mark.parametrize("history", [["the film"], ["bad", "good film", "不好"], ["好"] * 60])
def test_a_reply_is_scored_by_how_likely_it_makes_the_history(
    backwards: Bundle, wordpiece: Pair, history: list[str]
) -> None:
    replies = ["good", "the bad film 中国", "unaffable " * 9]
    found = Reranker(backwards, device="cpu").scores(history, replies)
    layout = TurnLayout.of(backwards.tokenizer)
    most = (CONTEXT - 1) // 2
    befores = [[*layout.begin, *turn[:most]] for turn in layout.turns(replies)]
    room = CONTEXT + 1 - max(map(len, befores))
    after = [token for turn in layout.turns(history[::-1]) for token in turn][:room]
    for before, score in zip(befores, found, strict=True):
        ids = torch.tensor([[*before, *after][:-1]])
        with torch.no_grad():
            logs = wordpiece.theirs(ids).logits[0].log_softmax(-1)[len(before) - 1 :]
        expected = sum(float(row[token]) for row, token in zip(logs, after, strict=True))
        assert score == pytest.approx(expected, rel=1e-4)


def test_the_best_of_several_replies_is_given(bundle: Bundle, backwards: Bundle) -> None:
    reranker = Reranker(backwards, device="cpu")
    talk = Conversation(bundle, reranker=reranker, candidates=6, device="cpu")
    (piece,) = talk.say("the film")
    ids = TurnLayout.of(bundle.tokenizer).history(["the film"], CONTEXT - 8).ids
    decoding = Decoding(max_new_tokens=8, top_k=20, top_p=0.9, samples=6)
    found = TextGenerator.of(bundle, device="cpu").generate([ids], decoding)
    texts = [one.text.strip() for one in found if one.text.strip()]
    scores = reranker.scores(["the film"], texts)
    assert piece.text.strip() == texts[scores.index(max(scores))]
    assert len(set(scores)) > 1
    assert talk.turns == ["the film", piece.text.strip()]


def test_where_nothing_was_said_no_reply_is_better(backwards: Bundle) -> None:
    reranker = Reranker(backwards, device="cpu")
    assert reranker.scores([], ["good", "bad"]) == [0.0, 0.0]
    assert reranker.scores(["good"], []) == []


@pytest.mark.parametrize(
    ("candidates", "decoding", "wrong"),
    [
        (8, Decoding(temperature=0), "with temperature 0 all 8 candidates would be the same"),
        (100_000, Decoding(), "candidates must be from 1 to 10,000, not 100,000"),
        (0, Decoding(), "candidates must be from 1"),
        (8, Decoding(beams=4), "4 replies, not 8 candidates"),
    ],
)
def test_candidates_that_cannot_be_written_are_refused_at_once(
    bundle: Bundle, backwards: Bundle, candidates: int, decoding: Decoding, wrong: str
) -> None:
    reranker = Reranker(backwards, device="cpu")
    with pytest.raises(PretuneError, match=wrong):
        Conversation(bundle, decoding, reranker=reranker, candidates=candidates, device="cpu")
    alone = Conversation(bundle, decoding, candidates=candidates, device="cpu")
    assert alone.decoding == decoding, "without a reranker there are no candidates"


def test_settings_that_leave_nothing_to_choose_are_refused(
    bundle: Bundle, backwards: Bundle
) -> None:
    reranker = Reranker(backwards, device="cpu")
    talk = Conversation(bundle, reranker=reranker, candidates=2, device="cpu")
    before = talk.decoding
    with pytest.raises(PretuneError, match="temperature 0"):
        talk.decoding = replace(before, temperature=0)
    assert talk.decoding == before
    one = Conversation(bundle, reranker=reranker, candidates=1, device="cpu")
    one.decoding = replace(before, temperature=0)
    assert said(one, "the film")


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_conversation_is_a_record_of_the_task_that_trained_the_model(
    bundle: Bundle, wordpiece: Pair, system: str | None
) -> None:
    talk = Conversation(bundle, device="cpu")
    talk.turns = ["the film", "good"]
    assert talk.record == {"turns": ["the film", "good"]}
    task = Instruct(InstructOptions(max_length=CONTEXT, max_new_tokens=8, system=system))
    taught = load(wordpiece.folder, task=task)
    talk = Conversation(taught, device="cpu")
    talk.turns = ["the film", "good"]
    assert talk.record == {
        "messages": [
            *([{"role": "system", "content": "Be kind."}] if system else []),
            {"role": "user", "content": "the film"},
            {"role": "assistant", "content": "good"},
        ]
    }
    data = Records([talk.record], "saved.jsonl", range(1, 2), ("messages",))
    task = Instruct(InstructOptions(max_length=400))
    read = task.adapted(data, {}, True)
    (feature,) = task.features(read, range(1), taught.tokenizer, with_targets=True)
    assert isinstance(feature, Feature), "it is trained on"


@pytest.mark.parametrize(("message", "wrong"), [(" ", "empty message"), ("a\ud800", "Unicode")])
def test_what_cannot_be_said(bundle: Bundle, message: str, wrong: str) -> None:
    talk = Conversation(bundle, device="cpu")
    with pytest.raises(DataError, match=wrong):
        next(talk.say(message))
    assert talk.turns == []


def test_models_in_the_wrong_place(bundle: Bundle, backwards: Bundle, tiny_folder: Path) -> None:
    with pytest.raises(PretuneError, match="trained on dialogues backwards"):
        Conversation(backwards, device="cpu")
    for wrong in (bundle, load(tiny_folder)):
        with pytest.raises(PretuneError, match="was not trained on dialogues backwards"):
            Reranker(wrong, device="cpu")


def test_any_language_model_can_be_talked_to(bpe: Any) -> None:
    """One that nobody trained on dialogues; turns end with the end of text."""
    talk = Conversation(bpe.bundle, Decoding(max_new_tokens=5, seed=1), device="cpu")
    said(talk, "Once upon")
    assert talk.fit("a time").ids.count(0) == 1 + bool(talk.turns) * 2

"""Chit-chat: what is learned, figures against transformers, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import pretune
from pretune.bundle.bundle import load
from pretune.data.batch import Feature, FeatureSet, Skipped
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.tasks.dialogue.dialogue import Chat, ChatOptions
from pretune.tasks.dialogue.layouts import TurnLayout
from pretune.tasks.dialogue.replies import ASKED, ReplyPrediction, distinct
from pretune.tasks.features import featurize
from pretune.tasks.losses import IGNORED, NEXT
from pretune.training.validation import evaluate_features
from tests.inference.conftest import CONTEXT, Pair, wordpiece
from tests.tasks.chats import DIALOGUES, trained
from tests.tasks.dialogue.test_turn_layout import BERT_LIKE, TEXTS, WORDS

__all__ = ["wordpiece"]  # a fixture


def records(dialogues: list[Any]) -> Records:
    rows = [{"turns": turns} for turns in dialogues]
    return Records(rows, "talk.jsonl", range(1, len(rows) + 1), ("turns",))


def chat(**options: Any) -> Chat:
    return Chat(ChatOptions(**{"max_length": CONTEXT, "max_new_tokens": 8, **options}))


@given(texts=TEXTS, size=st.integers(4, 40), learn=st.sampled_from(["all", "replies"]))
def test_every_token_of_a_turn_is_learned_once(texts: list[str], size: int, learn: str) -> None:
    task = chat(max_length=size, learn=learn)
    actual = list(task.features(records([texts]), range(1), BERT_LIKE, with_targets=True))
    if len(texts) == 1:
        assert actual == [Skipped(0, "no reply in it")]
        return
    features = [feature for feature in actual if isinstance(feature, Feature)]
    learned: list[int] = []
    for feature in features:
        labels = feature.targets[NEXT]
        assert len(feature.tokens) <= size
        assert feature.tokens[0] == WORDS.index("[CLS]")
        # What is learned is what follows in the sequence itself.
        assert all(b in (a, IGNORED) for a, b in zip(feature.tokens[1:], labels, strict=False))
        learned += [label for label in labels if label != IGNORED]
    wanted = texts if learn == "all" else texts[1:]
    whole = [[*(WORDS.index(w) for w in text.split()), WORDS.index("[SEP]")] for text in wanted]
    if not any(feature.truncated for feature in features):
        assert learned == [token for turn in whole for token in turn]
    else:
        assert len(learned) < sum(map(len, whole)) or learn == "replies"


def test_a_cut_turn_ends_like_any_other_and_its_end_is_not_learned() -> None:
    """Nobody ended there; but the next one does not begin in the middle of a sentence."""
    task = chat(max_length=12)
    whole = records([["a a a", "b b b b b b b b b", "c c", "a"]])
    actual = list(task.evaluation_features(whole, range(1), BERT_LIKE))
    features = [feature for feature in actual if isinstance(feature, Feature)]
    # 12 tokens and the one after them: half of what is left after [CLS] is 6.
    marked = "^ a a a | b b b b b | c c | a |"
    read = [{"^": "[CLS]", "|": "[SEP]"}.get(word, word) for word in marked.split()]
    first, second = features
    assert [WORDS[i] for i in first.tokens] == read[:10]
    shown = [WORDS[i] if i >= 0 else "-" for i in first.targets[NEXT]]
    assert shown == [*read[1:10], "-"]
    assert [WORDS[i] for i in second.tokens] == ["[CLS]", *read[5:15]]
    shown = [WORDS[i] if i >= 0 else "-" for i in second.targets[NEXT]]
    assert shown == ["-"] * 6 + read[11:16]
    assert [feature.truncated for feature in features] == [True, False]


def test_a_reply_that_is_cut_is_asked_for_up_to_the_turn_before_it() -> None:
    long = records([["a a", "b", "c " * 30]])
    actual = list(chat(max_length=12).evaluation_features(long, range(1), BERT_LIKE))
    last = actual[-1]
    assert isinstance(last, Feature)
    prompt = [WORDS[i] for i in last.tokens[: last.targets[ASKED]]]
    assert prompt == ["[CLS]", "a", "a", "[SEP]", "b", "[SEP]"]


def theirs_of(folder: Path, turns: list[str], layout: TurnLayout, first: int) -> Any:
    """Transformers' loss with -100 where nothing is learned: sum and count."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids, labels = [*layout.begin], [-100] * len(layout.begin)
    for i, turn in enumerate(layout.turns(turns)):
        ids += turn
        labels += turn if i >= first else [-100] * len(turn)
    count = sum(label != -100 for label in labels)
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
    return float(loss) * count, count


@pytest.mark.parametrize(("learn", "first"), [("all", 0), ("replies", 1)])
def test_the_loss_is_that_of_transformers(wordpiece: Pair, learn: str, first: int) -> None:
    task = chat(learn=learn, samples=0)
    bundle = load(wordpiece.folder, task=task)
    layout = TurnLayout.of(bundle.tokenizer)
    made = featurize(task, records(DIALOGUES), bundle.tokenizer, evaluation=True)
    actual = evaluate_features(task, bundle.model, made)
    sums = [theirs_of(wordpiece.folder, turns, layout, first) for turns in DIALOGUES]
    nats, count = (sum(column) for column in zip(*sums, strict=True))
    assert actual.metrics["loss"] == pytest.approx(nats / count, rel=1e-5)
    # Perplexity is always of the replies.
    replies = [theirs_of(wordpiece.folder, turns, layout, 1) for turns in DIALOGUES]
    nats, count = (sum(column) for column in zip(*replies, strict=True))
    assert actual.metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    means = []
    for turns in DIALOGUES:
        for i in range(1, len(turns)):
            upto, last = turns[: i + 1], layout.turns(turns[: i + 1])[-1]
            means.append(theirs_of(wordpiece.folder, upto, layout, i)[0] / len(last))
    assert actual.metrics["reply_perplexity"] == pytest.approx(
        math.exp(sum(means) / len(means)), rel=1e-4
    )
    assert actual.details["replies"] == len(means)


def test_no_dialogue_sees_another_one(wordpiece: Pair) -> None:
    task = chat()
    bundle = load(wordpiece.folder, task=task)
    bundle.model.eval()

    def nats(dialogues: list[list[str]]) -> torch.Tensor:
        features = featurize(task, records(dialogues), bundle.tokenizer)
        assert isinstance(features, FeatureSet)
        batch = features.batch(torch.arange(len(dialogues)).numpy(), sort=False)
        outputs = task.forward(bundle.model, batch)
        assert outputs.scores is not None
        return outputs.scores.nats

    alone = nats([DIALOGUES[1]])
    together = nats([DIALOGUES[0], DIALOGUES[1]])
    assert torch.allclose(together[-len(alone) :], alone, atol=1e-5)
    assert torch.allclose(nats([DIALOGUES[2], DIALOGUES[1]])[-len(alone) :], alone, atol=1e-5)


def test_what_each_dialogue_costs_is_what_transformers_says(wordpiece: Pair) -> None:
    task = chat()
    bundle = load(wordpiece.folder, task=task)
    bundle.model.eval()
    features = featurize(task, records(DIALOGUES), bundle.tokenizer)
    assert isinstance(features, FeatureSet)
    batch = features.batch(torch.arange(3).numpy(), sort=False)
    each = task.each_loss(task.forward(bundle.model, batch), batch)
    layout = TurnLayout.of(bundle.tokenizer)
    for turns, nats, count in zip(DIALOGUES, each.sums, each.counts, strict=True):
        expected = theirs_of(wordpiece.folder, turns, layout, 0)
        assert (float(nats), int(count)) == (pytest.approx(expected[0], rel=1e-4), expected[1])


def test_backwards_the_last_turn_is_the_first() -> None:
    task = chat(reverse=True, learn="replies")
    (feature,) = task.features(records([["a a", "b", "c"]]), range(1), BERT_LIKE, with_targets=True)
    assert isinstance(feature, Feature)
    assert [WORDS[i] for i in feature.tokens] == ["[CLS]", "c", "[SEP]", "b", "[SEP]", "a", "a"]
    shown = [WORDS[i] if i >= 0 else "-" for i in feature.targets[NEXT]]
    assert shown == ["-", "-", "b", "[SEP]", "a", "a", "[SEP]"]


def test_samples_are_spread_over_the_data_and_asked_up_to_the_last_turn() -> None:
    task = chat(samples=3)
    every = records([["a", "b", "c c c"]] * 10)
    actual = list(task.evaluation_features(every, range(10), BERT_LIKE))
    asked = [f.record for f in actual if isinstance(f, Feature) and f.targets[ASKED]]
    assert len(asked) == 3
    assert max(asked) - min(asked) >= 6
    (one,) = [f for f in actual if isinstance(f, Feature) and f.record == asked[0]]
    prompt = [WORDS[i] for i in one.tokens[: one.targets[ASKED]]]
    assert prompt == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]


def test_written_replies_do_not_depend_on_the_batch(wordpiece: Pair) -> None:
    task = chat()
    bundle = load(wordpiece.folder, task=task)
    made = featurize(task, records(DIALOGUES), bundle.tokenizer, evaluation=True)
    one, two = (
        evaluate_features(task, bundle.model, made, batch_tokens=size).details["samples"]
        for size in (8, 4096)
    )
    assert one == two
    assert [s["history"] for s in one] == [turns[:-1] for turns in DIALOGUES]
    assert [s["reference"] for s in one] == [turns[-1] for turns in DIALOGUES]


def test_an_evaluation_has_answers_where_replies_were_asked_for(wordpiece: Pair) -> None:
    task = chat(samples=2, max_length=12)
    bundle = load(wordpiece.folder, task=task)
    bundle.model.eval()
    features = featurize(task, records(DIALOGUES), bundle.tokenizer, evaluation=True)
    assert isinstance(features, FeatureSet)
    batch = features.batch(torch.arange(len(features)).numpy(), sort=False)
    outputs = task.forward(bundle.model, batch)
    assert not outputs.written, "a forward pass writes nothing"
    actual = task.predict(task.write(bundle.model, outputs, batch), batch)
    answers = []
    for record in range(3):
        parts = [one for i, one in enumerate(actual) if features.record(i) == record]
        answers.append(task.combine(parts, {}))
    assert [answer.tokens > 0 for answer in answers] == [
        task.options.is_sample(row, 3) for row in range(3)
    ]
    assert sum(answer.tokens > 0 for answer in answers) == 2


def test_a_prediction_is_a_reply(wordpiece: Pair) -> None:
    bundle = load(wordpiece.folder, task=chat(temperature=0))
    answer, again, longer = pretune.predict(
        bundle, ["the film", {"turns": ["the film"]}, {"turns": ["bad"] * 90}]
    )
    assert isinstance(answer, ReplyPrediction)
    assert answer == again
    ids = torch.tensor([TurnLayout.of(bundle.tokenizer).history(["the film"], 40).ids])
    theirs = wordpiece.theirs.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    text = bundle.tokenizer.decode(theirs[0, ids.shape[1] :].tolist()).replace(" ", "")
    assert answer.reply.replace(" ", "") == text
    assert longer.tokens >= 1


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["a", " "], "line 1, column 'turns', item 2: an empty turn"),
        ([], "found an empty list"),
        (None, "found nothing"),
        (3, "found an int"),
        (["a", 3], "item 2: expected a text, found an int"),
        ([{"role": "user", "content": "a"}], "Messages with roles are read by the task instruct"),
        (["a", "b" * 200_000], "item 2: a text of 200,000 characters"),
        (["a\ud83d", "b"], "item 1: half a character"),
    ],
)
def test_what_is_no_dialogue_is_named(turns: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(chat().features(records([turns]), range(1), BERT_LIKE, with_targets=True))
    assert "talk.jsonl, line 1" in str(caught.value)
    assert message in str(caught.value)


def test_distinct_by_hand() -> None:
    # the film the film | good good: 6 words, 3 of them different; bigrams: the film, film the,
    # good good.
    assert distinct(["the film The film", "good good"], 1) == 3 / 6
    assert distinct(["the film The film", "good good"], 2) == 3 / 6
    assert distinct(["好好看"], 1) == 2 / 3
    assert distinct([], 2) == 0.0


def test_is_trained_saved_and_opened_by_transformers(tmp_path: Path) -> None:
    """It learns by heart which reply follows which turns."""
    run = trained(tmp_path, DIALOGUES)
    bundle = load(run, options={"temperature": 0})
    actual = pretune.predict(bundle, [{"turns": turns[:-1]} for turns in DIALOGUES])
    assert [answer.to_dict()["reply"] for answer in actual] == [turns[-1] for turns in DIALOGUES]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "last")
    layout = TurnLayout.of(bundle.tokenizer)
    ids = torch.tensor([layout.history(DIALOGUES[1][:1], 60).ids])
    written = theirs.generate(ids, do_sample=False, max_new_tokens=20, pad_token_id=0)[0]
    assert int(written[-1]) == layout.end, "its config says how a turn ends"
    assert bundle.tokenizer.decode(written[ids.shape[1] :].tolist()).replace(" ", "") == "好看"


def test_a_tokenizer_is_trained_on_every_turn() -> None:
    assert list(chat().texts(records(DIALOGUES))) == [t for turns in DIALOGUES for t in turns]

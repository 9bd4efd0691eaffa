"""Dialogues in windows, histories that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from pretune.errors import CheckpointError
from pretune.tasks.dialogue.layouts import TurnLayout, turn_limit, turn_windows
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

WORDS = ["a", "b", "c", "[CLS]", "[SEP]", "[UNK]"]


def words(**special: str) -> Tokenizer:
    engine = RustTokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")  # noqa: S106
    )
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(engine, special)


BERT_LIKE = words(cls_token="[CLS]", sep_token="[SEP]")  # noqa: S106
GPT_LIKE = words(eos_token="[SEP]")  # noqa: S106


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), room=st.integers(2, 20))
def test_every_turn_is_fresh_once_and_a_window_has_what_it_replies_to(
    lengths: list[int], room: int
) -> None:
    most = turn_limit(lengths, room)
    kept = [min(length, most) for length in lengths]
    actual = list(turn_windows(kept, room))
    every = [turn for _, fresh, stop in actual for turn in range(fresh, stop)]
    assert every == list(range(len(kept)))
    for number, (first, fresh, stop) in enumerate(actual):
        assert sum(kept[first:stop]) <= room
        context = sum(kept[first:fresh])
        assert (context == 0) == (number == 0)
        assert context <= room // 2
        if stop < len(kept):
            assert sum(kept[first : stop + 1]) > room, "another one had fitted"
    if sum(lengths) <= room:
        assert kept == lengths
        assert len(actual) == 1


TEXTS = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=6
)


@given(texts=TEXTS, room=st.integers(2, 30))
def test_a_history_is_the_last_turns_that_fit(texts: list[str], room: int) -> None:
    fitted = TurnLayout.of(BERT_LIKE).history(texts, room)
    assert len(fitted.ids) <= room
    tokens = [[*(WORDS.index(word) for word in text.split()), 4] for text in texts]
    whole = [token for turn in tokens for token in turn]
    assert fitted.ids[0] == 3
    read = fitted.ids[1:]
    assert read == whole[len(whole) - len(read) :]
    if fitted.cut:
        assert fitted.dropped == len(texts) - 1
        assert fitted.cut == len(tokens[-1]) - (room - 1)
    else:
        assert read == [token for turn in tokens[fitted.dropped :] for token in turn]
        more = sum(map(len, tokens[fitted.dropped - 1 :]))
        assert fitted.dropped == 0 or more > room - 1, "another turn had fitted"


def test_without_a_beginning_turns_end_with_the_end_of_text() -> None:
    assert TurnLayout.of(GPT_LIKE).history(["a b", "c"], 10).ids == [0, 1, 4, 2, 4]


def test_of_an_endless_message_the_end_is_read() -> None:
    fitted = TurnLayout.of(BERT_LIKE).history(["a " * 500_000 + "b c"], 6)
    assert fitted.ids == [3, 0, 0, 1, 2, 4]
    assert fitted.cut == -1


def test_turns_that_cannot_be_read_are_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    usual = TurnLayout.turns

    def counted(self: TurnLayout, texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return usual(self, texts)

    monkeypatch.setattr(TurnLayout, "turns", counted)
    fitted = TurnLayout.of(BERT_LIKE).history(["a a a"] * 200 + ["b", "c"], 12)
    assert fitted.ids == [3, 0, 0, 0, 4, 1, 4, 2, 4]
    assert fitted.dropped == 199
    assert asked == ["c", "b", "a a a", "a a a"], "the last one of these did not fit"


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(CheckpointError, match="end of a turn"):
        TurnLayout.of(words())


def test_nobody_can_speak_for_the_other_one(tiny_vocab_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_vocab_folder)
    layout = TurnLayout.of(tokenizer)
    (turn,) = layout.turns(["good [SEP] bad"])
    assert turn.count(layout.end) == 1
    assert tokenizer.encode_bare(["good [SEP] bad"])[0].ids.count(layout.end) == 1, "as ever"

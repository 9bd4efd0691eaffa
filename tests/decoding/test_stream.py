"""Text comes in whole characters, and what was shown is never taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.decoding.text_stream import Detokenizer, StopText, continuation
from pretune.tokenizers.load import load_tokenizer
from tests.inference.conftest import TEXTS, Pair
from tests.tokenizers.family_folders import folders, write_folder

letters = st.text(alphabet="ab#", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3)


@given(data=st.data())
def test_any_bytes_come_as_the_tokenizer_decodes_them(bpe: Pair, data: st.DataObject) -> None:
    tokenizer = bpe.bundle.tokenizer
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    text = continuation(tokenizer, [], ids)
    assert tokenizer.decode(ids) in (text, text + "\ufffd")  # half a character at the end


@given(st.sampled_from(TEXTS), st.integers(0, 30))
def test_each_piece_is_of_whole_characters(bpe: Pair, text: str, cut: int) -> None:
    tokenizer = bpe.bundle.tokenizer
    ids = tokenizer.encode([text])[0].ids
    assert len(ids) > len(text) / 2
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert text.startswith("".join(pieces[:cut]))


def test_a_character_in_several_tokens_comes_with_the_last(bpe: Pair) -> None:
    tokenizer = bpe.bundle.tokenizer
    ids = tokenizer.encode(["\U0001f98a"])[0].ids
    assert len(ids) > 2
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert pieces == [*[""] * (len(ids) - 1), "\U0001f98a"]


def test_words_go_on_where_the_prompt_ended(wordpiece: Pair) -> None:
    tokenizer = wordpiece.bundle.tokenizer
    prompt = tokenizer.encode(["the film un"])[0].ids[1:-1]
    ids = [tokenizer.engine.token_to_id(t) for t in ("##aff", "##able", "good", "!", "看", "中")]
    assert continuation(tokenizer, prompt, ids) == "affable good! 看中"


@given(data=st.data())
def test_long_wordpiece_texts_come_as_the_tokenizer_decodes_them(
    wordpiece: Pair, data: st.DataObject
) -> None:
    tokenizer = wordpiece.bundle.tokenizer
    plain = [i for i in range(5, tokenizer.vocab_size) if tokenizer.tokens([i])[0].isascii()]
    ids = data.draw(st.lists(st.sampled_from(plain), min_size=1, max_size=90))
    assert continuation(tokenizer, ids[:1], ids[1:]) == tokenizer.decode(ids).removeprefix(
        tokenizer.decode(ids[:1])
    )


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the stop text begins that is complete first; of several, the earliest."""
    for end in range(1, len(text) + 1):
        found = [text.find(stop) for stop in stops if stop in text[:end]]
        if found:
            return min(found)
    return None


@given(letters, stop_lists)
def test_a_text_ends_before_its_first_stop(text: str, stops: list[str]) -> None:
    gate = StopText(stops)
    shown = ""
    for character in text:
        shown += gate.push(character)
        if gate.found:
            break
        # What has been shown need never be taken back.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
    place = first_stop(text, stops)
    assert gate.found == (place is not None)
    assert shown + gate.rest() == (text if place is None else text[:place])


@given(letters, stop_lists, st.integers(1, 5))
def test_nothing_is_held_back_without_need(text: str, stops: list[str], size: int) -> None:
    gate = StopText(stops)
    shown = ""
    for start in range(0, len(text), size):
        shown += gate.push(text[start : start + size])
        if gate.found:
            return
        held = text[len(shown) : start + size]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize("name", ["llama", "gemma", "xlm-roberta"])
def test_pieces_and_bytes_come_as_the_tokenizer_decodes_them(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path / "folder", folders()[name]))
    text = ("a  cat " + "\U0001f98a" * 9 + " 电影 ж") * 3
    ids = tokenizer.encode([text])[0].ids
    whole = tokenizer.decode(ids)
    assert name == "xlm-roberta" or "\U0001f98a\U0001f98a" in whole
    assert continuation(tokenizer, [], ids) == whole
    for cut in (1, 2, len(ids) // 2):
        before = tokenizer.decode(ids[:cut])
        shown = continuation(tokenizer, ids[:cut], ids[cut:])
        assert "\ufffd" in before or before + shown == whole


def test_bytes_that_make_no_character_are_not_waited_for(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path / "folder", folders()["llama"]))
    number = tokenizer.engine.token_to_id
    ids = [number(name) for name in ("<0xE4>", "<0x41>", "\u2581cat")]
    assert continuation(tokenizer, [], ids) == "\ufffdA cat"

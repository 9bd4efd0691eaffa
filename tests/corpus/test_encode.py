from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.corpus.encode import Cleaning, clean

OFF = {"nfc": False, "control": False, "spaces": False}


def only(text: str, **steps: bool) -> str:
    return clean(text, Cleaning(**{**OFF, **steps}))[0]


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("nfc", "cafe\u0301", "café"),
        ("control", "a\x00b\x07\ufeffc\x9f", "abc"),
        ("control", "a\r\nb\rc\fd\u2028e\x85f", "a\nb\nc\nd\ne\nf"),
        ("control", "a\tb\nc👩\u200d🚀", "a\tb\nc👩\u200d🚀"),
        ("spaces", "  a \t\u3000b  \n  c\u00a0d \n", "a b\nc d"),
        ("spaces", "a\n\nb", "a\n\nb"),
        ("join_lines", "wrapped\nat\n\na column\n", "wrapped at\n\na column\n"),
        ("join_lines", "今天下\n雨。\n好\nfilm", "今天下雨。好 film"),
        ("join_lines", "他说：“好。”\n她笑了。", "他说：“好。”她笑了。"),
        ("join_lines", "他说：\n“好……\n我来——\n”", "他说：“好……我来——\n”".replace("\n", " ")),
        ("join_lines", "“好。”\n“嗯。”", "“好。”“嗯。”"),
        ("join_lines", "\U00020000\n\U0002a6d6\n卡尔·\n马克思", "\U00020000\U0002a6d6卡尔·马克思"),
        ("join_lines", "“good”\n“bad” —\nand ‘so’\non…", "“good” “bad” — and ‘so’ on…"),
        ("repeated_lines", "menu\na\n\nmenu \nb\n\na", "menu\na\n\nb\n"),
    ],
)
def test_each_step(step: str, before: str, after: str) -> None:
    assert clean(before, Cleaning(**{**OFF, step: True})) == (
        after,
        [step] if before != after else [],
    )
    assert only(before) == before


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    options = Cleaning(join_lines=True, repeated_lines=True)
    once, _ = clean(text, options)
    # What was removed may have kept apart what combines; nothing else may be left to do.
    assert unicodedata.normalize("NFC", clean(once, options)[0]) == unicodedata.normalize(
        "NFC", clean(clean(once, options)[0], options)[0]
    )

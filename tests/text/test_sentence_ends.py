"""Sentences by punctuation: cases by hand, and what holds for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.text.sentence_ends import sentence_spans

PIECES = st.sampled_from(
    [
        *"ab AZ19.!?…。！？；，,\n\t\"'“”’()「」《》",
        "Mr.",
        "e.g.",
        "U.S.",
        "...",
        "3.14",
        " ",
        "好",
        "\r\n",
    ]
)


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    "marked",
    [
        "It rained.| We left!| Why?| No one knew.",
        'He said "Stop!"| Then (as ever) he left.)| "So?"| She ran.',
        '"Stop!" he said.| Nobody did.',
        "Mr. Smith met Dr. J. R. Brown, e.g. at noon, in the U.S. Army.| He paid 3.14 dollars.",
        "See fig. 3 and vol. II.| It is 5 a.m. in May.",
        "1. First of all.| 2. The second.",
        "It was 1999.| Then came 2000.",
        "Wait... what?| Well...| He left.",
        "Wait… what?| Well…| He left.",
        "a title\n|\nand a line\n|another",
        "今天下雨。|我们走了！|为什么？|没人知道；|真的。",
        "“不好！”|他说。|（真的。）|他走了……|天黑了。",
        "“好！”，他说。",
        "真的吗?|我不信!|他说3.14是圆周率.好的。",
        "他用Python。|It works.| 很好。",
        "क्या हुआ।| कुछ नहीं।",
        "Really?!| Yes.",
        "one sentence without an end",
        "Visit example.com today.| Version 2.0.1 is out.",
    ],
)
def test_by_hand(marked: str) -> None:
    assert split(marked.replace("|", "")) == [piece.strip() for piece in marked.split("|")]


@pytest.mark.parametrize("text", ["", " ", "\n\n \t"])
def test_nothing(text: str) -> None:
    assert sentence_spans(text) == []


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_nothing_but_space_is_lost(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join("".join(split(text)).split()) == "".join(text.split())
    flat = [place for span in spans for place in span]
    assert flat == sorted(flat)
    for piece in split(text):
        assert piece
        assert piece == piece.strip()
        assert "\n" not in piece


@pytest.mark.parametrize("unit", [" ", ".", "a", "。", "Mr. ", '"', "a.", "\n", "1"])
def test_time_is_linear(unit: str) -> None:
    # Were it quadratic, this would take minutes.
    assert "".join("".join(split(unit * 300_000)).split()) == "".join((unit * 300_000).split())

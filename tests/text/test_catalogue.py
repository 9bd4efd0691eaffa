"""Every text that people are shown stands in the Chinese catalogue; see tests/text/messages.py."""

from __future__ import annotations

import re
from functools import cache

import pytest

from pretune.cli.app import COMMANDS
from pretune.text.spoken_language import speaking, tr
from pretune.text.translation import Catalogue, pieces
from tests.text.messages import Message, collected, disagreement, written

#: How many texts of a room may be without a translation: none. A room that is new may have some.
UNTRANSLATED: dict[str, int] = {}
#: What stays as it is: options, commands, keys with values, variables of the environment.
_KEPT = re.compile(
    r"(?a:--[a-z][a-z-]+|\b[a-z_]+\.[a-z_]+=|\b[A-Z]+_[A-Z_]+\b|pretune (?:"
    + "|".join(COMMANDS)
    + r")\b)"
)


@cache
def messages() -> dict[str, Message]:
    return collected()


PAIRS = {msgid: msgstr for own in written().values() for msgid, msgstr in own.items()}


def test_the_catalogue_has_the_texts_of_the_code() -> None:
    advice = "run: python -m tests.text.messages update, and translate what is new"
    missing = sorted(messages().keys() - PAIRS.keys())
    stale = sorted(PAIRS.keys() - messages().keys())
    assert (missing, stale) == ([], []), advice


def test_every_room_is_translated() -> None:
    missing = {room: sum(not msgstr for msgstr in own.values()) for room, own in written().items()}
    left = {room: count for room, count in missing.items() if count > UNTRANSLATED.get(room, 0)}
    assert left == {}, "see: python -m tests.text.messages todo ROOM"


def test_translations_have_the_same_places() -> None:
    wrong = {m: disagreement(m, t) for m, t in PAIRS.items() if t and disagreement(m, t)}
    assert wrong == {}


def test_translations_keep_what_is_typed() -> None:
    lost = {
        msgid: kept
        for msgid, msgstr in PAIRS.items()
        if msgstr and (kept := {*_KEPT.findall(msgid)} - {*_KEPT.findall(msgstr)})
    }
    assert lost == {}


def test_no_template_takes_the_texts_of_another() -> None:
    catalogue = Catalogue((msgid, f"<{msgid}>") for msgid in PAIRS)
    taken = {}
    for msgid in PAIRS:
        text, shown = _filled(msgid), f"<{_filled(msgid)}>"
        if (got := catalogue.look_up(text)) != shown:
            taken[msgid] = got
    assert taken == {}


def _filled(template: str) -> str:
    """A text that a template makes of values that look like nothing of ours."""
    parts, places = pieces(template)
    values = [f"⟨{place.number}⟩" for place in places]
    return "".join(part + value for part, value in zip(parts, [*values, ""], strict=True))


@pytest.mark.parametrize("msgid", ["error", "Usage:", "Did you mean '{0}'?"])
def test_the_collector_sees_texts(msgid: str) -> None:
    assert msgid in messages()


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("! fold 1", "! 第 1 份"),
        ("answers 'refund' to everything", "对所有样本都回答“refund”"),
        ("a.gz: is a gzip file", "a.gz：是 gzip 文件"),
        ("a.ods: is a spreadsheet, not plain text", "a.ods：是电子表格，不是纯文本"),
        ("Decompress it first: gunzip -k a.gz", "请先解压：gunzip -k a.gz"),
        ("Choose another file.", "请换一个文件。"),
        ("Choose another --output.", "请换一个 --output。"),
        (
            "about 5 min on this machine (cpu): 4 min training, 30 s evaluation, "
            "6 s reading data and model",
            "本机（cpu）大约需要 5 min：训练 4 min，评估 30 s，读取数据和模型 6 s",
        ),
        ("1 record", "1 条记录"),
        ("line 94 and line 228", "第 94 行和第 228 行"),
        ("line 4: 2 times (spam 1x, ham 1x)", "第 4 行：2 次（spam 1x, ham 1x）"),
        (
            "Did you mean 'body'? Say which one it is with data.columns.text=COLUMN",
            "是不是想写“body”？请用 data.columns.text=COLUMN 指明是哪一列",
        ),
    ],
)
def test_texts_that_are_put_together_are_told_in_chinese(english: str, chinese: str) -> None:
    with speaking("zh"):
        assert tr(english) == chinese

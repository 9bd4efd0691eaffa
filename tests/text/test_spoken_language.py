"""Which language is spoken, and how a text is looked up."""

from __future__ import annotations

import pytest

from pretune.text import translation
from pretune.text.spoken_language import language, language_of, speaking, tr
from pretune.text.translation import Catalogue, entries, pieces


@pytest.mark.parametrize(
    ("environment", "spoken"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_SG.GB2312@pinyin"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "en"),
        ({"LANG": "zh-Hant"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LC_ALL": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8", "LANG": "de_DE"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh_CN.UTF-8"}, "zh"),
        ({"PRETUNE_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"PRETUNE_LANG": "zh-CN"}, "zh"),
        ({"PRETUNE_LANG": "zh", "LC_ALL": "C"}, "zh"),
        ({"PRETUNE_LANG": "de", "LANG": "zh_CN.UTF-8"}, None),
    ],
)
def test_the_variable_comes_before_the_locale(
    environment: dict[str, str], spoken: str | None
) -> None:
    assert language_of(environment) == spoken


def test_a_page_may_speak_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETUNE_LANG", "zh")
    with speaking("en"):
        assert (language(), tr("updates")) == ("en", "updates")
    assert (language(), tr("updates")) == ("zh", "更新次数")


CATALOGUE = """\
msgid ""
msgstr "Language: zh_CN\\n"

#. 0 = path
msgid "{0}: no such file.{1}"
msgstr "{0}：没有这个文件。{1}"

msgid "Did you mean '{0}'?"
msgstr "是不是想写“{0}”？"

msgid "{0} of {1} labels"
msgstr "{1} 个标签中的 {0} 个"

msgid "{0} of the labels"
msgstr "标签中的 {0}"

msgid "expected {0}, found {1}"
msgstr "应为{0!t}，却是{1!t}"

msgid "nothing"
msgstr "什么也没有"

msgid "a {{brace}}\\n  and a line"
msgstr "{{括号}}\\n  和一行"

msgid "Did you read '{0}' twice?"
msgstr "“{0}”读了两次？"

msgid "{0}, line {1}: {2} fields ({3})"
msgstr "{0}，第 {1} 行：有 {2} 个字段（{3}）"

msgid ", line {0}"
msgstr "，第 {0} 行"

msgid "line {0}"
msgstr "第 {0} 行"

msgid ", column '{0}'"
msgstr "，列“{0}”"

msgid "Known here: {0}."
msgstr "已知的有：{0}。"

msgid "no label there ('{0}')"
msgstr "那里没有标签（'{0}'）"

msgid "not yet translated"
msgstr ""
"""


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Catalogue(entries(CATALOGUE))
    monkeypatch.setattr(translation, "catalogue", lambda: made)


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("nothing", "什么也没有"),
        ("  nothing\n", "  什么也没有\n"),
        ("a {brace}\n  and a line", "{括号}\n  和一行"),
        ("a.txt: no such file.", "a.txt：没有这个文件。"),
        # A hint within a hint; what stands in quotes is a name, whatever it looks like.
        ("a: no such file. Did you mean 'b'?", "a：没有这个文件。是不是想写“b”？"),
        ("Did you read '3 of 4 labels' twice?", "“3 of 4 labels”读了两次？"),
        # A single word may be a name, unless the translation says that it is a text of ours.
        ("nothing: no such file.", "nothing：没有这个文件。"),
        ("expected nothing, found 3", "应为什么也没有，却是3"),
        ("3 of 4 labels", "4 个标签中的 3 个"),
        # The template with more words of its own made it.
        ("3 of the labels", "标签中的 3"),
        # Where it can be read in two ways, nothing is put in another order.
        ("a of b of 3 labels", "a of b of 3 labels"),
        ("data.csv: 3 of 4 labels", "data.csv：4 个标签中的 3 个"),
        ("nothing\n3 of 4 labels", "什么也没有\n4 个标签中的 3 个"),
        # The place in a file is told with what is wrong there, also where the file is known.
        ("a b.csv, line 5: 3 fields (x, y)", "a b.csv，第 5 行：有 3 个字段（x, y）"),
        ("line 5: 3 fields (x, y)", "第 5 行：有 3 个字段（x, y）"),
        (
            "a b.csv, line 1,234, column 'Message Body': no label there ('no such file')",
            "a b.csv，第 1,234 行，列“Message Body”：那里没有标签（'no such file'）",
        ),
        ("line 5, column 'c': 3 of 4 labels", "第 5 行，列“c”：4 个标签中的 3 个"),
        ("guideline 5: 3 of 4 labels", "guideline 5：4 个标签中的 3 个"),
        # Names of columns and files may have spaces.
        ("Known here: Message Body, Kind.", "已知的有：Message Body, Kind。"),
        ("a: no such file. Known here: b c d.csv.", "a：没有这个文件。已知的有：b c d.csv。"),
        ("not yet translated", "not yet translated"),
        ("what nobody ever wrote", "what nobody ever wrote"),
        ("", ""),
    ],
)
def test_a_text_is_looked_up_by_its_template(english: str, chinese: str) -> None:
    assert translation.translated.__wrapped__(english) == chinese


def test_pieces_of_a_template() -> None:
    parts, places = pieces("a {{b}} {0}{1!t}.")
    assert parts == ["a {b} ", "", "."]
    assert [tuple(place) for place in places] == [(0, False), (1, True)]

"""Templates: what may stand in one, and what comes of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.errors import PretuneError
from pretune.evaluation.few_shot.template import Template

COLUMNS = ["text", "my title", "label"]


def parse(text: str) -> Template:
    return Template.parse(text, COLUMNS, "label")


def test_a_question_ends_where_the_answer_begins() -> None:
    template = parse("Title: {my title}\n{text}\nLabel: {answer}. {{{text}}}\n")
    values = {"text": "a b", "my title": "T"}
    assert template.question(values) == "Title: T\na b\nLabel: "
    assert template.example(values, "good") == "Title: T\na b\nLabel: good. {a b}\n"
    assert template.columns == ["my title", "text"]
    assert template.premise == "\nLabel: "


def test_without_one_each_column_has_a_line() -> None:
    template = Template.of_columns(["a{b", "label", "text"], "label")
    assert template.question({"a{b": "1", "text": "2"}) == "A{b: 1\nText: 2\nLabel: "
    plain = Template.of_columns(["text", "label"], "label")
    assert plain == Template.parse("Text: {text}\nLabel: {answer}", ["text", "label"], "label")


@settings(max_examples=20)
@given(st.text(), st.text())
def test_what_is_filled_in_is_never_read_as_a_template(first: str, second: str) -> None:
    found = parse("{text}|{answer}").example({"text": first}, second)
    assert found == f"{first}|{second}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{text}: {label}", "would give the label away"),
        ("{txt}: {answer}", "no column 'txt'\n.*Did you mean 'text'"),
        ("{text}", "occurs 0 times"),
        ("{answer}{answer}", "occurs 2 times"),
        ("{text {answer}", "template: "),
        ("{text} } {answer}", "template: Single '}'"),
        ("{text!r} {answer}", "a field is a name alone"),
        ("{text:>10} {answer}", "a field is a name alone"),
        ("{text.__class__} {answer}", "no column 'text.__class__'"),
        ("{text[0]} {answer}", "no column"),
        ("{} {answer}", "no column ''"),
    ],
)
def test_mistakes_are_named(text: str, said: str) -> None:
    with pytest.raises(PretuneError, match=f"(?s){said}"):
        parse(text)


def test_data_of_labels_alone_has_nothing_to_show() -> None:
    with pytest.raises(PretuneError, match="no column but that of the labels"):
        Template.of_columns(["label"], "label")

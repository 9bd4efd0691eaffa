from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from pretune.serving.bodies import Body, checked, served_for, shortened
from pretune.serving.openai_api import CompletionRequest
from pretune.serving.openapi import OPERATIONS
from pretune.serving.refusal import Refusal
from tests.serving.in_process import InProcess


class Inner(Body):
    size: int = 1


class Example(Body):
    name: str
    count: int | None = Field(None, ge=1)
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    many: str | list[str] | None = None

    refused: ClassVar[dict[str, Any]] = {"tools": ([],)}
    expected: ClassVar[dict[str, str]] = {"many": "a text or a list of texts"}


def refusal(value: Any, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        checked(Example, value, **options)
    return caught.value


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ([], None, "The body has to be a JSON object, not a list."),
        ({}, "name", "'name' is missing."),
        ({"name": 5}, "name", "'name' has to be a valid string, not 5."),
        ({"name": None}, "name", "'name' has to be a valid string, not null."),
        ({"name": "x", "count": "5"}, "count", "'count' has to be a valid integer, not a str."),
        ({"name": "x", "count": True}, "count", "'count' has to be a valid integer, not true."),
        (
            {"name": "x", "count": 0},
            "count",
            "'count' has to be greater than or equal to 1, not 0.",
        ),
        ({"name": "x", "kind": "c"}, "kind", "'kind' has to be 'a' or 'b', not a str."),
        ({"name": "x", "many": [1]}, "many", "'many' has to be a text or a list of texts."),
        (
            {"name": "x", "inner": {"size": []}},
            "inner.size",
            "'inner.size' has to be a valid integer, not a list.",
        ),
        (
            {"name": "x", "tools": [1]},
            "tools",
            "Unsupported parameter: 'tools' is not supported by this server.",
        ),
    ],
)
def test_a_wrong_value_is_said_in_a_sentence(value: Any, param: str, message: str) -> None:
    said = refusal(value)
    assert (said.status, said.param, said.message) == (422, param, message)


def test_of_a_list_only_the_first_wrong_item_is_an_error() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"prompt": [None] * 1000})
    assert caught.value.error_count() <= 5
    with pytest.raises(Refusal, match=r"'logit_bias\.7' has to be a number"):
        checked(CompletionRequest, {"prompt": "x", "logit_bias": {"7": "x", "8": "x"}})


def test_every_list_of_a_body_is_one_of_those() -> None:
    bodies = [kind.schema for kind in OPERATIONS if isinstance(kind.schema, type)]
    assert CompletionRequest in bodies
    for body in bodies:
        for part in _lists(body.__pydantic_core_schema__):
            assert part.get("fail_fast") or part["items_schema"]["type"] == "any", (body, part)


def _lists(schema: Any) -> Iterator[dict[str, Any]]:
    """The schemas of lists within a schema of pydantic's core."""
    if isinstance(schema, dict):
        if schema.get("type") == "list" and "items_schema" in schema:
            yield schema
        for inner in schema.values():
            yield from _lists(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from _lists(inner)


def test_a_field_that_asks_for_nothing_new_is_no_mistake() -> None:
    assert checked(Example, {"name": "x", "tools": [], "more": 1}).name == "x"
    assert checked(Example, {"name": "x", "tools": None}).name == "x"


def test_unknown_fields_are_refused_where_that_is_wanted() -> None:
    said = refusal({"name": "x", "more": 1}, unknown="What is '{}'?", status=400, inside="own")
    assert (said.status, said.param, said.message) == (400, "own.more", "What is 'own.more'?")


def test_what_a_client_sent_is_repeated_in_part_and_in_printable_characters() -> None:
    assert shortened("a\nb\x1b[31m") == "a\ufffdb\ufffd[31m"
    assert shortened("x" * 100) == "x" * 60 + "..."


def test_a_model_is_chosen_by_name_or_by_what_it_can(models: InProcess) -> None:
    service: Any = models
    assert served_for(service, "chat", "chat").name == "chat"
    for filler in (None, "", "dummy", "tgi"):
        assert served_for(service, filler, "chat").name == "chat"
        assert served_for(service, filler, "embed").name == "bare"
    with pytest.raises(Refusal, match="There is no model 'nothing'"):
        served_for(service, "nothing", "chat")
    with pytest.raises(Refusal, match="Models that can: fill"):
        served_for(service, "tags", "fill")

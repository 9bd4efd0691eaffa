"""What requests look like: schemas of their bodies, and a sentence for whatever does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pretune.errors import describe_value
from pretune.serving.jobs import Ability, Served
from pretune.serving.refusal import Refusal
from pretune.serving.service import Service

#: How pydantic begins its sentences about a value.
_SUBJECT = re.compile(r"^(?:Input|Value|String|List|Tuple|Dictionary|Object) should")
#: The characters of a value or of the name of a field that are repeated to the client.
_REPEATED = 60
#: What clients send as the name of a model where the address already tells which it is.
_ANY_MODEL = ("", "dummy", "tgi", "default")


class Body(BaseModel):
    """The body of a request, or an object in it; what is no field is passed over.

    Values have the types that are asked for: no number is read from a text.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    #: Fields that other servers know and this one does not: what they may be all the same, since it
    #: asks for what happens anyway.
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    #: What a field has to be, where it may have several types.
    expected: ClassVar[Mapping[str, str]] = {}


B = TypeVar("B", bound=Body)
Item = TypeVar("Item")
#: A list in a body, of which only the first wrong item is told: each would be an error in memory.
Many = Annotated[list[Item], Field(fail_fast=True)]


def checked(
    schema: type[B],
    value: Any,
    *,
    status: int = 422,
    unknown: str | None = None,
    inside: str = "",
) -> B:
    """Return a body with its values checked.

    Args:
        schema: of the body.
        value: the parsed JSON.
        status: of the answer to a wrong value.
        unknown: how to refuse a field that the schema does not have, with {} for its name; None:
            such fields are passed over.
        inside: the field of the body that the value is; empty: it is the body.

    Raises:
        Refusal: names the first field that is wrong.
    """
    if not isinstance(value, dict):
        place = f"'{inside}'" if inside else "The body"
        raise Refusal(
            status,
            "invalid",
            f"{place} has to be a JSON object, not {describe_value(value)}.",
            param=inside or None,
        )
    before = f"{inside}." if inside else ""
    for name, given in value.items():
        shown = before + shortened(name)
        same = schema.refused.get(name, ())
        if name in schema.refused and given is not None and given not in same:
            message = f"Unsupported parameter: '{shown}' is not supported by this server."
            raise Refusal(status, "unsupported_parameter", message, param=shown)
        if unknown is not None and name not in schema.model_fields and name not in schema.refused:
            raise Refusal(status, "unknown_parameter", unknown.format(shown), param=shown)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _refusal(schema, error, status, before) from None


def _refusal(schema: type[Body], error: ValidationError, status: int, before: str) -> Refusal:
    """Turn the first thing that pydantic complains about into a sentence."""
    first = error.errors(include_url=False)[0]
    place, given = first["loc"], first["input"]
    # Of a field with several types, pydantic complains about each of them.
    if place and place[0] in schema.expected:
        name = before + str(place[0])
        message = f"'{name}' has to be {schema.expected[str(place[0])]}."
        return Refusal(status, "invalid", message, param=name)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    name = before + shortened(path.removeprefix("."))
    if first["type"] == "missing":
        return Refusal(status, "missing", f"'{name}' is missing.", param=name)
    text = first["msg"].removeprefix("Value error, ")
    wanted = _SUBJECT.sub("has to", text)
    if wanted == text:  # a sentence of ours
        return Refusal(status, "invalid", text, param=name or None)
    return Refusal(status, "invalid", f"'{name}' {wanted}, not {_shown(given)}.", param=name)


def _shown(value: Any) -> str:
    """A wrong value in a sentence: numbers and null as they are, of others the kind."""
    if isinstance(value, int | float):
        return shortened(repr(value).lower())
    return "null" if value is None else describe_value(value)


def shortened(text: str) -> str:
    """Return the beginning of what a client sent, in printable characters."""
    printable = "".join(c if c.isprintable() else "\ufffd" for c in text[: _REPEATED + 1])
    return printable if len(printable) <= _REPEATED else printable[:_REPEATED] + "..."


def served_for(service: Service, name: str | None, ability: Ability) -> Served:
    """Return the model that a request means.

    Args:
        service: what is served.
        name: the model's; None, empty or a client's filler: the first that can do it.
        ability: what it has to be able to do.

    Raises:
        Refusal: 404 no model has this name; 422 it cannot do this.
    """
    able = [served for served in service.models() if ability in served.abilities]
    if name is None or name in _ANY_MODEL:
        known = {served.name for served in service.models()}
        if name not in known and able:
            return able[0]
        name = name if name in known else None
    served = service.model(name)
    if ability not in served.abilities:
        others = f" Models that can: {', '.join(other.name for other in able)}." if able else ""
        raise Refusal(
            422,
            "unsupported",
            f"The model '{served.name}' {_LACKING[ability]}.{others}",
            param="model",
        )
    return served


_LACKING: Mapping[Ability, str] = {
    "predict": "was not trained for a task, so it has no predictions",
    "logits": "is no classifier of texts",
    "embed": "gives no embeddings",
    "generate": "does not generate text",
    "chat": "has no chat template, so it does not chat",
    "explain": "gives no explanations",
    "fill": "fills no masks",
    "likelihood": "is no language model",
}

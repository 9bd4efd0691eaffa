"""`CheckedNumbers`: what every section of a recipe checks, and what of it is written."""

from __future__ import annotations

import re
from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from pretune.errors import WrongValueError

#: A number with underscores in it, which Python reads as one, and YAML and people do not.
_UNDERSCORED = re.compile(r"\s*[-+]?[\d.]*\d_\d[\d_.]*(?:[eE][-+]?\d+)?\s*")
#: The key of the context in which a section is written with all its own keys.
_IN_FULL = "in_full"


class CheckedNumbers(BaseModel):
    """A section of a recipe in whose numbers no underscore may stand."""

    #: Keys that are written only where they are not the default.
    left_out: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_usual(
        self, write: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        if (info.context or {}).get(_IN_FULL):
            return dict(write(self))
        fields = type(self).model_fields
        usual = {
            key
            for key in self.left_out
            if getattr(self, key) == fields[key].get_default(call_default_factory=True)
        }
        return {key: value for key, value in write(self).items() if key not in usual}

    def in_full(self) -> dict[str, Any]:
        """Return every key with its value, JSON-ready, also those that are left out of files."""
        return self.model_dump(mode="json", context={_IN_FULL: True})

    @field_validator("*", mode="before")
    @classmethod
    def _written_plainly(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `1_0` and `true` for a number, which pydantic would read as 10 and 1."""
        underscored = isinstance(value, str) and _UNDERSCORED.fullmatch(value)
        if underscored or isinstance(value, bool):
            kinds = _leaves(cls.model_fields[str(info.field_name)].annotation)
            if underscored and str not in kinds:
                raise WrongValueError("a number is written without _")
            if not underscored and kinds & {int, float} and not kinds & {bool, Any, value}:
                raise WrongValueError("should be a number, not true or false")
        return value


def _leaves(kind: Any) -> set[Any]:
    """Return the types that a union, or what else is made of types, is made of."""
    inner = get_args(kind)
    return {kind}.union(*map(_leaves, inner)) if inner else {kind}

"""What a recipe says under `task.reward`: where the rewards of replies come from.

    reward: {run: runs/reward}                            # a reward model
    reward: {run: runs/sentiment, label: positive}        # a classifier
    reward: my_rewards:score                              # a Python function
    reward: [{exact: answer}, {length: 200, weight: 0.1}] # a weighted sum

`inference/rewards.py` makes functions of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from typing_extensions import override

from pretune.errors import WrongValueError, describe_value, did_you_mean
from pretune.tasks.base import is_from_checkpoint
from pretune.tasks.labels import LabelText

#: A module, and a function in it.
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_FORMS = "MODULE:FUNCTION, {run: FOLDER}, {exact: COLUMN}, {match: REGEX} or {length: N}"


class RewardPart(BaseModel):
    """One source of rewards; each kind adds the key that names it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        coerce_numbers_to_str=True,
    )
    #: The key that tells this kind.
    key: ClassVar[str]

    weight: float = Field(1.0, description="What the rewards are multiplied by in the sum.")
    name: str | None = Field(None, min_length=1, description="What logs call it.")

    @property
    def title(self) -> str:
        """What logs call it, if it has no name."""
        return self.key


class RunReward(RewardPart):
    """The score that a trained model gives a reply."""

    key: ClassVar[str] = "run"

    run: str = Field(
        min_length=1,
        description="The folder of a reward, regress, classify or multilabel run, or of such a "
        "checkpoint.",
    )
    label: LabelText | None = Field(
        None, description="Of a classifier: the label whose log-odds are the reward."
    )
    value: Literal["log_odds", "probability"] = Field(
        "log_odds", description="Of a classifier: which number of the label."
    )
    text: Literal["reply", "both"] | None = Field(
        None,
        description="What a classifier or a regress run reads: the reply (the default), or both, "
        "the prompt and the reply. A reward model, and a model of pairs, always reads both.",
    )
    between: str = Field(
        " ", description="What stands between prompt and reply where both are read as one text."
    )
    empty: float | None = Field(
        None, description="The reward of a blank reply. Default: what the model gives it."
    )

    @property
    @override
    def title(self) -> str:
        *folders, last = PurePath(self.run).parts
        return folders[-1] if last in ("best", "last") and folders else last


class FunctionReward(RewardPart):
    """A Python function, which a person names and no checkpoint may."""

    key: ClassVar[str] = "function"

    function: str = Field(description="MODULE:FUNCTION; from the current folder, too.")
    from_checkpoint: bool = Field(
        False, description="Whether a checkpoint names it, so that it must not be run."
    )

    @field_validator("function")
    @classmethod
    def _has_the_form(cls, function: str) -> str:
        if _FUNCTION.fullmatch(function) is None:
            raise WrongValueError(
                "should be MODULE:FUNCTION, such as my_rewards:score; a model is {run: FOLDER}"
            )
        return function

    @field_validator("from_checkpoint")
    @classmethod
    def _stays(cls, value: bool, info: ValidationInfo) -> bool:
        return value or is_from_checkpoint(info)

    @model_serializer(mode="wrap")
    def _without_false(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in write(self).items() if k != "from_checkpoint" or v}

    @property
    @override
    def title(self) -> str:
        return self.function.rpartition(":")[2]


class ExactReward(RewardPart):
    """1 where the reply is what a column says."""

    key: ClassVar[str] = "exact"

    exact: str = Field(min_length=1, description="The column; blanks around both do not count.")


class MatchReward(RewardPart):
    """1 where a regular expression is found in the reply."""

    key: ClassVar[str] = "match"

    match: str = Field(description="The expression, in Python's syntax.")

    @field_validator("match")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise WrongValueError(f"is no regular expression ({error})") from None
        return pattern


class LengthReward(RewardPart):
    """0 for a reply of the length that is wanted, down to -1 for an empty one."""

    key: ClassVar[str] = "length"

    length: int = Field(ge=1, strict=True, description="The length that is wanted.")
    unit: Literal["characters", "tokens"] = Field(
        "characters", description="What is counted; tokens of the model that is trained."
    )


def names_of(parts: Sequence[RewardPart]) -> list[str]:
    """Return what logs call the parts of a sum; those without a name of their own get a number."""
    names = [part.name for part in parts]
    for place, part in enumerate(parts):
        if part.name is None:
            numbers = range(2, len(parts) + 2)
            own = [part.title, *(f"{part.title}_{n}" for n in numbers)]
            names[place] = next(name for name in own if name not in names)
    return [name for name in names if name is not None]


_KINDS: dict[str, type[RewardPart]] = {
    kind.key: kind for kind in (RunReward, FunctionReward, ExactReward, MatchReward, LengthReward)
}


def _part(value: Any, info: ValidationInfo) -> RewardPart:
    """Validate a part by the kind that its keys tell."""
    if isinstance(value, RewardPart):
        return value
    if isinstance(value, str):
        value = {FunctionReward.key: value}
    if not isinstance(value, Mapping):
        raise WrongValueError(f"should be {_FORMS}, found {describe_value(value)}")
    kinds = [key for key in _KINDS if key in value]
    if not kinds:
        near = did_you_mean(str(next(iter(value), "")), _KINDS)
        raise WrongValueError(f"should be {_FORMS}. {near}")
    if len(kinds) > 1:
        raise WrongValueError(f"has {' and '.join(kinds)}: give a list of them")
    kind = _KINDS[kinds[0]]
    for name in value:
        if name not in kind.model_fields:
            near = did_you_mean(str(name), kind.model_fields)
            raise WrongValueError(f"a reward by {kind.key} has no key '{name}'. {near}")
    return kind.model_validate(dict(value), context=info.context)


def _weighing(parts: list[RewardPart], info: ValidationInfo) -> list[RewardPart]:
    """Return parts of which at least one counts, and whose names tell them apart."""
    if not parts:
        raise WrongValueError(f"is empty: name a reward, {_FORMS}")
    if all(part.weight == 0 for part in parts):
        raise WrongValueError("nothing counts: at least one part needs another weight than 0")
    given = [part.name for part in parts if part.name is not None]
    twice = [name for name in given if given.count(name) > 1]
    if twice and not is_from_checkpoint(info):  # a checkpoint may be older than this rule
        raise WrongValueError(f"two parts have the name '{twice[0]}': give each its own")
    return parts


#: The option of a task: one part or a list of parts, whose weighted sum is the reward.
RewardSpec = Annotated[
    list[Annotated[SerializeAsAny[RewardPart], BeforeValidator(_part)]],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
    AfterValidator(_weighing),
]

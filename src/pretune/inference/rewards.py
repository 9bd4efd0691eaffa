"""Rewards of replies, for reinforcement learning: by a model, a Python function or a rule."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from types import ModuleType
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import PackedBatch
from pretune.data.readers.conversations import COMPLETION, MESSAGES
from pretune.data.records import is_missing
from pretune.errors import (
    CheckpointError,
    DataError,
    PretuneError,
    RecipeError,
    RewardError,
    describe_value,
    did_you_mean,
    note,
    with_article,
)
from pretune.inference.predict import Predictor, task_of
from pretune.models.config import brief
from pretune.tasks.alignment.reward import Reward
from pretune.tasks.alignment.reward_spec import (
    ExactReward,
    FunctionReward,
    LengthReward,
    MatchReward,
    RewardPart,
    RewardSpec,
    RunReward,
    names_of,
)
from pretune.tasks.base import AnyTask, MakesExperience, RewardFunction
from pretune.tasks.classification.classify import Classify
from pretune.tasks.classification.multilabel import Multilabel
from pretune.tasks.labels import label_key
from pretune.tasks.regression.regress import Regress
from pretune.tasks.sentences import SentenceTask
from pretune.text.foreign_errors import described_error
from pretune.text.terminal import in_line
from pretune.tokenizers.tokenizer import Tokenizer

#: Characters of a reply in an error.
SHOWN = 80
#: Seconds that a regular expression may take for one reply; usual ones take microseconds.
MATCH_SECONDS = 1.0
#: The squares of larger rewards, summed over a rollout, could be infinite in float32.
LARGEST = 1e15
#: What functions call their parameters -> what they get.
PARAMETERS = {
    "prompts": "prompts",
    "replies": "replies",
    "completions": "replies",
    "responses": "replies",
    "records": "records",
}


@dataclass(frozen=True)
class RewardTerm:
    """One summand of a reward.

    Attributes:
        name: in logs.
        origin: what it is called in errors.
        score: computes its rewards.
        weight: what its rewards are multiplied by.
    """

    name: str
    origin: str
    score: RewardFunction
    weight: float = 1.0


class SummedReward:
    """The weighted sum of some rewards; it can be called as a `RewardFunction`."""

    def __init__(self, terms: Sequence[RewardTerm]) -> None:
        self.terms = tuple(terms)

    def __call__(
        self,
        prompts: Sequence[str],
        replies: Sequence[str],
        records: Sequence[Mapping[str, Any]],
    ) -> list[float]:
        """Compute the reward of each reply; see `parts`."""
        return self.total(self.parts(prompts, replies, records), replies)

    def parts(
        self,
        prompts: Sequence[str],
        replies: Sequence[str],
        records: Sequence[Mapping[str, Any]],
    ) -> dict[str, list[float]]:
        """Compute each summand by itself, without its weight.

        Args:
            prompts: the text of each prompt.
            replies: as many.
            records: of the prompts. Where one has `messages`, a reward model reads these, up to the
                last message of the user, and not the prompt's text.

        Returns:
            by name a finite number for each reply.

        Raises:
            PretuneError: a reward cannot be computed; names the reply.
        """
        parts = {}
        for term in self.terms:
            values = term.score(prompts, replies, records) if replies else []
            parts[term.name] = _finite(values, replies, term.origin)
        return parts

    def total(self, parts: Mapping[str, Sequence[float]], replies: Sequence[str]) -> list[float]:
        """Add up what `parts` returned for these replies."""
        weighted = [[term.weight * value for value in parts[term.name]] for term in self.terms]
        sums = [math.fsum(values) for values in zip(*weighted, strict=True)]
        return _finite(sums, replies, "the sum of the rewards")


def reward_function(
    spec: object,
    *,
    device: torch.device | str,
    precision: str = "auto",
    tokenizer: Tokenizer | None = None,
    key: str = "reward",
) -> SummedReward:
    """Make a reward of what a recipe says.

    Args:
        spec: the value of a `RewardSpec` option, or what a recipe may have there.
        device: where models compute.
        precision: of models, as in training.
        tokenizer: of the model that is trained, for lengths in tokens.
        key: where the recipe says it, for errors.

    Raises:
        PretuneError: a model cannot be loaded or gives no reward, or a function cannot be imported.
    """
    try:
        kinds: list[RewardPart] = TypeAdapter(RewardSpec).validate_python(spec)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{key}: {message}") from None
    return SummedReward(
        [
            RewardTerm(name, *_scorer(part, device, precision, tokenizer, key), part.weight)
            for name, part in zip(names_of(kinds), kinds, strict=True)
        ]
    )


def named_reward(task: MakesExperience) -> Any:
    """Return what a task's options say of its reward, for `reward_function`.

    Raises:
        RecipeError: they say nothing.
    """
    if task.reward is None:
        raise RecipeError(
            "task.reward: nothing says how good a reply is",
            "Name a model, task.reward='{run: FOLDER}', or a Python function, "
            "task.reward=MODULE:FUNCTION.",
        )
    return task.reward


def reward_models(parts: Sequence[RewardPart]) -> list[str]:
    """Return where the models of a reward come from."""
    return [part.run for part in parts if isinstance(part, RunReward)]


def _scorer(
    part: RewardPart,
    device: torch.device | str,
    precision: str,
    tokenizer: Tokenizer | None,
    key: str,
) -> tuple[str, RewardFunction]:
    """Return what a part is called in errors, and its function."""
    match part:
        case RunReward():
            return f"the model {part.run}", _by_run(part, device, precision, key)
        case FunctionReward():
            return f"the {key} function {part.function}", _by_function(part, key)
        case ExactReward():
            return f"the {key} 'exact'", _by_column(part.exact, key)
        case MatchReward():
            return f"the {key} 'match'", _by_pattern(part.match, key)
        case LengthReward():
            return f"the {key} 'length'", _by_length(part, tokenizer, key)
    raise TypeError(type(part).__name__)


def _shown(replies: Sequence[str], number: int) -> str:
    """Name a reply in an error, by its place (0-based) and its beginning."""
    reply = replies[number]
    rest = "..." if len(reply) > SHOWN else ""
    return f"reply {number + 1} ('{in_line(reply[:SHOWN])}{rest}')"


def _counted(count: int) -> str:
    return "1 reply" if count == 1 else f"{count} replies"


def _finite(values: object, replies: Sequence[str], origin: str) -> list[float]:
    """Return rewards as floats.

    Raises:
        RewardError: they are not as many finite numbers as there are replies; names the reply.
    """
    hint = f"It has to give a list with a number from {-LARGEST:g} to {LARGEST:g} for each reply."
    if hasattr(values, "tolist"):  # an array, a tensor, a column of a table
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise RewardError(
            f"{origin} gave {describe_value(values)} for {_counted(len(replies))}", hint
        )
    rewards = list(values)
    if len(rewards) != len(replies):
        values = "1 value" if len(rewards) == 1 else f"{len(rewards)} values"
        raise RewardError(f"{origin} gave {values} for {_counted(len(replies))}", hint)
    for number, value in enumerate(rewards):
        if hasattr(value, "item"):  # a number of numpy or torch
            value = value.item()
        given = describe_value(value)
        if isinstance(value, Real):
            rewards[number] = _as_float(value)
            given = f"{rewards[number]:g}"
        if not isinstance(value, Real) or not abs(rewards[number]) <= LARGEST:  # nor is NaN
            raise RewardError(f"{origin} gave {given} for {_shown(replies, number)}", hint)
    return rewards


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of any length
        return math.inf


# By a model


def _by_run(
    part: RunReward, device: torch.device | str, precision: str, key: str
) -> RewardFunction:
    try:
        bundle = load(part.run)
        task = task_of(bundle)
    except PretuneError as error:
        raise type(error)(
            f"the {key}'s model {part.run} cannot be loaded: {error.message}",
            error.hint or f"Say where it is: {key}='{{run: FOLDER}}'.",
        ) from None
    read = _reader(part, task)
    rows = _rows(part, task, bundle)
    predictor = Predictor(bundle, device=str(device), precision=precision)
    told = False

    def score(
        prompts: Sequence[str], replies: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        nonlocal told
        rewards = [part.empty or 0.0] * len(replies)
        # A blank reply has a reward of its own where the recipe gives one.
        asked = [i for i, r in enumerate(replies) if part.empty is None or r.strip()]
        if not asked:
            return rewards
        given = rows(
            [prompts[i] for i in asked], [replies[i] for i in asked], [records[i] for i in asked]
        )
        inputs = predictor.records(given, f"what the model {part.run} scores")
        for i, (value,) in zip(asked, predictor.outputs(inputs, read), strict=True):
            rewards[i] = value
        if predictor.cut and not told:
            told = True
            note(f"{part.run}: some texts to be scored {task.truncation_note}")
        return rewards

    return score


def _reader(part: RunReward, task: AnyTask) -> Callable[[Any, PackedBatch], list[float]]:
    """Return what reads rewards from a model's outputs.

    Raises:
        CheckpointError: the model's task gives no reward, or not with these keys.
    """
    if isinstance(task, Reward | Regress):
        if part.label is not None or part.value != "log_odds":
            key = "label" if part.label is not None else "value"
            raise CheckpointError(
                f"{part.run}: a {task.name} model has one score, and nothing for '{key}'",
                f"Leave '{key}' out.",
            )
        return lambda outputs, batch: [own.score for own in task.predict(outputs, batch)]
    if not isinstance(task, Classify | Multilabel):
        raise CheckpointError(
            f"{part.run}: trained for the task {task.name}, which gives a reply no reward",
            "Name a model that was trained for reward, regress, classify or multilabel.",
        )
    if isinstance(task, Classify) and len(task.labels) < 2:
        raise CheckpointError(
            f"{part.run}: a classifier with only one label is always sure of it",
            "Name a model with at least two.",
        )
    known = {label_key(label): number for number, label in enumerate(task.labels)}
    number = known.get(label_key(part.label or ""))
    if number is None:
        problem = "which label is it?" if part.label is None else f"no label '{part.label}'"
        hint = f"It knows: {', '.join(task.labels)}."
        if part.label is not None:
            hint = f"{did_you_mean(part.label, task.labels)} {hint}"
        raise CheckpointError(f"{part.run}: the reward is that of a label; {problem}", hint)
    compute = _class_score if isinstance(task, Classify) else _label_score
    return lambda outputs, _: compute(outputs.float(), number, part.value).tolist()


def _class_score(logits: Tensor, number: int, value: str) -> Tensor:
    """Return `[B]` the log-odds, or the probability, of one of the classes `[B, C]`."""
    # From logits: of a probability that is rounded to 1 the log-odds would be infinite.
    if value == "probability":
        return logits.softmax(-1)[:, number]
    others = [i for i in range(logits.shape[1]) if i != number]
    return logits[:, number] - logits[:, others].logsumexp(-1)


def _label_score(logits: Tensor, number: int, value: str) -> Tensor:
    """Return the same where each label is a yes or no."""
    own = logits[:, number]
    return own.sigmoid() if value == "probability" else own


def _rows(
    part: RunReward, task: AnyTask, bundle: Bundle
) -> Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], list[Any]]:
    """Return what makes the model's inputs of prompts, replies and records.

    Raises:
        CheckpointError: the model cannot read what the recipe says.
    """
    if isinstance(task, Reward):
        if part.text == "reply":
            raise CheckpointError(
                f"{part.run}: a reward model reads the prompt and the reply", "Leave 'text' out."
            )
        return lambda prompts, replies, records: [
            {MESSAGES: _asked(record, prompt), COMPLETION: reply}
            for prompt, reply, record in zip(prompts, replies, records, strict=True)
        ]
    assert isinstance(task, SentenceTask)  # noqa: S101 - all others are
    if task.options.pair:
        if part.text == "reply":
            raise CheckpointError(
                f"{part.run}: reads pairs of texts, here a prompt and a reply", "Leave 'text' out."
            )
        return lambda prompts, replies, _: list(zip(prompts, replies, strict=True))
    if part.text == "both":
        return lambda prompts, replies, _: [
            f"{prompt}{part.between}{reply}" for prompt, reply in zip(prompts, replies, strict=True)
        ]
    # A decoder reads nothing in an empty text, and a reply is empty sooner or later.
    if part.empty is None and not bundle.tokenizer.encode([""])[0].ids:
        raise CheckpointError(
            f"{part.run}: {with_article(bundle.family.model_type)} model gives an empty reply "
            "no score",
            "Say what an empty reply is worth, e.g. empty: -5; or text: both.",
        )
    return lambda _, replies, __: list(replies)


def _asked(record: Mapping[str, Any], prompt: str) -> Any:
    """Return the messages before the reply, or the prompt's text where the record has none."""
    messages = record.get(MESSAGES)
    if not isinstance(messages, list) or not messages:
        return prompt
    return messages[:-1] if messages[-1].get("role") == "assistant" else messages


# By a Python function


def _by_function(part: FunctionReward, key: str) -> RewardFunction:
    if part.from_checkpoint:
        raise CheckpointError(
            f"the checkpoint names the Python function {part.function} for its {key}, and what a "
            "checkpoint names is not run",
            f"If you trust it, name it yourself: --set {key}={part.function}"
            + ("; or go without: --set judge=null" if key == "judge" else ""),
        )
    origin = f"the {key} function {part.function}"
    call = _caller(_imported(part.function, key), origin)

    def score(
        prompts: Sequence[str], replies: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        # Copies: what a function does to them must not change the data.
        given = {"prompts": prompts, "replies": replies, "records": copy.deepcopy(records)}
        try:
            return call(given)
        except (Exception, SystemExit) as error:
            which = _failing(call, given)
            at = _counted(len(replies)) if which is None else _shown(replies, which)
            raise RewardError(
                f"{origin} failed at {at}: {described_error(error)}",
                "It gets a list of all replies, and a reply may be any text, also an empty one.",
            ) from error

    return score


def _imported(name: str, key: str) -> Callable[..., Any]:
    """Import `module:function`; the current folder is searched as by `python FILE`.

    Raises:
        RecipeError: there is no such module or function, or the module cannot be imported.
    """
    module_name, _, path = name.partition(":")
    # It stays there: a function may import more when it is called.
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            message = f"{key} {name}: no module is called '{missing}'"
            hint = f"Write it in this folder ({module_name.replace('.', '/')}.py), or install it."
            raise RecipeError(message, hint) from None
        raise RecipeError(
            f"{key} {name}: the module cannot be imported: {described_error(error)}", "Mend it."
        ) from error
    value: Any = module
    for attribute in path.split("."):
        if not hasattr(value, attribute):
            where = getattr(module, "__file__", None) or f"the module {module_name}"
            names = [own for own in vars(value) if not own.startswith("_")] if _holds(value) else []
            hint = did_you_mean(attribute, names) if names else "It is empty."
            raise RecipeError(f"{key} {name}: no '{attribute}' in {where}", hint)
        value = getattr(value, attribute)
    if not callable(value):
        raise RecipeError(
            f"{key} {name}: {describe_value(value)}, not a function", "Name a function."
        )
    return cast(Callable[..., Any], value)


def _holds(value: object) -> bool:
    return isinstance(value, ModuleType | type)


def _caller(
    function: Callable[..., Any], origin: str
) -> Callable[[Mapping[str, Sequence[Any]]], list[float]]:
    """Return what calls a function with what its parameters ask for.

    Parameters with the names of `PARAMETERS` get what these say, in any order. Others get the
    replies, or the prompts and the replies, or these and the records.

    Raises:
        RecipeError: it has other parameters.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # some built-in functions do not tell
        parameters = []
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in loose]
    by_name = {
        p.name: PARAMETERS[p.name]
        for p in parameters
        if p.name in PARAMETERS and p.kind not in (*loose, p.POSITIONAL_ONLY)
    }
    in_turn = {1: ("replies",), 2: ("prompts", "replies"), 3: ("prompts", "replies", "records")}
    places = in_turn.get(len(needed), ())
    # Each gets lists of its own: a function may sort or change what it is given.
    if by_name and all(p.name in by_name for p in needed):
        return lambda given: _whole(
            function(**{own: [*given[what]] for own, what in by_name.items()})
        )
    misplaced = any(
        PARAMETERS.get(p.name, place) != place for p, place in zip(needed, places, strict=False)
    )
    if not places or misplaced or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise RecipeError(
            f"{origin} takes ({', '.join(map(str, parameters))})",
            "It has to take (replies), (prompts, replies) or (prompts, replies, records), and to "
            "give a list of floats.",
        )
    return lambda given: _whole(function(*([*given[what]] for what in places)))


def _whole(values: Any) -> Any:
    """Return what a function gave; a generator computes only now, and may fail."""
    return [*values] if isinstance(values, Iterator) else values


def _failing(
    call: Callable[[Mapping[str, Sequence[Any]]], Any], given: Mapping[str, Sequence[Any]]
) -> int | None:
    """Return the number of the first reply at which a function fails by itself, or None."""
    for number in range(len(given["replies"])):
        try:
            call({what: values[number : number + 1] for what, values in given.items()})
        except (Exception, SystemExit):
            return number
    return None


# By a rule


def _by_column(column: str, key: str) -> RewardFunction:
    def score(
        _: Sequence[str], replies: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        rewards = []
        for number, (reply, record) in enumerate(zip(replies, records, strict=True)):
            if column not in record:
                raise DataError(
                    f"{key} {{exact: {column}}}: the record of {_shown(replies, number)} has no "
                    f"column '{column}'",
                    did_you_mean(column, map(str, record)) if record else "It has no columns.",
                )
            value = record[column]
            if is_missing(value) or not isinstance(value, str | int | float):
                raise DataError(
                    f"{key} {{exact: {column}}}: the record of {_shown(replies, number)} has "
                    f"{describe_value(value)} there, not a text or a number",
                    "Give every record the reply that is right.",
                )
            rewards.append(float(reply.strip() == _as_text(value)))
        return rewards

    return score


def _as_text(value: str | float) -> str:
    """Return a cell as text: true and 4 as JSON has them, however a table stores them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _by_pattern(pattern: str, key: str) -> RewardFunction:
    compiled = re.compile(pattern)

    def score(
        _: Sequence[str], replies: Sequence[str], __: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        rewards = []
        for number, reply in enumerate(replies):
            try:
                with _time_limit(MATCH_SECONDS):
                    rewards.append(float(compiled.search(reply) is not None))
            except TimeoutError:
                raise RewardError(
                    f"{key} {{match: {brief(pattern)}}}: took over {MATCH_SECONDS:g} seconds for "
                    f"{_shown(replies, number)}",
                    "Write it without repeats inside of repeats, such as (a+)+.",
                ) from None
        return rewards

    return score


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Context that raises TimeoutError after some time, in the main thread of POSIX systems.

    Python looks at signals while it matches an expression. Elsewhere there is no limit.
    """
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    earlier = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, earlier)


def _by_length(part: LengthReward, tokenizer: Tokenizer | None, key: str) -> RewardFunction:
    if part.unit == "tokens" and tokenizer is None:
        raise RecipeError(
            f"{key} {{length: ..., unit: tokens}}: there is no model whose tokens are counted",
            "Count characters: unit: characters.",
        )

    def score(
        _: Sequence[str], replies: Sequence[str], __: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        lengths = [len(reply) for reply in replies]
        if part.unit == "tokens" and tokenizer is not None:
            encoded = tokenizer.encode_bare(replies, offsets=False)
            lengths = [len(encoding.ids) for encoding in encoded]
        return [-abs(length - part.length) / part.length for length in lengths]

    return score

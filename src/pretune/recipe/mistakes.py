"""Explaining what is wrong with a recipe: which key, and the nearest right one."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pretune.errors import RecipeError, nearest, type_name
from pretune.models.config import brief
from pretune.tasks.builtin import TASKS, task_class

#: What people type who come from other tools -> the key here.
_SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_tokens",
    "gradient_accumulation_steps": "accumulate",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "max_grad_norm": "clip",
    "eval_steps": "eval_every",
    "logging_steps": "log_every",
    "model_name_or_path": "from",
    "output_dir": "output",
    "train_file": "train",
    "validation_file": "validation",
    "max_seq_length": "max_length",
}
#: How its messages begin: what is told behind a key needs no subject.
_PYDANTIC = re.compile("^(Value error, |Input |String |List |Dictionary )")
#: Pydantic puts the branches of a union into the location of an error, which tells people nothing.
_BRANCHES = ("str", "int", "float", "none", "constrained-float", "constrained-int")


def recipe_error(
    error: ValidationError, recipe: type[BaseModel], values: Mapping[str, Any], origin: str
) -> RecipeError:
    """Turn pydantic's complaints into one error for people that names every wrong key."""
    task = values.get("task")
    name = task.get("name") if isinstance(task, Mapping) else task
    options = task_class(name).options_type if isinstance(name, str) else None
    known = _known_keys(recipe, options)
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        place = map(str, item["loc"])
        key = ".".join(part for part in place if "[" not in part and part not in _BRANCHES)
        if error.title != recipe.__name__:  # the task's options are validated by themselves
            key = f"task.{key}" if key else "task"
        if item["type"] == "extra_forbidden":
            problems[key] = f"unknown key '{key}'. {_right_key(key, known)}"
        elif item["type"] == "missing":
            problems[key] = f"'{key}' is missing"
        else:
            problem = _PYDANTIC.sub("", item["msg"])
            value = item["input"]
            shown = "" if isinstance(value, BaseModel | dict) else f" (it is {_written(value)})"
            # The branches of a union fail one by one, under the same key.
            earlier = problems.get(key)
            start = f"{earlier.removesuffix(shown)}, or" if earlier else f"{key}:"
            problems[key] = f"{start} {problem}{shown}"
    lines = list(problems.values())
    summary = "\n  ".join(["several things are wrong", *lines]) if len(lines) > 1 else lines[0]
    return RecipeError(f"{origin}: {summary}", init_hint(name))


def init_hint(task: object = None) -> str:
    """The way out of a wrong recipe: the command that writes a right one for its task."""
    if isinstance(task, str) and task in TASKS:
        return f"`pretune init {task}` writes a recipe with every key explained."
    return (
        f"`pretune init TASK` writes a recipe with every key explained; tasks: {', '.join(TASKS)}."
    )


def _written(value: object) -> str:
    """A value as people may recognize it; of a table or another object only what it is."""
    rows = isinstance(value, list | tuple) and any(isinstance(row, Mapping) for row in value[:1])
    if rows or not isinstance(value, str | int | float | list | tuple | None):
        return type_name(type(value))
    try:
        return brief(repr(value))
    except ValueError:  # Python refuses to write numbers of over 4,300 digits
        return "a number of thousands of digits"


@functools.cache
def _known_keys(recipe: type[BaseModel], options: type[BaseModel] | None) -> tuple[str, ...]:
    """All keys that a recipe may have, as `section.key`."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, item in model.model_fields.items():
            key = prefix + (item.alias or name)
            kind = options if key == "task" else item.annotation
            # A section, perhaps with None as the alternative.
            kinds = (k for k in (kind, *get_args(kind)) if isinstance(k, type))
            sections = [k for k in kinds if issubclass(k, BaseModel)]
            for section in sections:
                yield from walk(section, key + ".")
            if not sections:
                yield key

    return tuple(walk(recipe, ""))


def known_keys(recipe: type[BaseModel]) -> tuple[str, ...]:
    """All keys that a recipe may have, as `section.key`, without the options of its task."""
    return _known_keys(recipe, None)


def key_called(word: str, recipe: type[BaseModel]) -> str | None:
    """The key that people may mean by a word, as `train.warmup` by `warmup_ratio`; None: no key."""
    keys = {key.rpartition(".")[2]: key for key in known_keys(recipe)}
    best = nearest(_SYNONYMS.get(word, word), keys, cutoff=0.8)
    return None if best is None else keys[best]


def _right_key(key: str, known: Sequence[str]) -> str:
    """The hint for an unknown key."""
    section, _, word = key.rpartition(".")
    start = section + "." if section else ""
    word = _SYNONYMS.get(word, word)
    inside = (k.removeprefix(start).partition(".")[0] for k in known if k.startswith(start))
    beside = list(dict.fromkeys(inside))
    elsewhere = {k.rpartition(".")[2]: k for k in known}
    if word in elsewhere and word not in beside:  # the right word in the wrong section
        return f"Did you mean '{elsewhere[word]}'?"
    if (best := nearest(word, beside)) is not None:
        return f"Did you mean '{start}{best}'?"
    if (best := nearest(word, elsewhere)) is not None:
        return f"Did you mean '{elsewhere[best]}'?"
    return "Known here: " + ", ".join(beside) + "."

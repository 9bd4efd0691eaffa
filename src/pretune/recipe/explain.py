"""Explaining what is wrong with a recipe: which key, where, and the nearest right one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pretune.errors import RecipeError, nearest
from pretune.tasks.builtin import task_class


@functools.cache
def _known_keys(recipe: type[BaseModel], options_type: type[BaseModel] | None) -> tuple[str, ...]:
    """All keys a recipe may have, as `section.key`."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, item in model.model_fields.items():
            key = prefix + (item.alias or name)
            kind = options_type if key == "task" else item.annotation
            sections = [k for k in (kind, *get_args(kind)) if _is_section(k)]
            for section in sections:  # one at most, perhaps with None as the alternative
                yield from walk(section, key + ".")
            if not sections:
                yield key

    return tuple(walk(recipe, ""))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def explain(
    error: ValidationError, recipe: type[BaseModel], values: Mapping[str, Any], origin: str
) -> RecipeError:
    """Say what is wrong with the values of a recipe in a person's words, all of it at once.

    Args:
        error: what pydantic found.
        recipe: the class of the recipe.
        values: what was to be a recipe.
        origin: where they came from.
    """
    task = values.get("task")
    name = task.get("name") if isinstance(task, Mapping) else task
    options = task_class(name).options_type if isinstance(name, str) else None
    known = _known_keys(recipe, options)
    problems: dict[str, str] = {}  # the branches of a union fail one by one, under one key
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"] if not _is_branch(str(part)))
        if error.title != recipe.__name__:  # the task's own options were checked by themselves
            key = f"task.{key}" if key else "task"
        if item["type"] == "extra_forbidden":
            said = f"unknown key '{key}'. {_right_key(key, known)}"
        elif item["type"] == "missing":
            said = f"'{key}' is missing"
        else:
            said = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            found = item["input"]
            shown = "" if isinstance(found, BaseModel | dict) else f" (it is {found!r})"
            earlier = problems.get(key)
            said = f"{earlier.removesuffix(shown)}, or {said}" if earlier else f"{key}: {said}"
            said += shown
        problems[key] = said
    lines = list(problems.values())
    summary = "\n  ".join(["several things are wrong", *lines]) if len(lines) > 1 else lines[0]
    return RecipeError(
        f"{origin}: {summary}", "`pretune init classify` writes a recipe with every key explained."
    )


def _is_branch(part: str) -> bool:
    """Pydantic names the branches of a union in the location; people know nothing of those."""
    return "[" in part or part in (
        "str",
        "int",
        "float",
        "none",
        "constrained-float",
        "constrained-int",
    )


#: What people type who come from other tools.
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


def _right_key(key: str, known: Sequence[str]) -> str:
    section, _, word = key.rpartition(".")
    start = section + "." if section else ""
    word = _SYNONYMS.get(word, word)
    beside = list(
        dict.fromkeys(k.removeprefix(start).partition(".")[0] for k in known if k.startswith(start))
    )
    elsewhere = {k.rpartition(".")[2]: k for k in known}
    if word in elsewhere and word not in beside:
        return f"Did you mean '{elsewhere[word]}'?"  # the right word in the wrong section
    if (best := nearest(word, beside)) is not None:
        return f"Did you mean '{start}{best}'?"
    if (best := nearest(word, elsewhere)) is not None:
        return f"Did you mean '{elsewhere[best]}'?"
    return "Known here: " + ", ".join(beside) + "."

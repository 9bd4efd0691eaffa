"""Writing a recipe with every key explained, as `pretune init` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.cells import cell_len

from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe, with_teacher
from pretune.tasks.builtin import task_class
from pretune.text.spoken_language import tr

#: Columns of a line, of which a Chinese sign takes two.
WIDTH = 96
#: What a line is never broken in: a word, or a Chinese sign with the punctuation around it, where
#: none that closes may begin a line and none that opens may end one; then the spaces after it.
_CHINESE = "\u2e80-\u9fff\uff00-\uffef"
_UNBROKEN = re.compile(
    rf"[（“《]*(?:[^\s{_CHINESE}（“《、。”》…]+|[{_CHINESE}]|\S)[，。、；：？！）”》…]*\s*"
)


def commented_recipe(task: str, values: Mapping[str, Any] | None = None) -> str:
    """A recipe in YAML: each key with its meaning, and its value or else its default.

    The comments are in the language that is spoken now.

    Args:
        task: the name of a task, or of the recipe with these `values`, which names its task.
        values: what differs from the defaults.
    """
    given: dict[str, Any] = {"data": {"train": "train.tsv"}, "output": f"runs/{task}"}
    for name, value in (values or {}).items():
        given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
    given["task"] = {"name": task, **given.get("task", {})}
    given = dict(with_teacher(given))
    options = task_class(given["task"]["name"]).options_type
    about = tr(f"A recipe for `{task}`. Every key is here with its default; drop what you keep.")
    if values:  # what is dropped would go back to the default, not to these
        about = tr(
            f"A recipe for `{task}`: `pretune recipes {task}`, other keys at their defaults."
        )
    lines = [
        f"# {about}",
        f"# {tr('Run it:       pretune train THIS_FILE')}",
        f"# {tr('Change a bit: pretune train THIS_FILE train.epochs=2 data.train=other.tsv')}",
        "",
    ]
    lines += _fields(Recipe, given, options, indent="")
    return "\n".join(lines).rstrip() + "\n"


def _fields(
    model: type[BaseModel], given: Mapping[str, Any], options: type[BaseModel], indent: str
) -> Iterator[str]:
    for name, item in model.model_fields.items():
        key = item.alias or name
        kind = options if key == "task" else item.annotation
        if not indent and key in given and get_args(kind):  # a section that may be left out
            kind = next(k for k in get_args(kind) if isinstance(k, type))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{indent}{key}:"
            yield from _fields(kind, given.get(key, {}), options, indent + "  ")
            yield ""
            continue
        yield from _comment(tr(item.description or ""), f"{indent}# ")
        if key not in given and item.is_required():
            yield f"{indent}{key}:  # {tr('must be given')}"
        else:
            value = given[key] if key in given else item.get_default(call_default_factory=True)
            yield f"{indent}{key}: {yaml12.inline(to_jsonable_python(value))}"
        if not indent:
            yield ""


def _comment(text: str, start: str) -> Iterator[str]:
    """The lines of a text, each with `start` before it, none wider than WIDTH if its words fit."""
    line = start
    for part in _UNBROKEN.findall(text):
        if line != start and cell_len(line + part.rstrip()) > WIDTH:
            yield line.rstrip()
            line = start
        line += part
    if line != start:
        yield line.rstrip()

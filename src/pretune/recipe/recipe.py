"""A recipe: everything a training run depends on, as one small YAML file.

    task:
      name: classify
    model:
      from: minilm
    data:
      train: train.tsv
      validation: 0.1

Unknown keys are errors that name the nearest right one. What ran is saved beside the result with
every default written out, so that `pretune train runs/x/recipe.yaml` repeats it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, field_validator

from pretune.bundle.bundle import outline
from pretune.corpus.store import VALIDATION_SPLIT, is_corpus
from pretune.data.readers.conversations import (
    ALPACA,
    COMPLETION,
    CONVERSATIONS,
    MESSAGES,
    PROMPT,
)
from pretune.data.readers.files import TABLE_SUFFIXES, read_parts, table_kind
from pretune.data.readers.in_memory import is_from_memory
from pretune.data.readers.plain_text import is_plain
from pretune.data.readers.preferences import CHOSEN, LABEL, REJECTED
from pretune.data.records import Records, is_missing
from pretune.errors import PretuneError, RecipeError, WrongValueError, did_you_mean
from pretune.models.config import brief
from pretune.recipe import yaml12
from pretune.recipe.mistakes import init_hint, recipe_error
from pretune.recipe.schema import (
    DataSection,
    ModelSection,
    RecipeSection,
    TeacherSection,
    TrackSection,
    TrainSection,
    teacher_section,
)
from pretune.registry import Registry
from pretune.storage.object_store import is_url
from pretune.tasks.base import TaskOptions
from pretune.tasks.builtin import task_class
from pretune.tasks.classification.label_lists import parse_list
from pretune.text.byte_stream import first_bytes, is_file, is_pipe, spooled
from pretune.text.file_kinds import kind_by_name, suffix_of
from pretune.text.spoken_language import tr

#: Changes to a recipe: `key.sub=value` texts whose values are YAML, or a mapping of such keys.
Overrides = Sequence[str] | Mapping[str, Any]

#: Recipes of installed packages: each entry point gives YAML text, a path, or a function that
#: returns one of these.
ADDED_RECIPES: Registry[Any] = Registry("pretune.recipes", "recipe", {})

#: The keys of a recipe, and how it begins, after comments: with one of them.
_SECTIONS = {"description", "task", "teacher", "model", "data", "train", "track", "output", "seed"}
_RECIPE_START = re.compile(
    rb"(?:\s*#[^\n]*\n|\s*---)*\s*(?:%s)\s*:" % "|".join(sorted(_SECTIONS)).encode()
)
#: Data that have these columns, and none with labels, are of a kind that needs another model than a
#: classifier: what they are, and the commands that train on them. The first that fits counts.
_OTHER_KINDS: tuple[tuple[set[str], str, tuple[str, ...]], ...] = (
    ({CHOSEN, REJECTED}, "pairs of replies, of which one is better", ("dpo", "reward")),
    ({PROMPT, COMPLETION, LABEL}, "replies that are wanted or not", ("dpo task.loss=kto",)),
    ({PROMPT, COMPLETION}, "prompts with replies", ("instruct",)),
    ({ALPACA[0], ALPACA[2]}, "instructions with replies", ("instruct",)),
    ({CONVERSATIONS}, "conversations", ("instruct",)),
    ({MESSAGES}, "conversations", ("instruct",)),
    ({"source", "target"}, "texts with their translations", ("translate",)),
    ({"document", "summary"}, "texts with their summaries", ("summarize",)),
    ({"sentence1", "sentence2", "score"}, "pairs of texts with a score", ("stsb",)),
)
#: Marks of an override that are no value of YAML: not ~ for null, and no brackets or quotes.
_MARKS = re.compile(r"(?!~$)[^\w\s\[\]{}\"']+(?:\s+[^\w\s\[\]{}\"']+)*")
#: The keys that name a task.
_TASK = {"task", "task.name"}
#: Records of a file by which the task is told.
PROBED_ROWS = 10_000
#: The two ways to give the size of a batch.
_BATCH_SIZES = {"train.batch_size", "train.batch_tokens"}


def _task_options(value: Any) -> Any:
    """Validate the `task:` section by the options of the task it names."""
    if isinstance(value, str):  # `task: classify`
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        raise RecipeError("task.name is missing", "Name the task, e.g. `name: classify`.")
    return task_class(value["name"]).options_type.model_validate(dict(value))


class Recipe(RecipeSection):
    """One training run, fully described."""

    description: str = Field("", description="One line for people.")
    task: Annotated[SerializeAsAny[TaskOptions], BeforeValidator(_task_options)]
    teacher: Annotated[TeacherSection | None, BeforeValidator(teacher_section)] = Field(
        None,
        description="A trained model, or several, that this one learns from: {from: RUN, "
        "temperature: 2, soft: 0.5, labels: 0.5, ...} (docs/distillation.md).",
    )
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection
    train: TrainSection = Field(default_factory=TrainSection)
    track: TrackSection = Field(default_factory=TrackSection)
    output: str = Field(
        "runs/latest", min_length=1, description="The folder for everything that comes out."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the data order, new weights and dropout."
    )

    @field_validator("output")
    @classmethod
    def _a_path(cls, output: str) -> str:
        if is_url(output):
            raise WrongValueError(
                "should be a folder on the disk; train.mirror=URL keeps a copy of the run in "
                "object storage"
            )
        longest = max(len(os.fsencode(part)) for part in [*Path(output).parts, ""])
        if "\0" in output or longest > 255 or len(os.fsencode(output)) > 3000:
            raise WrongValueError("should be a folder: no NUL, and no name above 255 bytes")
        return output

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Recipe:
        """Read a recipe and change some of its values.

        Args:
            source: the name of a built-in or installed recipe, a YAML file, or a file of labelled
                data, for which sensible defaults are taken; or the values of a recipe.
            overrides: values that differ.

        Raises:
            RecipeError: no such recipe, not YAML, an unknown key or a wrong value.
        """
        pairs = _pairs(overrides)
        if isinstance(source, Mapping):
            return cls.of(_override(dict(source), pairs))
        values, origin = _read_source(str(source), pairs)
        values = _override(values, pairs)
        if str(source) in builtin_recipes() or str(source) in ADDED_RECIPES:
            changed = {key for key, _ in pairs}
            values = _for_other_data(_for_corpus(values, changed), changed)
            values = _named_by_teacher(values, changed)
        return cls.of(values, origin)

    def changed(self, overrides: Overrides) -> Recipe:
        """Return this recipe with some values changed; see `of` for errors."""
        return Recipe.of(_override(self.to_dict(), _pairs(overrides))) if overrides else self

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """Check plain values and make a recipe of them; a RecipeError names every wrong one."""
        try:
            values = with_teacher(values)
            return cls.model_validate(values)
        except ValidationError as error:
            raise recipe_error(error, cls, values, origin) from None
        except RecipeError as error:
            raise RecipeError(f"{origin}: {error.message}", error.hint) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """YAML that `load` reads back as the same recipe."""
        return yaml12.dump(self.to_dict())


# Recipes by name


def builtin_recipes() -> dict[str, str]:
    """The YAML texts of the built-in recipes by name."""
    folder = resources.files("pretune.recipe") / "builtin"
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: files[name].read_text(encoding="utf-8") for name in sorted(files)}


def named_recipes() -> dict[str, str]:
    """The YAML texts of the built-in recipes, then of those that installed packages add."""
    built_in = builtin_recipes()
    added = {name: _added_text(name) for name in sorted(ADDED_RECIPES) if name not in built_in}
    return built_in | added


def _added_text(name: str) -> str:
    """The YAML text of an installed recipe."""
    given = ADDED_RECIPES[name]
    if callable(given):
        given = given()
    if isinstance(given, str):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, TypeError, UnicodeDecodeError) as error:
        package = ADDED_RECIPES.package_of(name)
        raise RecipeError(
            f"the recipe '{name}' of {package} cannot be read ({error})",
            "Its entry point must give YAML text, or the path of a YAML file.",
        ) from None


@cache
def usual_columns(task: str) -> set[tuple[str, str]]:
    """The names that built-in and installed recipes of a task give to its columns: (ours, theirs).

    They are for the data of these recipes, and may be wrong for others.
    """
    names: set[tuple[str, str]] = set()
    for origin, text in named_recipes().items():
        values = yaml12.parse(text, origin)
        section = values.get("task") if isinstance(values, Mapping) else None
        if task == (section.get("name") if isinstance(section, Mapping) else section):
            names |= {*((values.get("data") or {}).get("columns") or {}).items()}
    return names


def _read_source(source: str, pairs: Sequence[tuple[str, Any]]) -> tuple[dict[str, Any], str]:
    """The values of a recipe, and where they came from for errors.

    `pairs` are values that will differ: data are read as they say.
    """
    path = Path(source)
    built_in = builtin_recipes()
    # A name: built-in ones win, as everywhere.
    if source in built_in:
        text, origin = built_in[source], f"built-in recipe {source}"
    elif source in ADDED_RECIPES:
        text = _added_text(source)
        origin = f"recipe {source} of {ADDED_RECIPES.package_of(source)}"
    # A file: labelled data or YAML.
    elif _is_data(source):
        return _for_data(source, pairs), _origin_for(source)
    elif is_file(path):
        try:
            text, origin = Path(spooled(path)).read_text(encoding="utf-8"), source
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{source}: not UTF-8 ({error.reason} at byte {error.start})"
            ) from None
    elif os.path.isdir(path):
        raise RecipeError(
            f"'{source}': a folder, expected a recipe or a labelled file",
            f"Of a run: pretune train {path / 'recipe.yaml'}, or --resume {source}. Of data: "
            f"pretune train RECIPE data.train={source}",
        )
    else:
        raise RecipeError(
            f"'{source}': no such recipe or file",
            f"{did_you_mean(source, [*built_in, *ADDED_RECIPES])} `pretune recipes` lists those "
            "that have a name; a labelled file (.jsonl, .csv, .tsv, .parquet) works too.",
        )
    values = yaml12.parse(text, origin)
    if not isinstance(values, dict):
        raise RecipeError(
            f"{origin}: expected sections such as `task:` and `data:`",
            init_hint(),
        )
    return values, origin


def _is_data(source: str) -> bool:
    """Whether these are data and no recipe: in memory, or by their name or their beginning."""
    if is_from_memory(source):
        return True
    suffix = suffix_of(source)
    if os.path.isdir(source):
        return is_plain(Path(source))
    if suffix in (".yaml", ".yml") or not is_file(source):
        return False
    if suffix in TABLE_SUFFIXES or kind_by_name(source) is not None:
        return True
    # A recipe may have any name: it begins with one of its keys.
    recipe = _RECIPE_START.match(first_bytes(source, 1 << 12)) is not None
    if recipe or suffix == ".txt" or is_pipe(source):
        return not recipe
    # A table under another name is refused as one, and not for what it is as YAML.
    return table_kind(source, lambda names: all(names) and not _SECTIONS & {*names}) is not None


def _for_corpus(values: dict[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Give a recipe with a name, which brings a tokenizer for its own data, those of a corpus.

    A prepared corpus has its tokenizer, and maybe validation data. What was `changed` stays.
    """
    data, model = values.get("data"), values.get("model")
    train = data.get("train") if isinstance(data, dict) else None
    if not isinstance(train, str) or not isinstance(model, dict) or not is_corpus(train):
        return values
    if not {"model", "model.tokenizer"} & {*changed}:
        values = _override(values, [("model.tokenizer", None)])
    if not {"data", "data.validation"} & {*changed}:
        held = os.path.join(train, VALIDATION_SPLIT)
        values = _override(values, [("data.validation", held if is_corpus(held) else None)])
    return values


def _for_other_data(values: dict[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Take what a recipe with a teacher says of its own data away from others that are `changed`.

    Its validation data would be of another task, and its columns may be of none that the task has.
    """
    data = values.get("data")
    if "data.train" not in changed or _first_teacher(values) is None or not isinstance(data, dict):
        return values
    others = {key for key in ("validation", "columns") if not any(_names(key, c) for c in changed)}
    if not isinstance(data.get("validation"), str):  # a share is one of any data
        others -= {"validation"}
    return {**values, "data": {key: own for key, own in data.items() if key not in others}}


def _names(key: str, changed: str) -> bool:
    """Whether a key that was changed is one of the section `data`, or below it."""
    return f"{changed}.".startswith(f"data.{key}.")


def _named_by_teacher(values: dict[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Leave the task of a recipe with a name to its teacher, if that is there.

    That is where the recipe says no more of its task than a name, which was not `changed`.
    """
    source, task = _first_teacher(values), values.get("task")
    if source is None or not isinstance(task, dict) or _TASK & {*changed}:
        return values
    if {key for key in task if f"task.{key}" not in changed} != {"name"}:
        return values
    try:
        there = outline(source).task is not None
    except PretuneError:  # the run itself says what is wrong
        there = False
    return {**values, "task": {k: v for k, v in task.items() if k != "name"}} if there else values


def _first_teacher(values: Mapping[str, Any]) -> str | None:
    """Return where the first teacher is; None where the recipe has none, or a wrong one."""
    section = teacher_section(values.get("teacher"))
    source = section.get("from") if isinstance(section, Mapping) else None
    source = source[0] if isinstance(source, list) and source else source
    return source if isinstance(source, str) else None


def with_teacher(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a recipe what it leaves to its teacher: the task, and the model to start from.

    Raises:
        RecipeError: no task is named, and the teacher is not there or has none.
    """
    source = _first_teacher(values)
    if source is None:
        return values
    model, task = values.get("model") or {}, values.get("task") or {}
    if isinstance(model, Mapping) and not {"from", "source"} & {*model}:
        values = {**values, "model": {**model, "from": source}}
    if not isinstance(task, Mapping) or "name" in task:
        return values
    try:
        trained = outline(source).task
    except PretuneError as error:
        raise RecipeError(
            f"teacher.from: {error.message}",
            "The teacher is a model that was trained before; its task is the student's.",
        ) from None
    if trained is None:
        raise RecipeError(
            f"teacher.from: {source} was not trained for a task",
            "Name the task of the student, e.g. task.name=classify, or another teacher.",
        )
    return {**values, "task": {**trained.options.model_dump(mode="json"), **task}}


def _origin_for(source: str) -> str:
    """What errors call the recipe for somebody who has only data."""
    if is_from_memory(source):
        return tr("defaults for data from memory")
    return tr(f"defaults for {source}")


def _for_data(source: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The recipe for somebody who has only a labelled file: its columns tell the task."""
    # The file is read as the overrides say; those of other sections may be for another task.
    values = {"task": {"name": "classify"}, "data": {"train": source}}
    about = [(key, value) for key, value in pairs if key.partition(".")[0] == "data"]
    data = Recipe.of(_override(values, about), _origin_for(source)).data
    # The first records tell the columns; all of them are read once, for the training.
    how: dict[str, Any] = {"encoding": data.encoding, "quoting": data.quoting}
    records = next(read_parts(source, PROBED_ROWS, columns=data.columns, keep_bad=True, **how))
    columns = {*records.columns, *data.columns}
    if columns == {"text"} and records.text_unit is not None and not _TASK & dict(pairs).keys():
        raise RecipeError(
            f"{source}: plain text has no labels, and no task is named to train for",
            f"A language model: pretune train gpt2-pretrain data.train={source}; or name a task: "
            f"pretune train {source} task.name=causal_lm",
        )
    if not _TASK & dict(pairs).keys():
        _check_kind(source, columns)
    task: dict[str, Any] = {"name": "classify"}
    if {"question", "context", "answers"} <= columns:
        task = {"name": "answer", **({"no_answer": True} if "is_impossible" in columns else {})}
    elif {"tokens", "ner_tags"} <= columns:
        task = {"name": "tag"}
    else:
        if _has_sets_of_labels(records, data.columns):
            task["name"] = "multilabel"
        if {"sentence1", "sentence2"} <= columns:
            task["pair"] = True
    # A person may have named another task, which has not every option.
    chosen = dict(pairs).get("task.name", task["name"])
    if isinstance(chosen, str):
        known = task_class(chosen).options_type.model_fields
        task = {key: value for key, value in task.items() if key in known}
    nameless = is_pipe(source) or is_from_memory(source)
    name = "latest" if nameless else Path(source.removesuffix(".gz")).stem
    return {"task": task, "data": {"train": source}, "output": f"runs/{name}"}


def _check_kind(source: str, columns: set[str]) -> None:
    """Raise a RecipeError if a file without labels of texts has the columns of another kind."""
    if {"text", "label"} <= columns or {"sentence1", "sentence2", "label"} <= columns:
        return
    for needed, what, recipes in _OTHER_KINDS:
        if needed <= columns:
            names = ", ".join(sorted(needed))
            commands = [
                f"pretune train {name} data.train={source}{' ' * bool(more)}{more}"
                for name, _, more in (recipe.partition(" ") for recipe in recipes)
            ]
            raise RecipeError(
                f"{source}: {what} ({names}), and no task is named to train for",
                "; or ".join(commands),
            )


def _has_sets_of_labels(records: Records, names: Mapping[str, str]) -> bool:
    """Whether the cells of a column `labels` are lists, also such as were written as text."""
    if "labels" in names:
        return True
    cells = [row.get("labels") for row in records.rows]
    given = [cell for cell in cells if not is_missing(cell)]
    if "label" in {*records.columns, *names} or not given:
        return False
    return all(
        isinstance(c, list) or (isinstance(c, str) and parse_list(c) is not None) for c in given
    )


# Overrides


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is YAML, but a text without quotes is taken as it was typed."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"'{brief(text)}': not an override",
            "Write key=value, e.g. train.epochs=2 or model.from=minilm.",
        )
    key, typed = key.strip(), value.strip()
    # Marks alone are a text, whatever they mean to YAML: task.separator=, or |
    if _MARKS.fullmatch(typed):
        return key, typed
    try:
        parsed = yaml12.parse(value, f"override '{brief(text)}'")
    except RecipeError:
        # What is no YAML is a text too, unless it begins as a list, a map or a quoted text, or has
        # control characters.
        if typed[:1] in tuple("[{\"'|>!&*") or not typed.isprintable():
            raise
        return key, typed
    # YAML would join the lines of such a text, and end it at " #".
    if isinstance(parsed, str) and typed[:1] not in tuple("\"'|>!&*"):
        parsed = typed
    return key, parsed


def _pairs(overrides: Overrides) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return [(str(key), value) for key, value in overrides.items()]
    return [parse_override(text) for text in overrides]


def _override(values: dict[str, Any], pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:
        _set(values, key, value)
    # The size of a batch is given in examples or in tokens: the last way that is asked for counts.
    asked = {key for key, value in pairs if key in _BATCH_SIZES and value is not None}
    train = values.get("train")
    if len(asked) == 1 and isinstance(train, dict):
        (other,) = _BATCH_SIZES - asked
        values["train"] = {k: v for k, v in train.items() if f"train.{k}" != other}
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for depth, name in enumerate(sections):
        inner = values.get(name)
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            above = ".".join(sections[: depth + 1])
            raise RecipeError(
                f"override '{key}': {above} is {inner!r}, which has no keys below it",
                f"Set {above} as a whole, e.g. {above}='{{...}}'.",
            )
        # A copy: the values may be the caller's own.
        values[name] = dict(inner)
        values = values[name]
    values[last] = value

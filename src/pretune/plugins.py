"""A person's own tasks, model families, metrics, losses, callbacks and recipes, by name.

    import pretune

    @pretune.register("metric")
    def exact(answers, truths):
        return sum(a == t for a, t in zip(answers, truths)) / len(truths)

In Python that is all; the command line reads such a file with `pretune --plugin FILE.py COMMAND`.
Only what a person names there is run: no checkpoint, recipe or data set names code by a file.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pretune.errors import PretuneError, did_you_mean, similar_file
from pretune.models.families import FAMILIES
from pretune.recipe.recipe import ADDED_RECIPES
from pretune.registry import Registry
from pretune.tasks.added_metrics import METRICS
from pretune.tasks.builtin import TASKS
from pretune.tasks.own_losses import LOSSES
from pretune.tasks.own_metrics import own_metric
from pretune.text.foreign_errors import described_error
from pretune.training.callbacks import CALLBACKS

Thing = TypeVar("Thing")

#: What can be registered.
KINDS: dict[str, Registry[Any]] = {
    "task": TASKS,
    "family": FAMILIES,
    "metric": METRICS,
    "loss": LOSSES,
    "callback": CALLBACKS,
    "recipe": ADDED_RECIPES,
}


def register(
    kind: str, name: str | None = None, *, lower_is_better: bool | None = None
) -> Callable[[Thing], Thing]:
    """Return a decorator that gives a thing a name for the rest of this process.

    Args:
        kind: `task` (a class), `family` (a `Family`), `metric` (a function of answers and truths,
            an object of torchmetrics, or a class), `loss` (a function of outputs and targets that
            gives a number for each example), `callback` (a class or an object) or `recipe` (YAML
            text, or the path of a file).
        name: by which recipes call it; default: the name of the function, the task, the family or
            the class.
        lower_is_better: of a metric: whether smaller figures are better; default: its name decides.

    Raises:
        PretuneError: there is no such kind, the thing has no name, or pretune brings that name.
    """
    if kind not in KINDS:
        raise PretuneError(f"no kind of thing is called '{kind}'", did_you_mean(kind, KINDS))
    if lower_is_better is not None and kind != "metric":
        raise PretuneError(f"lower_is_better is about a metric, not a {kind}", "Leave it out.")

    def add(thing: Thing) -> Thing:
        known = name if name is not None else _own_name(kind, thing)
        made: Any = thing
        if kind == "metric":
            made = own_metric(known, thing, lower_is_better=lower_is_better)
        KINDS[kind].add(known, made)
        return thing

    return add


def _own_name(kind: str, thing: Any) -> str:
    """Return the name that a thing has by itself."""
    attribute = {"task": "name", "family": "model_type"}.get(kind, "__name__")
    own = getattr(thing, attribute, None)
    named = isinstance(own, str) and (own.isidentifier() or kind in ("task", "family"))
    if not named or not isinstance(own, str):
        raise PretuneError(
            f"this {kind} has no name of its own", f'Give it: register("{kind}", "NAME").'
        )
    return own


def load_plugin(file: str | Path) -> None:
    """Run a file of a person's own, which registers things.

    It is imported as a module of its name; other modules in its folder can be imported in it.

    Raises:
        PretuneError: there is no such file, it is not Python, or it raises an error.
    """
    path = Path(file)
    if path.suffix != ".py" or not os.path.isfile(path):
        if os.path.exists(path):
            raise PretuneError(f"--plugin {path}: is no Python file", "Its name has to end in .py.")
        raise PretuneError(f"--plugin {path}: no such file.{similar_file(path)}", "Check the path.")
    if path.stem in sys.modules:
        raise PretuneError(
            f"--plugin {path}: a module is called '{path.stem}' already", "Rename the file."
        )
    place = str(path.resolve().parent)
    if place not in sys.path:
        sys.path.insert(0, place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101 - of a file that ends in .py
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except PretuneError:
        del sys.modules[path.stem]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[path.stem]
        raise PretuneError(
            f"--plugin {path}: cannot be run: {described_error(error)}", "Mend it."
        ) from error

"""What a shell offers at the Tab key: recipes, keys of recipes, runs.

`pretune --install-completion` teaches it to the shell.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable

#: What a folder has that `predict`, `evaluate` and the like take.
_MODEL_FILES = ("recipe.yaml", "config.json", "bert_config.json", "modules.json")


def recipes(incomplete: str) -> list[str]:
    """Recipes by name, files and folders."""
    from pretune.recipe.recipe import ADDED_RECIPES, builtin_recipes

    names = [*builtin_recipes(), *ADDED_RECIPES]
    return [name for name in names if name.startswith(incomplete)] + _paths(incomplete)


def keys(incomplete: str) -> list[str]:
    """Keys of a recipe, up to the equals sign; after it, files and folders."""
    from pretune.recipe.mistakes import known_keys
    from pretune.recipe.recipe import Recipe

    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={path}" for path in _paths(value)]
    return [f"{known}=" for known in known_keys(Recipe) if known.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Runs, folders of models, folders on the way to one, and models that have a name."""
    from pretune.checkpoints.source import EMBEDDED

    names = [name for name in EMBEDDED if name.startswith(incomplete)]
    return names + _paths(incomplete, os.path.isdir)


def _paths(incomplete: str, wanted: Callable[[str], bool] = os.path.exists) -> list[str]:
    """Paths that begin so; a folder on the way to others ends with a slash."""
    paths = sorted(path for path in glob.glob(glob.escape(incomplete) + "*") if wanted(path))
    return [path + "/" if _leads_on(path) else path for path in paths]


def _leads_on(path: str) -> bool:
    """Whether this is a folder that is no model itself."""
    return os.path.isdir(path) and not any(
        os.path.isfile(os.path.join(path, name)) for name in _MODEL_FILES
    )

"""Imports go one way: a package knows only what stands before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pretune

SOURCE = Path(pretune.__file__).parent

#: From what everything rests on to what rests on everything.
ORDER = (
    "moved",
    "errors",
    "registry",
    "text",
    "tokenizers",
    "data",
    "models",
    "decoding",
    "checkpoints",
    "corpus",
    "tasks",
    "bundle",
    "inference",
    "recipe",
    "training",
    "evaluation",
    "experiments",
    "inspection",
    "export",
    "render",
    "publishing",
    "serving",
    "api",
    "cli",
    "__main__",
)


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_layers(tree: ast.AST) -> set[str]:
    """The layers a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            if node.module == "pretune":
                names = [f"pretune.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "pretune" and rest != "__version__":
                found.add(rest.partition(".")[0])
    return found


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_module_imports_only_what_stands_before_it(path: Path) -> None:
    own = layer_of(path)
    assert own in ORDER, f"{own} has no place in the order of packages yet"
    later = set(ORDER[ORDER.index(own) + 1 :])
    imported = imported_layers(ast.parse(path.read_text(encoding="utf-8")))
    assert not imported & later
    assert imported <= {*ORDER, ""}


def test_the_check_sees_imports_inside_functions() -> None:
    tree = ast.parse("def f():\n    from pretune.cli.app import main\n")
    assert imported_layers(tree) == {"cli"}


def test_transformers_is_a_yardstick_and_never_the_engine() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "transformers" for name in modules), path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 800
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A command lists its options in its signature.
            assert (node.end_lineno or 0) - node.body[0].lineno < 75, f"{node.name} is too long"

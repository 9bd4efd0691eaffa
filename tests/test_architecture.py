"""The plan of the house: imports go one way, names are unique, files can be read."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import pretune

SOURCE = Path(pretune.__file__).parent

#: From what everything rests on to what rests on everything: a room imports only rooms above it.
ORDER = (
    "version",
    "errors",
    "host",
    "registry",
    "moved",
    "storage",
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
    "model_object",
    "plugins",
    "api",
    "sklearn",
    "cli",
    "__main__",
)

MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def module_name(path: Path) -> str:
    """`models.heads.crf` for models/heads/crf.py, `models` for models/__init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def imported_modules(tree: ast.AST, *, deep: bool = True) -> set[str]:
    """Our modules that a file imports, in functions and under TYPE_CHECKING too.

    Where it is not `deep`, those alone that it imports at once.
    """
    imported = set()
    for node in ast.walk(tree) if deep else ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            if room_of(node.module or "") != "pretune":
                continue
            # `from pretune.models import ops` imports a module, `from pretune.x.y import f` a name.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("pretune.")
                names.append(
                    inner if inner in NAMES else (node.module or "").removeprefix("pretune.")
                )
        elif isinstance(node, ast.Import):
            ours = [a.name for a in node.names if room_of(a.name) == "pretune"]
            names = [name.removeprefix("pretune.") for name in ours]
        imported.update(name for name in names if name != "pretune")
    return imported


IMPORTS = {module_name(path): imported_modules(tree) for path, tree in TREES.items()}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches each other one: Tarjan's algorithm (1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(imports.get(name, ())):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(imports):
        if name not in number:
            visit(name)
    return groups


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_a_module_imports_only_rooms_above_it(name: str) -> None:
    assert room_of(name) in ORDER, f"{room_of(name)} has no place in the order of rooms yet"
    later = set(ORDER[ORDER.index(room_of(name)) + 1 :])
    rooms = {room_of(other) for other in IMPORTS[name]}
    assert not rooms & later
    assert rooms <= {*ORDER}


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_circles_are_seen_wherever_an_import_stands() -> None:
    first = imported_modules(ast.parse("def f():\n    from pretune.text.decode import lines_of\n"))
    second = imported_modules(ast.parse("if TYPE_CHECKING:\n    from pretune.text import chunks\n"))
    assert (first, second) == ({"text.decode"}, {"text.chunks"})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_the_front_of_a_service_imports_no_torch() -> None:
    """It computes nothing: its workers do, which import theirs in functions."""
    waiting, reached = ["serving.server"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in reached or name not in NAMES:
            continue
        reached.add(name)
        top = TREES[NAMES[name]].body
        waiting += imported_modules(
            ast.Module([n for n in top if not is_typing(n)], []), deep=False
        )
        packages = [room_of(a.name) for n in top if isinstance(n, ast.Import) for a in n.names]
        packages += [room_of(n.module or "") for n in top if isinstance(n, ast.ImportFrom)]
        assert "torch" not in packages, name
    assert "serving.worker" not in reached


def is_typing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def test_packages_repeat_no_names() -> None:
    """A name is imported from the file that defines it: one import loads no more than it needs."""
    for path, tree in TREES.items():
        if path.name == "__init__.py" and room_of(module_name(path)) != "cli":
            repeated = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
            assert repeated <= {"__future__", "typing"}, path


def test_public_classes_have_names_of_their_own() -> None:
    homes = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module_name(path))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


#: Commands are named as what they do, and stand in one folder; these files say in theirs the same
#: thing of another subject (`tokenizers/train.py`), so that the folder tells which.
OF_THEIR_FOLDER = {
    "config.py", "features.py", "load.py", "save.py", "stored.py", "train.py", "scoring.py",
}  # fmt: skip


def test_files_have_names_of_their_own() -> None:
    homes = defaultdict(list)
    for name in IMPORTS:
        if room_of(name) != "cli" and NAMES[name].name != "__init__.py":
            homes[NAMES[name].name].append(name)
    doubled = {file: where for file, where in homes.items() if len(where) > 1}
    assert {f: w for f, w in doubled.items() if f not in OF_THEIR_FOLDER} == {}


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_files_and_functions_stay_readable(name: str) -> None:
    text = NAMES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 800
    for node in ast.walk(TREES[NAMES[name]]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A command lists its options in its signature.
            lines = (node.end_lineno or 0) - node.body[0].lineno
            assert lines < 75, f"{node.name} is too long"


def test_transformers_is_a_yardstick_and_never_the_engine() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            assert not any(room_of(name) == "transformers" for name in modules), path

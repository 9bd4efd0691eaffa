"""Figures about the source itself: how large it is, how it hangs together, how far one text goes.

    python bench/house.py [--src SRC] [--json]

SRC is the folder that holds the package `pretune` (default: src of this repository); any layout
will do. What each figure means:

files, lines        of the .py files below SRC/pretune; empty lines and comments count.
longest function    from `def` to its last line, decorators not counted.
comments            the share of lines that hold a comment which is not a directive (noqa, type:
                    ignore, isort:, fmt:, pragma, mypy:, ruff:), by tokenize.
circles             strongly connected components with two or more files of the graph in which a
                    file points at those it imports, wherever the import stands: in functions and
                    under TYPE_CHECKING too. `from pretune.x import Name` points at the file that
                    defines Name where x/__init__.py re-exports it, else at x itself. Counted once
                    more without pretune/__init__.py: it names the public functions under
                    TYPE_CHECKING, so whoever reads pretune.__version__ is in a circle with them.
names twice         names of classes that two files define, and of files, __init__ left out, that
                    two folders hold.
modules             in sys.modules after `import pretune.api`, `pretune --help`, and
                    `pretune predict` of one text with a classifier made of MiniLM; those of pretune
                    and all.
files and jumps     that one sentence passes in `pretune train mrpc model.from=minilm`, with one
                    pair to train on and the same one to be evaluated on (3 epochs, 3 updates), and
                    in `pretune predict` of that pair with the result. By sys.setprofile, in all
                    threads: a jump is a call of a function of pretune whose direct caller stands in
                    another file of pretune; returns do not count, nor do calls by way of torch and
                    other libraries. Files are the distinct ones with a function that was called.
                    Bodies of modules and classes, and what importing a module calls, do not count.
                    (An earlier count, whose exact definition is lost, gave 77 files and 1,732 jumps
                    for train mrpc, 44 and 408 for predict; this one gave 81 and 1,618, 38 and 501,
                    on the same source.)
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_DIRECTIVE = re.compile(
    r"#[:!]?\s*(?:noqa|type:\s*ignore|isort:|fmt:|pragma|mypy:|ruff:|pyright:|-\*-)"
)


class Source:
    """The files of the package, parsed.

    Args:
        src: the folder with the folder `pretune`.
    """

    def __init__(self, src: Path) -> None:
        self.texts: dict[str, str] = {}
        self.trees: dict[str, ast.Module] = {}
        self.files: dict[str, Path] = {}
        for path in sorted((src / "pretune").rglob("*.py")):
            name = ".".join(path.relative_to(src).with_suffix("").parts).removesuffix(".__init__")
            self.files[name] = path
            self.texts[name] = path.read_text(encoding="utf-8")
            self.trees[name] = ast.parse(self.texts[name])

    def is_package(self, module: str) -> bool:
        """Whether it is a folder with an __init__.py."""
        return self.files[module].name == "__init__.py"

    def origin(self, module: str, node: ast.ImportFrom) -> str:
        """The full name of what a `from` names, relative or not."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + self.is_package(module)]
        return ".".join([*parts, node.module] if node.module else parts)

    def defining(self, module: str, name: str, seen: frozenset[str] = frozenset()) -> str | None:
        """The file that defines `name` of `module`; follows what packages re-export."""
        if f"{module}.{name}" in self.files:
            return f"{module}.{name}"
        if module not in self.files or module in seen:
            return None
        if not self.is_package(module):
            return module
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        there = self.origin(module, node)
                        return self.defining(there, alias.name, seen | {module}) or module
        return module

    def imports(self, module: str) -> set[str]:
        """The files of the package that it imports, anywhere in it."""
        found: set[str | None] = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in self.files}
            elif isinstance(node, ast.ImportFrom):
                there = self.origin(module, node)
                found |= {self.defining(there, alias.name) for alias in node.names}
        return {one for one in found if one is not None and one != module}


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The strongly connected components with two nodes or more (Kosaraju), largest first."""
    order: list[str] = []
    seen: set[str] = set()
    for start in graph:
        stack: list[tuple[str, Iterator[str]]] = []
        if start not in seen:
            seen.add(start)
            stack.append((start, iter(sorted(graph[start]))))
        while stack:
            node, following = stack[-1]
            for other in following:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(sorted(graph[other]))))
                    break
            else:
                order.append(node)
                stack.pop()
    back: dict[str, list[str]] = {node: [] for node in graph}
    for node, others in graph.items():
        for other in others:
            back[other].append(node)
    found = []
    taken: set[str] = set()
    for start in reversed(order):
        group, todo = [], [] if start in taken else [start]
        taken.add(start)
        while todo:
            group.append(node := todo.pop())
            todo += (new := [other for other in back[node] if other not in taken])
            taken.update(new)
        if len(group) > 1:
            found.append(sorted(group))
    return sorted(found, key=len, reverse=True)


def commented(text: str) -> int:
    """Lines with a comment that is not a directive."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT and not _DIRECTIVE.match(t.string) for t in tokens)


def sizes(source: Source) -> dict[str, Any]:
    """How large files and functions are."""
    lines = {name: len(text.splitlines()) for name, text in source.texts.items()}
    longest = max(lines, key=lambda name: lines[name])
    functions = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in source.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    length, function = max(functions)
    everything = sum(lines.values())
    return {
        "files": len(lines),
        "lines": everything,
        "median_file": statistics.median(lines.values()),
        "longest_file": {"name": longest, "lines": lines[longest]},
        "longest_function": {"name": function, "lines": length},
        "functions": len(functions),
        "comment_share": round(sum(map(commented, source.texts.values())) / everything, 4),
    }


def ties(source: Source) -> dict[str, Any]:
    """How files hang together, and the names that occur twice."""
    graph = {name: source.imports(name) for name in source.files}
    found = circles(graph)
    inner = circles({name: graph[name] - {"pretune"} for name in graph if name != "pretune"})
    classes = Counter(
        node.name
        for tree in source.trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    stems = Counter(p.stem for p in source.files.values() if not p.stem.startswith("_"))
    return {
        "imports": sum(map(len, graph.values())),
        "circles": found,
        "files_in_circles": sum(map(len, found)),
        "circles_without_root": inner,
        "classes_twice": sorted(name for name, count in classes.items() if count > 1),
        "files_twice": sorted(name for name, count in stems.items() if count > 1),
    }


_COUNT = """
import json, sys
ours = [m for m in sys.modules if m == "pretune" or m.startswith("pretune.")]
print("\\n@" + json.dumps({"pretune": len(ours), "all": len(sys.modules)}))
"""
_COMMAND = """
import runpy
try:
    runpy.run_module("pretune", run_name="__main__")
except SystemExit as end:
    if end.code: raise
"""
_PROFILED = """
import json, os, runpy, sys, threading
import pretune
root = os.path.dirname(pretune.__file__) + os.sep
files, counts = set(), {"jumps": 0}
def importing(frame):
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(root):
            return not code.co_filename.endswith("__main__.py")
        frame = frame.f_back
    return False
def profile(frame, event, argument):
    code = frame.f_code
    # A function has CO_OPTIMIZED; the body of a module or a class has not.
    if event != "call" or not code.co_flags & 1 or not code.co_filename.startswith(root): return
    if importing(frame): return
    files.add(code.co_filename)
    caller = frame.f_back.f_code.co_filename if frame.f_back else ""
    counts["jumps"] += caller.startswith(root) and caller != code.co_filename
sys.setprofile(profile)
threading.setprofile(profile)
try:
    runpy.run_module("pretune", run_name="__main__")
except SystemExit as end:
    if end.code: raise
finally:
    sys.setprofile(None)
    threading.setprofile(None)
print("\\n@" + json.dumps({"files": len(files), **counts}))
"""


def measured(src: Path, folder: Path, program: str, *argv: str) -> dict[str, int]:
    """What a program of its own process prints behind an @."""
    env = {
        **os.environ,
        "PYTHONPATH": str(src),
        "HF_HUB_OFFLINE": "1",
        "PRETUNE_CACHE": "off",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *argv],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"pretune {' '.join(argv)} failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.rpartition("\n@")[2])
    return found


def runs(src: Path) -> dict[str, Any]:
    """What commands import and where they pass."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pair.tsv").write_text(
            "sentence1\tsentence2\tlabel\nA dog sings.\tThe dog sings.\t1\n", encoding="utf-8"
        )
        (folder / "texts.tsv").write_text(
            "text\tlabel\nA dog sings.\tgood\nNo dog came.\tbad\n", encoding="utf-8"
        )
        common = ("model.from=minilm", "train.device=cpu", "--quiet")
        files = ("data.train=pair.tsv", "data.validation=pair.tsv", "output=mrpc")
        passed = measured(src, folder, _PROFILED, "train", "mrpc", *files, *common)
        pair = ("A dog sings.", "The dog sings.")
        asked = measured(src, folder, _PROFILED, "predict", "mrpc", *pair)
        short = ("train.max_steps=1", "data.validation=null", "output=texts")
        measured(src, folder, _COMMAND + _COUNT, "train", "texts.tsv", *short, *common)
        return {
            "modules": {
                "import pretune.api": measured(src, folder, "import pretune.api" + _COUNT),
                "pretune --help": measured(src, folder, _COMMAND + _COUNT, "--help"),
                "pretune predict": measured(
                    src, folder, _COMMAND + _COUNT, "predict", "texts", "A dog sings."
                ),
            },
            "passed": {"pretune train mrpc": passed, "pretune predict": asked},
        }


def show(found: dict[str, Any]) -> None:
    """As text."""
    file, function = found["longest_file"], found["longest_function"]
    print(f"files              {found['files']}, {found['lines']:,} lines")
    print(f"median file        {found['median_file']} lines")
    print(f"longest file       {file['lines']} lines: {file['name']}")
    print(f"longest function   {function['lines']} lines: {function['name']}")
    print(f"comments           {found['comment_share']:.1%} of the lines")
    print(f"imports            {found['imports']} from file to file")
    print(f"circles            {len(found['circles'])}, {found['files_in_circles']} files in them")
    for group in found["circles"]:
        print(f"                   {len(group)}: {', '.join(group)}")
    inner = found["circles_without_root"]
    print(f"  without root     {len(inner)}, {sum(map(len, inner))} files in them")
    for group in inner:
        print(f"                   {len(group)}: {', '.join(group)}")
    print(f"classes twice      {', '.join(found['classes_twice']) or 'none'}")
    print(f"files twice        {', '.join(found['files_twice']) or 'none'}")
    for name, count in found["modules"].items():
        print(f"modules            {count['pretune']} of pretune, {count['all']} in all: {name}")
    for name, count in found["passed"].items():
        print(f"one sentence       {count['files']} files, {count['jumps']:,} jumps: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Path(__file__).resolve().parents[1] / "src"
    parser.add_argument("--src", type=Path, default=usual, help="the folder with pretune in it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    src = options.src.resolve()
    if not (src / "pretune").is_dir():
        parser.error(f"{src}: no folder pretune in it")
    source = Source(src)
    found = {**sizes(source), **ties(source), **runs(src)}
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()

"""Collect every text that people are shown, and keep the Chinese catalogue up to date with it.

python -m tests.text.messages update           add what is new to src/pretune/text/zh, drop the rest
python -m tests.text.messages count            how much of each room is translated
python -m tests.text.messages todo ROOM        list what is not, with numbers
python -m tests.text.messages fill ROOM FILE   take translations: lines of NUMBER, a tab, the text
python -m tests.text.messages take FILE        the same by texts: English, a tab, Chinese

Texts are what the code gives to errors, notes, `say`, `tr`, help and the like (`SINKS`), wherever
it comes from: a literal, an f-string, both sides of a condition, a variable of the same function, a
parameter of a function that passes it on, the result of a function of ours; and what keys of
recipes mean (`EXPLAINED`).
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pretune
from pretune.registry import OWN_FILE
from pretune.text.translation import OWN_WORDS, entries, pieces

SOURCE = Path(pretune.__file__).parent
CATALOGUE = SOURCE / "text" / "zh"
#: The room of the files that lie in no folder.
CORE = "core"
#: What is called with a text, and which of its arguments are texts: their places, their names.
SINKS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "PretuneError": ((0, 1), ("message", "hint")),
    "BadParameter": ((0,), ("message",)),
    "Option": ((), ("help", "rich_help_panel")),
    "Argument": ((), ("help", "rich_help_panel")),
    "Typer": ((), ("help", "epilog")),
    "Mistake": ((0, 1), ()),
    "WrongValueError": ((0,), ()),
    "write_words": ((1,), ()),
    "print_result": (tuple(range(1, 8)), ()),
    "progress_bar": ((0,), ("what",)),
    "noting": ((0,), ()),
    "FileKind": ((0, 1), ("what", "way_out")),
    **dict.fromkeys(("note", "tr", "say", "_say", "fail", "working"), ((0,), ("text",))),
}
#: Functions whose results are shown elsewhere: what they return, yield, append and put into lists.
SHOWN_LATER = {
    "label_remarks",
    "remarks",
    "_remarks",
    "_ways_out",
    "_more_gpus",
    "differences",
    "doubts",
    "look_alikes",
    "_rare_labels",
    "_different_labels",
    "_one_answer",
    "likely_columns",
    "_far_below",
    "truncation_note",
}
#: Rooms with the keys of recipes, whose meanings `pretune init` writes.
EXPLAINED = ("recipe", "tasks")
#: Words that are looked up by a variable: states, kinds, roles.
WORDS = (
    *("run", "state", "task", "model", "data", "best", "step", "seconds", "age"),
    *("running", "finished", "stopped", "damaged"),
    *("line", "row", "loss", "perplexity", "tokens", "truth", "answer", "confidence", "right"),
    *("mistakes", "encoder", "decoder", "embeddings", "pooler", "head", "final norm", "all"),
    *("learning rate", "tokens per second", "gradient norm"),
    *("skipped", "repaired", "{0}: {1} times", "{0}: {1} times ({2})"),
    *(", line {0}", ", row {0}", "column '{0}'", ", column '{0}'", ", item {0}"),
    *("start", "end of warm-up", "whole batch", "start of decay", "end"),
    *("a str", "an int", "a float", "a bool", "a list", "a dict", "a tuple", "a set", "a bytes"),
    *("duplicate", "near-duplicate", "empty", "short", "no tokens"),
    *("perfect calibration", "as trained: ECE {0}", "temperature {0}: ECE {1}"),
    *("type", "boundary and type"),
    "blank lines separate the documents of a text file",
    "held back: {0} of the records, in proportion to the labels",
    "held back: {0} of the records, at random",
    "held back: the last {0} of each text",
    "held back: part {0} of {1}",
    "read with {0} between columns, not {1}",
    "initialised {0}; no weights were loaded",
    "random weights of the size {0}",
    "loaded {0} tensors from {1}",
    "loaded {0} tensors from {1}; new, not in the file: {2}",
    "loaded {0} tensors from {1}; in the file, not used: {2}",
    "loaded {0} tensors from {1}; new, not in the file: {2}; in the file, not used: {3}",
    "best so far",
    "step {0}/{1}  epoch {2}  {3} left",
    *("semicolons", "commas", "tabs", "bars"),
    *("Arabic", "Chinese", "French", "German", "Hebrew", "Hungarian", "Icelandic", "Italian"),
    *("Japanese", "Korean", "Polish", "Portuguese", "Scandinavian", "Spanish", "Thai", "Turkish"),
    # What `Registry.find` puts into an error of the class that it is given.
    *(OWN_FILE, "No installed package provides any."),
    *("no {0} is called '{1}'", "Choose another file.", "Choose another folder."),
    "each line of a text file is a document",
    "each text file is one document",
    "without lines that are not valid in the encoding",
    "brought to NFC",
    "freed of control characters",
    "had a word longer than a window, which was cut",
    "Or leave such records out, which is counted: data.errors=skip.",
    "To look at all of it: {0}",
    "a finished",
    "with spaces collapsed",
    "with lines joined",
    "with repeated lines dropped",
)
#: What typer says itself, and what the help page of a command has besides its texts.
TYPER = (
    "Examples:",
    "Short forms: {0}",
    "Usage:",
    "Options",
    "Arguments",
    "Commands",
    "Error",
    "Aborted.",
    "[default: {{}}]",
    "[env var: {{}}]",
    "[required]",
    "(dynamic)",
    "Show this message and exit.",
    "Install completion for the current shell.",
    "Show completion for the current shell, to copy it or customize the installation.",
    "Try [blue]'{{command_path}} {{help_option}}'[/] for help.",
    "No such command {0}.",
    "No such command {0}. Did you mean {1}?",
    "No such option: {0}",
    "No such option: {0} Did you mean {1}?",
    "No such option: {0} (Possible options: {1})",
    "Missing argument {0}.",
    "Missing option {0}.",
    "Missing command.",
    "Got unexpected extra argument(s) ({0})",
    "Option {0} requires an argument.",
    "Option {0} requires {1} arguments.",
    "Option {0} does not take a value.",
    "Invalid value for {0}: {1}",
    "{0} is not a valid int.",
    "{0} is not a valid integer.",
    "{0} is not a valid float.",
    "{0} is not a valid boolean.",
    "{0} is not in the range {1}.",
    "{0} is not one of {1}.",
)
#: What pydantic says of a value of a recipe, as `recipe/mistakes.py` tells it.
PYDANTIC = (
    "{0} (it is {1})",
    "{0}, or {1} (it is {2})",
    "{0}, or {1}, or {2} (it is {3})",
    "'{0}' is missing",
    "unknown key '{0}'. Did you mean '{1}'?",
    "unknown key '{0}'. Known here: {1}.",
    "should be {0}",
    "should be {0} or {1}",
    "doc_stride must be less",
    "should be greater than {0}",
    "should be greater than or equal to {0}",
    "should be less than {0}",
    "should be less than or equal to {0}",
    "should be a finite number",
    *(f"should be a valid {kind}" for kind in ("string", "number", "integer", "boolean", "list")),
    "should be a valid dictionary",
    "should be a valid boolean, unable to interpret input",
    "should be a valid number, unable to parse string as a number",
    "should be a valid integer, unable to parse string as an integer",
    "should be a valid integer, got a number with a fractional part",
    "should have at least {0} character",
    "should have at least {0} characters",
    "should have at most {0} characters",
    "should have at least {0} item after validation, not {1}",
    "should have at least {0} items after validation, not {1}",
    "should have at most {0} items after validation, not {1}",
)
#: What stands behind an example of the help page of a command.
EXAMPLE_NOTE = re.compile(r" {2,}\((.*)\)$")
#: Alternatives that are written out, by the conditions in a text; more become places.
MOST_ALTERNATIVES = 8
_WORD = re.compile(r"[A-Za-z]{2,}")
_NAME = re.compile(r"\w+(?:[._-]\w+)+")

Function = ast.FunctionDef | ast.AsyncFunctionDef
#: A text as parts: what is literal, and expressions.
Parts = tuple[str | ast.expr, ...]


@dataclass(eq=False)
class Scope:
    """A function, or the top of a file, and what happens there."""

    module: Module
    function: Function | None
    around: Scope | None
    values: dict[str, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    returned: list[ast.expr] = field(default_factory=list)
    appended: list[ast.expr] = field(default_factory=list)

    @cached_property
    def parameters(self) -> list[str]:
        """The names of the parameters, without self."""
        if self.function is None:
            return []
        own = self.function.args
        names = [a.arg for a in (*own.posonlyargs, *own.args)]
        return names[1:] if names[:1] in (["self"], ["cls"]) else names

    @cached_property
    def named(self) -> set[str]:
        """The names of all parameters."""
        only = () if self.function is None else self.function.args.kwonlyargs
        return {*self.parameters, *(a.arg for a in only)}


@dataclass(eq=False)
class Module:
    """A file of the package."""

    path: Path
    calls: list[tuple[ast.Call, Scope]] = field(default_factory=list)
    functions: dict[str, list[Scope]] = field(default_factory=lambda: defaultdict(list))
    classes: list[ast.ClassDef] = field(default_factory=list)

    @property
    def room(self) -> str:
        """The folder in which it lies."""
        parts = self.path.relative_to(SOURCE).parts
        return parts[0] if len(parts) > 1 else CORE


@dataclass(frozen=True)
class Message:
    """A text that is shown."""

    msgid: str
    room: str
    module: str
    line: int = 0
    about: tuple[str, ...] = ()  # the expression at each place


def own_words(text: str) -> int:
    """How many words of a template are no place."""
    return sum(len(_WORD.findall(part)) for part in pieces(text)[0])


class Collector:
    """Finds the texts of all modules."""

    def __init__(self) -> None:
        self.modules = [_read(path) for path in sorted(SOURCE.rglob("*.py"))]
        self.messages: dict[str, Message] = {}
        self.errors = _subclasses(self.modules, "PretuneError")
        self.by_name: dict[str, list[Scope]] = defaultdict(list)
        for module in self.modules:
            for name, scopes in module.functions.items():
                self.by_name[name] += scopes
        # Functions with parameters that become texts, and those.
        self.passing: dict[Scope, set[str]] = defaultdict(set)
        self.seen: set[tuple[int, bool]] = set()

    def collect(self) -> dict[str, Message]:
        """Collect until no function is found any more that passes a text on."""
        before = -1
        while before != (now := sum(map(len, self.passing.values()))):
            before = now
            own = (s.function.name for s in self.passing if s.function)
            names = {*SINKS, *self.errors, *own, "__init__"}
            for module in self.modules:
                for call, scope in module.calls:
                    if _called(call) in names:
                        for argument in self._texts_of(scope, call):
                            self._shown(scope, argument, whole=True)
        for module in self.modules:
            self._said_elsewhere(module)
            self._kinds_of_files(module)
            self._keys(module)
        for text in TYPER:
            self._add_text(text, "cli", "typer")
        for path in sorted((SOURCE / "recipe" / "builtin").glob("*.yaml")):
            described = re.search(r"(?m)^description: (.*)$", path.read_text(encoding="utf-8"))
            if described is not None:
                self._add_text(_escaped(described[1].strip('"')), "recipe", path.name)
        for text in WORDS:
            self._add_text(text, "render", "words")
        for text in PYDANTIC:
            self._add_text(text, "recipe", "pydantic")
        return self.messages

    def _said_elsewhere(self, module: Module) -> None:
        """Take docstrings, summaries and examples of commands, and results shown later."""
        for scope in itertools.chain(*module.functions.values()):
            assert scope.function is not None
            if scope.function.name in SHOWN_LATER:
                self._results(scope, whole=True)
                for value in scope.appended:
                    self._shown(scope, value, whole=True)
            if _is_command(scope.function):
                for paragraph in (ast.get_docstring(scope.function) or "").split("\n\n"):
                    text = _escaped(" ".join(paragraph.split()))
                    self._add_text(text, module.room, _shown_path(module), scope.function.lineno)
        for call, _ in module.calls if module.room == "cli" else []:
            for own in call.args if _called(call) == "command" else ():
                note = EXAMPLE_NOTE.search(str(getattr(own, "value", "")))
                if note and not _NAME.fullmatch(note[1]):
                    self._add_text(_escaped(note[1]), module.room, _shown_path(module), own.lineno)
        if (module.room, module.path.name) == ("cli", "app.py"):
            for scope in module.functions["main"]:
                assert scope.around is not None
                for value in scope.around.values["_SUMMARIES"]:
                    self._summaries(scope.around, value)

    def _kinds_of_files(self, module: Module) -> None:
        """Take kinds of files as they stand after a name: `a.xlsx: is an Excel workbook`."""
        for call, scope in module.calls:
            for parts in self._alternatives(call.args[0]) if _called(call) == "FileKind" else ():
                self._add(scope, _joined(("is ", *parts)), call.lineno, whole=True)

    def _keys(self, module: Module) -> None:
        """Take what the keys of recipes mean."""
        calls = module.calls if module.room in EXPLAINED else []
        for call, scope in calls:
            for own in call.keywords if _called(call) == "Field" else ():
                if own.arg == "description":
                    self._shown(scope, own.value, whole=True)

    def _summaries(self, scope: Scope, value: ast.expr) -> None:
        assert isinstance(value, ast.Dict)
        for panel in value.keys:
            self._shown(scope, panel, whole=True)
        for constant in ast.walk(value):
            if isinstance(constant, ast.Constant) and " " in str(constant.value):
                self._shown(scope, constant, whole=True)

    def _texts_of(self, scope: Scope, call: ast.Call) -> Iterator[ast.expr]:
        """The arguments of a call that are texts."""
        name = _called(call)
        # An error that makes its own message gives it to the class above.
        error = name in self.errors or ast.unparse(call.func) == "super().__init__"
        places, names = SINKS.get("PretuneError" if error else name, ((), ()))
        for called in self._functions(scope, call):
            if own := self.passing.get(called):
                places = (*places, *(i for i, p in enumerate(called.parameters) if p in own))
                names = (*names, *own)
        yield from (a for i, a in enumerate(call.args) if i in places)
        yield from (k.value for k in call.keywords if k.arg in names)

    def _functions(self, scope: Scope, call: ast.Call) -> list[Scope]:
        """The functions of ours that a call may mean: those of its file, or one of that name."""
        name = _called(call)
        if name in scope.module.functions:
            return scope.module.functions[name]
        others = [] if name.startswith("_") else self.by_name.get(name, [])
        return others if len(others) == 1 else []

    def _shown(self, scope: Scope, node: ast.expr | None, *, whole: bool) -> None:
        """Take a text that is shown: the whole of a message, or what is put into one."""
        if node is None or (id(node), whole) in self.seen:
            return
        self.seen.add((id(node), whole))
        for parts in self._alternatives(node):
            expressions = [part for part in parts if not isinstance(part, str)]
            if len(parts) == 1 and expressions:
                self._behind(scope, expressions[0], whole=whole)
                continue
            self._add(scope, parts, node.lineno, whole=whole)
            for expression in expressions:
                self._behind(scope, expression, whole=False)

    def _alternatives(self, node: ast.expr) -> list[Parts]:
        """The texts that an expression may be, as parts."""
        match node:
            case ast.Constant(value=str(text)):
                return [(text,)]
            case ast.JoinedStr(values=values):
                return _products([self._alternatives(value) for value in values])
            case ast.FormattedValue(value=ast.Constant(value=str(text))):
                return [(text,)]
            case ast.FormattedValue(value=ast.IfExp() | ast.JoinedStr() as value):
                return self._alternatives(value)
            case ast.FormattedValue(value=value):
                return [(value,)]
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return _products([self._alternatives(left), self._alternatives(right)])
            case ast.IfExp(body=body, orelse=orelse):
                return [*self._alternatives(body), *self._alternatives(orelse)]
        return [(node,)]

    def _behind(self, scope: Scope, node: ast.expr, *, whole: bool) -> None:
        """Take the texts that an expression stands for."""
        match node:
            case ast.BoolOp(values=values):
                for value in values:
                    self._shown(scope, value, whole=whole)
            case ast.Name(id=name):
                self._variable(scope, name, whole=whole)
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[joined]):
                for element in _elements(joined):
                    self._shown(scope, element, whole=False)
            case ast.Call(func=ast.Attribute(value=inner, attr="capitalize" | "strip" | "rstrip")):
                self._shown(scope, inner, whole=whole)
            case ast.Call():
                for called in self._functions(scope, node):
                    self._results(called, whole=whole)
            case ast.Starred(value=value):
                self._behind(scope, value, whole=whole)
            case ast.Tuple() | ast.List():
                for element in _elements(node):
                    self._shown(scope, element, whole=whole)

    def _variable(self, scope: Scope, name: str, *, whole: bool) -> None:
        """Take what is given to a variable; a parameter makes its function pass texts on."""
        own: Scope | None = scope
        while own is not None:
            if whole and name in own.named:
                self.passing[own].add(name)
            for value in own.values.get(name, ()):
                self._shown(own, value, whole=whole)
            own = None if name in own.named else own.around

    def _results(self, scope: Scope, *, whole: bool) -> None:
        """Take what a function returns and yields."""
        for value in scope.returned:
            for element in _elements(value):
                self._shown(scope, element, whole=whole)

    def _add(self, scope: Scope, parts: Parts, line: int, *, whole: bool) -> None:
        """Make a template of parts and take it, if enough of it is words."""
        text, about = "", []
        for part in parts:
            if isinstance(part, str):
                text += _escaped(part)
            else:
                text += f"{{{len(about)}}}"
                about.append(part)
        # The name of a file or of a key is no text.
        if _NAME.fullmatch(text) is None and own_words(text) >= (1 if whole else OWN_WORDS):
            place = scope.module.room, _shown_path(scope.module), line
            self._add_text(text.strip(), *place, tuple(map(ast.unparse, about)))

    def _add_text(
        self, text: str, room: str, module: str, line: int = 0, about: tuple[str, ...] = ()
    ) -> None:
        if text and text not in self.messages:
            self.messages[text] = Message(text, room, module, line, about)


def _shown_path(module: Module) -> str:
    return module.path.relative_to(SOURCE).as_posix()


def _read(path: Path) -> Module:
    """Parse a file, and note in one pass what the collector asks for."""
    module = Module(path)
    todo: list[tuple[Any, Scope]] = [
        (ast.parse(path.read_text(encoding="utf-8")), Scope(module, None, None))
    ]
    while todo:
        node, scope = todo.pop()
        kind = type(node)
        if kind is ast.Call:
            module.calls.append((node, scope))
        elif kind is ast.FunctionDef or kind is ast.AsyncFunctionDef:
            scope = Scope(module, node, scope)
            module.functions[node.name].append(scope)
        elif kind is ast.ClassDef:
            module.classes.append(node)
        if kind in _NOTED:
            _take_note(node, scope)
        for name in node._fields:
            value = getattr(node, name, None)
            if type(value) is list:
                todo += [(item, scope) for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST) and name != "ctx":
                todo.append((value, scope))
    return module


#: What `_take_note` looks at.
_NOTED = {ast.Assign, ast.AugAssign, ast.NamedExpr, ast.Call, ast.Return, ast.Yield}


def _take_note(node: ast.AST, scope: Scope) -> None:
    """Note what is given to variables, appended to lists, returned."""
    match node:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AugAssign(target=ast.Name(id=name), value=value)
            | ast.NamedExpr(target=ast.Name(id=name), value=value)
        ):
            scope.values[name].append(value)
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            for target, value in zip(targets, values, strict=False):
                if isinstance(target, ast.Name):
                    scope.values[target.id].append(value)
        case ast.Call(func=ast.Attribute(value=inner, attr="append"), args=[value]):
            scope.appended.append(value)
            if isinstance(inner, ast.Name):
                scope.values[inner.id].append(value)
        case ast.Return(value=ast.expr() as value) | ast.Yield(value=ast.expr() as value):
            scope.returned.append(value)


def _subclasses(modules: Iterable[Module], base: str) -> set[str]:
    """The names of a class and of those that come from it, in any number of steps."""
    parents = {
        node.name: {ast.unparse(own) for own in node.bases}
        for module in modules
        for node in module.classes
    }
    known, before = {base}, 0
    while len(known) != before:
        before = len(known)
        known |= {name for name, own in parents.items() if own & known}
    return known


def _called(call: ast.Call) -> str:
    """The last part of the name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _is_command(function: Function) -> bool:
    calls = [node for node in function.decorator_list if isinstance(node, ast.Call)]
    return any(_called(call) == "command" for call in calls)


def _elements(node: ast.expr) -> list[ast.expr]:
    """The elements of a list that is written out, of a comprehension, or the expression itself."""
    match node:
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return [e.value if isinstance(e, ast.Starred) else e for e in elements]
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
            return [element]
    return [node]


def _products(options: list[list[Parts]]) -> list[Parts]:
    """All ways to put a text together; of too many, those of the first alternative of each."""
    count = 1
    for own in options:
        count *= len(own)
    if count > MOST_ALTERNATIVES:
        options = [own[:1] for own in options]
    wholes = [tuple(itertools.chain.from_iterable(parts)) for parts in itertools.product(*options)]
    return [_joined(parts) for parts in wholes]


def _joined(parts: Parts) -> Parts:
    """Join literal parts that follow each other."""
    out: list[str | ast.expr] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def collected() -> dict[str, Message]:
    """Every text that is shown, by its `msgid`."""
    return Collector().collect()


def catalogue_file(room: str) -> Path:
    """The catalogue of a room."""
    return CATALOGUE / f"{room}.po"


def written() -> dict[str, dict[str, str]]:
    """What the catalogue holds: room -> `msgid` -> `msgstr`."""
    return {
        path.stem: dict(entries(path.read_text(encoding="utf-8")))
        for path in sorted(CATALOGUE.glob("*.po"))
    }


def disagreement(msgid: str, msgstr: str) -> str | None:
    """What is wrong with a translation; None if nothing is."""
    here, there = ({place.number for place in pieces(text)[1]} for text in (msgid, msgstr))
    if here != there:
        return f"has the places {sorted(there)}, not {sorted(here)}"
    return None


def update() -> None:
    """Write the catalogue anew: all texts that are shown now, with the translations there are."""
    known = {msgid: msgstr for own in written().values() for msgid, msgstr in own.items() if msgstr}
    rooms: dict[str, list[Message]] = defaultdict(list)
    for message in collected().values():
        rooms[message.room].append(message)
    CATALOGUE.mkdir(exist_ok=True)
    for room, messages in rooms.items():
        messages.sort(key=lambda own: (own.module, own.line))
        catalogue_file(room).write_text(_po(messages, known), encoding="utf-8", newline="\n")
    for room in written().keys() - rooms.keys():
        catalogue_file(room).unlink()


def _po(messages: Iterable[Message], known: dict[str, str]) -> str:
    lines = ['msgid ""', 'msgstr ""', '"Language: zh_CN\\n"']
    lines += ['"Content-Type: text/plain; charset=UTF-8\\n"', ""]
    module = ""
    for message in messages:
        if message.module != module:
            module = message.module
            lines += [f"# {module}", ""]
        if message.about:
            told = "; ".join(f"{i} = {' '.join(e.split())}" for i, e in enumerate(message.about))
            lines.append(f"#. {told}")
        lines.append(f"msgid {json.dumps(message.msgid, ensure_ascii=False)}")
        lines.append(f"msgstr {json.dumps(known.get(message.msgid, ''), ensure_ascii=False)}")
        lines.append("")
    return "\n".join(lines)


def count() -> None:
    """Print how many texts each room has, and how many of them are translated."""
    total, done = 0, 0
    for room, own in written().items():
        here = sum(map(bool, own.values()))
        print(f"{room:<14}{here:>6} of {len(own):>5}")
        total, done = total + len(own), done + here
    print(f"{'all':<14}{done:>6} of {total:>5}")


def todo(room: str) -> None:
    """Print what is not translated in a room: number, text, and what stands at its places."""
    text = catalogue_file(room).read_text(encoding="utf-8")
    numbers = {msgid: number for number, (msgid, _) in enumerate(entries(text), start=1)}
    messages = collected()
    for msgid, msgstr in entries(text):
        if not msgstr:
            about = "; ".join(" ".join(e.split()) for e in messages[msgid].about)
            shown = msgid.replace("\n", "\\n")
            print(f"{numbers[msgid]}\t{shown}" + (f"\t[{about}]" if about else ""))


def fill(room: str, source: str) -> None:
    r"""Put translations into the catalogue of a room; `\n` is a line end, `\\n` these two signs."""
    _fill(room, Path(source).read_text(encoding="utf-8").splitlines())


def _fill(room: str, lines: Iterable[str]) -> None:
    path = catalogue_file(room)
    text = path.read_text(encoding="utf-8")
    msgids = [msgid for msgid, _ in entries(text)]
    given: dict[str, str] = {}
    for line in lines:
        number, tab, translation = line.partition("\t")
        if not tab or not number.strip().isdigit():
            if line.strip():
                print(f"not taken: {line}")
            continue
        msgid = msgids[int(number) - 1]
        translation = re.sub(r"(?<!\\)\\n", "\n", translation.strip()).replace("\\\\n", "\\n")
        if problem := disagreement(msgid, translation):
            print(f"{number}: {problem}: {translation}")
            continue
        given[msgid] = translation
    head, *blocks = re.split(r"(?m)(?=^msgid )", text)
    for i, block in enumerate(blocks):
        pairs = [*entries(block)]
        if pairs and pairs[0][0] in given:
            new = json.dumps(given[pairs[0][0]], ensure_ascii=False)
            blocks[i] = re.sub(r"(?m)^msgstr .*$", lambda _, new=new: f"msgstr {new}", block)
    path.write_text(head + "".join(blocks), encoding="utf-8", newline="\n")
    print(f"{room}: {len(given)} translations taken")


def take(source: str) -> None:
    """Put translations into the catalogues of all rooms: lines of English, a tab, Chinese."""
    told = {}
    for line in Path(source).read_text(encoding="utf-8").splitlines():
        english, _, chinese = line.partition("\t")
        told[english.replace("\\n", "\n")] = chinese.strip()
    for room, own in written().items():
        numbers = {msgid: number for number, msgid in enumerate(own, start=1)}
        lines = [f"{numbers[msgid]}\t{told.pop(msgid)}" for msgid in own if told.get(msgid)]
        if lines:
            _fill(room, lines)
    for english in told:
        print(f"no such text: {english}")


if __name__ == "__main__":
    commands = {"update": update, "count": count, "todo": todo, "fill": fill, "take": take}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(inspect.cleandoc(__doc__ or ""))
    commands[sys.argv[1]](*sys.argv[2:])

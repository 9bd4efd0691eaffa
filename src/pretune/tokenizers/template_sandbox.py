"""The environment that chat templates run in: Jinja's sandbox, with limits on work and on memory.

Jinja's sandbox keeps a template away from Python's own functions, but a loop in a loop may run for
years, and `'x' * 10**12` takes all memory. Here every step is counted, and a text that would grow
over a limit is refused before it is made. Nothing is timed, so the same template does the same on
any machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from typing_extensions import override

#: The most steps of one rendering: turns of loops, calls, operations, and items of lists that
#: filters read. A published template takes some hundred for a message.
MOST_STEPS = 4_000_000
#: A call, which may be of a macro, takes as long as so many turns of a loop.
_STEPS_A_CALL = 20
#: The most characters of a text, or items of a list.
MOST_SIZE = 10_000_000
#: The longest number, in bits.
_MOST_BITS = 4096
#: Characters of a text that a filter handles in the time of one item of a list.
_CHARACTERS_A_STEP = 64

#: How many steps are left to the template that is being rendered.
_left: ContextVar[int] = ContextVar("steps left to a chat template", default=MOST_STEPS)


class TemplateLimitError(TemplateError):
    """A template that takes too many steps, or makes too long a text."""


def allow_steps() -> None:
    """Give the next rendering its steps; call it before each."""
    _left.set(MOST_STEPS)


def _spend(steps: int = 1) -> None:
    left = _left.get() - steps
    _left.set(left)
    if left < 0:
        raise TemplateLimitError(
            f"does not come to an end: it takes over {MOST_STEPS:,} steps for one conversation"
        )


def _check_size(size: float) -> None:
    if size > MOST_SIZE:
        raise TemplateLimitError(f"makes a text or list of over {MOST_SIZE:,} characters or items")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, set, range)) else 0


def _steps(value: Any) -> int:
    """The steps that a filter takes to read a value."""
    return _size(value) // (_CHARACTERS_A_STEP if isinstance(value, (str, bytes)) else 1)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """Go through the items of a loop, each of which is a step."""
    for item in items:
        _spend()
        yield item


def _read(value: Any) -> Any:
    """Pay for reading a value as a whole, and give it back."""
    _spend(1 + _steps(value))
    return value


def _concatenated(parts: Iterable[Any]) -> str:
    """Join texts, as long as the result may be."""
    kept, size = [], 0
    for part in map(str, parts):
        size += len(part)
        _check_size(size)
        kept.append(part)
    return "".join(kept)


def _widths(pattern: str, values: Iterable[Any]) -> int:
    """A bound on the characters that the widths in a `%` or `format` pattern add."""
    fixed = sum(int(digits[:20]) for digits in re.findall(r"[%{:.][-+ #0<>=^]*(\d+)", pattern))
    # A width may also be one of the values: `%*d`, `{:{}}`.
    if not re.search(r"%[^A-Za-z%]*\*|\{[^{}]*\{", pattern):
        return fixed
    widest = max((abs(value) for value in values if isinstance(value, int)), default=0)
    return fixed + widest * (pattern.count("*") + pattern.count("{"))


def _grown(name: str, subject: Any, values: tuple[Any, ...]) -> int:
    """A bound on the length of what a filter or method makes, where it may outgrow its input."""
    first = values[0] if values else 0
    if not isinstance(subject, str):
        return 0
    if name in ("center", "ljust", "rjust", "zfill"):
        return first if isinstance(first, int) else 0
    if name == "expandtabs":
        return len(subject) + subject.count("\t") * (first if isinstance(first, int) else 8)
    if name == "indent":
        width = first if isinstance(first, int) else _size(first)
        return len(subject) + (subject.count("\n") + 1) * width
    if name == "replace" and len(values) > 1:
        old, new = str(first), str(values[1])
        return len(subject) + subject.count(old) * len(new)
    if name in ("format", "format_map"):
        return _widths(subject, values)
    if name == "translate" and isinstance(first, dict):
        return len(subject) * max(map(_size, first.values()), default=0)
    return 0


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a filter spend steps, and refuse what grows too long."""

    @wraps(function)
    def limited(*values: Any, **named: Any) -> Any:
        # Filters that want the context, or the like, get it before the value.
        own = values[1:] if hasattr(function, "jinja_pass_arg") else values
        given = (*own[1:], *named.values())
        _spend(_STEPS_A_CALL + sum(map(_steps, own)))
        _check_size(_grown(name, own[0] if own else None, given))
        result = function(*values, **named)
        _spend(_steps(result))
        _check_size(_size(result))
        return result

    return limited


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's `join`, as long as the result may be."""
    items = value if attribute is None else (_part(item, attribute) for item in value)
    parts: list[Any] = []
    for item in _counted(items):
        parts += [d, item] if parts else [item]
    return _concatenated(parts)


def _part(item: Any, attribute: str | int) -> Any:
    for name in str(attribute).split("."):
        item = item[int(name) if name.isdecimal() else name]
    return item


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    indent = how.get("indent")
    if indent is not None and _size(indent) + (indent if isinstance(indent, int) else 0) > 100:
        raise TemplateLimitError("indents JSON by over 100 characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


class _Generation(Extension):
    """`{% generation %}`, which marks replies for training masks, and changes no text."""

    tags = {"generation"}  # noqa: RUF012 - declared like this in the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Limiter(NodeTransformer):
    """Puts our filters around what Jinja does without asking: loops, slices,
    comparisons, `~`."""

    def __init__(self, environment: LimitedEnvironment) -> None:
        self.environment = environment

    def _filtered(self, name: str, node: nodes.Node) -> nodes.Filter:
        place = {"lineno": node.lineno, "environment": self.environment}
        return nodes.Filter(node, name, [], [], None, None, **place)

    def _around(self, node: nodes.Node, part: str, name: str) -> nodes.Node:
        """Put a filter around a part of a node."""
        self.generic_visit(node)
        setattr(node, part, self._filtered(name, getattr(node, part)))
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's name
        return self._around(node, "iter", "counted ")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filtered("read ", node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - Jinja's name
        return self._around(node, "expr", "read ")

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        if not isinstance(node.expr, nodes.Const):
            node.expr = self._filtered("read ", node.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's name
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno, environment=self.environment)
        return self._filtered("concatenated ", parts)


#: Filters that no chat template needs, and that make long texts of short ones.
_LEFT_OUT = ("batch", "center", "slice", "wordwrap")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The names and settings that transformers gives to templates, and no others; with limits."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(_concatenated)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        kept = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals.clear()
        self.globals.update(
            kept, raise_exception=_refuse, strftime_now=lambda how: datetime.now().strftime(how)
        )
        self.filters |= {"tojson": _to_json, "join": _join}
        self.filters = {
            name: _limited(name, function)
            for name, function in self.filters.items()
            if name not in _LEFT_OUT
        }
        # With a space in their names, no template can call them.
        self.filters |= {"counted ": _counted, "read ": _read}
        self.filters["concatenated "] = _concatenated

    @override
    def _generate(self, source: nodes.Template, *given: Any, **how: Any) -> str:
        return super()._generate(_Limiter(self).visit(source), *given, **how)

    @override
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _spend()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            values = right if isinstance(right, tuple) else (right,)
            _check_size(_widths(left, values))
        elif operator == "*" and not numbers:
            for repeated, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    _check_size(_size(repeated) * times)
        elif numbers and operator in ("*", "**"):
            more = right if operator == "**" else 1
            if left.bit_length() * more + right.bit_length() > _MOST_BITS:
                raise TemplateLimitError(f"computes a number of over {_MOST_BITS:,} bits")
        return super().call_binop(context, operator, left, right)

    @override
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _spend(_STEPS_A_CALL)
        # A method of a text; `format` is a function of the sandbox, around the method.
        method = getattr(__obj, "__wrapped__", __obj)
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(subject, str):
            if name == "join" and len(args) == 1:
                return _join(args[0], subject)
            _spend(_steps(subject))
            _check_size(_grown(name, subject, (*args, *kwargs.values())))
        return super().call(__context, __obj, *args, **kwargs)

"""YAML as people expect it: YAML 1.2's scalars, and a key given twice is an error.

PyYAML reads YAML 1.1, where `no` is False, `5e-5` a string and `1:30` ninety; and it silently keeps
the last of two equal keys.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from pretune.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """A safe loader with the core schema of YAML 1.2 (section 10.3)."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the parent's own attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases: they may be circular, or expand beyond memory."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            reason = f"aliases are not read: write out what *{event.anchor} means, or quote it"
            raise yaml.composer.ComposerError(None, None, reason, event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Give the place of a value that does not match its tag."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.constructor.ConstructorError(
                None, None, f"the value is not what {tag} says", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is given twice or is not a plain value."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first)
    )


_resolve("null", "~|null|Null|NULL", "~nN")
_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
# PyYAML looks an empty scalar up under "".
_Loader.yaml_implicit_resolvers.setdefault("", []).append(
    ("tag:yaml.org,2002:null", re.compile(r"^$"))
)


#: Digits of a whole number, in any base. Python refuses to print more than 4,300 decimal digits.
_MOST_DIGITS = 1000


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    if len(text) > _MOST_DIGITS:
        raise ValueError("too many digits")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)  # the parent's would read 010 as eight


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(yaml.SafeDumper):
    """A safe dumper whose output `_Loader` reads back as the same value."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value out each time it occurs."""
        return True


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if math.isfinite(value):
        text = repr(value)
    else:
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _write_float)
_Dumper.yaml_implicit_resolvers = {
    # Quoted if either the old or the new reading would take it for something else than a string.
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def parse(text: str, origin: str) -> Any:
    """Read a YAML text.

    Raises:
        RecipeError: not YAML, or a key given twice; names the line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(
            f"{origin}{place}: {error.problem or error}",
            "Indent sections by two spaces; write `key: value`, with a space after the colon.",
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{origin}: not valid YAML ({error})") from None


def dump(value: Any) -> str:
    """Block-style YAML, keys in the order given."""
    return _dump(value, default_flow_style=False)


def inline(value: Any) -> str:
    """A value in YAML on one line, as it stands after `key: `."""
    text = _dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _dump(value: Any, **style: Any) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    return text

"""Things that have a name and live in a file of their own: tasks, families, metrics, recipes.

Built-in ones are listed as `"module:attribute"`; packages add theirs as entry points, which have
the same form. A person's own code adds things to the process that it runs in (`Registry.add`; see
`pretune.plugins`). Nothing is imported before it is asked for:

    [project.entry-points."pretune.tasks"]
    rank = "pretune_ranking:Rank"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pretune.errors import PretuneError, did_you_mean, nearest

T = TypeVar("T")

#: How a thing of a person's own gets its name.
OWN_FILE = (
    "If it is in a file of yours: pretune --plugin FILE.py COMMAND; in Python, import it first."
)


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to things, each imported when it is first asked for.

    Built-in names win: a package cannot replace what pretune brings.

    Args:
        group: of the entry points, e.g. `pretune.tasks`.
        kind: what an entry is called in errors, e.g. `task`.
        builtin: name -> `"module:attribute"`.
    """

    def __init__(self, group: str, kind: str, builtin: Mapping[str, str]) -> None:
        self.group, self.kind, self.builtin = group, kind, dict(builtin)
        self._loaded: dict[str, T] = {}
        #: The names of what `add` added.
        self.own: set[str] = set()

    @cached_property
    def plugins(self) -> dict[str, EntryPoint]:
        """The entry points of installed packages, by name."""
        return {e.name: e for e in entry_points(group=self.group) if e.name not in self.builtin}

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name in self.builtin:
                module, _, attribute = self.builtin[name].partition(":")
                self._loaded[name] = getattr(import_module(module), attribute)
            else:
                self._loaded[name] = self._load(self.plugins[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self.builtin or name in self.own or name in self.plugins
        )

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self.builtin, *self.plugins, *sorted(self.own)))

    def __len__(self) -> int:
        return len({*self.builtin, *self.plugins, *self.own})

    def add(self, name: str, thing: T) -> None:
        """Add a thing of a person's own for the rest of this process, or replace such a thing.

        Raises:
            PretuneError: pretune brings something of that name, or it is no name.
        """
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise PretuneError(
                f"register: {name!r} is no name for a {self.kind}", "Give it one of letters."
            )
        if name in self.builtin:
            raise PretuneError(
                f"the {self.kind} '{name}' is built in, and cannot be replaced",
                "Give yours another name.",
            )
        self._loaded[name] = thing
        self.own.add(name)

    def package_of(self, name: str) -> str | None:
        """The distribution that adds this name; None for what is built in, or not known."""
        if name in self.builtin or name in self.own or name not in self.plugins:
            return None
        dist = self.plugins[name].dist
        return None if dist is None else dist.name

    def find(
        self, name: object, *, package: str | None = None, error: type[PretuneError] = PretuneError
    ) -> T:
        """The thing of that name.

        Args:
            name: as a recipe or a checkpoint gives it.
            package: the package that a checkpoint says it came from.
            error: the class to raise.

        Raises:
            PretuneError: there is none; names the package that brings it, or the nearest name.
        """
        if isinstance(name, str) and name in self:
            return self[name]
        if package is not None:
            raise error(
                f"the {self.kind} '{name}' comes from the package {package}, which is not "
                "installed, or in a version without it",
                f"Install it: pip install --upgrade {package}",
            )
        known = list(self)
        hint = did_you_mean(str(name), known) if known else "No installed package provides any."
        if nearest(str(name), known) is None:
            hint = f"{hint}\n  {OWN_FILE}"
        raise error(f"no {self.kind} is called '{name}'", hint)

    def _load(self, plugin: EntryPoint) -> T:
        try:
            thing: Any = plugin.load()
        except Exception as reason:
            package = "an installed package" if plugin.dist is None else plugin.dist.name
            raise PretuneError(
                f"the {self.kind} '{plugin.name}' of {package} cannot be imported "
                f"({type(reason).__name__}: {reason})",
                f"Update {package}, or uninstall it.",
            ) from reason
        loaded: T = thing
        return loaded

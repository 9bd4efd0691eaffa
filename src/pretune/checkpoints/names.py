"""What a layout of names is made of, and the full names of a model by it; `keys` has the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pretune.models.backbone import Backbone


@dataclass(frozen=True)
class Rule:
    """One of our names and theirs."""

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False
    stack: int = 0


@dataclass(frozen=True)
class Head:
    """A kind of model: the class transformers has for it, and the names of what the head adds.

    Attributes:
        architecture: transformers' class.
        rules: names of what the head adds.
        tied: their second names of what is one tensor here, the vocabulary's table or a bias, and
            our name of it (in the backbone, or in the head).
        pooled: our name of what reads the backbone's pooler.
    """

    architecture: str
    rules: tuple[Rule, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    pooled: str = ""


@dataclass(frozen=True)
class Family:
    """How a published model family maps to ours.

    Attributes:
        model_type: as `config.json` names it.
        prefix: what stands before the backbone's names in a model with a head.
        backbone: our class; its `config_class` reads `config.json`.
        rules: names of the backbone.
        heads: by our name of the head; "backbone" is the model without one.
        ignored: names in published files that carry nothing to load; `{i}` as in rules.
        optional: our names that may be missing from a file (they are then initialised, and said).
        published: whether transformers has it, too.
    """

    model_type: str
    prefix: str
    backbone: type[Backbone]
    rules: tuple[Rule, ...]
    heads: Mapping[str, Head]
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    published: bool = True

    def head_names(self, head: str) -> tuple[str, ...]:
        """Our parameter names of a head."""
        return tuple(expand(self.heads[head].rules, (1,)))


@dataclass(frozen=True)
class Names:
    """Where one of our tensors is in a published file: its parts, and whether they lie across."""

    parts: tuple[str, ...]
    transposed: bool = False


def expand(rules: tuple[Rule, ...], stacks: tuple[int, ...], prefix: str = "") -> dict[str, Names]:
    """Full parameter names: ours -> theirs, for a model whose stacks have so many layers."""
    table: dict[str, Names] = {}
    for rule in rules:
        whole = rule.ours.endswith((".weight", ".bias")) or rule.ours == "bias"
        whole = whole or rule.ours.startswith("crf.")
        below = sum(stacks[: rule.stack])
        for i in range(stacks[rule.stack]) if "{i}" in rule.ours else (0,):
            for kind in ("",) if whole else (".weight", ".bias"):
                parts = tuple(prefix + part.format(i=i) + kind for part in rule.theirs)
                table[rule.ours.format(i=below + i) + kind] = Names(
                    parts, rule.transposed and kind == ".weight"
                )
    return table


def name_table(family: Family, head: str, stacks: tuple[int, ...]) -> dict[str, Names]:
    """Every parameter of a model with this head: our full name -> theirs.

    Our models with a head hold their backbone as `backbone`.
    """
    if head == "backbone":
        return expand(family.rules, stacks)
    inner = expand(family.rules, stacks, family.prefix)
    table = {f"backbone.{ours}": names for ours, names in inner.items()}
    return table | expand(family.heads[head].rules, stacks)


def ignored_names(family: Family, head: str, stacks: tuple[int, ...]) -> set[str]:
    """Their names that carry nothing of their own, with and without the family's prefix."""
    plain = {name.format(i=i) for name in family.ignored for i in range(max(stacks))}
    return plain | {family.prefix + name for name in plain} | set(family.heads[head].tied)


def second_names(head: Head, table: Mapping[str, Names]) -> dict[str, str]:
    """Their second name -> their first, of what a model with this table has under both."""
    first = {
        name: table.get(f"backbone.{ours}", table.get(ours)) for name, ours in head.tied.items()
    }
    return {name: names.parts[0] for name, names in first.items() if names is not None}


def names_of_heads(family: Family) -> set[str]:
    """Their names of what heads add, which stand without the family's prefix."""
    heads = family.heads.values()
    added = {part for h in heads for n in expand(h.rules, (1,)).values() for part in n.parts}
    return added.union(*(head.tied for head in heads))

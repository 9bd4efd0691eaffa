"""Full parameter names of a model: ours and the published ones, from the rules of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pretune.models.family import Family, HeadLayout, Rule


@dataclass(frozen=True)
class PublishedNames:
    """Where one of our tensors is in a published file."""

    parts: tuple[str, ...]  # the published tensors that are concatenated into ours
    transposed: bool = False  # whether they are stored transposed


def expand(
    rules: tuple[Rule, ...], stacks: tuple[int, ...], prefix: str = ""
) -> dict[str, PublishedNames]:
    """Apply rules to every layer and to weights and biases: our full names to published ones.

    `stacks` has the number of layers in each stack; `prefix` goes before every published name.
    """
    table: dict[str, PublishedNames] = {}
    for rule in rules:
        # A name that is already complete, or one that stands for a weight and a bias.
        whole = rule.ours.endswith((".weight", ".bias")) or rule.ours == "bias"
        whole = whole or rule.ours.startswith("crf.")
        below = sum(stacks[: rule.stack])
        for i in range(stacks[rule.stack]) if "{i}" in rule.ours else (0,):
            for kind in ("",) if whole else (".weight", ".bias"):
                parts = tuple(prefix + part.format(i=i) + kind for part in rule.theirs)
                table[rule.ours.format(i=below + i) + kind] = PublishedNames(
                    parts, rule.transposed and kind == ".weight"
                )
    return table


def rows_of_parts(model: nn.Module, ours: str, rows: int, names: PublishedNames) -> list[int]:
    """How many of the `rows` of one of our tensors each published tensor has.

    They have as many each, unless the module says otherwise: `Linear.parts`.
    """
    owner = model.get_submodule(ours.rpartition(".")[0])
    own = getattr(owner, "parts", ())
    count = len(names.parts)
    return list(own) if len(own) == count else [rows // count] * count


def name_table(family: Family, head: str, stacks: tuple[int, ...]) -> dict[str, PublishedNames]:
    """Every parameter of a model with this head: our full name to the published names.

    Models with a head hold their backbone as `backbone`.
    """
    if head == "backbone":
        return expand(family.rules, stacks)
    inner = expand(family.rules, stacks, family.prefix)
    table = {f"backbone.{ours}": names for ours, names in inner.items()}
    return table | expand(family.heads[head].rules, stacks)


def head_parameters(family: Family, head: str) -> set[str]:
    """Our names of the parameters that a head adds."""
    return set(expand(family.heads[head].rules, (1,)))


def ignored_names(family: Family, head: str, stacks: tuple[int, ...]) -> set[str]:
    """Published names that add nothing to the model, with and without the family's prefix."""
    plain = {name.format(i=i) for name in family.ignored for i in range(max(stacks))}
    return plain | {family.prefix + name for name in plain} | set(family.heads[head].tied)


def second_names(head: HeadLayout, table: Mapping[str, PublishedNames]) -> dict[str, str]:
    """Second published name to first, for tensors of the table that are stored twice."""
    first = {
        name: table.get(f"backbone.{ours}", table.get(ours)) for name, ours in head.tied.items()
    }
    return {name: names.parts[0] for name, names in first.items() if names is not None}


def names_of_heads(family: Family) -> set[str]:
    """Published names of everything that heads add, which never have the family's prefix."""
    heads = family.heads.values()
    added = {part for h in heads for n in expand(h.rules, (1,)).values() for part in n.parts}
    return added.union(*(head.tied for head in heads))


def layer_fronts(family: Family) -> dict[str, int]:
    """What stands before the number of a layer in published names, and the layer's stack."""
    parts = ((part, rule.stack) for rule in family.rules for part in rule.theirs)
    return {part.partition("{i}")[0]: stack for part, stack in parts if "{i}" in part}

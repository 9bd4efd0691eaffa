"""What `pretune inspect` shows in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pretune.experiments.costs import Flops, Memory
from pretune.inspection.inspect import Inspection, Part, Piece, Vocabulary


def inspection_view(found: Inspection) -> RenderableType:
    """All of it for the terminal."""
    trained = f", trained for {found.task}" if found.task else ""
    reach = "any length" if found.positions is None else f"{found.positions} positions"
    title = f"{found.family}{trained}, {found.parameters:,} parameters, {reach}"
    parts: list[RenderableType] = [
        Text(title, "bold"),
        Text(found.source, overflow="fold"),
        Text(),
        _tree_view(found.tree),
        Text(),
        _components_view(found),
        Text(),
        _flops_view(found.flops),
        Text(),
        _memory_view(found.memory),
        Text(),
    ]
    if found.vocabulary is None:
        parts.append(Text("no tokenizer here"))
    else:
        parts.append(_vocabulary_view(found.vocabulary))
    return Group(*parts)


def _tree_view(part: Part, into: Tree | None = None) -> Tree:
    label = Text(part.name, "bold")
    label.append(f"{'  ' if part.name else ''}{part.kind}", "" if part.name else "bold")
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in part.shapes.items())
    label.append(f"  {shown}" if shown else "", "cyan")
    label.append(f"  {'each ' if part.count > 1 else ''}{part.parameters:,}", "green")
    node = Tree(label, guide_style="dim") if into is None else into.add(label)
    for inner in part.parts:
        _tree_view(inner, node)
    return node


def _table(*columns: str) -> Table:
    table = Table(pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _titled(title: str, *parts: RenderableType) -> Group:
    return Group(Text(title, "bold"), *parts)


def _components_view(found: Inspection) -> Table:
    table = _table("component", "parameters", "share")
    for name, count in found.components.items():
        table.add_row(name, f"{count:,}", f"{100 * count / found.parameters:.2f} %")
    table.add_section()
    table.add_row("all", f"{found.parameters:,}", "100.00 %")
    return table


def _flops_view(flops: Flops) -> Group:
    title = f"floating-point operations, sequences of {flops.length} tokens"
    table = _table("", "FLOPs")
    table.add_row("2 × matrix parameters", f"{2 * flops.matrix_parameters:,}")
    table.add_row("attention: 4 × length × hidden × layers", f"{flops.attention:,}")
    table.add_row("a token, forward", f"{flops.per_token:,}")
    table.add_row("a token, forward and backward (3 ×)", f"{flops.training_per_token:,}")
    table.add_row("a sequence, forward", f"{flops.per_sequence:,}")
    source = (
        "Kaplan et al. 2020 (arXiv:2001.08361, 2.1), Chowdhery et al. 2022 (arXiv:2204.02311, B)"
    )
    return _titled(title, table, Text(source, "dim"))


def _memory_view(memory: Memory) -> Group:
    title = f"memory, float32 on a CPU, batches of {memory.batch} × {memory.length} tokens"
    table = _table("MiB", "inference", "training")
    table.add_row("weights", _mib(memory.weights), _mib(memory.weights))
    table.add_row("gradients", "", _mib(memory.gradients))
    table.add_row("AdamW's moments", "", _mib(memory.optimizer))
    table.add_row("activations", _mib(memory.forward), _mib(memory.activations))
    table.add_section()
    table.add_row("a process grows by about", _mib(memory.inference), _mib(memory.training))
    note = (
        "Gradients come while activations go; the allocator leaves holes. Not counted: Python and "
        "PyTorch themselves, some 300 MiB."
    )
    return _titled(title, table, Text(note, "dim"))


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def _vocabulary_view(vocabulary: Vocabulary) -> Group:
    table = _table("special token", "id", "known as")
    for special in vocabulary.special:
        table.add_row(Text(special.token), str(special.id), ", ".join(special.names))
    return _titled(f"vocabulary: {vocabulary.size:,} tokens", table)


def pieces_view(pieces: list[Piece]) -> Group:
    """The tokens of a text for the terminal."""
    table = _table("piece", "id", "from", "to", "text")
    for one in pieces:
        start, end = ("" if one.start is None else str(n) for n in (one.start, one.end))
        table.add_row(Text(one.piece), str(one.id), start, end, Text(repr(one.text)[1:-1]))
    return _titled(f"{len(pieces)} tokens", table)

"""A model's structure, costs and vocabulary in the terminal, and the tokens of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from pretune.checkpoints.sentence_transformers import EmbeddingSettings
from pretune.experiments.costs import Flops, Memory
from pretune.inspection.inspect import Inspection, KernelTable, ModuleTree, TokenSpan, Vocabulary
from pretune.models import kernels
from pretune.models.kernels import KERNEL_NAMES
from pretune.render.grid import Grid
from pretune.text.spoken_language import tr
from pretune.text.terminal import in_line


def inspection_view(inspection: Inspection) -> RenderableType:
    """Lay out everything known of a model."""
    name = inspection.family
    if inspection.task:
        name = tr(f"{inspection.family}, trained for {inspection.task}")
    reach = tr("any length")
    if inspection.positions is not None:
        reach = tr(f"{inspection.positions} positions")
    title = tr(f"{name}, {inspection.parameters:,} parameters, {reach}")
    vocabulary = inspection.vocabulary
    parts = [
        _module_tree(inspection.tree),
        _components(inspection),
        _flops(inspection.flops),
        _memory(inspection.memory),
        Text(tr("no tokenizer here")) if vocabulary is None else _vocabulary(vocabulary),
        *(() if inspection.embedding is None else (_embedding(inspection.embedding),)),
    ]
    spaced = [shown for part in parts for shown in (Text(), part)]
    source = Text(in_line(inspection.source), overflow="fold")
    return Group(Text(title, "bold"), source, *spaced)


def _module_tree(module: ModuleTree, into: Tree | None = None) -> Tree:
    """Add a module and those in it to a tree: name, class, shapes and number of parameters."""
    label = Text(module.name, "bold")
    label.append(f"{'  ' if module.name else ''}{module.kind}", "" if module.name else "bold")
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in module.shapes.items())
    label.append(f"  {shown}" if shown else "", "cyan")
    count = f"{module.parameters:,}"
    label.append(f"  {tr(f'each {count}') if module.count > 1 else count}", "green")
    node = Tree(label, guide_style="dim") if into is None else into.add(label)
    for inner in module.parts:
        _module_tree(inner, node)
    return node


def kernels_view(table: KernelTable) -> RenderableType:
    """Lay out the times of the kernels, and the one that is used for each class of products."""
    # The tokens from one class to the next.
    last = {low: f"{low}–{high - 1}" for low, high in pairwise(kernels.ROWS)}
    rows = [
        (
            tr("forward") if shape.kind == "forward" else tr(f"backward: {shape.kind}"),
            last.get(shape.rows, tr(f"{shape.rows} and more")),
            f"{shape.inner:,} × {shape.outer:,}",
            *(f"{timing.ms[name]:.3f}" if name in timing.ms else "" for name in kernels.FORCED),
            KERNEL_NAMES[table.used(shape)],
        )
        for shape, timing in table.timings.items()
    ]
    times = (f"{KERNEL_NAMES[k]}, ms" for k in kernels.FORCED)
    header = (tr("product"), tr("tokens"), tr("sizes"), *times)
    why = {
        kernels.MEASURED: tr("the faster kernel of each is used"),
        kernels.DEFAULT: tr("PyTorch's own kernel is used: no cache to remember a choice in"),
    }.get(table.mode, tr(f"PRETUNE_MATMUL={table.mode} holds"))
    threads = tr("1 thread") if table.threads == 1 else tr(f"{table.threads} threads")
    title = tr(f"matrix products on {in_line(table.processor)}, {threads}: {why}")
    return Grid((*header, tr("used")), rows, title).terminal()


def _components(inspection: Inspection) -> RenderableType:
    whole = inspection.parameters
    rows = [
        (tr(name), f"{count:,}", f"{100 * count / whole:.2f} %")
        for name, count in inspection.components.items()
    ]
    footer = [(tr("all"), f"{whole:,}", "100.00 %")]
    header = (tr("component"), tr("parameters"), tr("share"))
    return Grid(header, rows, footer=footer).terminal()


def _flops(flops: Flops) -> RenderableType:
    rows = [
        (tr("2 × matrix parameters"), f"{2 * flops.matrix_parameters:,}"),
        (tr("attention: 4 × length × hidden × layers"), f"{flops.attention:,}"),
        (tr("a token, forward"), f"{flops.per_token:,}"),
        (tr("a token, forward and backward (3 ×)"), f"{flops.training_per_token:,}"),
        (tr("a sequence, forward"), f"{flops.per_sequence:,}"),
    ]
    title = tr(f"floating-point operations, sequences of {flops.length} tokens")
    source = (
        "Kaplan et al. 2020 (arXiv:2001.08361, 2.1), Chowdhery et al. 2022 (arXiv:2204.02311, B)"
    )
    return Group(Grid(("", "FLOPs"), rows, title).terminal(), Text(source, "dim"))


def _memory(memory: Memory) -> RenderableType:
    rows = [
        (tr("weights"), _mib(memory.weights), _mib(memory.weights)),
        (tr("gradients"), "", _mib(memory.gradients)),
        (tr("AdamW's moments"), "", _mib(memory.optimizer)),
        (tr("activations"), _mib(memory.forward), _mib(memory.activations)),
    ]
    footer = [(tr("a process grows by about"), _mib(memory.inference), _mib(memory.training))]
    title = tr(f"memory, float32 on a CPU, batches of {memory.batch} × {memory.length} tokens")
    note = tr(
        "Gradients come while activations go; the allocator leaves holes. Not counted: Python and "
        "PyTorch themselves, some 300 MiB."
    )
    grid = Grid(("MiB", tr("inference"), tr("training")), rows, title, footer=footer)
    return Group(grid.terminal(), Text(note, "dim"))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _vocabulary(vocabulary: Vocabulary) -> RenderableType:
    rows = [(token.token, token.id, ", ".join(token.names)) for token in vocabulary.special]
    header = (tr("special token"), "id", tr("known as"))
    return Grid(header, rows, tr(f"vocabulary: {vocabulary.size:,} tokens")).terminal()


def _embedding(settings: EmbeddingSettings) -> RenderableType:
    """Lay out what the files of sentence-transformers say, each value as JSON."""
    rows = [
        (name, json.dumps(value, ensure_ascii=False))
        for name, value in asdict(settings).items()
        if name != "source" and value is not None
    ]
    title = tr("vectors of texts, as the files of sentence-transformers say")
    return Grid((tr("setting"), ""), rows, title, numbers=()).terminal()


def tokens_view(tokens: Sequence[TokenSpan]) -> RenderableType:
    """Lay out the tokens of a text: piece, id, and the characters that it stands for."""
    rows = []
    for token in tokens:
        ends = ("", "") if token.start is None else (token.start, token.end)
        rows.append((token.piece, token.id, *ends, repr(token.text)[1:-1]))
    header = (tr("piece"), "id", tr("from"), tr("to"), tr("text"))
    return Grid(header, rows, tr(f"{len(tokens)} tokens")).terminal()

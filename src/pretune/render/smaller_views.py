"""What pruning and quantisation did to a model, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from pretune.render.grid import Grid

if TYPE_CHECKING:
    from pretune.export.pruning import PruningResult


def pruning_view(result: PruningResult) -> RenderableType:
    """Lay out a model before and after: its parts, what it takes, and how good it is."""
    before, after = result.before, result.after
    sizes = [
        ("layers", before.layers, after.layers),
        ("attention heads", before.heads, after.heads),
        ("feed-forward neurons a layer", before.neurons, after.neurons),
        ("tokens", before.tokens, after.tokens),
        ("parameters", before.parameters, after.parameters),
        ("MB in memory", before.megabytes, after.megabytes),
        ("MFLOPs a token", before.flops / 1e6, after.flops / 1e6),
    ]
    rows: list[tuple[object, ...]] = [
        (name, _number(old), _number(new), f"{100 * new / old:.1f} %") for name, old, new in sizes
    ]
    rows += [
        (name, f"{value:.4f}", f"{after.metrics[name]:.4f}", f"{after.metrics[name] - value:+.4f}")
        for name, value in before.metrics.items()
        if name in after.metrics
    ]
    return Grid(("", "before", "after", ""), rows, "pruned").terminal()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"

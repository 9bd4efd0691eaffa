"""What pruning and quantisation did to a model, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.render.grid import Grid
from pretune.text.terminal import in_line

if TYPE_CHECKING:
    from pretune.export.onnx_files import EngineExport
    from pretune.export.pruning import PruningResult
    from pretune.export.quality_gate import GateResult


def pruning_table(result: PruningResult) -> Grid:
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
    held = result.held_back
    if held is not None and held.words:
        rows.append(
            (f"of {held.words:,} words held back, cut otherwise", "", f"{held.changed:.2%}", "")
        )
        rows.append(("... and unknown", "", f"{held.unknown:.2%}", ""))
    return Grid(("", "before", "after", ""), rows, "pruned")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def gate_view(result: GateResult) -> RenderableType:
    """Lay out the settings from safest to fastest beside float32, and which was taken."""
    metric = result.metric or "metric"
    header = ("in 8 bits", "MB", "seconds", metric, "change", "agree", "")
    before = "" if result.value is None else f"{result.value:.4f}"
    rows: list[tuple[object, ...]] = [
        ("nothing (float32)", f"{result.megabytes:.1f}", f"{result.seconds:.1f}", before, *[""] * 3)
    ]
    below = []
    for own in result.tried:
        span = own.interval
        verdict = "refused" if own.reasons else "passes"
        if own is result.chosen:
            verdict = "forced" if result.forced else "taken"
        rows.append(
            (
                own.name,
                f"{own.megabytes:.1f}",
                f"{own.seconds:.1f}",
                "" if own.metric is None else f"{own.metric:.4f}",
                "" if span is None else f"{span.value:+.4f}",
                "" if own.agreement is None else f"{own.agreement:.2f} %",
                verdict,
            )
        )
        # What is too long for a column: how sure the change is, and why a setting is refused.
        if span is not None and own.p is not None:
            between = f"{span.low:+.4f} to {span.high:+.4f}"
            below.append(f"{own.name}: 95 % interval of the change {between}, p {own.p:.3f}")
        if own.reasons:
            below.append(f"{own.name}: {'; '.join(own.reasons)}")
    caption = f"{result.examples:,} examples, {result.instructions}"
    table = Grid(header, rows, caption, numbers=range(1, 6)).terminal()
    return Group(table, *(Text(in_line(line)) for line in below))


def export_view(result: EngineExport) -> RenderableType:
    """Lay out the files of an export, and how far their outputs are from the model's own."""
    title = f"compared with the model on {result.difference.texts} random texts"
    if (opset := getattr(result, "opset", None)) is not None:
        title = f"opset {opset}; {title}"
    rows = []
    for name, size in result.files.items():
        # An ONNX export has float32, too; that for CTranslate2 has one of both.
        small = result.int8 if "_quantized" in name or len(result.files) == 1 else None
        own = small or result.difference
        form = "float32" if small is None else "int8"
        rows.append((name, f"{size / 1e6:.1f}", form, f"{own.largest:.1e}", f"{own.cosine:.4f}"))
    header = ("file", "MB", "form", "largest difference", "smallest cosine")
    return Grid(header, rows, title, numbers=(1, 3, 4)).terminal()

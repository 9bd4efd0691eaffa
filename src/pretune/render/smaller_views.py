"""What pruning and quantisation did to a model, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.render.grid import Grid
from pretune.text.spoken_language import tr
from pretune.text.terminal import in_line

if TYPE_CHECKING:
    from pretune.export.onnx_files import EngineExport
    from pretune.export.pruning import PruningResult
    from pretune.export.quality_gate import GateResult


def pruning_table(result: PruningResult) -> Grid:
    """Lay out a model before and after: its parts, what it takes, and how good it is."""
    before, after = result.before, result.after
    sizes = [
        (tr("layers"), before.layers, after.layers),
        (tr("attention heads"), before.heads, after.heads),
        (tr("feed-forward neurons a layer"), before.neurons, after.neurons),
        (tr("tokens"), before.tokens, after.tokens),
        (tr("parameters"), before.parameters, after.parameters),
        (tr("MB in memory"), before.megabytes, after.megabytes),
        (tr("MFLOPs a token"), before.flops / 1e6, after.flops / 1e6),
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
        cut = tr(f"of {held.words:,} words held back, cut otherwise")
        rows.append((cut, "", f"{held.changed:.2%}", ""))
        rows.append((tr("... and unknown"), "", f"{held.unknown:.2%}", ""))
    return Grid(("", tr("before"), tr("after"), ""), rows, tr("pruned"))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def gate_view(result: GateResult) -> RenderableType:
    """Lay out the settings from safest to fastest beside float32, and which was taken."""
    metric = result.metric or tr("metric")
    header = (tr("in 8 bits"), "MB", tr("seconds"), metric, tr("change"), tr("agree"), "")
    before = "" if result.value is None else f"{result.value:.4f}"
    rows: list[tuple[object, ...]] = [
        (
            tr("nothing (float32)"),
            f"{result.megabytes:.1f}",
            f"{result.seconds:.1f}",
            before,
            *[""] * 3,
        )
    ]
    below = []
    for own in result.tried:
        span = own.interval
        verdict = tr("refused") if own.reasons else tr("passes")
        if own is result.chosen:
            verdict = tr("forced") if result.forced else tr("taken")
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
            low, high = f"{span.low:+.4f}", f"{span.high:+.4f}"
            interval = tr(f"95 % interval of the change {low} to {high}, p {own.p:.4f}")
            below.append(f"{own.name}: {interval}")
        if own.reasons:
            below.append(f"{own.name}: {'; '.join(map(tr, own.reasons))}")
    caption = tr(f"{result.examples:,} examples, {result.instructions}")
    table = Grid(header, rows, caption, numbers=range(1, 6)).terminal()
    return Group(table, *(Text(in_line(line)) for line in below))


def export_view(result: EngineExport) -> RenderableType:
    """Lay out the files of an export, and how far their outputs are from the model's own."""
    title = tr(f"compared with the model on {result.difference.texts} random texts")
    if (opset := getattr(result, "opset", None)) is not None:
        title = f"opset {opset}; {title}"
    rows = []
    for name, size in result.files.items():
        # An ONNX export has float32, too; that for CTranslate2 has one of both.
        small = result.int8 if "_quantized" in name or len(result.files) == 1 else None
        own = small or result.difference
        form = "float32" if small is None else "int8"
        rows.append((name, f"{size / 1e6:.1f}", form, f"{own.largest:.1e}", f"{own.cosine:.4f}"))
    header = (tr("file"), "MB", tr("form"), tr("largest difference"), tr("smallest cosine"))
    return Grid(header, rows, title, numbers=(1, 3, 4)).terminal()

"""A run on other machines in the terminal: what fits, what is sent, hours and money."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.experiments.cluster import ClusterPlan
from pretune.experiments.gpu_memory import GpuMemory
from pretune.render.grid import Grid, Styled
from pretune.text.spoken_language import tr
from pretune.text.terminal import in_line


def cluster_view(plan: ClusterPlan) -> RenderableType:
    """Lay out what a run takes on other machines."""
    line = tr(
        f"about {short_time(3600 * plan.hours)} on {plan.nodes} x {plan.gpus} {plan.gpu.title}: "
        f"{plan.gpu_hours:,.1f} GPU hours"
    )
    if plan.cost is not None:
        line += tr(f", {plan.cost:,.2f} at {plan.price:,.2f} an hour")
    return Group(
        _pace(plan),
        _memory(plan),
        Text(in_line(line), "bold"),
        Text(in_line(_assumed(plan)), "dim"),
        *(Text(in_line(tr(remark)), "yellow") for remark in plan.remarks),
    )


def _pace(plan: ClusterPlan) -> RenderableType:
    exchange = plan.exchange
    by_gpu, by_machine = _size(exchange.by_gpu), _size(exchange.by_machine)
    sent = tr(f"{by_gpu} by a GPU, {by_machine} by a machine")
    rows = {
        tr("updates"): f"{plan.updates:,}",
        tr("tokens in all"): f"{plan.tokens:,}",
        tr("FLOPs in all"): f"{plan.flops:.3g}",
        tr("tokens/s, all GPUs"): f"{plan.tokens_per_second:,.0f}",
        tr("an update computes for"): _seconds(plan.compute_seconds + plan.optimizer_seconds),
        tr("an update exchanges"): sent,
        tr("... for"): _seconds(exchange.seconds),
        tr("... of which nothing hides"): f"{_seconds(exchange.lost)} ({plan.lost:.1%})",
        tr("training, hours"): f"{plan.training_seconds / 3600:,.2f}",
        tr("evaluation, hours"): f"{plan.evaluation_seconds / 3600:,.2f}",
    }
    title = tr(f"On {plan.world} GPUs, {plan.parallel}, {plan.precision}:")
    return Grid(("", ""), list(rows.items()), title).terminal()


def _memory(plan: ClusterPlan) -> RenderableType:
    """A column for each way to train, the recipe's own first."""
    parts = {
        "weights": tr("weights (float32)"),
        "gradients": tr("gradients"),
        "optimizer": tr("AdamW's moments"),
        "average": tr("moving average"),
        "others": tr("other models"),
        "exchange": tr("buffers of the exchange"),
        "copies": tr("weights in bf16"),
        "activations": tr("activations"),
        "reserve": tr("CUDA and holes (assumed)"),
    }
    rows: list[list[object]] = [
        [shown, *(_gib(getattr(way, name)) for way in plan.memory)]
        for name, shown in parts.items()
        if any(getattr(way, name) for way in plan.memory)
    ]
    styles = ["green" if way.fits else "red" for way in plan.memory]
    ways = list(zip(plan.memory, styles, strict=True))
    total = [Styled(_gib(way.total), style) for way, style in ways]
    fits = [Styled(tr("yes") if way.fits else tr("no"), style) for way, style in ways]
    rows += [[tr("in all"), *total], [tr("fits"), *fits]]
    title = tr(
        f"GiB of a GPU with {plan.gpu.memory / 2**30:g}; at most {plan.micro_batch} sequences "
        "at a time:"
    )
    return Grid(("", *map(_way, plan.memory)), rows, title).terminal()


def _way(way: GpuMemory) -> str:
    return way.parallel + (tr(", recomputed") if way.recompute else "")


def _assumed(plan: ClusterPlan) -> str:
    """Tell what the hours rest on."""
    peak = f"{plan.peak / 1e12:,.0f}"
    if plan.mfu_from == "assumed":
        return tr(
            f"assuming {plan.mfu:.0%} of the peak of {peak} TFLOP/s (--mfu); published runs "
            "reached 24% to 60%"
        )
    if plan.mfu_from == "given":
        return tr(f"at {plan.mfu:.0%} of the peak of {peak} TFLOP/s")
    return tr(f"at {plan.mfu:.1%} of the peak of {peak} TFLOP/s, as in {plan.mfu_from}")


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f}"


def _size(size: float) -> str:
    """Format bytes as MB or GB, as networks count."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


def short_time(seconds: float) -> str:
    """Format a duration in its largest fitting unit: `41 s`, `5 min`, `3.2 h`, `12 d`."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s"

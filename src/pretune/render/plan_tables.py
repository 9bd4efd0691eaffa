"""What `pretune plan` shows in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.experiments.plan import Plan
from pretune.render.runs_tables import short_time


def plan_view(plan: Plan) -> RenderableType:
    """All of it for the terminal."""
    table = Table(pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    cut = f" ({plan.truncated:,} of them cut)" if plan.truncated else ""
    share = "" if plan.trained == plan.parameters else f" of {plan.parameters:,}"
    rows = {
        "training examples": f"{plan.examples:,}{cut}",
        "validation examples": f"{plan.validation_examples:,}",
        "tokens an epoch": f"{plan.tokens_per_epoch:,}",
        "epochs": f"{plan.epochs:g}",
        "updates": f"{plan.updates:,}",
        "evaluations": f"{plan.evaluations:,}",
        "tokens in all": f"{plan.tokens:,}",
        "parameters trained": f"{plan.trained:,}{share}",
        "FLOPs a token": f"{plan.flops_per_token:.3g}",
        "FLOPs in all": f"{plan.flops:.3g}",
        "memory of the process (float32, CPU)": f"{plan.process_bytes / 2**20:,.0f} MiB",
        "a checkpoint's weights": f"{plan.checkpoint_bytes / 2**20:,.0f} MiB",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return Group(table, *_times(plan))


def _times(plan: Plan) -> list[Text]:
    speed = plan.speed
    if speed is None or plan.training_seconds is None or plan.hours is None:
        return [Text("no time was measured")]
    line = f"about {short_time(3600 * plan.hours)} on this machine ({speed.device}): "
    line += f"{short_time(plan.training_seconds)} training, "
    line += f"{short_time(plan.evaluation_seconds or 0)} evaluation, "
    line += f"{short_time(plan.reading_seconds)} reading data and model"
    how = (
        f"by {speed.updates} real updates on a copy of the model: "
        f"{speed.training_tokens_per_second:,.0f} tokens/s, "
        f"{speed.flops_per_second / 1e9:,.1f} GFLOP/s"
    )
    return [Text(line, "bold"), Text(how, "dim")]

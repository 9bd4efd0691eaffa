"""The table of a few-shot measurement."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretune.evaluation.few_shot.result import Cell, FewShotResult, summary

#: Answers beyond these have no column.
MOST_ANSWERS = 8


def prompt_table(result: FewShotResult) -> Group:
    """One line for each number of shots; the template; what did not fit."""
    summaries = {shots: summary(cells) for shots, cells in result.of_shots().items()}
    names = list(dict.fromkeys(name for one in summaries.values() for name in one["shares"]))
    table = Table(pad_edge=False)
    table.add_column("shots", justify="right")
    for name in ("seeds", "accuracy", "± sd", "macro F1"):
        table.add_column(name, justify="right")
    for name in names[:MOST_ANSWERS]:
        table.add_column(Text(f"% {name}"), justify="right")
    for shots, one in summaries.items():
        shares = [f"{one['shares'].get(name, 0.0):.1%}" for name in names[:MOST_ANSWERS]]
        spread = f"{one['sd']:.4f}" if one["seeds"] > 1 else ""
        figures = (f"{one['seeds']}", f"{one['accuracy']:.4f}", spread, f"{one['macro_f1']:.4f}")
        table.add_row(str(shots), *figures, *shares)
    answer, share = result.majority
    return Group(
        Text(result.template, "dim"),
        Text(f"\n{result.count:,} questions, score: {result.score}", "bold"),
        table,
        Text(f"always '{answer}': {share:.4f}"),
        *(
            Text(f"! {shortened(cell, result.count)}", "red")
            for cell in result.cells
            if cell.shortened
        ),
    )


def shortened(cell: Cell, count: int) -> str:
    """A sentence about the questions before which not all examples had room."""
    lost = cell.shots - cell.fewest
    return (
        f"{cell.shots} shots, seed {cell.seed}: {cell.shortened:,} of {count:,} prompts were too "
        f"long for the model; the first examples, up to {lost}, were left out of them"
    )

"""Failed seeds: the model gives one answer to everything, or is far worse than under other seeds.

Fine-tuning a large model on little data fails under some seeds: it ends where it gives every
example the same answer (Devlin et al. 2019, arXiv:1810.04805, section 4.1; Mosbach et al. 2021,
arXiv:2006.04884, section 4). A mean over such runs says little about either kind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pretune.tasks.added_metrics import lower_is_better
from pretune.training.run_result import RunResult, SeveralRuns

#: A run has failed if it is below the median by more than this many scaled median absolute
#: deviations and, as the spread of a few good runs can be next to nothing, by more than this gap.
DEVIATIONS, GAP = 3.0, 0.05
#: The median absolute deviation times this estimates the standard deviation of normal data.
NORMAL = 1.4826


def degenerate_runs(result: SeveralRuns) -> dict[int, str]:
    """Return the reason of each run that failed, by its seed or part, in the order of the runs.

    Only metrics that lie between 0 and 1 (or -1 and 1) and are better when higher are compared, as
    a gap of 0.05 means nothing for others.
    """
    failed = {}
    for number, run in zip(result.numbers, result.runs, strict=True):
        if (answer := only_answer(run.details)) is not None:
            failed[number] = _one_answer(answer)
        elif reason := _far_below(run, result.runs):
            failed[number] = reason
    return failed


def _one_answer(answer: str) -> str:
    return f"answers '{answer}' to everything"


def several_to_dict(result: SeveralRuns) -> dict[str, Any]:
    """Convert to plain values for JSON, with the failed seeds, or parts, as `degenerate`."""
    return {**result.to_dict(), "degenerate": list(degenerate_runs(result))}


def only_answer(details: Mapping[str, Any]) -> str | None:
    """Return the label that a model gave to all examples, if the truth has several; else None."""
    confusion: Sequence[Sequence[int]] = details.get("confusion", ())
    guessed = [i for i, column in enumerate(zip(*confusion, strict=True)) if sum(column)]
    true = [row for row in confusion if sum(row)]
    if len(guessed) != 1 or len(true) < 2:
        return None
    return str(details["labels"][guessed[0]])


def _far_below(run: RunResult, runs: Sequence[RunResult]) -> str | None:
    """Say by which metric a run is far below the median of all runs; None if it is not."""
    for name, value in run.metrics.items():
        all_values = [v for other in runs if math.isfinite(v := other.metrics[name])]
        if lower_is_better(name) or not all_values or max(map(abs, all_values)) > 1:
            continue
        middle = statistics.median(all_values)
        deviation = NORMAL * statistics.median(abs(v - middle) for v in all_values)
        # Written so that NaN is far below too.
        if not value >= middle - max(DEVIATIONS * deviation, GAP):
            return f"{name} {value:.4f} is far below the median of {middle:.4f}"
    return None

"""Seeds that went wrong: a model that gives one answer to everything, or lies far below the others.

Fine-tuning a large model on little data fails under some seeds: it ends where it gives every
example the same answer (Devlin et al. 2019, arXiv:1810.04805, section 4.1; Mosbach et al. 2021,
arXiv:2006.04884, section 4). A mean over such runs says little about either kind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pretune.tasks.base import lower_is_better
from pretune.training.result import RunResult, SeedsResult

#: A run is far below when it is so many scaled median absolute deviations and, as the spread of a
#: few good runs can be next to nothing, this much below the median.
DEVIATIONS, GAP = 3.0, 0.05
#: Times this the median absolute deviation estimates the standard deviation of normal data.
NORMAL = 1.4826


def degenerate_seeds(result: SeedsResult) -> dict[int, str]:
    """The seeds whose run is no good, and why, in the order of the runs.

    Args:
        result: of at least one run; only metrics that lie between 0 and 1 (or -1 and 1) and are
            better when higher are compared, as a gap of 0.05 means nothing for others.
    """
    found = {}
    for run in result.runs:
        if (answer := only_answer(run.details)) is not None:
            found[run.seed] = f"answers '{answer}' to everything"
        elif far := _far_below(run, result.runs):
            found[run.seed] = far
    return found


def seeds_to_dict(result: SeedsResult) -> dict[str, Any]:
    """JSON-ready: the runs, their mean and spread, and `degenerate`, the seeds that went wrong."""
    return {**result.to_dict(), "degenerate": list(degenerate_seeds(result))}


def only_answer(details: Mapping[str, Any]) -> str | None:
    """The one label that a model gave to all examples, where the truth knows several.

    Args:
        details: of an evaluation; without a confusion matrix the answer is None.
    """
    confusion: Sequence[Sequence[int]] = details.get("confusion", ())
    guessed = [i for i, column in enumerate(zip(*confusion, strict=True)) if sum(column)]
    true = [row for row in confusion if sum(row)]
    if len(guessed) != 1 or len(true) < 2:
        return None
    return str(details["labels"][guessed[0]])


def _far_below(run: RunResult, runs: Sequence[RunResult]) -> str | None:
    for name, value in run.metrics.items():
        all_values = [v for other in runs if math.isfinite(v := other.metrics[name])]
        if lower_is_better(name) or not all_values or max(map(abs, all_values)) > 1:
            continue
        middle = statistics.median(all_values)
        deviation = NORMAL * statistics.median(abs(one - middle) for one in all_values)
        # Written so that NaN is far below as well.
        if not value >= middle - max(DEVIATIONS * deviation, GAP):
            return f"{name} {value:.4f} is far below the median of {middle:.4f}"
    return None

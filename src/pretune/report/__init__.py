"""Results for people to look at."""

from pretune.report.seeds import degenerate_seeds, seeds_to_dict
from pretune.report.tables import (
    answer_text,
    confusion_table,
    evaluation_table,
    run_table,
    sample_sheet,
    seeds_table,
)

__all__ = [
    "answer_text",
    "confusion_table",
    "degenerate_seeds",
    "evaluation_table",
    "run_table",
    "sample_sheet",
    "seeds_table",
    "seeds_to_dict",
]

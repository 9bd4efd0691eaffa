"""The sample sheet of a run: what the model replied before training, and what it replies after it.

A rising figure tells that something was learned; only the replies tell what. The sheet has a line
for each held-out prompt that evaluations reply to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pretune.checkpoints.atomic_io import atomic_text
from pretune.training.validation import Evaluation

#: The file in a run folder: a JSON object for each prompt.
SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class SheetReply:
    """A reply, with what it was found to be worth.

    Attributes:
        step: the update after which it was written; 0: before training.
        reply: its text.
        scores: by name, such as `reward` and `judge`.
    """

    step: int
    reply: str
    scores: dict[str, float]

    @classmethod
    def of(cls, sample: Mapping[str, Any], step: int) -> Self:
        """Take a reply from the `samples` of an evaluation."""
        scores = {name: value for name, value in sample.items() if isinstance(value, float)}
        return cls(step, sample["reply"], scores)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a reply of a sheet; a score that was not finite is NaN.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: that is no reply.
        """
        scores = {
            str(name): math.nan if score is None else float(score)
            for name, score in values["scores"].items()
        }
        return cls(int(values["step"]), str(values["reply"]), scores)


@dataclass(frozen=True)
class SheetRow:
    """A prompt with the replies to it.

    Attributes:
        history: the texts before the reply, oldest first.
        before: the reply of the model that training started from.
        after: that of the best model, or of the last where no later one was better than the start.
    """

    history: tuple[str, ...]
    before: SheetReply
    after: SheetReply

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; scores that are not finite are None."""
        values = asdict(self)
        for reply in (values["before"], values["after"]):
            reply["scores"] = {
                name: score if math.isfinite(score) else None
                for name, score in reply["scores"].items()
            }
        return values


def sheet_of(before: Evaluation, after: Evaluation, step: int) -> list[SheetRow]:
    """Put the replies of two evaluations of the same data side by side.

    Args:
        before: the evaluation before the first update.
        after: that of the best model, or of the last.
        step: the update after which `after` was.

    Returns:
        a row for each prompt; none where the model wrote nothing.
    """
    pairs = zip(before.details.get("samples", ()), after.details.get("samples", ()), strict=True)
    return [
        SheetRow(tuple(first["history"]), SheetReply.of(first, 0), SheetReply.of(second, step))
        for first, second in pairs
    ]


def write_sheet(path: Path, rows: Iterable[SheetRow]) -> None:
    """Write a sheet as JSON lines: all of it, or nothing."""
    lines = (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
    # Half a surrogate pair, which data may hold, is not UTF-8.
    atomic_text(path, "".join(lines).encode("utf-8", "replace").decode("utf-8"))


def read_sheet(path: Path) -> list[SheetRow]:
    """Read a sheet, leaving out lines that are none of it; without a file there are no rows."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    for line in lines:
        try:
            values = json.loads(line)
            before, after = (SheetReply.from_dict(values[name]) for name in ("before", "after"))
            rows.append(SheetRow(tuple(map(str, values["history"])), before, after))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return rows


def score_names(rows: Sequence[SheetRow]) -> list[str]:
    """Return the names of the scores that every reply of a sheet has."""
    every = [reply.scores for row in rows for reply in (row.before, row.after)]
    return [name for name in every[0] if all(name in own for own in every)] if every else []

"""One look at labelled data before training: what cannot be used, and what looks wrong."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretune.corpus.dedupe import text_key
from pretune.data.bad_records import LEAVE_OUT, LISTED, BadRecords
from pretune.data.batch import Features
from pretune.data.columns import as_text
from pretune.data.readers.in_memory import is_from_memory
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.recipe.schema import DataSection
from pretune.tasks.base import Preprocessor
from pretune.tasks.labels import listed_label
from pretune.text.spoken_language import labelled, tr

#: A label is rare with fewer records than this, if others have five times as many on average.
RARE = 10
#: Texts with different labels that are named.
EXAMPLES = 3


def usable(
    task: Preprocessor, records: Records, data: DataSection, *, with_targets: bool = True
) -> Records:
    """Check each record by itself, and leave out those that cannot be used.

    Args:
        task: that is to learn from the records, or to be evaluated on them.
        records: under the task's names of columns.
        data: how they were read. Of its `errors`, with `stop` those that cannot be used are an
            error, all of them together; with `skip` they are left out and counted (`Records.bad`).
        with_targets: whether records need what is learned, such as a label.

    Raises:
        DataError: some cannot be used and `data.errors` is `stop`, or none can.
    """
    bad, good = records.bad or BadRecords(records.origin), []
    for row in range(len(records)):
        try:
            task.check(records, row, with_targets=with_targets)
        except DataError as error:
            bad.add(error)
        else:
            good.append(row)
    if not bad.count:
        return records
    total = len(good) + bad.count
    if data.errors == "stop" or not good:
        look = f"To look at all of it: {describe_command(task, records, data)}"
        raise bad.error(total, *([LEAVE_OUT] if good else []), look)
    left = records if len(good) == len(records) else records.take(good)
    told = [
        f"{records.origin}: {bad.count:,} of {total:,} records were left out (data.errors=skip):",
        *bad.lines(),
    ]
    return replace(left, bad=bad).noting("\n  ".join(told))


def describe_command(task: Preprocessor, records: Records, data: DataSection) -> str:
    """The command that shows what is in some data, which it reads as `data` says.

    Of data in a program's memory, it is a call.
    """
    sides = (("text", task.inputs), ("label", task.targets))
    renamed = {side: [*filter(None, map(records.renamed.get, names))] for side, names in sides}
    if records.lines is None and any(map(is_from_memory, (data.train, data.validation))):
        shown = {"text": renamed["text"], "label": "".join(renamed["label"][:1])}
        given = [f"{side}={value!r}" for side, value in shown.items() if value]
        return f"pretune.describe({', '.join(['DATA', *given])})"
    command = ["pretune", "describe", records.origin]
    command += [part for side, _ in sides for name in renamed[side] for part in (f"--{side}", name)]
    for option in ("encoding", "quoting"):
        if (value := getattr(data, option)) != DataSection.model_fields[option].default:
            command += [f"--{option}", value]
    return shlex.join(command)


def doubts(task: Preprocessor, records: Records, data: DataSection) -> Iterator[str]:
    """Yield lines about what looks wrong with the labels of training data, if anything does.

    Args:
        task: after `fit`.
        records: to train on, all of which can be used.
        data: how they were read.
    """
    labels = task.strata(records)
    if labels is None:
        return
    lines = [*_rare_labels(labels), *_different_labels(task, records, labels)]
    yield from lines
    if lines:
        yield f"to look closer: {describe_command(task, records, data)}"


def _rare_labels(labels: Sequence[Collection[str]]) -> Iterator[str]:
    counts = Counter(label for own in labels for label in set(own))
    mean = counts.total() / max(len(counts), 1)
    rare = sorted((n, label) for label, n in counts.items() if n < min(RARE, mean / 5))
    if rare:
        shown = ", ".join(f"{listed_label(label)} ({n})" for n, label in rare[:RARE])
        more = f", and {len(rare) - RARE} more" if len(rare) > RARE else ""
        yield f"labels with few records to learn from: {shown}{more}"


def _different_labels(
    task: Preprocessor, records: Records, labels: Sequence[Collection[str]]
) -> Iterator[str]:
    """Yield a line about texts that have different labels in different records."""
    seen: dict[bytes, tuple[int, frozenset[str]]] = {}
    apart: dict[bytes, tuple[int, int]] = {}
    for row, own in enumerate(labels):
        text = "\n".join(as_text(records.rows[row].get(name)) or "" for name in task.inputs)
        if not text.strip():
            continue
        key, known = text_key(text), frozenset(own)
        first, others = seen.setdefault(key, (row, known))
        if others != known:
            apart.setdefault(key, (first, row))
    if apart:
        pairs = list(apart.values())[:EXAMPLES]
        places = [tr(f"{_place(records, a)} and {_place(records, b)}") for a, b in pairs]
        yield (
            f"{len(apart):,} {'text has' if len(apart) == 1 else 'texts have'} different labels "
            f"in different records: {'; '.join(places)}{'; ...' * (len(apart) > EXAMPLES)}"
        )


def data_facts(records: Records, features: Features) -> dict[str, Any]:
    """What a run keeps about data and their features: how many records, and what became of some."""
    facts: dict[str, Any] = {"from": records.origin, "records": len(records)}
    if records.bad is not None:
        facts |= {"left_out": records.bad.count, "left_out_why": records.bad.lines()}
    if features.skipped:
        start = f"{records.origin}, "
        why = [
            item.why.removeprefix(start)
            if item.why.startswith(start)
            else f"{_place(records, item.record)}: {item.why}"
            for item in features.skipped[:LISTED]
        ]
        facts |= {"skipped": len(features.skipped), "skipped_why": why}
    return facts


def _place(records: Records, row: int) -> str:
    return records.where(row).removeprefix(f"{records.origin}, ")


def data_sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say what `data_facts` keeps of each part of the data, where it matters.

    The sentences are in the language that is spoken; the facts are in English.
    """
    for part, own in facts.items():
        origin = own.get("from")
        if count := own.get("left_out"):
            head = tr(f"{part}: {count:,} records of {origin} were left out (data.errors=skip)")
            yield labelled(head, _told(own.get("left_out_why", ())))
        if count := own.get("skipped"):
            head = tr(f"{part}: {count:,} records of {origin} were skipped")
            yield labelled(head, _told(own.get("skipped_why", ())))


def _told(reasons: Iterable[str]) -> str:
    return "; ".join(map(tr, reasons))

from __future__ import annotations

from pretune.data.bad_records import LISTED, BadRecords
from pretune.errors import DataError


def bad(count: int) -> BadRecords:
    records = BadRecords("a.csv")
    for number in range(count):
        records.add(DataError(f"a.csv, line {number}: no label there", "Give it one."))
    return records


def test_one_alone_is_the_error_that_it_was() -> None:
    error = bad(1).error(9, "Or skip it.")
    assert (error.message, error.hint) == (
        "a.csv, line 0: no label there",
        "Give it one.\n  Or skip it.",
    )


def test_each_way_to_repair_them_is_told_once() -> None:
    records = bad(3)
    for hint in ("Quote it.", "Quote it.", None):
        records.add(DataError("a.csv, line 9: 5 fields", hint))
    assert records.error(9, "Or skip it.").hint == "Give it one.\n  Quote it.\n  Or skip it."


def test_all_are_told_at_once_and_the_list_stays_short() -> None:
    error = bad(1000).error(5000)
    first, *lines = error.message.split("\n")
    assert first == "a.csv: 1,000 of 5,000 records cannot be used:"
    assert lines[0] == "  line 0: no label there"
    assert lines[LISTED:] == [f"  ... and {1000 - LISTED:,} more"]


def test_a_long_reason_is_cut() -> None:
    records = BadRecords("a.csv")
    records.add(DataError("a.csv, line 1: " + "x" * 9999))
    assert len(records.lines()[0]) == 240

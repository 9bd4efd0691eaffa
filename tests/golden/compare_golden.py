"""Tell two golden records apart: `python compare_golden.py A/record.json B/record.json`.

Prints each difference with its class; the exit code is 1 where there is one of the first two:

WEIGHTS  a SHA-256 of trained weights, vectors or shards differs: must never be
NUMBERS  a number within an output, an exit code or a whole entry differs
WORDS    only the wording differs
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS, NUMBERS, WORDS = "WEIGHTS", "NUMBERS", "WORDS"
_NUMBER = re.compile(r"(?<![A-Za-z_#])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MISSING = object()
#: Hashes of a whole page's words.
_WORD_HASHES = ("words_sha",)


@dataclass(frozen=True)
class Difference:
    """One entry that differs.

    Attributes:
        kind: its class.
        where: the path of the entry.
        old: there.
        new: now.
    """

    kind: str
    where: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.kind:7}  {self.where}\n    - {_short(self.old)}\n    + {_short(self.new)}"


def _short(value: Any) -> str:
    text = "(nothing)" if value is _MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _entry(value: Any, key: Any) -> Any:
    if isinstance(value, dict):
        return value.get(key, _MISSING)
    return value[key] if key < len(value) else _MISSING


def compare(old: Any, new: Any, where: str = "") -> Iterator[Difference]:
    """Yield the differences of two records, or of the parts of them at the path `where`."""
    both = (dict, list)
    if isinstance(old, both) and type(old) is type(new):
        keys = list(dict.fromkeys([*old, *new])) if isinstance(old, dict) else None
        for key in keys if keys is not None else range(max(len(old), len(new))):
            below = f"{where} > {key}" if where else str(key)
            pair = _entry(old, key), _entry(new, key)
            yield from compare(*pair, below)
        return
    if old == new:
        return
    hashes = where.startswith("weights") or where.endswith("sha")
    if where.startswith("weights"):
        yield Difference(WEIGHTS, where, old, new)
    elif where.endswith(_WORD_HASHES):
        yield Difference(WORDS, where, old, new)
    elif isinstance(old, str) and isinstance(new, str) and not hashes:
        yield from _texts(old, new, where)
    else:
        yield Difference(NUMBERS, where, old, new)


def _texts(old: str, new: str, where: str) -> Iterator[Difference]:
    """Compare texts by the lines that differ: by the numbers in them first, else as words."""
    lines = [text.split("\n") for text in (old, new)]
    shown = tuple(
        "\n".join(line for line in mine if line not in set(theirs))
        for mine, theirs in (lines, lines[::-1])
    )
    same_numbers = _NUMBER.findall(old) == _NUMBER.findall(new)
    yield Difference(WORDS if same_numbers else NUMBERS, where, *shown)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="A/record.json")
    parser.add_argument("new", type=Path, metavar="B/record.json")
    parser.add_argument("--most", type=int, default=60, help="differences shown of each class")
    options = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (options.old, options.new)]
    headers = [record.pop("header", {}) for record in records]
    if headers[0] != headers[1]:
        print(f"other machines or versions: {headers[0]} and {headers[1]}")
    found = list(compare(*records))
    for kind in (WEIGHTS, NUMBERS, WORDS):
        some = [difference for difference in found if difference.kind == kind]
        for difference in some[: options.most]:
            print(difference)
        if len(some) > options.most:
            print(f"{kind}: {len(some) - options.most} more")
    counts = {kind: sum(d.kind == kind for d in found) for kind in (WEIGHTS, NUMBERS, WORDS)}
    print(", ".join(f"{kind} {count}" for kind, count in counts.items()))
    return 1 if counts[WEIGHTS] or counts[NUMBERS] else 0


if __name__ == "__main__":
    raise SystemExit(main())

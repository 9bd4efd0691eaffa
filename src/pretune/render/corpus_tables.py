"""The table of a prepared corpus."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretune.corpus.pipeline import Prepared

_CHANGED = {
    "nfc": "brought to NFC",
    "control": "freed of control characters",
    "spaces": "with spaces collapsed",
    "join_lines": "with lines joined",
    "repeated_lines": "with repeated lines dropped",
}


def corpus_table(prepared: Prepared) -> Group:
    """What was read, what was dropped and why, and what is there now."""
    reading: dict[str, Any] = dict(prepared.train["reading"])
    table = Table(pad_edge=False)
    table.add_column("documents")
    table.add_column("", justify="right")
    table.add_row("read", f"{reading['read']:,}")
    if reading["cut"]:
        table.add_row("  of these pieces of longer ones", f"{reading['cut']:,}")
    for reason, count in reading["dropped"].items():
        table.add_row(f"  dropped: {reason}", f"{count:,}")
    for name, count in reading["changed"].items():
        table.add_row(f"  {_CHANGED[name]}", f"{count:,}")
    return Group(table, _totals(prepared, reading["unknown"]))


def _totals(prepared: Prepared, unknown: int) -> Table:
    splits = [split for split in (prepared.train, prepared.validation) if split is not None]
    table = Table(pad_edge=False)
    table.add_column("written")
    for split in splits:
        table.add_column(Text(str(split["split"])), justify="right")
    for name in ("documents", "sentences", "tokens", "characters", "bytes"):
        table.add_row(name, *(f"{split['totals'][name]:,}" for split in splits))
    table.add_row("shards", *(f"{len(split['shards']):,}" for split in splits))
    tokens = sum(split["totals"]["tokens"] for split in splits)
    table.add_section()
    table.add_row("unknown tokens", f"{unknown / max(tokens, 1):.2%}", *([""] * (len(splits) - 1)))
    return table

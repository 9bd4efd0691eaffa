"""Where pretune keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder of `PRETUNE_CACHE`, else `~/.cache/pretune`; None where the cache is turned off.

    It may not exist yet, and may not be writable.
    """
    named = os.environ.get("PRETUNE_CACHE")
    if named == "off":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "pretune"
